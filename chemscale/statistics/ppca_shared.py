"""Solver of the shared-noise model: a block eigensolver wrapped around imputation.

The maximum of the observed-data likelihood is the fixed point at which the basis spans the leading
eigenvectors of the *completed* covariance ``S``: missing pixels filled by their posterior
mean, plus their posterior covariance (the EM algorithm with the missing pixels, not the latents, as the
hidden data; Tipping & Bishop 1999, section 3.3 and appendix B for complete data).  Its contraction
per pass is the fraction of missing information (3 % for APOGEE), where the textbook EM over the
latents contracts at the ratio of neighbouring eigenvalues, close to 1.  The eigenvectors themselves
are found by LOBPCG (Knyazev 2001): one product of ``S`` with [basis, residuals, previous
directions] per pass, a Rayleigh-Ritz step, next pass.  One pass over the data = one iteration.

The residual of the eigenproblem bounds the angle to the solution (Davis & Kahan 1970); iteration stops on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.linalg import qr

from chemscale.statistics.anderson import SCALE_FLOOR, Anderson, principal
from chemscale.statistics.ppca_kernels import Model, SharedPass, Stats, unpack

#: A pixel missing in more than this fraction of the stars is fitted by regression.
RARE_FRACTION = 0.6
#: Tighter tolerances than this also ask for a settled log-likelihood: one more pass.
LOOSE = 1e-4
#: Steps remembered by Anderson mixing.
ANDERSON = 6


@dataclass
class Trace:
    """What happened in a fit, one entry per pass over the data."""

    loglike: list[float] = field(default_factory=list)
    angle: list[float] = field(default_factory=list)
    converged: str = ""
    count: np.ndarray | None = None


@dataclass
class SharedState:
    """Everything the solver carries from pass to pass."""

    model: Model
    extra: np.ndarray
    correction: np.ndarray | None = None  # lagged missing-pixel covariance term, as (P, K) acting on `lag_basis`
    lag_basis: np.ndarray | None = None
    diagonal: np.ndarray | None = None  # the same term's diagonal, (P,): enough for the search directions
    rare: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


def orthonormal(against: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Orthonormal basis of the part of `columns` orthogonal to `against`, dependent ones dropped."""
    norms = np.linalg.norm(columns, axis=0)
    columns = columns[:, norms > 0] / norms[norms > 0]
    for _ in range(2):
        columns = columns - against @ (against.T @ columns)
    room = against.shape[0] - against.shape[1]
    if columns.shape[1] == 0 or room <= 0:
        return np.zeros((against.shape[0], 0))
    q, r, _ = qr(columns, mode="economic", pivoting=True)
    keep = int(np.sum(np.abs(np.diag(r)) > 1e-9))
    q = q[:, : min(keep, room)]
    return q - against @ (against.T @ q)


def signed(basis: np.ndarray) -> np.ndarray:
    """Sign of each column that makes its entry of largest magnitude positive."""
    rows = np.argmax(np.abs(basis), axis=0)
    sign = np.sign(basis[rows, np.arange(basis.shape[1])])
    return np.where(sign == 0, 1.0, sign)


def solve_shared(
    run: Callable[[SharedPass], Stats],
    state: SharedState,
    *,
    tol: float,
    loglike_tol: float,
    max_iter: int,
    guards: int,
    fresh_cov: bool = True,
    trace: Trace | None = None,
) -> tuple[SharedState, Trace]:
    """Iterate passes until the estimated largest principal angle to the solution is below `tol`.

    Parameters
    ----------
    run : callable
        Sums :func:`~chemscale.statistics.ppca_kernels.shared_stats` over all blocks; one pass.
    fresh_cov : bool
        Recompute the covariance term of the missing pixels in every pass (exact).  Otherwise it is computed in
        the first pass only and carried along: it is a correction of relative size (missing fraction) x K / P.
    guards : int
        Ritz vectors kept beyond K to speed up convergence.
    """
    trace = trace or Trace()
    mixer = Anderson(ANDERSON)
    fallback: SharedState | None = None
    best = -np.inf
    for iteration in range(max_iter):
        want_cov = fresh_cov or iteration == 0
        stats = run(SharedPass(state.model, state.extra, want_cov, state.rare))
        trace.loglike.append(float(stats["loglike"]))
        trace.count = stats["count"]
        loglike = trace.loglike[-1]
        if fallback is not None and loglike < best:
            # The extrapolated point was worse than where it came from: go on from the plain step.
            state, fallback = fallback, None
            mixer.clear()
            trace.angle.append(np.inf)
            continue
        best = max(best, loglike)
        previous = state.model
        state, angle = update(state, stats, guards)
        trace.angle.append(angle)
        if angle < tol and (tol > LOOSE or _settled(trace.loglike, max(loglike_tol, tol**2))):
            trace.converged = "angle"
            break
        if len(trace.loglike) > 2 and _stalled(trace.loglike, loglike_tol):
            trace.converged = "loglike"
            break
        if angle < 1.0:
            fallback = state
            mixed = mixer.next(previous, state.model)
            state = replace(state, model=mixed, extra=orthonormal(mixed.basis, state.extra))
    return state, trace


def _settled(loglike: list[float], tol: float) -> bool:
    return len(loglike) > 1 and abs(loglike[-1] - loglike[-2]) <= tol * max(abs(loglike[-1]), 1.0)


def _stalled(loglike: list[float], tol: float) -> bool:
    last = loglike[-3:]
    return max(last) - min(last) <= tol * max(abs(last[-1]), 1.0)


