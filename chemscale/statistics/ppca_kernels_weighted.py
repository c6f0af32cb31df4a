"""Block kernels of the model in which every pixel has its own, known variance; see :mod:`.ppca_kernels`.

Latents here are ``z = u / scale``, with unit prior variance: a star's system is ``1 + (signal / noise)^2``, at least 1
along every direction and so always invertible. A bad spectrum shrinks towards the mean instead of exploding.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np

from chemscale.statistics import compiled
from chemscale.statistics.ppca_kernels import LOG_2PI, Model, Stats, invert_spd, pack_outer, packed_size

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
class Weighed:
    """A block under a model: posterior of its latents, and the arrays the sums are made of."""

    latent: np.ndarray  # (n, K) posterior mean of z
    covariance: np.ndarray  # (n, K, K) posterior covariance of z
    logdet: np.ndarray  # (n,) log-determinant of the systems
    x: np.ndarray  # (n, P) centred flux, 0 where missing
    weight: np.ndarray  # (n, P)
    weighted: np.ndarray  # (n, P) their product
    seen: np.ndarray  # (n,) pixels with positive weight
    logsum: np.ndarray  # (n,) sum of the logarithms of the weights
    strength: np.ndarray  # (n,) sum of the squared weights


def weigh(
    flux: np.ndarray,
    missing: np.ndarray,
    ivar: np.ndarray,
    model: Model,
    dtype: np.dtype,
    unit: float = 1.0,
    *,
    sums: bool = True,
) -> Weighed:
    """Weights ``1 / (1 / ivar + model.noise)`` of a block and the posterior of its latents.

    The large arrays are scratch of this thread: valid until the next call. Without `sums`, `seen`, `logsum` and
    `strength` are not computed.
    """
    basis = model.basis.astype(dtype)
    n, p = flux.shape
    k = basis.shape[1]
    extra = np.broadcast_to(np.asarray(model.noise, dtype=dtype), (p,)).copy()
    x, weight, weighted = (compiled.scratch(name, (n, p), dtype) for name in ("centred", "weight", "weighted"))
    seen, logsum, strength = compiled.weigh(
        flux, ivar, missing, 1.0 / unit, model.mean.astype(dtype), extra, sums, x, weight, weighted
    )
    system = np.empty((n, k, k))
    compiled.prior_system((weight @ _outer(basis)).astype(np.float64), model.scale, system)
    covariance, logdet = invert_spd(system)
    right = (weighted @ basis).astype(np.float64) * model.scale
    latent = np.einsum("nij,nj->ni", covariance, right)
    return Weighed(latent, covariance, logdet, x, weight, weighted, seen, logsum, strength)


def weighted_stats(
    flux: np.ndarray,
    missing: np.ndarray,
    ivar: np.ndarray,
    model: Model,
    dtype: np.dtype,
    jitter: bool = True,
    unit: float = 1.0,
) -> Stats:
    """Sufficient statistics of one block of the per-pixel noise model.

    Returns
    -------
    dict of ndarray, all float64
        ``second`` (P, K(K+1)/2) sum of w (z z^T + Cov z), ``first`` (P, K+1) sum of w [z, 1],
        ``cross`` (P, K+1) sum of w x [z, 1] (x centred on the old mean); ``latent``, ``latent2`` sums of
        z and z z^T + Cov z over stars; ``n``, ``count``, ``loglike``; and for the intrinsic variance
        ``w2r2``, ``w2`` (P,): sums of w^2 residual^2 and of w^2, ``lever`` (K, K), ``strength``: sums over stars of
        (sum of w^2) Cov u and of (sum of w^2), with u = z scale.
    """
    k = model.basis.shape[1]
    block = weigh(flux, missing, ivar, model, dtype, unit)
    valid = block.seen > 0
    rows = compiled.scratch("moments", (len(flux), packed_size(k) + k + 1), dtype)
    compiled.second_moments(block.latent, block.covariance, valid, rows)
    sums = (block.weight.T @ rows).astype(np.float64)
    cross = (block.weighted.T @ rows[:, packed_size(k) :]).astype(np.float64)
    latent = (block.latent * model.scale).astype(dtype)
    # The product of weight and flux is done with: its memory takes the prediction.
    predicted = np.matmul(latent, model.basis.astype(dtype).T, out=block.weighted)
    misfit, w2r2, w2 = compiled.weighted_residuals(block.x, block.weight, predicted)
    chi2 = misfit + np.sum(block.latent**2, axis=1)
    loglike = -0.5 * (block.seen * LOG_2PI - block.logsum + block.logdet + chi2)
    z, covariance = block.latent[valid], block.covariance[valid]
    out: Stats = {
        "second": sums[:, : packed_size(k)],
        "first": sums[:, packed_size(k) :],
        "cross": cross,
        "latent": z.sum(axis=0),
        "latent2": z.T @ z + covariance.sum(axis=0),
        "n": np.array(float(valid.sum())),
        "count": len(flux) - compiled.count_missing(block.weight == 0)[1],
        "loglike": np.array(loglike[valid].sum()),
        "w2r2": w2r2,
        "w2": w2,
    }
    if jitter:
        out["lever"] = np.einsum("n,nij->ij", block.strength, block.covariance) * np.outer(model.scale, model.scale)
        out["strength"] = np.array(block.strength.sum())
    return out
