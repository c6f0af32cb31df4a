"""Block kernels of masked probabilistic PCA, on plain NumPy arrays.

A kernel takes one block of stars and the current model and returns only sums over the
stars (*sufficient statistics*), so that blocks may be visited in any order, on any number
of workers, and added up.  Nothing here knows of Dask, Zarr or xarray.

The model is ``x = mean + basis @ u + noise`` with orthonormal columns in ``basis`` (P, K) and
independent latents ``u_k ~ N(0, scale_k**2)``.  Tipping & Bishop's (1999) loadings are
``W = basis * scale``.  Writing the posterior for ``u`` instead of for unit-variance latents keeps
the per-star systems well conditioned: they are ``basis_o^T basis_o + noise / scale**2``, with
eigenvalues near one whatever the ratio of the first to the last component, which is
what lets the big matrix products run in float32.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.linalg import get_blas_funcs

from chemscale.arrays import scratch
from chemscale.statistics import pixel_loops, small_systems
from chemscale.statistics.outliers import Outliers, Rejection, judge_twice
from chemscale.statistics.pixel_loops import Listed

Stats = dict[str, np.ndarray]
#: Larger fractions of missing pixels are cheaper as one dense product.
SPARSE_MISSING = 0.25
#: Precision of the prior of a latent, relative to the noise's along an observed axis, at least.
LEAST_PRECISION = 1e-12
LOG_2PI = float(np.log(2.0 * np.pi))


@dataclass
class Model:
    """Parameters of a masked PPCA in working units (float64).

    Parameters
    ----------
    mean : ndarray, (P,)
    basis : ndarray, (P, K)
        Orthonormal columns, ordered by decreasing `scale`.
    scale : ndarray, (K,)
        Standard deviation of each latent.
    noise : float
        Noise variance: of every pixel for the shared model; the variance added to
        ``1 / ivar`` of every pixel for the per-pixel model, where it may also be (P,).
    """

    mean: np.ndarray
    basis: np.ndarray
    scale: np.ndarray
    noise: float | np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """Of the basis."""
        return self.basis.shape[0], self.basis.shape[1]


@dataclass
class SharedPass:
    """What one pass of the shared-noise solver sends to the blocks.

    `extra` (P, L) holds search directions orthonormal to the basis; `rare` lists pixels missing so often that they are
    fitted by regression instead; `rejection` says which pixels are outliers (None: none is).
    """

    model: Model
    extra: np.ndarray
    rare: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    rejection: Rejection | None = None


def packed_size(k: int) -> int:
    """Number of distinct entries of a symmetric (k, k) matrix."""
    return k * (k + 1) // 2


def pack_outer(rows: np.ndarray) -> np.ndarray:
    """Upper triangles of the outer products of `rows` (N, K) with themselves: (N, K(K+1)/2)."""
    n, k = rows.shape
    out = np.empty((n, packed_size(k)), dtype=rows.dtype)
    start = 0
    for i in range(k):
        np.multiply(rows[:, i : i + 1], rows[:, i:], out=out[:, start : start + k - i])
        start += k - i
    return out


def pack(matrices: np.ndarray) -> np.ndarray:
    """Upper triangles (N, K(K+1)/2) of symmetric `matrices` (N, K, K)."""
    i, j = np.triu_indices(matrices.shape[-1])
    return matrices[:, i, j]


def unpack(packed: np.ndarray, k: int, dtype: Any = np.float64) -> np.ndarray:
    """Symmetric matrices (N, K, K) from their upper triangles (N, K(K+1)/2)."""
    i, j = np.triu_indices(k)
    position = np.empty((k, k), dtype=np.intp)
    position[i, j] = position[j, i] = np.arange(i.size)
    return packed.astype(dtype)[:, position.ravel()].reshape(-1, k, k)


def invert_spd(matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inverses and log-determinants of symmetric positive definite `matrices` (N, K, K), float64."""
    inverse, logdet = np.empty_like(matrices), np.empty(len(matrices))
    if not small_systems.invert_spd(matrices, inverse, logdet):
        raise np.linalg.LinAlgError("a matrix is not positive definite")
    return inverse, logdet


