"""From latents to dex: as much of a map as the labelled stars can pay for.

Two stars give a line through a latent (paper, appendix E). Latents are not perfectly
separate, and each reads a little differently in hot and cool stars, so with more stars the
map may take in the other latents and w as polynomials; leave-one-out errors decide. The
error of a calibrated abundance has a part common to all stars and one that follows the
star's own posterior, both learned from the residuals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.stats import beta

from chemscale.errors import InputError

#: Labelled stars a coefficient needs.
STARS_A_TERM = 10
#: Degrees of the polynomials that are tried; 0 is the line through the latent alone.
DEGREES = (0, 1, 2, 3, 4, 5)
#: Confidence at which a counted purity must be reached.
CONFIDENCE = 0.9
#: Stars a map is fitted to, at most.
MOST_STARS = 30_000
#: Stars whose polynomial terms are in memory at a time.
BATCH = 4096


@dataclass(frozen=True)
class AbundanceCalibration:
    """``abundance = polynomial(latents, w)`` with its error.

    Attributes
    ----------
    latent : int
        Column of z the abundance belongs to.
    degree : int
        0: a line through that latent; else the degree of a polynomial in all of z and w.
    centre, scale : ndarray (k,)
        Standardisation of the inputs.
    coefficients : ndarray (terms,)
    common, own : float
        ``error^2 = common + own * posterior variance``, dex^2; both 0 where too few stars to tell.
    slope : float
        Mean change of the abundance with the latent, dex a unit; its sign is the latent's orientation.
    n_stars : int
    rows : ndarray (n_stars,)
        The stars fitted to, in ascending order.
    residual : ndarray (n_stars,)
        Abundance minus what a fit without that star gives.
    """

    latent: int
    degree: int
    centre: np.ndarray
    scale: np.ndarray
    coefficients: np.ndarray
    common: float
    own: float
    slope: float
    n_stars: int
    rows: np.ndarray
    residual: np.ndarray

    def apply(self, mean: np.ndarray, auxiliary: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Abundance and its error (n,), dex, of posterior means (n, d), w (n, a) and variances (n, d)."""
        x = (_inputs(mean, auxiliary, self.latent, self.degree) - self.centre) / self.scale
        value = np.empty(len(x))
        for start in range(0, len(x), BATCH):
            terms = _terms(x[start : start + BATCH], max(self.degree, 1))
            # a sum for each row, in an order that does not depend on how many rows there are
            value[start : start + BATCH] = (terms * self.coefficients).sum(1)
        own = variance[:, self.latent]
        if not self.n_stars or self.common + self.own == 0:
            return value, np.abs(self.slope) * np.sqrt(own)
        return value, np.sqrt(self.common + self.own * own)

    def to_dict(self) -> dict[str, Any]:
        """What a reader of ``flags.json`` wants to know."""
        return {
            "degree": self.degree,
            "slope": self.slope,
            "common_error": float(np.sqrt(self.common)),
            "posterior_factor": float(np.sqrt(self.own)),
            "n_stars": self.n_stars,
        }


def fit_calibration(
    mean: np.ndarray,
    auxiliary: np.ndarray,
    variance: np.ndarray,
    latent: int,
    abundance: np.ndarray,
    degrees: tuple[int, ...] = DEGREES,
) -> AbundanceCalibration:
    """Calibrate one latent on the stars whose abundance is known.

    Parameters
    ----------
    mean, auxiliary, variance : ndarray (n, d), (n, a), (n, d)
        Posterior of every star.
    latent : int
    abundance : ndarray (n,)
        dex; NaN where unknown.
    degrees : tuple of int
        Maps to choose from; those with fewer than :data:`STARS_A_TERM` stars a term are left out.

    Raises
    ------
    InputError
        Fewer than two stars, or all at the same latent.
    """
    known = np.flatnonzero(np.isfinite(abundance) & np.isfinite(mean).all(1) & np.isfinite(auxiliary).all(1))
    if known.size < 2 or np.ptp(mean[known, latent]) < 1e-9:
        raise InputError(f"{known.size} labelled star(s) with different latents", "give at least two, far apart")
    if known.size > MOST_STARS:
        known = np.sort(np.random.default_rng(0).choice(known, MOST_STARS, replace=False))
    y, v = np.asarray(abundance, np.float64)[known], variance[known, latent]
    slope = float(np.polyfit(mean[known, latent], y, 1)[0])
    best: tuple[float, AbundanceCalibration] | None = None
    for degree in degrees:
        x = _inputs(mean[known], auxiliary[known], latent, degree)
        centre, scale = x.mean(0), np.maximum(x.std(0), 1e-9)
        design = _terms((x - centre) / scale, max(degree, 1))
        if degree and design.shape[1] * STARS_A_TERM > known.size:
            continue
        coefficients, residual = _leave_one_out(design, y)
        score = float(np.mean(residual**2))
        if best is None or score < best[0]:
            common, own = _error_model(residual, v) if known.size > STARS_A_TERM else (0.0, 0.0)
            n, errors = int(known.size), (common, own)
            found = AbundanceCalibration(
                latent, degree, centre, scale, coefficients, *errors, slope, n, known, residual
            )
            best = score, found
    assert best is not None  # the line is always tried
    return best[1]


