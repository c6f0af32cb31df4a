"""RSCA whose scales are measured on clusters that its axes have not seen.

The axes of the cluster scatter are found where that scatter is small, from some 160 degrees of freedom for K(K+1)/2
numbers: along them the very clusters they were found with scatter less than any other. Scales from those
spreads trust features that tell nothing. Here a cluster's spread along an axis is measured on the axes found
without it (the cross-validated eigenvalues of Bartz & Müller 2014, in the paper's terms), and the scatter is
averaged with the measurement noise of the coordinates, where that is known, before its axes are taken. Spreads are
standard deviations with far members held in, more certain than median absolute deviations.
"""

from __future__ import annotations

import numpy as np
from sklearn.isotonic import isotonic_regression

from chemscale.rsca.metric import RSCA
from chemscale.rsca.moments import FieldMoments, check_freedom
from chemscale.rsca.scales import centre_on_clusters, check_sigma, clipped_sigma, inverse_sigma_r, sphering

#: Share of the measurement noise in the scatter whose axes are taken.
NOISE = 0.35
#: Folds of clusters; up to as many it is one cluster a fold.
MAX_FOLDS = 12


class HeldOutRSCA(RSCA):
    """RSCA with scales that every cluster gives along axes found without it; its attributes are those of :class:`RSCA`.

    With a single cluster there is none to hold out, and the spreads are those of the axes' own cluster.

    References
    ----------
    de Mijolla & Ness 2021, sections 3.3 to 3.5. Bartz & Müller 2014, NIPS 27, 1592.

    Examples
    --------
    >>> import numpy as np
    >>> from chemscale import RSCA
    >>> from chemscale.rsca.held_out import HeldOutRSCA
    >>> rng = np.random.default_rng(0)
    >>> field = rng.normal(size=(1000, 6))
    >>> members, clusters = rng.normal(size=(24, 6)), np.repeat(["M67", "NGC 188", "NGC 6819"], 8)
    >>> own = RSCA().fit(field, members, clusters).sigma_clust_[0]  # nothing is in common here
    >>> held_out = HeldOutRSCA().fit(field, members, clusters).sigma_clust_[0]
    >>> bool(own < 0.6 and held_out > 0.7)
    True
    """

    name = "rsca_held_out"
    title = "RSCA, scales of held-out clusters"
    short_title = "held-out"
    legend = "on transformed, held-out scales"

    def _learn(self, moments: FieldMoments, members: np.ndarray, clusters: np.ndarray) -> None:
        names, number = np.unique(clusters, return_inverse=True)
        if moments.noise is None:
            check_freedom(clusters, members.shape[1])
        self.sphering_ = sphering(moments)
        self.n_field_, self.n_members_, self.n_clusters_ = moments.n, len(members), len(names)
        sphered = (members - self.mean_) @ self.sphering_
        centred = centre_on_clusters(sphered, clusters)
        noise = None if moments.noise is None else self.sphering_.T @ moments.noise @ self.sphering_
        fold = number % min(len(names), MAX_FOLDS)
        along = np.empty_like(centred)
        for held in range(fold.max() + 1):
            rest = fold != held if len(names) > 1 else np.ones(len(fold), bool)
            along[fold == held] = centred[fold == held] @ _axes(centred[rest], number[rest], noise)
        sigma = clipped_sigma(along, clusters)
        check_sigma(sigma)
        # The order is that of the axes; spreads that fall are noise.
        self.sigma_clust_ = np.sqrt(isotonic_regression(sigma**2))
        self.rotation_ = _axes(centred, number, noise)
        self.scale_ = inverse_sigma_r(self.sigma_clust_)


def _axes(centred: np.ndarray, number: np.ndarray, noise: np.ndarray | None) -> np.ndarray:
    """Axes (K, K) of the scatter within clusters, the least first."""
    scatter = centred.T @ centred / max(len(centred) - len(np.unique(number)), 1)
    return np.linalg.eigh(scatter if noise is None else (1 - NOISE) * scatter + NOISE * noise)[1]
