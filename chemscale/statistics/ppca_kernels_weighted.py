"""Block kernels of the model in which every pixel has its own, known variance; see :mod:`.ppca_kernels`.

Latents here are ``z = u / scale``, with unit prior variance: a star's system is ``1 + (signal / noise)^2``, at least 1
along every direction and so always invertible. A bad spectrum shrinks towards the mean instead of exploding.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np

from chemscale.arrays import scratch
from chemscale.statistics import pixel_loops, weighted_loops
from chemscale.statistics.outliers import Outliers, Rejection, judge_twice
from chemscale.statistics.pixel_loops import Listed
from chemscale.statistics.ppca_kernels import (
    LOG_2PI,
    Model,
    Stats,
    invert_spd,
    pack_outer,
    packed_size,
    subtract_product,
)
from chemscale.statistics.weighted_loops import Weighting

_lock = threading.Lock()
_last: tuple[np.ndarray, np.ndarray] | None = None


def _outer(basis: np.ndarray) -> np.ndarray:
    """Packed outer products of the rows of `basis`; the last basis asked for is remembered, all blocks share it."""
    global _last
    with _lock:
        if _last is None or _last[0].dtype != basis.dtype or not np.array_equal(_last[0], basis):
            _last = basis.copy(), pack_outer(basis)
        return _last[1]


@dataclass
class WeightedPass:
    """What one pass of the per-pixel solver sends to the blocks.

    `extra` (P, L) are directions along which the residuals are looked at; `rejection` says which pixels are outliers
    (None: none is).
    """

    model: Model
    extra: np.ndarray
    rejection: Rejection | None = None


@dataclass
class WeightedBlock:
    """A block under a model: posterior of its latents, and the arrays the sums are made of."""

    latent: np.ndarray  # (n, K) posterior mean of z
    covariance: np.ndarray  # (n, K, K) posterior covariance of z
    logdet: np.ndarray  # (n,) log-determinant of the systems
    arrays: Weighting  # x is the centred flux, or the residuals where they were asked for
    outliers: Outliers | None = None
    rejected_log: float = 0.0  # sum of the logarithms of the weights of the rejected pixels


def weighted_block(
    flux: np.ndarray,
    missing: np.ndarray,
    ivar: np.ndarray,
    model: Model,
    dtype: np.dtype,
    unit: float = 1.0,
    *,
    rejection: Rejection | None = None,
    residuals: bool = True,
) -> WeightedBlock:
    """Weights ``1 / (1 / ivar + model.noise)`` of a block and the posterior of its latents, outliers rejected.

    The large arrays are scratch of this thread: valid until the next call. Without `residuals` (and a rejection) `x`
    stays the centred flux, and the sums over pixels are not computed.
    """
    n, p = flux.shape
    residuals = residuals or rejection is not None
    basis = np.ascontiguousarray(model.basis.astype(dtype))
    noise = np.broadcast_to(np.asarray(model.noise, dtype=dtype), (p,)).copy()
    large = (scratch(name, (n, p), dtype) for name in ("centred", "weight", "weighted"))
    arrays = Weighting(*large, *np.zeros((3, n)))
    weighted_loops.weigh(flux, ivar, missing, 1.0 / unit, model.mean.astype(dtype), noise, residuals, arrays)
    system = np.empty((n, len(model.scale), len(model.scale)))
    weighted_loops.prior_system((arrays.weight @ _outer(basis)).astype(np.float64), model.scale, system)
    right = (arrays.weighted @ basis).astype(np.float64) * model.scale
    covariance, logdet = invert_spd(system)
    latent = np.einsum("nij,nj->ni", covariance, right)
    block = WeightedBlock(latent, covariance, logdet, arrays)
    if residuals:
        subtract_product(arrays.x, (latent * model.scale).astype(dtype), basis)
    if rejection is not None:
        _reject(block, model, basis, system, right, rejection)
    return block


def _reject(
    block: WeightedBlock, model: Model, basis: np.ndarray, system: np.ndarray, right: np.ndarray, rejection: Rejection
) -> None:
    """Find the outliers of a block, and solve the stars that were doubted without them."""
    arrays = block.arrays

    def solve(rows: np.ndarray, listed: Listed) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Latents, covariances, log-determinants and residuals of some stars without the listed pixels."""
        own, projected = system[rows], right[rows]
        weighted_loops.take_out(listed, rows, basis, model.scale, arrays, projected, own)
        covariance, logdet = invert_spd(own)
        latent = np.einsum("nij,nj->ni", covariance, projected)
        residual = scratch("again", (rows.size, len(basis)), basis.dtype)
        np.take(arrays.x, rows, axis=0, out=residual, mode="clip")
        subtract_product(residual, ((latent - block.latent[rows]) * model.scale).astype(basis.dtype), basis)
        return latent, covariance, logdet, residual

    def residuals(rows: np.ndarray, listed: Listed) -> np.ndarray:
        return solve(rows, listed)[-1]

    seen = arrays.seen.astype(np.int64)
    block.outliers, rows = judge_twice(arrays.x, seen, arrays.weight, 1.0, rejection, residuals)
    if rows.size:
        latent, covariance, logdet, residual = solve(rows, block.outliers.listed.of_rows(rows))
        arrays.x[rows] = residual
        block.latent[rows], block.covariance[rows], block.logdet[rows] = latent, covariance, logdet
        block.rejected_log = weighted_loops.drop_weights(block.outliers.listed, arrays)


