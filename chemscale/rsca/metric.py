"""Relevant Scaled Component Analysis: sphere, reparametrise, scale (de Mijolla & Ness 2021, sections 3.3-3.5).

The estimator works on coordinates of spectra in a principal-component basis; its input is small
(stars x some tens), its state is a K x K matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask import compute, delayed

from chemscale.display import Shown
from chemscale.errors import DataError, InputError
from chemscale.labelled import groups, like, plain

#: Makes the median absolute deviation an estimate of a Gaussian's standard deviation.
MAD_TO_SIGMA = 1.4826


@dataclass(frozen=True)
class FieldMoments:
    """Number, mean (K,) and covariance (K, K) of field coordinates: all RSCA needs of the field."""

    n: int
    mean: np.ndarray
    covariance: np.ndarray

    def leading(self, k: int) -> FieldMoments:
        """Moments of the first `k` coordinates."""
        return FieldMoments(self.n, self.mean[:k], self.covariance[:k, :k])


def _block_moments(block: np.ndarray) -> tuple[int, np.ndarray, np.ndarray, int]:
    x = np.asarray(block, dtype=np.float64)
    bad = int(np.sum(~np.all(np.isfinite(x), axis=1)))
    if bad or not len(x):
        return len(x), np.zeros(x.shape[1]), np.zeros((x.shape[1],) * 2), bad
    mean = x.mean(axis=0)
    x = x - mean
    return len(x), mean, x.T @ x, 0


def _merge_moments(parts: list[tuple[int, np.ndarray, np.ndarray, int]]) -> tuple[int, np.ndarray, np.ndarray, int]:
    n, mean, scatter, bad = parts[0]
    for n_b, mean_b, scatter_b, bad_b in parts[1:]:
        total = n + n_b
        if n_b:
            delta = mean_b - mean
            mean = mean + delta * (n_b / total)
            scatter = scatter + scatter_b + np.outer(delta, delta) * (n * n_b / total)
        n, bad = total, bad + bad_b
    return n, mean, scatter, bad


def field_blocks(field: Any) -> list[Any]:
    """Row blocks of a NumPy array (one view each 65,536 rows) or of a dask array (one delayed block each chunk)."""
    if isinstance(field, da.Array):
        return list(field.rechunk({1: -1}).to_delayed().ravel())
    return [field[i : i + 65536] for i in range(0, len(field), 65536)]


def field_moments(field: Any) -> FieldMoments:
    """Mean and covariance of field coordinates.

    Parameters
    ----------
    field : array-like, dask array or FieldMoments, shape (n_field, K)
        Coordinates. One pass over the data; only K x K sums leave a block.

    Raises
    ------
    DataError
        No stars, or coordinates that are not finite.
    """
    if isinstance(field, FieldMoments):
        return field
    if not isinstance(field, da.Array):
        field = np.asarray(field)
    if field.ndim != 2:
        raise InputError(f"field coordinates have shape {field.shape}", "pass an array of shape (stars, components)")
    if field.shape[0] == 0:
        raise DataError("there are no field stars", "check the sample cuts: `chemscale info STORE` lists the stars")
    blocks = field_blocks(field)
    if isinstance(field, da.Array):
        parts = [delayed(_block_moments)(b) for b in blocks]
        while len(parts) > 1:  # a tree, so that no one task waits for all blocks
            parts = [delayed(_merge_moments)(parts[i : i + 16]) for i in range(0, len(parts), 16)]
        n, mean, scatter, bad = compute(parts[0])[0]
    else:
        n, mean, scatter, bad = _merge_moments([_block_moments(b) for b in blocks])
    if bad:
        raise DataError(
            f"{bad} field star(s) have coordinates that are not finite", "drop stars without a valid spectrum"
        )
    return FieldMoments(n, mean, scatter / max(n - 1, 1))


def check_members(members: Any, clusters: Sequence[str] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Members as float64 (n, K) and cluster names (n,), or a clear error.

    Raises
    ------
    InputError
        Lengths or shapes that do not match, or a member without a cluster name.
    DataError
        No members, a cluster with a single member, or coordinates that are not finite.
    """
    x = np.asarray(members.compute() if isinstance(members, da.Array) else members, dtype=np.float64)
    names = np.asarray(clusters).astype(str)
    if x.ndim != 2 or names.ndim != 1 or len(names) != len(x):
        raise InputError(
            f"members have shape {x.shape} but there are {names.shape} cluster names",
            "pass one cluster name per member and members as (stars, components)",
        )
    if len(x) == 0:
        raise DataError("there are no cluster members", "a metric is learned from stars with a `cluster` name")
    if np.any(names == ""):
        raise InputError(f"{int(np.sum(names == ''))} member(s) have no cluster name", "pass field stars as `field`")
    unique, counts = np.unique(names, return_counts=True)
    if np.any(counts < 2):
        raise DataError(
            f"cluster(s) with a single member: {', '.join(unique[counts < 2])}",
            "a cluster needs two members to form a pair: leave these out",
        )
    bad = ~np.all(np.isfinite(x), axis=1)
    if np.any(bad):
        raise DataError(f"{int(bad.sum())} member(s) have coordinates that are not finite", "leave these stars out")
    return x, names


