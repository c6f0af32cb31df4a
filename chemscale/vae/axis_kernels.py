"""The axis map as one compiled pass over stars (Numba, the GIL released).

What :class:`~chemscale.vae.axis_map.AxisMap` does with two hundred operations on small tensors, each of which costs
more to call than to compute; the same to the rounding of float32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

_OPTIONS: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}


class Polynomials(NamedTuple):
    """Location and logarithm of the scale of every latent, at a Teff (first) and at all of them (second).

    Attributes
    ----------
    exponents : ndarray (terms, d + 1) uint8
        Degree of the Chebyshev polynomial of each variable in each product.
    coefficients : ndarray (coefficients,)
        Those of a mean, then those of a spread, which has the first products of the mean.
    where : ndarray (d, 2, 4) int32
        First product, number of them, first coefficient, number of products of the spread.
    """

    exponents: np.ndarray
    coefficients: np.ndarray
    where: np.ndarray


class Curves(NamedTuple):
    """Quantile curves of what is left of every latent; none where `where` is empty.

    Attributes
    ----------
    teff_knots : ndarray (knots,)
    latent_knots : ndarray (d, latents, knots)
    values : ndarray (curves, levels)
    where : ndarray (d, 2) int32
        First curve at a Teff, first curve of all Teff.
    """

    teff_knots: np.ndarray
    latent_knots: np.ndarray
    values: np.ndarray
    where: np.ndarray


@njit(**_OPTIONS)
def map_axes(
    mean: np.ndarray,
    teff: np.ndarray,
    limits: tuple[float, float, float],
    polynomials: Polynomials,
    curves: Curves,
    mapped: np.ndarray,
    factors: np.ndarray,
) -> None:
    """Map posterior means, star by star.

    Parameters
    ----------
    mean : ndarray (n, d)
    teff : ndarray (n,)
        In [-1, 1].
    limits : tuple of float
        Standard deviations at which polynomials in latents end; most that the logarithm of a spread may differ; factor
        that a shape may stretch an error by.
    mapped, factors : ndarray (n, d)
        Filled: the mapped latents, and by how much the spread of each changes.
    """
    n, d = mean.shape
    reach, most_difference, most_stretch = limits
    degree = 1 + polynomials.exponents.max()
    at, alone = np.empty((d + 1, degree)), np.empty((d + 1, degree))
    shaped = len(curves.where) > 0
    here, there = np.empty(curves.values.shape[1]), np.empty(curves.values.shape[1])
    for i in range(n):
        _chebyshev(teff[i], at[0])
        for k in range(d):
            mean_at, spread_at = _sums(at, polynomials, k, 0)
            mean_all, spread_all = _sums(alone, polynomials, k, 1)
            factor = np.exp(min(max(spread_all - spread_at, -most_difference), most_difference))
            left = mean[i, k] - mean_at
            slope = 1.0
            if shaped:
                scale = np.exp(spread_at)
                _curves_of(curves, k, teff[i], mapped[i], here, there)
                moved, slope = _reshaped(left / scale, here, there, most_stretch)
                left = moved * scale
            factors[i, k] = factor * slope
            mapped[i, k] = mean_all + left * factor
            _chebyshev(min(max(mean[i, k] / reach, -1.0), 1.0), at[k + 1])
            _chebyshev(min(max(mapped[i, k] / reach, -1.0), 1.0), alone[k])


@njit(**_OPTIONS)
def _chebyshev(x: float, out: np.ndarray) -> None:
    """Chebyshev polynomials of x, from degree 0 on."""
    out[0] = 1.0
    if len(out) > 1:
        out[1] = x
    for j in range(2, len(out)):
        out[j] = 2.0 * x * out[j - 1] - out[j - 2]


@njit(**_OPTIONS)
def _sums(table: np.ndarray, polynomials: Polynomials, k: int, kind: int) -> tuple[float, float]:
    """Mean and logarithm of the spread of latent k from the polynomials of its variables."""
    row, terms, first, of_spread = polynomials.where[k, kind]
    variables = k + 1 - kind
    mean = spread = 0.0
    for j in range(terms):
        product = 1.0
        for v in range(variables):
            product *= table[v, polynomials.exponents[row + j, v]]  # unsigned: no look at negative ones
        mean += polynomials.coefficients[first + j] * product
        if j < of_spread:
            spread += polynomials.coefficients[first + terms + j] * product
    return mean, spread


@njit(**_OPTIONS)
def _cell(x: float, knots: np.ndarray) -> tuple[int, float]:
    """The knot below x and how far towards the next one it lies, in [0, 1]."""
    below = 0
    while below < len(knots) - 2 and knots[below + 1] < x:
        below += 1
    share = (x - knots[below]) / max(knots[below + 1] - knots[below], 1e-6)
    return below, min(max(share, 0.0), 1.0)


@njit(**_OPTIONS)
def _curves_of(curves: Curves, k: int, teff: float, before: np.ndarray, here: np.ndarray, there: np.ndarray) -> None:
    """Curves at a Teff and of all of them, between those of the knots about a star."""
    here[:] = 0.0
    there[:] = 0.0
    latents, knots = min(k, curves.latent_knots.shape[1]), curves.latent_knots.shape[2]
    cell, share = _cell(teff, curves.teff_knots)
    for corner in range(1 << latents):
        index, weight = 0, 1.0
        for v in range(latents):
            below, part = _cell(before[v], curves.latent_knots[k, v])
            up = corner >> v & 1
            index = index * knots + below + up
            weight *= part if up else 1.0 - part
        if weight == 0.0:
            continue
        every = curves.values[curves.where[k, 1] + index]
        low = curves.values[curves.where[k, 0] + cell * knots**latents + index]
        high = curves.values[curves.where[k, 0] + (cell + 1) * knots**latents + index]
        for j in range(len(here)):
            there[j] += weight * every[j]
            here[j] += weight * (low[j] + share * (high[j] - low[j]))


@njit(**_OPTIONS)
def _reshaped(left: float, here: np.ndarray, there: np.ndarray, most: float) -> tuple[float, float]:
    """The value of the same rank on the other curve, and the factor of its error."""
    last = len(here) - 1
    step = 0
    for j in range(1, last):
        step += here[j] < left
    rise = (there[step + 1] - there[step]) / max(here[step + 1] - here[step], 1e-4)
    moved = there[step] + (left - here[step]) * rise
    if left < here[0]:
        moved = there[0] + left - here[0]
    elif left > here[last]:
        moved = there[last] + left - here[last]
    a, b = max(step - 1, 0), min(step + 2, last)
    factor = (there[b] - there[a]) / max(here[b] - here[a], 1e-4)
    return moved, min(max(factor, 1.0 / most), most)
