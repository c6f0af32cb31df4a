"""Solver of the shared-noise model: block Krylov iteration on the completed covariance.

The maximum of the observed-data likelihood is the fixed point at which the basis spans the leading
eigenvectors of the *completed* covariance ``S``: missing pixels filled by their posterior
mean, plus their posterior covariance (the EM algorithm with the missing pixels, not the latents, as the
hidden data; Tipping & Bishop 1999, section 3.3 and appendix B for complete data).  Its contraction
per pass is the fraction of missing information (3 % for APOGEE), where the textbook EM over the
latents contracts at the ratio of neighbouring eigenvalues, close to 1.

The eigenvectors are found by a block Krylov method with thick restarts (Wu & Simon 2000): a pass gives the product of
``S`` with the basis (exact) and with the residuals of the last step; a Rayleigh-Ritz step over these and the Ritz
vectors of earlier passes gives the next basis. One pass over the data = one iteration.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from chemscale.statistics.anderson import SCALE_FLOOR, outside, principal, spectral_norm
from chemscale.statistics.determined import error_of_axes
from chemscale.statistics.ppca_kernels import LEAST_PRECISION, Model, SharedPass, Stats, unpack
from chemscale.statistics.progress import Stop, Trace

#: A pixel missing in more than this fraction of the stars is fitted by regression.
RARE_FRACTION = 0.6
#: Largest tangent of the angle by which a basis is turned beyond its search space in one step.
LARGEST_TURN = 0.5
#: Ritz vectors of earlier passes that are kept, in units of K.
PAST = 3


@dataclass
class SharedState:
    """Everything the solver carries from pass to pass.

    `extra` (P, L) are the search directions of the next pass; `past` (P, M) Ritz vectors of earlier passes and
    `past_product` (P, M) the covariance acting on them; all orthonormal, and to the basis.
    """

    model: Model
    extra: np.ndarray
    past: np.ndarray
    past_product: np.ndarray
    rare: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    guards: np.ndarray | None = None  # Ritz vectors after the basis: what another sample starts from

    @classmethod
    def start(cls, model: Model, extra: np.ndarray) -> SharedState:
        """A model and the search directions of the first pass."""
        none = np.zeros((len(model.mean), 0))
        return cls(model, extra, none, none)

    def elsewhere(self) -> SharedState:
        """The same model for other stars: products with the covariance of these mean nothing there."""
        extra = self.extra if self.guards is None else orthonormal(self.model.basis, self.guards)
        return SharedState.start(self.model, extra)


def orthonormal(against: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Orthonormal basis of the part of `columns` orthogonal to `against`, dependent ones dropped."""
    norms = np.linalg.norm(columns, axis=0)
    columns = columns[:, norms > 0] / norms[norms > 0]
    for _ in range(2):
        columns = columns - against @ (against.T @ columns)
    room = against.shape[0] - against.shape[1]
    if room <= 0:
        return np.zeros((against.shape[0], 0))
    # Twice through the Gram matrix: as orthogonal as a pivoted QR at a tenth of its time.
    for least in (1e-12, 0.0):
        if columns.shape[1] == 0:  # all of them lay in the span of `against`
            break
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


def solve_shared(run: Callable[[SharedPass], Stats], state: SharedState, stop: Stop) -> tuple[SharedState, Trace]:
    """Iterate passes until `stop` says so.

    Parameters
    ----------
    run : callable
        Sums :func:`~chemscale.statistics.ppca_kernels.shared_stats` over all blocks; one pass.
    """
    trace = Trace()
    best, before = -np.inf, None
    turns: list[float] = []
    gains: list[float] = []
    while True:
        stats = run(SharedPass(state.model, state.extra, state.rare, stop.rejection))
        loglike = float(stats["loglike"])
        gains.append(loglike - trace.loglike[-1] if trace.loglike else np.inf)
        if before is not None and loglike < best - max(stop.loglike_tol, 1e-7) * abs(best):
            # The step beyond the search space overshot: from where it started take the step within, which cannot.
            state, before = update(*before, trace.count, within=True)[0], None
            trace.add(stats, np.inf)
        else:
            best, before = max(best, loglike), (state, stats)
            old = state.model.basis
            state, angle, d = update(state, stats, trace.count)
            # What the imputed values still change shows in how the steps shrink.
            turns.append(outside(old, state.model.basis[:, :d]))
            hidden = missing_information(stats, state.model.basis[:, :d])
            trace.add(
                stats, max(angle, to_come(turns, hidden), angle_to_win(gains, d * len(old), trace.statistical_error))
            )
        if stop.reached(trace):
            return state, trace


def to_come(steps: Sequence[float], first: float = 0.9) -> float:
    """Sum of the steps to come of a series that goes on shrinking as its last two did; after one step, by `first`."""
    rate = min(max(steps[-1] / max(steps[-2], 1e-300), 0.1), 0.9) if len(steps) > 1 else min(first, 0.9)
    return steps[-1] * rate / (1.0 - rate)


def missing_information(stats: Stats, basis: np.ndarray) -> float:
    """Largest share of the information on an axis (columns of `basis`) that missing pixels hide.

    By this factor the EM algorithm with the missing pixels as its hidden data shrinks an error in a pass (Dempster,
    Laird & Rubin 1977, section 3), where stars miss their pixels independently.
    """
    hidden = 1.0 - stats["count"] / max(float(stats["n"]), 1.0)
    return float(np.max(hidden @ basis**2, initial=0.0))