def centred(flux: np.ndarray, missing: np.ndarray, mean: np.ndarray, unit: float = 1.0) -> np.ndarray:
    """``flux / unit - mean`` with 0 where `missing`, in the dtype of `mean`; a scratch array of this thread."""
    out = scratch("centred", flux.shape, mean.dtype)
    pixel_loops.centre(flux, missing, mean.dtype.type(1.0 / unit), mean, out)
    return out


def subtract_product(x: np.ndarray, latent: np.ndarray, basis: np.ndarray) -> None:
    """``x -= latent @ basis.T`` in place (C-ordered arrays of one dtype), without an array for the product."""
    (gemm,) = get_blas_funcs(("gemm",), (x,))
    # BLAS is column-major: it sees the transposes, and writes into x itself.
    gemm(-1.0, basis.T, latent.T, 1.0, x.T, trans_a=1, overwrite_c=1)


@dataclass
class Posterior:
    """Posterior of the latents of a block: mean (n, K), covariance (n, K, K), and by-products."""

    latent: np.ndarray
    covariance: np.ndarray
    logdet: np.ndarray  # log det of the K x K system, in units of the prior precision


def observed_gram(missing: np.ndarray, listed: Listed, basis: np.ndarray) -> np.ndarray:
    """Per star, ``basis_o^T basis_o`` over its observed pixels: (n, K, K) float64.

    Where few pixels are missing, the Gram matrix of all pixels less that of the missing ones: at 3 % missing
    a quarter of the time of the dense product with the K(K+1)/2 outer products, and no less accurate,
    because the orthonormal basis makes the first term close to the identity.
    """
    k = basis.shape[1]
    if listed.pixel.size > SPARSE_MISSING * missing.size:
        observed = np.logical_not(missing).astype(basis.dtype)
        return unpack(observed @ pack_outer(basis), k)
    wide = basis.astype(np.float64)
    gram = np.empty((len(missing), k, k))
    pixel_loops.unlisted_gram(listed, basis, wide.T @ wide, gram)
    return gram


def posterior(system: np.ndarray, right: np.ndarray, model: Model) -> Posterior:
    """Posterior from Gram matrices of the observed pixels (changed in place) and projections on the basis."""
    k = system.shape[1]
    noise = float(model.noise)
    # Where so little is seen that the noise runs to zero, rounding must not leave a star without information singular.
    system[:, np.arange(k), np.arange(k)] += np.maximum(noise / model.scale**2, LEAST_PRECISION)
    inverse, logdet = invert_spd(system)
    latent = np.empty(right.shape)
    small_systems.products(inverse, right.astype(np.float64), latent)
    inverse *= noise
    return Posterior(latent, inverse, logdet + np.sum(2 * np.log(model.scale) - np.log(noise)))


@dataclass
class SharedBlock:
    """A block under a model: posterior of its latents, residuals, and what was left out."""

    posterior: Posterior
    residual: np.ndarray  # (n, P), 0 where missing or rejected; a scratch array of this thread
    projection: np.ndarray  # (n, L) of the residuals on the search directions
    squares: np.ndarray  # (n,) sums of the squared residuals
    listed: Listed  # missing and rejected pixels
    outliers: Outliers | None