def weighted_stats(
    flux: np.ndarray, missing: np.ndarray, ivar: np.ndarray, task: WeightedPass, dtype: np.dtype, unit: float = 1.0
) -> Stats:
    """Sufficient statistics of one block of the per-pixel noise model.

    Returns
    -------
    dict of ndarray, all float64
        ``second`` (P, K(K+1)/2) sum of w (z z^T + Cov z), ``first`` (P, K+1) sum of w [z, 1],
        ``cross`` (P, K+1) sum of w x [z, 1] (x centred on the old mean); ``latent``, ``latent2`` sums of
        z and z z^T + Cov z over stars, ``cov`` (K,) of the diagonal of Cov z; ``n``, ``count``, ``loglike``;
        ``w2r2``, ``w2`` (P,): sums of w^2 residual^2 and of w^2; ``spread`` (K,) sum of z^2 (sum of w^2 residual^2),
        ``power2`` and ``power4`` (K,) sums of z^2 and z^4; ``extra`` (P, L) sum of (w r) ((w r)^T extra) times the
        posterior variance of the last latent; for the intrinsic variance ``lever`` (K, K), ``strength``: sums over
        stars of (sum of w^2) Cov u and of (sum of w^2), with u = z scale; with a rejection ``rejected`` (P,),
        ``rejected_stars`` and ``anomalous``.
    """
    model, rejection = task.model, task.rejection
    k = model.basis.shape[1]
    block = weighted_block(flux, missing, ivar, model, dtype, unit, rejection=rejection)
    arrays = block.arrays
    valid = arrays.seen > 0
    rows = scratch("moments", (len(flux), packed_size(k) + k + 1), dtype)
    weighted_loops.second_moments(block.latent, block.covariance, valid, rows)
    sums = (arrays.weight.T @ rows).astype(np.float64)
    cross = (arrays.weighted.T @ rows[:, packed_size(k) :]).astype(np.float64)
    # The product of weight and flux is done with: its memory takes that of weight and residual.
    chi2, power, w2r2, w2 = weighted_loops.weighted_residuals(arrays.x, arrays.weight, arrays.weighted)
    chi2 += np.sum(block.latent**2, axis=1)
    loglike = -0.5 * (arrays.seen * LOG_2PI - arrays.logsum + block.logdet + chi2)
    z, covariance, strength = block.latent[valid], block.covariance[valid], arrays.strength
    out: Stats = {
        "second": sums[:, : packed_size(k)],
        "first": sums[:, packed_size(k) :],
        "cross": cross,
        "latent": z.sum(axis=0),
        "latent2": z.T @ z + covariance.sum(axis=0),
        "cov": np.einsum("nii->i", covariance),
        "n": np.array(float(valid.sum())),
        "count": len(flux) - pixel_loops.count_missing(arrays.weight == 0)[1],
        "loglike": np.array(loglike[valid].sum()),
        "w2r2": w2r2,
        "w2": w2,
        "spread": (z**2).T @ power[valid],
        "power2": np.sum(z**2, axis=0),
        "power4": np.sum(z**4, axis=0),
        "lever": np.einsum("n,nij->ij", strength, block.covariance) * np.outer(model.scale, model.scale),
        "strength": np.array(strength.sum()),
    }
    score = (arrays.weighted @ task.extra.astype(dtype)) * block.covariance[:, -1, -1:].astype(dtype)
    out["extra"] = (arrays.weighted.T @ score).astype(np.float64)
    if block.outliers is not None and rejection is not None:
        out |= block.outliers.sums(flux.shape[1])
        gone = block.outliers.listed.pixel.size
        out["loglike"] -= 0.5 * (gone * (LOG_2PI + rejection.sigmas**2) - block.rejected_log)
    return out
