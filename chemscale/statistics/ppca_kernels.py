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

from chemscale.statistics import compiled

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

    `extra` (P, L) holds search directions orthonormal to the basis; `missing_moments` asks for
    sums over the stars missing each pixel; `rare` lists pixels missing so often that they are fitted by
    regression instead.
    """

    model: Model
    extra: np.ndarray
    missing_moments: bool = True
    rare: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


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
    if not compiled.invert_spd(matrices, inverse, logdet):
        raise np.linalg.LinAlgError("a matrix is not positive definite")
    return inverse, logdet


def centred(flux: np.ndarray, missing: np.ndarray, mean: np.ndarray, unit: float = 1.0) -> np.ndarray:
    """``flux / unit - mean`` with 0 where `missing`, in the dtype of `mean`; a scratch array of this thread."""
    out = compiled.scratch("centred", flux.shape, mean.dtype)
    compiled.centre(flux, missing, mean.dtype.type(1.0 / unit), mean, out)
    return out


@dataclass
class Posterior:
    """Posterior of the latents of a block: mean (n, K), covariance (n, K, K), and by-products."""

    latent: np.ndarray
    covariance: np.ndarray
    logdet: np.ndarray  # log det of the K x K system, in units of the prior precision


def observed_gram(missing: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Per star, ``basis_o^T basis_o`` over its observed pixels: (n, K, K) float64.

    Where few pixels are missing, the Gram matrix of all pixels less that of the missing ones: at 3 % missing
    a quarter of the time of the dense product with the K(K+1)/2 outer products, and no less accurate,
    because the orthonormal basis makes the first term close to the identity.
    """
    if np.count_nonzero(missing) > SPARSE_MISSING * missing.size:
        observed = np.logical_not(missing).astype(basis.dtype)
        return unpack(observed @ pack_outer(basis), basis.shape[1])
    wide = basis.astype(np.float64)
    return wide.T @ wide - compiled.missing_gram(missing, np.ascontiguousarray(basis))


def shared_posterior(centred_flux: np.ndarray, missing: np.ndarray, model: Model, basis: np.ndarray) -> Posterior:
    """Posterior under shared noise (Tipping & Bishop 1999, section 3.2, on each star's own pixels).

    Parameters
    ----------
    centred_flux : ndarray, (n, P)
        0 at missing pixels.
    missing : ndarray of bool, (n, P)
    basis : ndarray, (P, K)
        ``model.basis`` in the working dtype.
    """
    k = basis.shape[1]
    noise = float(model.noise)
    system = observed_gram(missing, basis)
    # Where so little is seen that the noise runs to zero, rounding must not leave a star without information singular.
    system[:, np.arange(k), np.arange(k)] += np.maximum(noise / model.scale**2, LEAST_PRECISION)
    inverse, logdet = invert_spd(system)
    right = (centred_flux @ basis).astype(np.float64)
    latent = np.einsum("nij,nj->ni", inverse, right)
    return Posterior(latent, noise * inverse, logdet + np.sum(2 * np.log(model.scale) - np.log(noise)))


