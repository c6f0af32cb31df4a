"""Solver of the per-pixel noise model: parameter-expanded EM with Anderson mixing.

Model of Bailey (2012) and Tsalmantza & Hogg (2012) with a Gaussian prior on the latents:
``x = mean + W z + noise``, ``noise ~ N(0, 1 / ivar + intrinsic)``, ``z ~ N(0, 1)``.  The M-step is one (K+1) x (K+1)
system per pixel; the covariance of the latents is expanded and folded back into the loadings (PX-EM,
Liu, Rubin & Wu 1998), which removes the slow growth of weak components.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from chemscale.statistics import compiled
from chemscale.statistics.anderson import Anderson, principal, turned
from chemscale.statistics.ppca_kernels import Model, Stats, unpack
from chemscale.statistics.ppca_shared import LOOSE, Tell, Trace, _settled, _silent, _stalled


def m_step(model: Model, stats: Stats, intrinsic: str) -> Model:
    """Loadings, mean and intrinsic variance that maximise the expected complete log-likelihood."""
    k = model.basis.shape[1]
    n = float(stats["n"])
    system = np.empty((len(model.mean), k + 1, k + 1))
    system[:, :k, :k] = unpack(stats["second"], k)
    system[:, :, k] = stats["first"]
    system[:, k, :] = stats["first"]
    # A pixel seen in no star, or in fewer than K, keeps its system invertible by a tiny ridge
    # towards zero: it cannot then carry signal.
    diagonal = np.einsum("pii->p", system) / (k + 1)
    system[:, np.arange(k + 1), np.arange(k + 1)] += (1e-9 * diagonal + np.where(diagonal > 0, 0, 1))[:, None]
    rows = stats["cross"].copy()
    bad = ~compiled.solve_spd(system, rows)
    rows[bad] = 0.0  # rounding ate the ridge: as good as unseen
    centre = stats["latent"] / n
    covariance = stats["latent2"] / n - np.outer(centre, centre)
    values, vectors = np.linalg.eigh(covariance)
    loadings = rows[:, :k] @ (vectors * np.sqrt(np.maximum(values, 0)))
    mean = model.mean + rows[:, k] + rows[:, :k] @ centre
    return principal(mean, loadings, _intrinsic(model, stats, intrinsic))


def _intrinsic(model: Model, stats: Stats, kind: str) -> np.ndarray | float:
    """Fisher-scoring step of the variance added to 1 / ivar (never negative)."""
    if kind == "none":
        return model.noise
    # E[residual^2] also holds the posterior variance of the prediction. Its exact sum would need one
    # more P x K(K+1)/2 product a pass; here it comes from the mean posterior covariance, weighted by
    # each star's information: an approximation inside a term of relative size K / P.
    typical = stats["lever"] / max(float(stats["strength"]), 1e-300)
    lever = np.einsum("pi,ij,pj->p", model.basis, typical, model.basis)
    score = stats["w2r2"] + stats["w2"] * lever - stats["first"][:, -1]
    if kind == "global":
        step = score.sum() / max(stats["w2"].sum(), 1e-300)
        return max(float(model.noise) + step, 0.0)
    step = np.divide(score, stats["w2"], out=np.zeros_like(score), where=stats["w2"] > 0)
    return np.maximum(model.noise + step, 0.0)


def solve_weighted(
    run: Callable[[Model], Stats],
    model: Model,
    *,
    tol: float,
    loglike_tol: float,
    max_iter: int,
    intrinsic: str,
    memory: int = 5,
    trace: Trace | None = None,
    progress: Tell | None = None,
) -> tuple[Model, Trace]:
    """Iterate passes until the basis turns by less than `tol` (extrapolated to the limit).

    Anderson mixing (Walker & Ni 2011) over the last `memory` iterates of loadings and mean; an extrapolated
    point with a lower likelihood than the one before it is discarded in favour of the plain EM step. `progress` is
    told after each pass: its number, `max_iter`, the estimated angle.
    """
    trace = trace or Trace()
    tell = progress or _silent
    mixer = Anderson(memory)
    fallback: Model | None = None
    best = -np.inf
    for iteration in range(max_iter):
        stats = run(model)
        loglike = float(stats["loglike"])
        trace.loglike.append(loglike)
        trace.count = stats["count"]
        if loglike < best and fallback is not None:
            model, fallback = fallback, None
            mixer.clear()
            trace.angle.append(np.inf)
            tell(iteration + 1, max_iter, np.inf)
            continue
        best = max(best, loglike)
        step = m_step(model, stats, intrinsic)
        angle = mixer.rate_corrected(turned(model.basis, step.basis))
        trace.angle.append(angle)
        tell(iteration + 1, max_iter, angle)
        if angle < tol and (tol > LOOSE or _settled(trace.loglike, max(loglike_tol, tol**2))):
            model = step
            trace.converged = "angle"
            break
        if len(trace.loglike) > 2 and _stalled(trace.loglike, loglike_tol):
            model = step
            trace.converged = "loglike"
            break
        fallback = step
        model = mixer.next(model, step)
    return model, trace
