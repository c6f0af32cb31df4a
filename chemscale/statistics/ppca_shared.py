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

from chemscale.statistics.anderson import SCALE_FLOOR, principal, spectral_norm, turned
from chemscale.statistics.ppca_imputation import newton_rows, self_consistent
from chemscale.statistics.ppca_kernels import Model, SharedPass, Stats, unpack

#: A pixel missing in more than this fraction of the stars is fitted by regression.
RARE_FRACTION = 0.6
#: Tangent of the largest angle by which a basis is turned beyond its search space in one step.
LARGEST_TURN = 1.0
#: Distances to the linearised solution up to which it is trusted: at first, and once a step has overshot.
FAR, NEAR = 3.0, 0.1
#: The part of a step expected to be left to the next one, at least.
LEAST_LEFT = 0.05
#: Tighter tolerances than this also ask for a settled log-likelihood: one more pass.
LOOSE = 1e-4
#: Tighter tolerances than this take the moments over missing pixels from all stars, looser ones from the subsample.
LAGGED_TOL = 1e-3

#: Told after each pass: its number, the largest number there may be, the estimated angle to the solution (radian;
#: infinite where the pass was a step back).
Tell = Callable[[int, int, float], None]


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
    lag: Lagged | None = None
    rare: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    reach: float = FAR


@dataclass
class Lagged:
    """Per star, moments over the stars missing each pixel, of the pass that asked for them last."""

    basis: np.ndarray
    fraction: np.ndarray  # (P,): of the stars that miss each pixel
    covariance: np.ndarray  # (P, K): posterior covariance of the missing values, less noise, acting on `basis`
    diagonal: np.ndarray  # (P,): its diagonal, enough for the search directions
    latent2: np.ndarray  # (P, K, K) float32: second moments of the latents; they steer, they do not enter the solution

    @classmethod
    def from_stats(cls, stats: Stats, model: Model, missing: np.ndarray) -> Lagged:
        """From the sums of a pass."""
        n, k, noise = float(stats["n"]), model.basis.shape[1], float(model.noise)
        cov = np.einsum("pi,pij->pj", model.basis, unpack(stats["missing_cov"], k))
        acting = (cov * (1.0 + noise / model.scale**2) - noise * missing[:, None] * model.basis) / n
        diagonal = np.einsum("pj,pj->p", cov, model.basis) / n
        latent2 = unpack(stats["missing_latent2"], k, np.float32) / np.float32(n)
        return cls(model.basis, missing / n, acting, diagonal, latent2)

    def scaled(self, fraction: np.ndarray) -> Lagged:
        """The same moments per star missing a pixel, where `fraction` of the stars miss it: for a larger sample."""
        if np.array_equal(fraction, self.fraction):
            return self
        ratio = np.divide(fraction, self.fraction, out=np.zeros_like(fraction), where=self.fraction > 0)
        return Lagged(
            self.basis,
            fraction,
            self.covariance * ratio[:, None],
            self.diagonal * ratio,
            self.latent2 * ratio[:, None, None].astype(np.float32),
        )

    def turned(self, basis: np.ndarray) -> np.ndarray:
        """:attr:`latent2` for the latents of another basis of (nearly) the same space."""
        turn = (self.basis.T @ basis).astype(np.float32)
        k = len(turn)
        # Two large matrix products; as P small ones they take ten times as long.
        half = (self.latent2.reshape(-1, k) @ turn).reshape(-1, k, k).transpose(0, 2, 1)
        return (np.ascontiguousarray(half).reshape(-1, k) @ turn).reshape(-1, k, k)


