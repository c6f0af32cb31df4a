"""Solver of the per-pixel noise model: parameter-expanded EM, accelerated along what it converges slowly in.

Model of Bailey (2012) and Tsalmantza & Hogg (2012) with a Gaussian prior on the latents:
``x = mean + W z + noise``, ``noise ~ N(0, 1 / ivar + intrinsic)``, ``z ~ N(0, 1)``.  The M-step is one (K+1) x (K+1)
system per pixel; the covariance of the latents is expanded and folded back into the loadings (PX-EM,
Liu, Rubin & Wu 1998), which removes the slow growth of weak components.

What stays slow is the exchange of weak components with those that are left out: per pass their difference falls by the
ratio ``mu`` of what both explain, close to 1 where no gap follows the last component.  The same pass therefore
follows the directions in which the weighted residuals vary most (block power iteration); their ``mu`` is known, and
the EM step along them is lengthened by ``1 / (1 - mu)``.  The fixed point stays that of EM. Steps are mixed on top
(Anderson; Walker & Ni 2011).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from chemscale.statistics import small_systems
from chemscale.statistics.anderson import Anderson, outside, principal
from chemscale.statistics.determined import error_of_axes
from chemscale.statistics.ppca_kernels import Model, Stats, unpack
from chemscale.statistics.ppca_kernels_weighted import WeightedPass
from chemscale.statistics.progress import Stop, Trace

#: Largest factor by which a step along a slow direction is lengthened; halved after each step that went too far, and
#: grown again by :data:`REGAINED` after each that did not.
LONGEST = 10.0
REGAINED = 1.2
#: Relative decrease of the log-likelihood that is no step back where outliers are left out: they come and go.
REJECTED = 1e-7
#: Largest tangent of the angle that the lengthening adds to a step.
LARGEST_TURN = 0.5


class Damping:
    """Shortens the steps of an intrinsic variance that goes back and forth.

    Scoring steps by the expected curvature of the likelihood. A few stars whose errors are far too small bend it more,
    and the variance of a pixel then jumps between nothing and too much for ever: its step is halved whenever it turns
    round, and grows again while it does not.
    """

    def __init__(self) -> None:
        self.factor: Any = 1.0
        self.last: Any = 0.0

    def __call__(self, change: Any) -> Any:
        """The change of one pixel (or of all) to make, of that which scoring asks for."""
        turned = change * self.last < 0
        self.factor = np.where(turned, 0.5 * self.factor, np.minimum(REGAINED * self.factor, 1.0))
        self.last = change
        return self.factor * change


def m_step(model: Model, stats: Stats, intrinsic: str, damped: Damping | None = None) -> Model:
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
    bad = ~small_systems.solve_spd(system, rows)
    rows[bad] = 0.0  # rounding ate the ridge: as good as unseen
    centre = stats["latent"] / n
    covariance = stats["latent2"] / n - np.outer(centre, centre)
    values, vectors = np.linalg.eigh(covariance)
    loadings = rows[:, :k] @ (vectors * np.sqrt(np.maximum(values, 0)))
    mean = model.mean + rows[:, k] + rows[:, :k] @ centre
    return principal(mean, loadings, _intrinsic(model, stats, intrinsic, damped or Damping()))


def _intrinsic(model: Model, stats: Stats, kind: str, damped: Damping) -> np.ndarray | float:
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
        return max(float(model.noise + damped(step)), 0.0)
    step = np.divide(score, stats["w2"], out=np.zeros_like(score), where=stats["w2"] > 0)
    return np.maximum(model.noise + damped(step), 0.0)


@dataclass
class SlowDirections:
    """Directions beyond the components in which the residuals vary most, and how slowly EM converges along them."""

    vectors: np.ndarray  # (P, L), orthonormal in the metric of `weight`
    ratio: np.ndarray  # (L,) mu, descending: contraction of the EM step for the last component
    weight: np.ndarray  # (P,) sum over stars of w (z_K^2 + Var z_K)

    @classmethod
    def start(cls, basis: np.ndarray, count: int, seed: int = 0) -> SlowDirections:
        """Random ones."""
        p, k = basis.shape
        rng = np.random.default_rng(seed)
        count = max(min(count, p - k), 0)
        vectors = np.linalg.qr(rng.standard_normal((p, count)))[0] if count else np.zeros((p, 0))
        return cls(vectors, np.zeros(count), np.ones(p))

    def following(self, model: Model, stats: Stats) -> SlowDirections:
        """One step of the block power iteration, from the sums of a pass with these directions."""
        if not self.vectors.shape[1]:
            return self
        weight = np.maximum(stats["second"][:, -1], 1e-12 * stats["second"][:, -1].max())
        root = np.sqrt(weight)[:, None]
        basis = np.linalg.qr(model.basis * root)[0]
        product = stats["extra"] / root
        product -= basis @ (basis.T @ product)
        # Rayleigh-Ritz for the ratios in the space that was tested, then the power step.
        tested = self.vectors * root
        overlap, energy = tested.T @ tested, tested.T @ product
        values, back = np.linalg.eigh(overlap)
        half = back / np.sqrt(np.maximum(values, 1e-9 * values[-1]))
        ratio = np.linalg.eigvalsh(half.T @ (0.5 * (energy + energy.T)) @ half)[::-1]
        vectors = np.linalg.qr(product)[0]
        return SlowDirections(vectors / root, np.maximum(ratio, 0.0), weight)


def lengthen(
    step: Model, model: Model, slow: SlowDirections, product: np.ndarray, power: np.ndarray, longest: float = LONGEST
) -> Model:
    """The EM step, longer along the slow directions.

    Parameters
    ----------
    product : ndarray (P, L)
        Of the residuals' covariance and ``slow.vectors`` (``stats["extra"]``).
    power : ndarray (K,)
        Variance along every component in units of the noise: mu of component k is that of the last times
        ``power[-1] / power[k]``.
    longest : float
        Largest factor.
    """
    if not slow.vectors.shape[1]:
        return step
    weight = slow.weight[:, None]
    overlap = slow.vectors.T @ (weight * slow.vectors)
    energy = slow.vectors.T @ product
    root = np.linalg.cholesky(overlap)
    small = np.linalg.solve(root, np.linalg.solve(root, 0.5 * (energy + energy.T)).T)
    ratio, turn = np.linalg.eigh(0.5 * (small + small.T))
    axes = slow.vectors @ np.linalg.solve(root.T, turn)  # orthonormal in the metric of the weights
    before, after = model.basis * model.scale, step.basis * step.scale
    u, _, vt = np.linalg.svd(after.T @ before)
    after = after @ (u @ vt)  # in the gauge of the model it came from
    along = axes.T @ (weight * (after - before))
    mu = np.clip(ratio, 0.0, None)[:, None] * (power[-1] / power)[None, :]
    factor = 1.0 / (1.0 - np.minimum(mu, 1.0 - 1.0 / longest)) - 1.0
    added = axes @ (factor * along)
    relative = np.linalg.norm(added, axis=0) / model.scale
    added *= np.minimum(1.0, LARGEST_TURN / np.maximum(relative, 1e-300))
    return principal(step.mean, after + added, step.noise)


def axis_error(model: Model, stats: Stats, ratio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Statistical error of the subspaces of the first 1, ..., K axes, and the variance along each (noise = 1)."""
    k, n = len(model.scale), float(stats["n"])
    i, j = np.triu_indices(k)
    curvature = stats["second"][:, i == j]
    share = stats["w2r2"] / max(float(stats["w2r2"].sum()), 1e-300)
    seen = curvature > 0
    score = np.divide(share[:, None] * stats["spread"], curvature**2, out=np.zeros_like(curvature), where=seen)
    own = score.sum(axis=0) / model.scale**2 + stats["power4"] / np.maximum(stats["power2"], 1e-300) ** 2
    power = n / np.maximum(stats["cov"], 1e-12 * n)
    return error_of_axes(own, power, np.concatenate([power, ratio * power[-1]]), n), power


