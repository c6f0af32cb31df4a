"""Continuum normalisation by a running quantile: fast, gap-aware, error-aware.

The continuum only has to be *consistent* for stars of like chemistry, whatever their noise,
reddening and flux calibration; it need not be the true continuum (Ness et al. 2015, section
5.3; Ho et al. 2017, section 3.1 argue the same for The Cannon). Three steps:

1. inverse-variance weighted means in narrow bins: noise shrinks before any quantile is taken,
   so that noisy and clean spectra of one star get the same continuum (a high quantile of raw
   noisy pixels sits above the continuum by a multiple of the noise);
2. a quantile of these means in a running window: absorption lines do not count;
3. a running mean of the quantiles, twice, and linear interpolation to the pixels: no steps.

Bins without information are left out of every window, so gaps neither pull the continuum nor
leak across; where a window holds too little, the continuum is undefined and pixels get ivar 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

#: A window needs this fraction of its bins to define a continuum.
MIN_FILLED = 0.3
#: Stars handled at once: bounds the temporaries (about 0.3 MB a star for 5,000 Angstrom).
_BATCH = 128


def running_quantile(
    wavelength: ArrayLike,
    flux: ArrayLike,
    ivar: ArrayLike,
    *,
    bin_width: float = 10.0,
    window: float = 300.0,
    quantile: float = 0.8,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Divide spectra by their running-quantile continuum; ivar is scaled by its square.

    Parameters
    ----------
    wavelength : array_like, shape (P,)
        Increasing, Angstrom.
    flux, ivar : array_like, shape (n, P) or (P,)
        Pixels with ivar <= 0 or a non-finite flux do not count.
    bin_width, window : float
        Width of the averaging bins and of the running window, Angstrom.
    quantile : float
        Between 0 and 1.

    Returns
    -------
    flux, ivar : numpy.ndarray, same shape, float32
        Normalised. Where the continuum is undefined or not positive: flux 0, ivar 0.
    continuum : numpy.ndarray, same shape, float64
        NaN where undefined.

    Raises
    ------
    ValueError
        Shapes disagree, or a parameter is out of range.
    """
    wave = np.asarray(wavelength, np.float64)
    flux, ivar = np.asarray(flux), np.asarray(ivar)
    if flux.shape != ivar.shape or flux.shape[-1:] != wave.shape or flux.ndim not in (1, 2):
        raise ValueError(f"shapes disagree: wavelength {wave.shape}, flux {flux.shape}, ivar {ivar.shape}")
    if not 0.0 < quantile < 1.0 or bin_width <= 0 or window < bin_width:
        raise ValueError("need 0 < quantile < 1 and 0 < bin_width <= window")
    rows = np.atleast_2d(flux)
    weights = np.atleast_2d(ivar)
    continuum = np.empty(rows.shape)
    for start in range(0, len(rows), _BATCH):
        part = slice(start, start + _BATCH)
        continuum[part] = _continuum(wave, rows[part], weights[part], bin_width, window, quantile)
    out_flux, out_ivar = divide(rows, weights, continuum)
    return out_flux.reshape(flux.shape), out_ivar.reshape(flux.shape), continuum.reshape(flux.shape)