def update(state: SharedState, stats: Stats, guards: int) -> tuple[SharedState, float]:
    """One Rayleigh-Ritz step on the completed covariance; returns the new state and the angle estimate."""
    model, extra = state.model, state.extra
    basis, noise = model.basis, float(model.noise)
    k = basis.shape[1]
    n = float(stats["n"])
    missing = n - stats["count"]
    active = stats["count"] > 0
    missing = np.where(active, missing, 0.0)
    directions = np.concatenate([basis, extra], axis=1)

    # S @ directions: sums of (r + X u)(r + X u)^T about the new mean, plus posterior covariance of missing pixels.
    product = stats["resid_proj"] + basis @ stats["latent_proj"]
    product[:, :k] += stats["resid_latent"] + basis @ stats["latent2"]
    shift = (stats["resid"] + basis @ stats["latent"]) / n
    product /= n
    product -= np.outer(shift, shift @ directions)
    product += noise * (missing / n)[:, None] * directions
    prior = noise / model.scale**2
    if "pixel_cov" in stats:
        cov = np.einsum("pi,pij->pj", basis, unpack(stats["pixel_cov"], k))
        state.correction = (cov * (1.0 + prior) - noise * missing[:, None] * basis) / n
        state.diagonal = np.einsum("pj,pj->p", cov, basis) / n
        state.lag_basis = basis
    if state.correction is not None and state.lag_basis is not None and state.diagonal is not None:
        product[:, :k] += state.correction @ (state.lag_basis.T @ basis)
        product[:, k:] += state.diagonal[:, None] * extra
    trace_cov = np.sum(np.diag(stats["cov"]) * (1.0 + prior)) / n - k * noise + noise * missing.sum() / n
    total = (stats["rss"] + 2 * np.trace(stats["latent_proj"][:, :k]) + np.trace(stats["latent2"])) / n
    total += trace_cov - shift @ shift

    ritz = directions.T @ product
    ritz[:k, k:] = ritz[k:, :k].T  # the columns of the basis are exact, those of the search directions nearly
    ritz = 0.5 * (ritz + ritz.T)
    values, vectors = np.linalg.eigh(ritz)
    order = np.argsort(values)[::-1]
    keep = order[: min(k + guards, order.size)]
    values, vectors = values[keep], vectors[:, keep]
    block = directions @ vectors
    residual = product @ vectors - block * values
    previous = extra @ vectors[k:]

    n_active = int(active.sum())
    new_noise = max((total - values[:k].sum()) / max(n_active - k, 1), np.finfo(float).tiny)
    scale = np.sqrt(np.maximum(values[:k] - new_noise, SCALE_FLOOR * new_noise))
    new = Model(model.mean + shift, block[:, :k], scale, new_noise)
    if state.rare.size:
        new = _with_rare(new, model, stats, state.rare)
    new_extra = orthonormal(new.basis, np.concatenate([block[:, k:], residual, previous], axis=1))

    angle = _angle(values, residual[:, :k], new_noise, k)
    # The imputation of a pixel missing in a fraction f of the stars contracts at the rate f.
    rate = np.minimum(missing / n, 0.95)
    change = new.basis - basis @ (basis.T @ new.basis)
    angle = max(angle, float(np.linalg.norm(change * (rate / (1 - rate))[:, None], 2)))
    if not extra.shape[1]:
        angle = np.inf  # without search directions nothing has been tested yet
    rare = np.flatnonzero(active & (missing > RARE_FRACTION * n))
    state = replace(state, model=new, extra=new_extra, rare=rare)
    return state, angle


def _angle(values: np.ndarray, residual: np.ndarray, noise: float, k: int) -> float:
    """Davis-Kahan estimate of the largest principal angle between Ritz and true subspace."""
    following = max(values[k], noise) if values.size > k else noise
    gap = np.maximum(values[:k] - following, 1e-3 * noise)
    return float(np.linalg.norm(residual / gap, 2))


def _with_rare(new: Model, old: Model, stats: Stats, rare: np.ndarray) -> Model:
    """Replace the rows of seldom observed pixels by their regression on the old latents, in the new basis."""
    k = old.basis.shape[1]
    system = np.empty((rare.size, k + 1, k + 1))
    system[:, :k, :k] = unpack(stats["rare_second"], k)
    system[:, :, k] = stats["rare_first"]
    system[:, k, :] = stats["rare_first"]
    ridge = 1e-9 * np.trace(system[:, :k, :k], axis1=1, axis2=2) / k
    system[:, np.arange(k), np.arange(k)] += ridge[:, None]
    rows = np.linalg.solve(system, stats["rare_cross"][:, :, None])[:, :, 0]
    centre = stats["latent"] / float(stats["n"])
    mean = new.mean.copy()
    mean[rare] = old.mean[rare] + rows[:, k] + rows[:, :k] @ centre
    common = np.ones(old.basis.shape[0], dtype=bool)
    common[rare] = False
    covariance = (stats["latent2"] + stats["cov"]) / float(stats["n"]) - np.outer(centre, centre)
    values, vectors = np.linalg.eigh(covariance)
    spread = vectors * np.sqrt(np.maximum(values, 0))  # covariance of the old latents = spread @ spread.T
    if common.sum() < 4 * k:  # hardly any pixel is seen often: plain EM for all of them
        loadings = old.basis @ spread
        loadings[rare] = rows[:, :k] @ spread
        return principal(mean, loadings, new.noise)
    turn = np.linalg.lstsq(new.basis[common], old.basis[common], rcond=None)[0]  # new latents = turn @ old latents
    basis = new.basis.copy()
    basis[rare] = np.linalg.lstsq(turn.T, rows[:, :k].T, rcond=None)[0].T
    return principal(mean, basis * new.scale, new.noise)
