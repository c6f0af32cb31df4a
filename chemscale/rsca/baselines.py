"""What RSCA is compared with: distances on the coordinates as they are, and on scaled ones (Figure 4 of the paper)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from chemscale.rsca.linear import LinearMetric
from chemscale.rsca.moments import FieldMoments
from chemscale.rsca.scales import check_sigma, inverse_sigma_r, pooled_sigma


class Raw(LinearMetric):
    """Euclidean distance between the coordinates as they are ("on raw" of Figure 4): nothing is learned."""

    name = "raw"
    title = "PPCA coordinates as they are"
    short_title = "as they are"
    legend = "on raw"

    def _learn(self, moments: FieldMoments, members: np.ndarray, clusters: np.ndarray) -> None:
        pass

    def _map(self, n: int) -> np.ndarray:
        return np.eye(self.n_features_in_)[:, :n]


class Scaled(LinearMetric):
    """Step 4 alone on raw coordinates ("on scaled" of Figure 4): each coordinate times its own 1 / sigma_r.

    Attributes
    ----------
    order_ : (K,) int
        Coordinates, the most telling first.
    scale_, sigma_clust_ : (K,)
        Scales and within-cluster standard deviations, in that order.
    """

    name = "scaled"
    title = "scaled only"
    short_title = "scaled"
    legend = "on scaled"
    stored: ClassVar = {
        "order": (("feature",), "coordinate of each feature"),
        "scale": (("feature",), "1 / sigma_r"),
        "sigma_clust": (("feature",), "scatter within clusters"),
    }

    order_: np.ndarray
    scale_: np.ndarray
    sigma_clust_: np.ndarray

    def _learn(self, moments: FieldMoments, members: np.ndarray, clusters: np.ndarray) -> None:
        sigma_pop, sigma = np.sqrt(np.diag(moments.covariance)), pooled_sigma(members, clusters)
        check_sigma(sigma)
        # most informative first: the scale times the field's spread is what separates pairs
        informative = inverse_sigma_r(sigma / sigma_pop)
        self.order_ = np.argsort(-informative, kind="stable")
        self.scale_ = inverse_sigma_r(sigma, sigma_pop)[self.order_]
        self.sigma_clust_ = sigma[self.order_]

    def _map(self, n: int) -> np.ndarray:
        out = np.zeros((self.n_features_in_, n))
        out[self.order_[:n], np.arange(n)] = self.scale_[:n]
        return out