def divide(flux: np.ndarray, ivar: np.ndarray, continuum: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``flux / continuum`` and ``ivar * continuum**2`` as float32; 0 and 0 where that is undefined."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        good = np.isfinite(continuum) & (continuum > 0)
        out_flux = np.where(good, flux / continuum, 0.0).astype(np.float32)
        out_ivar = np.where(good, ivar * np.square(continuum), 0.0).astype(np.float32)
        lost = ~np.isfinite(out_ivar) | ~np.isfinite(out_flux)
    out_ivar[lost | (out_ivar < 0)] = 0.0
    return out_flux, out_ivar


def _continuum(
    wave: np.ndarray, flux: np.ndarray, ivar: np.ndarray, bin_width: float, window: float, quantile: float
) -> np.ndarray:
    n_bins = max(round((wave[-1] - wave[0]) / bin_width), 1)
    edges = np.searchsorted(wave, np.linspace(wave[0], wave[-1], n_bins + 1)[:-1])
    edges = np.unique(edges)
    centres = np.add.reduceat(wave, edges) / np.diff(np.append(edges, len(wave)))
    with np.errstate(invalid="ignore"):
        good = np.isfinite(flux) & (ivar > 0) & np.isfinite(ivar)
    # inverse variances within a bin are capped at 10 x their median-like mean: one pixel with
    # a wrongly tiny error must not speak for its bin
    weight = np.where(good, ivar, 0.0).astype(np.float64)
    count = np.add.reduceat(good, edges, axis=1, dtype=np.int64)
    with np.errstate(invalid="ignore", divide="ignore"):
        typical = np.divide(np.add.reduceat(np.sqrt(weight), edges, axis=1), count) ** 2
    widths = np.diff(np.append(edges, len(wave)))
    weight = np.minimum(weight, 10.0 * np.repeat(np.nan_to_num(typical), widths, axis=1))
    total = np.add.reduceat(weight, edges, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.add.reduceat(np.where(good, flux, 0.0) * weight, edges, axis=1) / total
    means[(count < 0.3 * widths) | ~(total > 0)] = np.nan
    half = max(round(window / bin_width / 2), 1)
    # a slope within the window biases its quantile, most of all in the half windows at the
    # ends: take out the broad shape first, then the rest
    shape = _broad_shape(centres, _smooth_quantile(means, half, quantile))
    level = shape * _smooth_quantile(means / shape, half, quantile)
    return _interpolate(wave, centres, level)


def _smooth_quantile(values: np.ndarray, half: int, quantile: float) -> np.ndarray:
    level = _windowed_quantile(values, half, quantile)
    for _ in range(2):
        level = _windowed_mean(level, max(half // 2, 1))
    return level


def _broad_shape(centres: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Cubic fit to the logarithm of each row of `level`; 1 for rows of which too little is positive."""
    x = np.linspace(-1.0, 1.0, len(centres)) if len(centres) > 1 else np.zeros(1)
    basis = np.polynomial.chebyshev.chebvander(x, 3)
    with np.errstate(invalid="ignore", divide="ignore"):
        logs = np.log(level)
    known = np.isfinite(logs)
    weighted = np.where(known, logs, 0.0)
    normal = np.einsum("ij,jk,jl->ikl", known.astype(float), basis, basis) + 1e-9 * np.eye(4)
    coefficients = np.linalg.solve(normal, (weighted @ basis)[..., None])[..., 0]
    # a fit to part of the axis says nothing about the rest
    enough = known.sum(axis=1) >= max(0.5 * len(centres), 8)
    fitted = coefficients @ basis.T
    lowest = np.min(fitted, axis=1, where=known, initial=np.inf, keepdims=True)
    highest = np.max(fitted, axis=1, where=known, initial=-np.inf, keepdims=True)
    fitted = np.clip(fitted, lowest, np.maximum(highest, lowest))  # no extrapolation beyond what was seen
    return np.where(enough[:, None], np.exp(np.clip(fitted, -300, 300)), 1.0)


def _padded_windows(values: np.ndarray, half: int) -> np.ndarray:
    padded = np.pad(values, ((0, 0), (half, half)), constant_values=np.nan)
    return np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1, axis=1)


def _windowed_quantile(values: np.ndarray, half: int, quantile: float) -> np.ndarray:
    ordered = np.sort(_padded_windows(values, half), axis=-1)  # NaN last
    count = np.sum(np.isfinite(ordered), axis=-1)
    position = quantile * np.maximum(count - 1, 0)
    low = np.floor(position).astype(np.intp)
    high = np.minimum(low + 1, np.maximum(count - 1, 0))
    at_low = np.take_along_axis(ordered, low[..., None], axis=-1)[..., 0]
    at_high = np.take_along_axis(ordered, high[..., None], axis=-1)[..., 0]
    out = at_low + (position - low) * (at_high - at_low)
    out[count < max(MIN_FILLED * (half + 1), 1)] = np.nan  # (an edge window is half empty by itself)
    return out


def _windowed_mean(values: np.ndarray, half: int) -> np.ndarray:
    known = np.isfinite(values)
    kernel = 2 * half + 1
    padded = np.pad(np.where(known, values, 0.0), ((0, 0), (half + 1, half)))
    counts = np.pad(known.astype(float), ((0, 0), (half + 1, half)))
    total = np.cumsum(padded, axis=1)
    number = np.cumsum(counts, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (total[:, kernel:] - total[:, :-kernel]) / (number[:, kernel:] - number[:, :-kernel])
    return np.where(known, mean, np.nan)


def _interpolate(wave: np.ndarray, centres: np.ndarray, level: np.ndarray) -> np.ndarray:
    out = np.full((len(level), len(wave)), np.nan)
    for row, values in zip(out, level):
        known = np.isfinite(values)
        if known.any():
            row[:] = np.interp(wave, centres[known], values[known])
            # undefined bins stay undefined: no continuum is drawn across a wide gap
            if not known.all():
                nearest = np.clip(np.searchsorted((centres[1:] + centres[:-1]) / 2, wave), 0, len(centres) - 1)
                row[~known[nearest]] = np.nan
    return out