def angle_to_win(gains: Sequence[float], parameters: int, error: float) -> float:
    """Angle (radian) of the determined subspace to the solution that the likelihood still to be won stands for.

    Sampling turns the subspace by its statistical error, and costs half a unit of ln likelihood a parameter. Where
    components take what their stars do not show from themselves, steps are short and there are many of them: a hit in
    a star with few pixels. The likelihood tells what is left.

    Parameters
    ----------
    gains : sequence of float
        Increase of ln likelihood in every pass.
    """
    if len(gains) < 3 or gains[-1] <= 0:
        return 0.0
    return error * float(np.sqrt(2.0 * to_come(gains) / parameters))


def update(
    state: SharedState, stats: Stats, count: Callable[[np.ndarray], int], within: bool = False
) -> tuple[SharedState, float, int]:
    """One step from the sums of one pass; `within` the space that was searched.

    `count` is told the statistical error (radian) of every axis and says how many are determined. Returns the new
    state, the estimated angle of the determined subspace to the solution, and how many axes it has.
    """
    model, extra = state.model, state.extra
    basis = model.basis
    k, n, noise = basis.shape[1], float(stats["n"]), float(model.noise)
    active = stats["count"] > 0
    missing = np.where(active, n - stats["count"], 0.0)
    space = np.concatenate([basis, extra, state.past], axis=1)
    fresh, shift, total = _completed(model, extra, stats, missing)
    product = np.concatenate([fresh, state.past_product], axis=1)

    ritz = space.T @ product
    known = k + extra.shape[1]
    ritz[:k, k:] = ritz[k:, :k].T  # the columns of the basis are exact
    ritz[k:known, known:] = ritz[known:, k:known].T  # those of the search directions newer than the past
    values, vectors = np.linalg.eigh(0.5 * (ritz + ritz.T))
    values, vectors = values[::-1], vectors[:, ::-1]
    block, applied = space @ vectors, product @ vectors
    lead = block[:, :k]
    residual = applied[:, :k] - lead * values[:k]
    residual -= block @ (block.T @ residual)

    # Beyond the search space the covariance is taken for noise of the variance it has along the search directions.
    rest = float(np.mean(np.diag(ritz)[k:known])) if known > k else noise
    rest = min(max(rest, noise), 0.9 * values[k - 1])
    following = float(values[k]) if values.size > k else rest
    beyond = residual / np.maximum(values[:k] - rest, 1e-2 * values[:k])
    missed = spectral_norm(beyond)
    beyond *= 0.0 if within else min(1.0, LARGEST_TURN / max(missed, 1e-300))
    gain = np.clip(np.sum(residual * beyond, axis=0), 0.0, values[:k])
    new_basis = _straightened(lead + beyond)

    leading = values[:k] + gain
    room, filled_in = max(int(active.sum()) - k, 1), missing.sum() / n
    left = total - leading.sum()
    if filled_in < 0.5 * room:
        # `total` holds the old noise of the missing pixels; at the fixed point it is the new one.
        left, room = left - noise * filled_in, room - filled_in
    new_noise = max(left / room, np.finfo(float).tiny)
    scale = np.sqrt(np.maximum(leading - new_noise, SCALE_FLOOR * new_noise))
    new = Model(model.mean + shift, new_basis, scale, new_noise)
    if state.rare.size:
        new = _with_rare(new, model, stats, state.rare)

    own = stats["spread"] / (n * np.maximum(leading - new_noise, 1e-12 * leading)) ** 2
    error = error_of_axes(own, leading, np.concatenate([leading, values[k:]]), n)
    d = count(error)
    ratio = min(1.0, max(following, rest) / values[d - 1])
    angle = max(ratio * spectral_norm(residual[:, :d] / np.maximum(values[:d] - rest, 1e-2 * values[:d])), 0.0)
    if known == k:
        angle = np.inf  # without search directions nothing has been tested yet
    keep = slice(k, k + PAST * k)
    rare = np.flatnonzero(active & (missing > RARE_FRACTION * n))
    guards = block[:, k : 2 * k]
    if rare.size:  # rows of the basis changed outside of the search space: earlier products mean little
        extra = orthonormal(new.basis, np.concatenate([residual, guards], axis=1))
        return SharedState(new, extra, guards[:, :0], guards[:, :0], rare, guards), angle, d
    against = np.concatenate([new.basis, block[:, keep]], axis=1)
    extra = orthonormal(against, np.concatenate([residual, lead], axis=1))
    return SharedState(new, extra, block[:, keep], applied[:, keep], rare, guards), angle, d


def _completed(
    model: Model, extra: np.ndarray, stats: Stats, missing: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Completed covariance acting on [basis, extra], change of the mean, and trace of the covariance.

    Sums of (r + X u)(r + X u)^T about their mean, plus the posterior covariance of the missing pixels.
    """
    basis, noise, n = model.basis, float(model.noise), float(stats["n"])
    k = basis.shape[1]
    prior = np.maximum(noise / model.scale**2, LEAST_PRECISION)
    directions = np.concatenate([basis, extra], axis=1)
    on_basis = (stats["resid_latent"] + basis @ stats["latent2"]) * (1.0 + prior)
    on_extra = stats["resid_extra"] + basis @ stats["latent_extra"]
    product = np.concatenate([on_basis, on_extra], axis=1) / n
    centre = (stats["resid"] + basis @ stats["latent"]) / n
    product -= np.outer(centre, centre @ directions)
    filled = missing[:, None] / n
    product += noise * filled * directions
    product[:, :k] += stats["missing_cov"] * ((1.0 + prior) / n) - noise * filled * basis
    product[:, k:] += (np.sum(stats["missing_cov"] * basis, axis=1) / n)[:, None] * extra
    trace = np.sum(np.diag(stats["cov"]) * (1.0 + prior)) / n - k * noise + noise * missing.sum() / n
    trace += (stats["rss"] + np.sum((1.0 + 2.0 * prior) * np.diag(stats["latent2"]))) / n
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