def _inputs(mean: np.ndarray, auxiliary: np.ndarray, latent: int, degree: int) -> np.ndarray:
    return mean[:, latent : latent + 1] if degree == 0 else np.concatenate([mean, auxiliary], 1)


def _terms(x: np.ndarray, degree: int) -> np.ndarray:
    """Monomials up to `degree` of the columns of x; (n, terms), the constant first."""
    powers = [c for k in range(1, degree + 1) for c in combinations_with_replacement(range(x.shape[1]), k)]
    terms = np.ones((len(x), 1 + len(powers)))
    for j, chosen in enumerate(powers, start=1):
        terms[:, j] = np.prod(x[:, chosen], axis=1)
    return terms


def _leave_one_out(design: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares (minimum norm), and the residual of each star under a fit without it."""
    q, r = np.linalg.qr(design)
    diagonal = np.abs(np.diag(r))
    if len(design) < design.shape[1] or diagonal.min() < 1e-9 * diagonal.max():
        inverse = np.linalg.pinv(design)
        coefficients, leverage = inverse @ y, np.einsum("ij,ji->i", design, inverse)
    else:
        coefficients, leverage = np.linalg.solve(r, q.T @ y), np.einsum("ij,ij->i", q, q)
    return coefficients, (y - design @ coefficients) / np.clip(1 - leverage, 0.05, 1.0)


def _error_model(residual: np.ndarray, variance: np.ndarray) -> tuple[float, float]:
    """(common, own) that make the residuals likeliest under N(0, common + own * variance)."""

    def loss(q: np.ndarray) -> float:
        s = np.exp(q[0]) + np.exp(q[1]) * variance
        return float(np.mean(np.log(s) + residual**2 / s))

    start = np.log(max(float(np.var(residual)), 1e-12) * np.array([0.5, 0.5 / max(float(variance.mean()), 1e-9)]))
    found = minimize(loss, start, method="Nelder-Mead", options={"maxiter": 300})
    common, own = np.exp(np.clip(found.x, -30, 10))
    return float(common), float(own)


def largest_set(probability: np.ndarray, purity: float, truth: np.ndarray | None = None) -> float:
    """Smallest probability at which a class is flagged so that `purity` of the flagged stars belong to it.

    Parameters
    ----------
    probability : ndarray (n,)
    purity : float
        One minus the accepted fraction of false alarms among the flagged.
    truth : ndarray of bool (n,), optional
        Members among labelled stars: then purity is counted, and its lower limit at the confidence
        :data:`CONFIDENCE` (Clopper & Pearson 1934) must reach `purity`; else it is the mean probability.

    Returns
    -------
    float
        Above 1 where no set is pure enough.
    """
    order = np.argsort(-probability, kind="stable")
    count = np.arange(1, len(order) + 1)
    if truth is None:
        reached = np.cumsum(probability[order]) / count
    else:
        hits = np.cumsum(truth[order])
        reached = np.nan_to_num(beta.ppf(1 - CONFIDENCE, hits, count - hits + 1))  # no hit: NaN
    enough = np.flatnonzero(reached >= purity)
    return float(probability[order[enough[-1]]]) if enough.size else 2.0


def as_mapping(found: Mapping[str, AbundanceCalibration]) -> dict[str, Any]:
    """JSON-able calibrations by latent."""
    return {k: v.to_dict() for k, v in found.items()}
