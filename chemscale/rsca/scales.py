"""Spreads of field and clusters, and the scales they give: the kernels of every linear metric (plain arrays)."""

from __future__ import annotations

from typing import Any

import numpy as np

from chemscale.errors import DataError, InputError
from chemscale.rsca.moments import FieldMoments

#: Median absolute deviation of a Gaussian of unit standard deviation.
MAD_OF_NORMAL = 0.6744897501960817
#: Deviations count for at most this many standard deviations; what that leaves of a Gaussian's variance.
CLIP, CLIPPED = 3.0, 0.9950


def centre_on_clusters(members: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Members minus the mean of their own cluster (section 3.4)."""
    _, inverse = np.unique(clusters, return_inverse=True)
    counts = np.bincount(inverse)
    order = np.argsort(inverse, kind="stable")
    sums = np.add.reduceat(members[order], np.cumsum(counts) - counts)
    return members - (sums / counts[:, None])[inverse]


def pooled_sigma(members: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Within-cluster standard deviation of each column (eqs. 6 and 7), shape (K,).

    A cluster's standard deviation is its median absolute deviation, scaled to be one for Gaussian data; variances of
    clusters weigh in with their number of members less one.
    """
    _, number, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    order = np.argsort(number, kind="stable")
    place = np.arange(len(number)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    padded = np.full((len(sizes), members.shape[1], sizes.max()), np.inf)  # a median a cluster is slow: all at once
    padded[number[order], :, place] = members[order]
    deviations = np.abs(padded - _medians(padded, sizes)[:, :, None])
    sigma = _medians(deviations, sizes) / MAD_OF_NORMAL
    return np.sqrt((sizes - 1) @ sigma**2 / np.sum(sizes - 1))


def _medians(padded: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Medians (n, K) of the first ``sizes[i]`` of ``padded[i, j]``, the others of which are infinite."""
    ordered = np.sort(padded, axis=2)
    every = np.arange(len(sizes))
    return (ordered[every, :, (sizes - 1) // 2] + ordered[every, :, sizes // 2]) / 2


def clipped_sigma(deviations: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Within-cluster standard deviation of each column (K,) from deviations from the means of clusters.

    More certain than :func:`pooled_sigma`, which has the certainty of a third as many members. A deviation counts for
    at most :data:`CLIP` of what comes out, so that a few strangers among the members do not set it.
    """
    freedom = len(deviations) - len(np.unique(clusters))
    sigma = np.sqrt(np.sum(deviations**2, axis=0) / freedom)
    for _ in range(10):
        clipped = np.clip(deviations, -CLIP * sigma, CLIP * sigma)
        sigma = np.sqrt(np.sum(clipped**2, axis=0) / (freedom * CLIPPED))
    return sigma


def inverse_sigma_r(sigma_clust: np.ndarray, sigma_pop: np.ndarray | float = 1.0) -> np.ndarray:
    """The factor 1 / sigma_r of eq. (4); 0 where sigma_clust >= sigma_pop, a dimension that tells nothing."""
    sigma_clust = np.asarray(sigma_clust, dtype=float)
    gain = np.maximum(np.square(sigma_pop) - sigma_clust**2, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(gain > 0, np.sqrt(gain) / (sigma_clust * sigma_pop), 0.0)


def check_sigma(sigma: np.ndarray) -> None:
    """Refuse dimensions in which the members of every cluster are identical."""
    if np.any(sigma <= 0):
        raise DataError(
            f"{int(np.sum(sigma <= 0))} dimension(s) have no scatter within clusters",
            "members of a cluster are identical there: remove duplicated stars or use fewer components",
        )


def check_n_features(n_features: int | None, k: int) -> int:
    """`n_features` or all `k`; an error for a number outside 1..k."""
    if n_features is None:
        return k
    if not 1 <= n_features <= k:
        raise InputError(f"n_features is {n_features}", f"choose between 1 and {k}")
    return int(n_features)


def sphering(moments: FieldMoments) -> np.ndarray:
    """PCA sphering (section 3.3.2): principal axes of the field covariance over the root of their eigenvalues.

    Raises
    ------
    DataError
        Too few stars for the number of components, or components without any variance.
    """
    k = len(moments.mean)
    if moments.n <= k:
        raise DataError(f"{moments.n} field stars for {k} components", "use fewer components or more field stars")
    values, axes = moments.principal
    if values[-1] <= np.finfo(float).eps * k * values[0]:
        raise DataError(
            f"the field covariance of {k} components is singular (smallest eigenvalue {values[-1]:.3g})",
            "use fewer components",
        )
    return axes / np.sqrt(values)


def encoder(ppca: Any) -> np.ndarray:
    """Matrix (K, n_pixels) that takes a complete spectrum less the mean to its PPCA coordinates.

    Shared noise: the posterior mean of Tipping & Bishop (1999), which shrinks axis i of model variance lambda_i by
    ``(lambda_i - sigma^2) / lambda_i``. Per-pixel noise: the posterior mean that small errors tend to, with the
    variance that the model gives each pixel beyond its error; the projection on the components where there is none.
    Pixels that the basis never saw have weight zero.

    Parameters
    ----------
    ppca : MaskedPPCA
        Fitted: `components_` (K, P), `explained_variance_` and `latent_scale_` (K,), `noise_variance_`.
    """
    basis = np.nan_to_num(np.asarray(ppca.components_, dtype=float))
    if getattr(ppca, "noise", "shared") != "shared":
        extra = np.broadcast_to(np.nan_to_num(np.asarray(ppca.noise_variance_, dtype=float)), basis.shape[1])
        if not extra.any():
            return basis
        weight = 1 / np.maximum(extra, 1e-6 * extra.max())
        weighted = basis * weight
        prior = np.diag(1 / np.square(np.asarray(ppca.latent_scale_, dtype=float)))
        return np.linalg.solve(prior + weighted @ basis.T, weighted)
    variance = np.asarray(ppca.explained_variance_, dtype=float)
    return basis * ((variance - float(ppca.noise_variance_)) / variance)[:, None]