def shared_block(
    x: np.ndarray, missing: np.ndarray, ivar: np.ndarray | None, task: SharedPass, unit: float
) -> SharedBlock:
    """Posterior and residuals of a centred block (changed in place), outliers rejected.

    The stars that have outliers (:func:`~chemscale.statistics.outliers.judge_twice`) are solved again without them.
    """
    model, dtype = task.model, x.dtype
    basis = np.ascontiguousarray(model.basis.astype(dtype))
    extra = np.ascontiguousarray(task.extra.astype(dtype))
    k = basis.shape[1]
    listed = Listed.of(missing)
    projection = x @ np.concatenate([basis, extra], axis=1)
    gram = observed_gram(missing, listed, basis)
    found = posterior(gram if task.rejection is None else gram.copy(), projection[:, :k], model)
    latent = found.latent.astype(dtype)
    subtract_product(x, latent, basis)
    outliers, squares = None, np.empty(len(x), dtype)
    if task.rejection is not None:
        pixel_loops.clear_listed(listed, x, squares)

        def solve(rows: np.ndarray, doubted: Listed) -> tuple[Posterior, np.ndarray, np.ndarray]:
            """Posterior, projections and residuals of some stars without the doubted pixels."""
            own, projected = gram[rows], projection[rows]
            pixel_loops.take_out(doubted, rows, x, latent, basis, extra, projected, own)
            again = posterior(own, projected[:, :k], model)
            residual = scratch("again", (rows.size, x.shape[1]), dtype)
            np.take(x, rows, axis=0, out=residual, mode="clip")
            subtract_product(residual, (again.latent - found.latent[rows]).astype(dtype), basis)
            return again, projected, residual

        def residuals(rows: np.ndarray, doubted: Listed) -> np.ndarray:
            residual = solve(rows, doubted)[-1]
            pixel_loops.clear_listed(listed.of_rows(rows), residual, np.empty(rows.size, dtype))
            return residual

        seen = x.shape[1] - np.diff(listed.start)
        precision = 1.0 / (float(model.noise) * unit**2) if ivar is None else ivar
        outliers, rows = judge_twice(x, seen, precision, unit, task.rejection, residuals)
        if rows.size:
            again, projection[rows], x[rows] = solve(rows, outliers.listed.of_rows(rows))
            found.latent[rows], found.covariance[rows], found.logdet[rows] = (
                again.latent,
                again.covariance,
                again.logdet,
            )
            latent = found.latent.astype(dtype)
            listed = listed.union(outliers.listed, x.shape[1])
    pixel_loops.clear_listed(listed, x, squares)
    along = np.ascontiguousarray(projection[:, k:])
    pixel_loops.project_listed(listed, basis, extra, latent, along)
    return SharedBlock(found, x, along, squares.astype(np.float64), listed, outliers)


def shared_stats(
    flux: np.ndarray,
    missing: np.ndarray,
    task: SharedPass,
    dtype: np.dtype,
    unit: float = 1.0,
    ivar: np.ndarray | None = None,
) -> Stats:
    """Sufficient statistics of one block under shared noise.

    The missing pixels are imputed by their posterior mean, ``x_hat = mean + basis u`` there, so that the
    centred, completed star is ``r + basis u`` with a residual `r` that is 0 at missing pixels.
    Only sums of products of the *small* residual go through float32; the part along the basis
    is K x K algebra in float64. That is why float32 suffices. The posterior makes ``basis^T r`` equal to
    ``noise / scale^2 u``: it needs no product of its own.

    Returns
    -------
    dict of ndarray, float64
        ``n`` stars used; ``count`` (P,) observed; ``resid`` (P,) sum of r; ``resid_latent`` (P, K) sum of r u^T;
        ``resid_extra`` (P, L) sum of r (r^T extra); ``latent`` (K,), ``latent2`` (K, K) sums of u and u u^T;
        ``latent_extra`` (K, L) sum of u (r^T extra); ``cov`` (K, K) sum of posterior covariances; ``missing_cov``
        (P, K) sum of Cov u basis_p over the stars missing each pixel; ``rss`` sum of r^2; ``spread`` (K,) sum of
        u^2 (r^T r + u^2); ``loglike``; with a rejection ``rejected`` (P,) and ``anomalous``; optional ``rare_*``.
    """
    model = task.model
    k, noise = model.basis.shape[1], float(model.noise)
    x = centred(flux, missing, model.mean.astype(dtype), unit)
    before = x[:, task.rare] if task.rare.size else None
    block = shared_block(x, missing, ivar, task, unit)
    post, listed = block.posterior, block.listed
    gone_star = np.diff(listed.start)
    valid = gone_star < x.shape[1]
    seen = (x.shape[1] - gone_star).astype(np.float64)
    latent = post.latent.astype(dtype)
    distance = block.squares / noise + np.sum((post.latent / model.scale) ** 2, axis=1)
    loglike = -0.5 * (seen * (LOG_2PI + np.log(noise)) + post.logdet + distance)
    columns = [block.projection, latent, np.ones((len(x), 1), dtype=dtype)]
    back = (x.T @ np.concatenate(columns, axis=1)).astype(np.float64)
    width = block.projection.shape[1]
    u, covariance = post.latent[valid], post.covariance if valid.all() else post.covariance[valid]
    out: Stats = {
        "n": np.array(float(valid.sum())),
        "count": len(x) - np.bincount(listed.pixel, minlength=x.shape[1]).astype(np.float64),
        "resid_extra": back[:, :width],
        "resid_latent": back[:, width : width + k],
        "resid": back[:, -1],
        "latent": u.sum(axis=0),
        "latent2": u.T @ u,
        "latent_extra": u.T @ block.projection[valid].astype(np.float64),
        "cov": covariance.sum(axis=0),
        "missing_cov": _missing_covariance(missing, listed, post.covariance, model.basis.astype(dtype), valid),
        "rss": np.array(block.squares.sum()),
        "spread": (u**2).T @ block.squares[valid] + np.sum(u**4, axis=0),
        "loglike": np.array(loglike[valid].sum()),
    }
    if block.outliers is not None and task.rejection is not None:
        out |= block.outliers.sums(x.shape[1])
        out["loglike"] -= 0.5 * block.outliers.listed.pixel.size * (LOG_2PI + np.log(noise) + task.rejection.sigmas**2)
    if before is not None:
        out |= _rare_stats(before, missing[:, task.rare], post, valid, dtype)
    return out