def shared_stats(flux: np.ndarray, missing: np.ndarray, task: SharedPass, dtype: np.dtype, unit: float = 1.0) -> Stats:
    """Sufficient statistics of one block under shared noise.

    The missing pixels are imputed by their posterior mean, ``x_hat = mean + basis u`` there, so that the
    centred, completed star is ``r + basis u`` with a residual `r` that is 0 at missing pixels.
    Only sums of products of the *small* residual go through float32; the part along the basis
    is K x K algebra in float64. That is why float32 suffices.

    Returns
    -------
    dict of ndarray, float64 but for the last two
        ``n`` stars used; ``count`` (P,) observed; ``resid`` (P,) sum of r; ``resid_proj`` (P, K+L) sum of
        r (r^T [basis, extra]); ``resid_latent`` (P, K) sum of r u^T; ``latent`` (K,), ``latent2`` (K, K) sums of
        u and u u^T; ``latent_proj`` (K, K+L) sum of u (r^T [basis, extra]); ``cov`` (K, K) sum of posterior
        covariances; ``rss`` sum of r^2; ``loglike``; optional ``rare_*``; optional, both (P, K(K+1)/2),
        ``missing_cov`` and ``missing_latent2``: sums of Cov u and of u u^T over the stars missing each pixel.
    """
    model = task.model
    basis = model.basis.astype(dtype)
    directions = np.concatenate([basis, task.extra.astype(dtype)], axis=1)
    k = basis.shape[1]
    noise = float(model.noise)
    x = centred(flux, missing, model.mean.astype(dtype), unit)
    gone_star, gone_pixel = compiled.count_missing(missing)
    seen = x.shape[1] - gone_star
    valid = seen > 0
    post = shared_posterior(x, missing, model, basis)
    latent = post.latent.astype(dtype)

    out: Stats = {}
    if task.rare.size:
        out |= _rare_stats(x, missing, post, valid, task.rare, dtype)
    predicted = np.matmul(latent, basis.T, out=compiled.scratch("predicted", x.shape, dtype))
    rss_star = compiled.subtract_where_seen(x, predicted, missing)  # x becomes the residual, in place
    proj = x @ directions
    distance = rss_star / noise + np.sum((post.latent / model.scale) ** 2, axis=1)
    loglike = -0.5 * (seen * (LOG_2PI + np.log(noise)) + post.logdet + distance)
    back = x.T @ np.concatenate([proj, latent, np.ones((len(x), 1), dtype=dtype)], axis=1)
    back = back.astype(np.float64)
    width = directions.shape[1]
    u = post.latent[valid]
    out |= {
        "n": np.array(float(valid.sum())),
        "count": len(x) - gone_pixel,
        "resid_proj": back[:, :width],
        "resid_latent": back[:, width : width + k],
        "resid": back[:, -1],
        "latent": u.sum(axis=0),
        "latent2": u.T @ u,
        "latent_proj": u.T @ proj[valid].astype(np.float64),
        "cov": post.covariance[valid].sum(axis=0),
        "rss": np.array(rss_star.sum()),
        "loglike": np.array(loglike[valid].sum()),
    }
    if task.missing_moments:
        packed = np.concatenate([pack(post.covariance / noise), pack_outer(post.latent)], axis=1).astype(dtype)
        packed[~valid] = 0
        moments = _over_missing(missing, packed)
        size = packed_size(k)
        out["missing_cov"] = dtype.type(noise) * moments[:, :size]
        out["missing_latent2"] = moments[:, size:]
    return out


def _over_missing(missing: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """``missing.T @ rows``, in the dtype of `rows`: 60 MB a block at K = 30, so not widened before it is added up."""
    if np.count_nonzero(missing) > SPARSE_MISSING * missing.size:
        return _as_float(missing, rows.dtype).T @ rows
    return compiled.sum_over_missing(missing, rows)


def _as_float(missing: np.ndarray, dtype: np.dtype) -> np.ndarray:
    out = compiled.scratch("predicted", missing.shape, dtype)
    out[...] = missing
    return out


def _rare_stats(
    x: np.ndarray, missing: np.ndarray, post: Posterior, valid: np.ndarray, rare: np.ndarray, dtype: np.dtype
) -> Stats:
    """Regression sums of seldom observed pixels on the latents (the usual EM M-step of PPCA)."""
    seen = np.logical_not(missing[:, rare]).astype(dtype)
    second = pack(np.einsum("ni,nj->nij", post.latent, post.latent) + post.covariance).astype(dtype)
    latent1 = np.concatenate([post.latent, np.ones((len(x), 1))], axis=1).astype(dtype)
    second[~valid] = 0
    latent1[~valid] = 0
    return {
        "rare_second": (seen.T @ second).astype(np.float64),
        "rare_first": (seen.T @ latent1).astype(np.float64),
        "rare_cross": (x[:, rare].T @ latent1).astype(np.float64),
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
