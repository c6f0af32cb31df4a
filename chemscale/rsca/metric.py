"""Relevant Scaled Component Analysis: sphere, reparametrise, scale (de Mijolla & Ness 2021, sections 3.3-3.5).

The estimator works on coordinates of spectra in a principal-component basis; its input is small
(stars x some tens), its state is a K x K matrix.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from chemscale.display import counted
from chemscale.rsca.linear import LinearMetric
from chemscale.rsca.moments import FieldMoments, check_freedom
from chemscale.rsca.scales import (
    centre_on_clusters,
    check_n_features,
    check_sigma,
    encoder,
    inverse_sigma_r,
    pooled_sigma,
    sphering,
)


class RSCA(LinearMetric):
    """The metric of the paper: Euclidean distance after `transform` tells how alike two stars are.

    Parameters
    ----------
    n_features : int, optional
        Features that `transform` keeps, the most scaled first; all by default.

    Attributes
    ----------
    mean_ : (K,)
        Field mean that `transform` subtracts.
    sphering_ : (K, K)
        Field coordinates times this have identity covariance (principal axes over root eigenvalue).
    rotation_ : (K, K)
        Columns are the axes of the cluster scatter in the sphered space, most scaled first.
    sigma_clust_ : (K,)
        Within-cluster standard deviation along the columns of `rotation_`, field = 1.
    scale_ : (K,)
        1 / sigma_r (eq. 4), descending; 0 where `sigma_clust_` >= 1.
    n_field_, n_members_, n_clusters_ : int
        What it was fitted on.
    n_features_in_ : int
        K.

    See Also
    --------
    chemscale.doppelganger_rates : how good it is, leave-one-cluster-out.
    chemscale.MaskedPPCA : the coordinates it works on.

    References
    ----------
    de Mijolla & Ness 2021, sections 3.3 to 3.5.

    Examples
    --------
    Six coordinates; siblings differ in all but the first.

    >>> import numpy as np
    >>> from chemscale import RSCA
    >>> rng = np.random.default_rng(0)
    >>> field = rng.normal(size=(1000, 6))
    >>> clusters = np.repeat(["M67", "NGC 188", "NGC 6819"], 8)
    >>> members = rng.normal(size=(24, 6))
    >>> members[:, 0] = np.repeat([-1.0, 0.2, 0.9], 8) + 0.05 * rng.normal(size=24)
    >>> metric = RSCA().fit(field, members, clusters)
    >>> metric.transform(field, n_features=2).shape
    (1000, 2)
    >>> bool(metric.sigma_clust_[0] < 0.1 and metric.scale_[0] > 5 * metric.scale_[1])
    True
    """

    name = "rsca"
    title = "RSCA, every feature"
    short_title = "RSCA"
    legend = "on transformed"
    stored: ClassVar = {
        "sphering": (("component", "axis"), ""),
        "rotation": (("axis", "feature"), ""),
        "sigma_clust": (("feature",), "scatter within clusters, field = 1"),
        "scale": (("feature",), "1 / sigma_r"),
    }

    sphering_: np.ndarray
    rotation_: np.ndarray
    sigma_clust_: np.ndarray
    scale_: np.ndarray
    n_field_: int
    n_members_: int
    n_clusters_: int

    def _learn(self, moments: FieldMoments, members: np.ndarray, clusters: np.ndarray) -> None:
        check_freedom(clusters, members.shape[1])
        self.sphering_ = sphering(moments)
        self.n_field_, self.n_members_, self.n_clusters_ = moments.n, len(members), len(np.unique(clusters))
        sphered = (members - self.mean_) @ self.sphering_
        centred = centre_on_clusters(sphered, clusters)
        _, axes = np.linalg.eigh(centred.T @ centred)
        sigma = pooled_sigma(sphered @ axes, clusters)
        check_sigma(sigma)
        order = np.lexsort((sigma, -inverse_sigma_r(sigma)))
        self.rotation_, self.sigma_clust_ = axes[:, order], sigma[order]
        self.scale_ = inverse_sigma_r(self.sigma_clust_)

    def _map(self, n: int) -> np.ndarray:
        return self.sphering_ @ (self.rotation_[:, :n] * self.scale_[:n])

    def _facts(self) -> dict[str, Any]:
        if not hasattr(self, "scale_"):
            return {"fitted": False}
        return {
            "coordinates": len(self.scale_),
            "informative features": int(np.sum(self.scale_ > 0)),
            "field stars": self.n_field_,
            "members": f"{self.n_members_:,} of {counted(self.n_clusters_, 'cluster')}",
            "scatter in clusters, field = 1": ", ".join(f"{s:.2f}" for s in self.sigma_clust_[:5])
            + (", ..." if len(self.sigma_clust_) > 5 else ""),
        }

    def linear_map(self, ppca: Any, n_features: int | None = None) -> np.ndarray:
        """Map from complete spectra to features (section 3.1), shape (n_features, n_pixels).

        ``features = (flux - ppca.mean_) @ map.T + constant`` for spectra without missing pixels, so differences of
        spectra map to differences of features. It includes the shrinkage of the posterior mean.
        """
        return self.matrix(n_features).T @ encoder(ppca)

    def log_amplitude(self, n_features: int | None = None) -> float:
        """log C of eq. (5) for the kept features: the sum of log(sigma_pop / sigma_clust) where informative."""
        n = check_n_features(n_features, len(self.scale_))
        keep = self.scale_[:n] > 0
        return float(-np.sum(np.log(self.sigma_clust_[:n][keep])))

    def probability_ratio(
        self, distance: Any, *, n_features: int | None = None, calibrated: bool = True, log: bool = False
    ) -> np.ndarray:
        """Probability of a pair's distance for siblings over that for random field pairs (eq. 5).

        Parameters
        ----------
        distance : array
            Euclidean distance between features (of the same `n_features`).
        calibrated : bool
            A difference of two draws has variance 2 sigma^2, so the exponent is ``-d^2 / 4``; this is the ratio of
            the two Gaussian densities. False gives ``-d^2 / 2``, eq. (5) with eq. (4) as printed, which drops the
            factor 2. Both rank pairs alike.
        log : bool
            Return the natural logarithm.
        """
        d2 = np.square(np.asarray(distance, dtype=float))
        value = self.log_amplitude(n_features) - d2 / (4.0 if calibrated else 2.0)
        return value if log else np.exp(value)