def centre_on_clusters(members: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Members minus the mean of their own cluster (section 3.4)."""
    _, inverse = np.unique(clusters, return_inverse=True)
    counts = np.bincount(inverse).astype(float)
    sums = np.zeros((len(counts), members.shape[1]))
    np.add.at(sums, inverse, members)
    return members - (sums / counts[:, None])[inverse]


def pooled_sigma(members: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Within-cluster standard deviation of each column (eqs. 6 and 7), shape (K,).

    The variance of a cluster is its squared median absolute deviation times 1.4826 squared (which makes it a
    standard deviation for Gaussian data); clusters weigh in with their number of members less one.
    """
    total, weight = np.zeros(members.shape[1]), 0
    for name in np.unique(clusters):
        x = members[clusters == name]
        mad = np.median(np.abs(x - np.median(x, axis=0)), axis=0)
        total += (len(x) - 1) * (MAD_TO_SIGMA * mad) ** 2
        weight += len(x) - 1
    return np.sqrt(total / weight)


def inverse_sigma_r(sigma_clust: np.ndarray, sigma_pop: np.ndarray | float = 1.0) -> np.ndarray:
    """The factor 1 / sigma_r of eq. (4); 0 where sigma_clust >= sigma_pop, a dimension that tells nothing."""
    sigma_clust = np.asarray(sigma_clust, dtype=float)
    gain = np.maximum(np.square(sigma_pop) - sigma_clust**2, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(gain > 0, np.sqrt(gain) / (sigma_clust * sigma_pop), 0.0)


def check_freedom(names: np.ndarray, k: int) -> None:
    """Refuse `k` components where the clusters leave fewer degrees of freedom (members less clusters)."""
    freedom = len(names) - len(np.unique(names))
    if freedom < k:
        raise DataError(
            f"{k} components, but {len(names)} members of {len(np.unique(names))} clusters leave only {freedom} "
            "degrees of freedom",
            f"use at most {freedom} components or add members",
        )


def _check_sigma(sigma: np.ndarray) -> None:
    if np.any(sigma <= 0):
        raise DataError(
            f"{int(np.sum(sigma <= 0))} dimension(s) have no scatter within clusters",
            "members of a cluster are identical there: remove duplicated stars or use fewer components",
        )


class RSCA(Shown):
    """The metric of the paper: Euclidean distance after `transform` tells how alike two stars are.

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
    """

    mean_: np.ndarray
    sphering_: np.ndarray
    rotation_: np.ndarray
    sigma_clust_: np.ndarray
    scale_: np.ndarray
    n_field_: int
    n_members_: int
    n_clusters_: int

    def fit(self, field: Any, members: Any = None, clusters: Sequence[str] | np.ndarray | None = None) -> RSCA:
        """Learn the metric (steps 2 to 4 of section 3).

        Parameters
        ----------
        field : array, dask array, DataArray or FieldMoments, shape (n_field, K); or an embedding Dataset
            Coordinates of field stars (one pass, out of core for dask). An embedding
            (:func:`chemscale.open_embedding`) brings its own members and clusters.
        members : array, shape (n_members, K)
            Coordinates of cluster members.
        clusters : sequence of str, length n_members
            Cluster of each member.

        Raises
        ------
        InputError, DataError
            Shapes that do not match; no field stars, no members, clusters of one member, fewer field stars than
            components, fewer within-cluster degrees of freedom than a scatter needs.
        """
        if isinstance(field, xr.Dataset):
            field, members, clusters, _ = groups(field)
        if members is None or clusters is None:
            raise InputError("there are no members or cluster names", "pass both, or an embedding alone")
        moments = field_moments(plain(field))
        x, names = check_members(plain(members), plain(clusters))
        if x.shape[1] != len(moments.mean):
            raise InputError(
                f"members have {x.shape[1]} components, field stars {len(moments.mean)}",
                "transform both with the same basis",
            )
        check_freedom(names, x.shape[1])
        self.mean_ = moments.mean
        self.sphering_ = sphering(moments)
        self.n_field_, self.n_members_, self.n_clusters_ = moments.n, len(x), len(np.unique(names))
        sphered = (x - self.mean_) @ self.sphering_
        centred = centre_on_clusters(sphered, names)
        _, axes = np.linalg.eigh(centred.T @ centred)
        sigma = pooled_sigma(sphered @ axes, names)
        _check_sigma(sigma)
        order = np.lexsort((sigma, -inverse_sigma_r(sigma)))
        self.rotation_, self.sigma_clust_ = axes[:, order], sigma[order]
        self.scale_ = inverse_sigma_r(self.sigma_clust_)
        return self

    def matrix(self, n_features: int | None = None) -> np.ndarray:
        """The linear map (K, n_features) from coordinates less `mean_` to features."""
        n = check_n_features(n_features, len(self.scale_))
        return self.sphering_ @ (self.rotation_[:, :n] * self.scale_[:n])

    def transform(self, z: Any, n_features: int | None = None) -> Any:
        """Features (n, n_features) of coordinates (n, K); lazy for dask input.

        Parameters
        ----------
        z : array, dask array or DataArray, shape (n, K); or an embedding Dataset
        n_features : int, optional
            Keep the most scaled features only; all by default.

        Returns
        -------
        array, dask array or DataArray (star, feature)
            Of the kind of `z`; a DataArray for an embedding.
        """
        given = plain(z["coords"] if isinstance(z, xr.Dataset) else z)
        return like((given - self.mean_) @ self.matrix(n_features), z, "feature", "features")

    def _facts(self) -> dict[str, Any]:
        if not hasattr(self, "scale_"):
            return {"fitted": False}
        return {
            "coordinates": len(self.scale_),
            "informative features": int(np.sum(self.scale_ > 0)),
            "field stars": self.n_field_,
            "members": f"{self.n_members_:,} of {self.n_clusters_} clusters",
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


class Scaled:
    """Step 4 alone on raw coordinates ("on scaled" of Figure 4): each coordinate times its own 1 / sigma_r."""

    mean_: np.ndarray
    scale_: np.ndarray
    order_: np.ndarray
    sigma_clust_: np.ndarray

    def fit(self, field: Any, members: Any, clusters: Sequence[str] | np.ndarray) -> Scaled:
        """Learn the scales; arguments as in :meth:`RSCA.fit`."""
        moments = field_moments(field)
        x, names = check_members(members, clusters)
        self.mean_, sigma_pop = moments.mean, np.sqrt(np.diag(moments.covariance))
        sigma = pooled_sigma(x, names)
        _check_sigma(sigma)
        # most informative first: the scale times the field's spread is what separates pairs
        informative = inverse_sigma_r(sigma / sigma_pop)
        self.order_ = np.argsort(-informative, kind="stable")
        self.scale_ = inverse_sigma_r(sigma, sigma_pop)[self.order_]
        self.sigma_clust_ = sigma[self.order_]
        return self

    def matrix(self, n_features: int | None = None) -> np.ndarray:
        """The linear map (K, n_features)."""
        k = len(self.scale_)
        n = check_n_features(n_features, k)
        out = np.zeros((k, n))
        out[self.order_[:n], np.arange(n)] = self.scale_[:n]
        return out

    def transform(self, z: Any, n_features: int | None = None) -> Any:
        """Features of coordinates; see :meth:`RSCA.transform`."""
        return (z - self.mean_) @ self.matrix(n_features)


class Raw:
    """Euclidean distance between the coordinates as they are ("on raw" of Figure 4)."""

    mean_: np.ndarray

    def fit(self, field: Any, members: Any, clusters: Sequence[str] | np.ndarray) -> Raw:
        """Nothing is learned but the number of components."""
        self.mean_ = field_moments(field).mean
        return self

    def matrix(self, n_features: int | None = None) -> np.ndarray:
        """The first `n_features` coordinates, unchanged."""
        k = len(self.mean_)
        return np.eye(k)[:, : check_n_features(n_features, k)]

    def transform(self, z: Any, n_features: int | None = None) -> Any:
        """Coordinates less the field mean."""
        return (z - self.mean_) @ self.matrix(n_features)


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
    values, axes = np.linalg.eigh(moments.covariance)
    values, axes = values[::-1], axes[:, ::-1]
    if values[-1] <= np.finfo(float).eps * k * values[0]:
        raise DataError(
            f"the field covariance of {k} components is singular (smallest eigenvalue {values[-1]:.3g})",
            "use fewer components",
        )
    return axes / np.sqrt(values)


def encoder(ppca: Any) -> np.ndarray:
    """Matrix (K, n_pixels) that takes a complete spectrum less the mean to its PPCA coordinates.

    Shared noise: the posterior mean of Tipping & Bishop (1999), which shrinks axis i of model variance lambda_i by
    ``(lambda_i - sigma^2) / lambda_i``. Per-pixel noise: the projection on the components, which the posterior mean
    tends to for small errors. Pixels that the basis never saw have weight zero.

    Parameters
    ----------
    ppca : MaskedPPCA
        Fitted: `components_` (K, P), `explained_variance_` (K,), `noise_variance_`.
    """
    basis = np.nan_to_num(np.asarray(ppca.components_, dtype=float))
    if getattr(ppca, "noise", "shared") != "shared":
        return basis
    variance = np.asarray(ppca.explained_variance_, dtype=float)
    return basis * ((variance - float(ppca.noise_variance_)) / variance)[:, None]