def _missing_covariance(
    missing: np.ndarray, listed: Listed, covariance: np.ndarray, basis: np.ndarray, valid: np.ndarray
) -> np.ndarray:
    """Per pixel, the sum of ``Cov u basis_p`` over the stars that miss it: (P, K) float64."""
    k = basis.shape[1]
    if not valid.all():
        covariance = np.where(valid[:, None, None], covariance, 0.0)
    if listed.pixel.size > SPARSE_MISSING * missing.size:
        marked = listed.marked(missing.shape[1]).astype(np.float64)
        return np.einsum("pij,pj->pi", unpack(marked.T @ pack(covariance), k), basis)
    out = np.zeros(basis.shape, basis.dtype)
    pixel_loops.covariance_of_listed(listed, np.ascontiguousarray(basis), covariance, out)
    return out.astype(np.float64)


def _rare_stats(x: np.ndarray, missing: np.ndarray, post: Posterior, valid: np.ndarray, dtype: np.dtype) -> Stats:
    """Regression sums of seldom observed pixels on the latents (the usual EM M-step of PPCA)."""
    seen = np.logical_not(missing).astype(dtype)
    second = pack(np.einsum("ni,nj->nij", post.latent, post.latent) + post.covariance).astype(dtype)
    latent1 = np.concatenate([post.latent, np.ones((len(x), 1))], axis=1).astype(dtype)
    second[~valid] = 0
    latent1[~valid] = 0
    return {
        "rare_second": (seen.T @ second).astype(np.float64),
        "rare_first": (seen.T @ latent1).astype(np.float64),
        "rare_cross": (x.T @ latent1).astype(np.float64),
    }


def add_into(total: Stats | None, part: Stats) -> Stats:
    """Add `part` to `total` in place (a copy of `part` when there is no total yet)."""
    if total is None:
        return {key: np.array(value, dtype=np.float64) for key, value in part.items()}
    for key, value in part.items():
        total[key] += value
    return total


def add_stats(*parts: Stats) -> Stats:
    """Sum of the statistics of several blocks (tree-reduction step); inputs are left alone."""
    total: Stats | None = None
    for part in parts:
        total = add_into(total, part)
    assert total is not None
    return total