def orthonormal(against: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Orthonormal basis of the part of `columns` orthogonal to `against`, dependent ones dropped."""
    norms = np.linalg.norm(columns, axis=0)
    columns = columns[:, norms > 0] / norms[norms > 0]
    for _ in range(2):
        columns = columns - against @ (against.T @ columns)
    room = against.shape[0] - against.shape[1]
    if columns.shape[1] == 0 or room <= 0:
        return np.zeros((against.shape[0], 0))
    # Twice through the Gram matrix: as orthogonal as a pivoted QR at a tenth of its time.
    for least in (1e-12, 0.0):
        values, vectors = np.linalg.eigh(columns.T @ columns)
        keep = values > max(least * values[-1], 1e-30)
        keep[: max(0, keep.size - room)] = False
        columns = columns @ (vectors[:, keep] / np.sqrt(values[keep]))
        columns = columns - against @ (against.T @ columns)
    return columns


def _straightened(basis: np.ndarray) -> np.ndarray:
    """Orthonormal columns from nearly orthonormal ones: Cholesky QR, twice; a QR of LAPACK takes many times as long."""
    out = basis
    try:
        for _ in range(2):
            out = np.linalg.solve(np.linalg.cholesky(out.T @ out), out.T).T
    except np.linalg.LinAlgError:
        return np.linalg.qr(basis)[0]
    return np.ascontiguousarray(out)


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
    fresh_moments: bool = True,
    trace: Trace | None = None,
    progress: Tell | None = None,
) -> tuple[SharedState, Trace]:
    """Iterate passes until the estimated largest principal angle to the solution is below `tol`.

    Parameters
    ----------
    run : callable
        Sums :func:`~chemscale.statistics.ppca_kernels.shared_stats` over all blocks; one pass.
    fresh_moments : bool
        Recompute the moments over missing pixels in every pass (exact).  Otherwise they come from the first pass or,
        for a `tol` of 0.001 and looser, from the subsample: the covariance among them is a correction of
        relative size (missing fraction) x K / P, the rest only steers.
    guards : int
        Ritz vectors kept beyond K to speed up convergence.
    progress : callable, optional
        Told after each pass: its number, `max_iter`, the estimated angle.
    """
    trace = trace or Trace()
    tell = progress or _silent
    before: tuple[SharedState, Stats] | None = None
    best = -np.inf
    stale = False
    for iteration in range(max_iter):
        moments = fresh_moments or (iteration == 0 and (state.lag is None or tol < LAGGED_TOL)) or stale
        stats = run(SharedPass(state.model, state.extra, moments, state.rare))
        loglike = float(stats["loglike"])
        trace.loglike.append(loglike)
        trace.count = stats["count"]
        if before is not None and loglike < best - loglike_tol * abs(best):
            # The self-consistent step overshot: take the plain EM step, which can't, from where it started.
            state, _ = update(*before, guards, tol, plain=True)
            stale, state.reach = state.reach > NEAR, NEAR
            before = None
            trace.angle.append(np.inf)
            tell(iteration + 1, max_iter, np.inf)
            continue
        best = max(best, loglike)
        before = state, stats
        state, angle = update(state, stats, guards, tol)
        # Far from the solution after a pass, this is no survey whose moments a subsample can tell: outliers, perhaps.
        stale = iteration == 0 and not moments and not angle < 1.0
        trace.angle.append(angle)
        tell(iteration + 1, max_iter, angle)
        if angle < tol and (tol > LOOSE or _settled(trace.loglike, max(loglike_tol, tol**2))):
            trace.converged = "angle"
            break
        if len(trace.loglike) > 2 and _stalled(trace.loglike, loglike_tol):
            trace.converged = "loglike"
            break
    return state, trace


def _silent(done: int, most: int, angle: float) -> None:
    """The progress of a fit nobody watches."""


def _settled(loglike: list[float], tol: float) -> bool:
    return len(loglike) > 1 and abs(loglike[-1] - loglike[-2]) <= tol * max(abs(loglike[-1]), 1.0)


def _stalled(loglike: list[float], tol: float) -> bool:
    last = loglike[-3:]
    return max(last) - min(last) <= tol * max(abs(last[-1]), 1.0)


def update(state: SharedState, stats: Stats, guards: int, tol: float, plain: bool = False) -> tuple[SharedState, float]:
    """One step from the sums of one pass; returns the new state and the estimated angle to the solution."""
    model, extra = state.model, state.extra
    basis = model.basis
    k = basis.shape[1]
    n = float(stats["n"])
    active = stats["count"] > 0
    missing = np.where(active, n - stats["count"], 0.0)
    directions = np.concatenate([basis, extra], axis=1)
    if "missing_cov" in stats:
        state.lag = Lagged.from_stats(stats, model, missing)
    elif state.lag is not None:
        state.lag = state.lag.scaled(missing / n)
    product, shift, total = _completed(state, stats, directions, missing)
    latent2 = state.lag.turned(basis) if state.lag is not None and not plain else None

    ritz = directions.T @ product
    ritz[:k, k:] = ritz[k:, :k].T  # the columns of the basis are exact, those of the search directions nearly
    ritz = 0.5 * (ritz + ritz.T)
    found = self_consistent(ritz, directions, k, k + guards, latent2, missing / n, 0.05 * tol)
    values, vectors = found.values, found.vectors
    block = directions @ vectors
    applied = product @ vectors + found.answer @ vectors[:k] + basis @ (found.answer.T @ block)
    filled, moved = (missing / n)[:, None] * basis, product[:, k:] @ found.moved
    applied += moved @ (filled.T @ block) + filled @ (moved.T @ block)
    residual = applied - block * values
    previous = extra @ vectors[k:]

    following = max(values[-1] if values.size > k else 0.0, float(model.noise))
    spread = np.maximum(values[:k] - following, 1e-2 * values[:k])
    lead = block[:, :k]
    beyond = newton_rows(residual[:, :k], spread, state.lag.turned(lead) if state.lag is not None else None)
    missed = spectral_norm(beyond)
    part = 0.0
    if missed < state.reach and not plain:
        # The linearised solution beyond the search space is worth taking at once, by 45 degrees at most. What it leaves
        # is about the share that the rest of the covariance, taken for noise there, has of the last eigenvalue.
        part = min(1.0, LARGEST_TURN / max(missed, LARGEST_TURN))
        lead = _straightened(lead + part * beyond)
        missed *= 1.0 - part + part * min(max(following / values[k - 1], LEAST_LEFT), 1.0)
    gain = part * np.clip(np.sum(residual[:, :k] * beyond, axis=0), 0.0, values[:k])
    leading = values[:k] + gain
    room, filled_in = max(int(active.sum()) - k, 1), missing.sum() / n
    left = total - leading.sum()
    if not plain and filled_in < 0.5 * room:
        # `total` holds the old noise of the missing pixels; at the fixed point it is the new one.
        left, room = left - float(model.noise) * filled_in, room - filled_in
    new_noise = max(left / room, np.finfo(float).tiny)
    scale = np.sqrt(np.maximum(leading - new_noise, SCALE_FLOOR * new_noise))
    new = Model(model.mean + shift, lead, scale, new_noise)
    if state.rare.size:
        new = _with_rare(new, model, stats, state.rare)
    search = [block[:, k:], beyond, previous]
    if state.reach <= NEAR:
        search.append(residual[:, k:])
    new_extra = orthonormal(new.basis, np.concatenate(search, axis=1))

    angle = max(missed, LEAST_LEFT * turned(basis, new.basis))
    if not extra.shape[1]:
        angle = np.inf  # without search directions nothing has been tested yet
    rare = np.flatnonzero(active & (missing > RARE_FRACTION * n))
    state = replace(state, model=new, extra=new_extra, rare=rare)
    return state, angle


def _completed(
    state: SharedState, stats: Stats, directions: np.ndarray, missing: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Completed covariance acting on `directions`, change of the mean, and trace of the covariance.

    Sums of (r + X u)(r + X u)^T about their mean, plus the posterior covariance of the missing pixels.
    """
    basis, noise = state.model.basis, float(state.model.noise)
    k, n = basis.shape[1], float(stats["n"])
    product = stats["resid_proj"] + basis @ stats["latent_proj"]
    product[:, :k] += stats["resid_latent"] + basis @ stats["latent2"]
    product /= n
    centre = (stats["resid"] + basis @ stats["latent"]) / n
    product -= np.outer(centre, centre @ directions)
    product += noise * (missing / n)[:, None] * directions
    if state.lag is not None:
        product[:, :k] += state.lag.covariance @ (state.lag.basis.T @ basis)
        product[:, k:] += state.lag.diagonal[:, None] * directions[:, k:]
    prior = noise / state.model.scale**2
    trace = np.sum(np.diag(stats["cov"]) * (1.0 + prior)) / n - k * noise + noise * missing.sum() / n
    trace += (stats["rss"] + 2 * np.trace(stats["latent_proj"][:, :k]) + np.trace(stats["latent2"])) / n
    trace -= centre @ centre
    # The mean of a pixel is that of the stars that show it: the imputed values only repeat the old one.
    shift = stats["resid"] / np.maximum(stats["count"], 1.0) + basis @ (stats["latent"] / n)
    return product, shift, float(trace)


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
