"""Pixels that no model of the spectra explains (cosmic-ray hits, sky lines), found by their residuals.

A pixel is an outlier where its residual exceeds a multiple of its own error, times the typical misfit of its star where
that is above one: a star whose whole spectrum does not fit is not clipped to death. A star with a large misfit, or
with more outliers than a share of its pixels, is anomalous; the latter keeps all its pixels.

A star with outliers is judged twice (:func:`judge_twice`). A saturated pixel pulls the posterior of its star so far
that good pixels which share its features seem off, and the misfit hides smaller hits: the second judgement looks at
the residuals from a posterior that knows nothing of what the first one doubted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numba import njit

from chemscale.statistics.pixel_loops import Listed

#: Mean absolute value of a standard normal variable.
MEAN_ABSOLUTE = 0.7978845608028654


@dataclass(frozen=True)
class Rejection:
    """When a pixel is an outlier, and when a star is anomalous.

    Parameters
    ----------
    sigmas : float
        Residual, in units of the pixel's error times its star's misfit, beyond which a pixel is an outlier.
    most : float
        A star with a larger share of outliers among its pixels is anomalous and keeps them all.
    misfit : float
        A star whose mean absolute residual is this multiple of what its errors say is anomalous.
    """

    sigmas: float = 6.0
    most: float = 0.03
    misfit: float = 3.0


@dataclass
class Outliers:
    """Outliers of a block."""

    listed: Listed
    misfit: np.ndarray  # (n,) mean absolute residual of the others in units of the errors, 1 = as they say
    anomalous: np.ndarray  # (n,) bool

    @property
    def stars(self) -> np.ndarray:
        """Numbers of the stars that have some."""
        return np.flatnonzero(np.diff(self.listed.start))

    def sums(self, n_pixels: int) -> dict[str, np.ndarray]:
        """Outliers of every pixel, stars that have some, and anomalous stars."""
        return {
            "rejected": np.bincount(self.listed.pixel, minlength=n_pixels).astype(np.float64),
            "rejected_stars": np.array(float(self.stars.size)),
            "anomalous": np.array(float(np.count_nonzero(self.anomalous))),
        }


def judge_twice(
    residual: np.ndarray,
    seen: np.ndarray,
    precision: np.ndarray | float,
    unit: float,
    rejection: Rejection,
    solve: Callable[[np.ndarray, Listed], np.ndarray],
) -> tuple[Outliers, np.ndarray]:
    """Outliers of a block, and the stars that the first judgement doubted: these have to be solved again.

    Parameters
    ----------
    residual, seen, precision, unit
        As for :func:`find_outliers`.
    solve : callable
        Given numbers of stars (m,) and their doubted pixels, the residuals (m, P) of all their pixels from the
        posterior without the doubted ones.
    """
    first = find_outliers(residual, seen, precision, unit, rejection, doubt=True)
    rows = first.stars
    if not rows.size:
        return first, rows
    own = precision[rows] if isinstance(precision, np.ndarray) else precision
    second = find_outliers(solve(rows, first.listed.of_rows(rows)), seen[rows], own, unit, rejection)
    counts = np.zeros(len(seen), np.int64)
    counts[rows] = np.diff(second.listed.start)
    first.misfit[rows], first.anomalous[rows] = second.misfit, second.anomalous
    listed = Listed(np.concatenate([[0], np.cumsum(counts)]), second.listed.pixel)
    return Outliers(listed, first.misfit, first.anomalous), rows


def find_outliers(
    residual: np.ndarray,
    seen: np.ndarray,
    precision: np.ndarray | float,
    unit: float,
    rejection: Rejection,
    *,
    doubt: bool = False,
) -> Outliers:
    """Outliers among the residuals of a block, by one judgement.

    Parameters
    ----------
    residual : ndarray (n, P)
        In working units, 0 at missing pixels (or `precision` is 0 there).
    seen : ndarray of int (n,)
        Pixels that are not missing.
    precision : ndarray (n, P) or float
        Inverse variances in units of the flux, of every pixel or one for all.
    unit : float
        Working unit of the flux.
    doubt : bool
        Of a star with too many outliers the largest are named, as many as may be, instead of none.
    """
    n, p = residual.shape
    dtype = residual.dtype
    errors, factor = np.zeros((0, 0), dtype), dtype.type(unit * unit)
    if isinstance(precision, np.ndarray):
        errors = precision
    else:
        factor = dtype.type(precision * unit * unit)
    misfit, many = np.empty(n), np.empty(n, dtype=bool)
    found = np.empty(int(rejection.most * p + 1) * n, dtype=np.int64)
    limits = np.array([rejection.sigmas, rejection.most])
    count = _outlying(residual, errors, factor, seen, limits, doubt, misfit, many, found)
    return Outliers(Listed.from_flat(found[:count], n, p), misfit, many | (misfit > rejection.misfit))


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def _outlying(residual, precision, factor, seen, limits, doubt, misfit, many, found):
    """Positions of the outliers in the flattened block, to `found`; returns how many."""
    n, p = residual.shape
    sizes = np.empty(p, residual.dtype)
    count = 0
    top, zero = residual.dtype.type(100), residual.dtype.type(0)
    for i in range(n):
        r = residual[i]
        total = zero
        if precision.size:
            w = precision[i]
            for j in range(p):
                weight = w[j] * factor if w[j] > zero else zero
                sizes[j] = np.abs(r[j]) * np.sqrt(weight) if r[j] != zero else zero
                total += min(sizes[j], top)
        else:
            root = np.sqrt(factor)
            for j in range(p):
                sizes[j] = np.abs(r[j]) * root
                total += min(sizes[j], top)
        limit = residual.dtype.type(limits[0] * max(total / max(seen[i], 1) / MEAN_ABSOLUTE, 1.0))
        first, most = count, int(limits[1] * seen[i])
        largest = zero
        for j in range(p):
            largest = max(largest, sizes[j])
        many[i] = False
        if largest > limit:
            above = 0
            for j in range(p):
                above += sizes[j] > limit
            many[i] = above > most
            if many[i]:
                limit = np.partition(sizes, p - 1 - most)[p - 1 - most] if doubt else largest
            for j in range(p):
                if sizes[j] > limit:
                    found[count] = i * p + j
                    count += 1
        for at in range(first, count):
            total -= min(sizes[found[at] - i * p], top)
        misfit[i] = total / max(seen[i] - (count - first), 1) / MEAN_ABSOLUTE
    return count