def solve_weighted(
    run: Callable[[WeightedPass], Stats],
    model: Model,
    stop: Stop,
    *,
    intrinsic: str,
    memory: int = 5,
    slow: SlowDirections | None = None,
) -> tuple[Model, Trace, SlowDirections]:
    """Iterate passes until `stop` says so.

    An extrapolated point with a lower likelihood than the one before it is discarded in favour of the plain EM step.

    Parameters
    ----------
    run : callable
        Sums :func:`~chemscale.statistics.ppca_kernels_weighted.weighted_stats` over all blocks; one pass.
    slow : SlowDirections, optional
        Of an earlier fit to similar stars.
    """
    trace = Trace()
    mixer = Anderson(memory)
    k = len(model.scale)
    slow = slow or SlowDirections.start(model.basis, k)
    fallback: Model | None = None
    best, longest, damped = -np.inf, LONGEST, Damping()
    while True:
        stats = run(WeightedPass(model, slow.vectors, stop.rejection))
        loglike = float(stats["loglike"])
        slack = max(stop.loglike_tol, REJECTED if stop.rejection else 0.0) * abs(loglike)
        if loglike < best - slack and fallback is not None:
            trace.add(stats, np.inf)
            model, fallback, longest = fallback, None, max(longest / 2, 1.0)
            mixer.clear()
        else:
            best = max(best, loglike)
            step = m_step(model, stats, intrinsic, damped)
            tested = SlowDirections(slow.vectors, slow.ratio, np.maximum(stats["second"][:, -1], 1e-300))
            slow = slow.following(model, stats)
            error, power = axis_error(model, stats, slow.ratio)
            longer = lengthen(step, model, tested, stats["extra"], power, longest)
            longest = min(longest * REGAINED, LONGEST)
            d = trace.count(error)
            angle = outside(model.basis[:, :d], longer.basis[:, :d])
            trace.add(stats, mixer.rate_corrected(angle))
            fallback, model = step, mixer.next(model, longer)
        if stop.reached(trace):
            return step, trace, slow
