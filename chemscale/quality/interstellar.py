"""Spectral windows that carry something other than the star: interstellar bands, velocity systematics.

De Mijolla & Ness (2021), appendices A and B: a PCA basis of stars free of the nuisance (low extinction, or low radial
velocity) describes stars; what it cannot describe in stars that have the nuisance is the nuisance. The paper chose its
windows by eye; :func:`select_windows` chooses them by hysteresis thresholds on the residual spectrum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from dask import compute, delayed
from scipy.ndimage import gaussian_filter1d, median_filter
from scipy.stats import median_abs_deviation

from chemscale.errors import DataError
from chemscale.schema import ALL_FLAGS, Flag
from chemscale.statistics.masked import finish_moments
from chemscale.statistics.moments import Moments, block_moments, combine_moments
from chemscale.statistics.ppca import MaskedPPCA

#: Bits that hide a pixel here: all but those this module itself finds.
_SELECTED = ALL_FLAGS & ~int(Flag.INTERSTELLAR)
#: Share of the clean stars kept out of the basis, to know how well the basis describes a star it has not seen.
_CONTROL_SHARE = 0.2


def residual_spectrum(
    survey: xr.Dataset,
    low: np.ndarray,
    high: np.ndarray,
    *,
    n_components: int = 30,
    max_basis: int = 6000,
    seed: int = 0,
) -> xr.Dataset:
    """Mean residual per wavelength of `high` stars on the PCA basis of `low` stars (appendices A and B).

    Loads the spectra of at most `max_basis` low stars; all high stars go through chunk by chunk as Dask tasks that
    return moments only: one pass over the chunks that hold them.

    Parameters
    ----------
    survey : xarray.Dataset
        A survey (lazy).
    low, high : boolean arrays (n_stars,)
        Stars without and with the nuisance.
    n_components : int
        Components of the basis (paper: 30).
    max_basis : int
        Low stars the basis is fitted on, evenly spaced, at most.
    seed : int
        Seed of the basis and of the control sample.

    Returns
    -------
    xarray.Dataset
        On ``wavelength``: ``residual`` and ``absolute_residual`` (means over high stars), ``error`` (standard error
        of `residual`), ``control`` and ``absolute_control`` (the same means for low stars the basis has not seen),
        ``n_high`` (stars with the pixel used). NaN where no star has the pixel.

    Raises
    ------
    DataError
        Too few stars on either side.
    """
    rows_low, rows_high = np.flatnonzero(low), np.flatnonzero(high)
    need = int(np.ceil(3 * n_components / (1 - _CONTROL_SHARE)))
    if len(rows_low) < need or len(rows_high) < 10:
        raise DataError(
            f"{len(rows_low)} stars without and {len(rows_high)} with the effect; a basis of {n_components} components "
            f"needs {need} without, and 10 with it",
            "widen the limits, or use fewer components",
        )
    if len(rows_low) > max_basis:
        rows_low = rows_low[np.linspace(0, len(rows_low) - 1, max_basis).astype(np.int64)]
    is_control = np.random.default_rng(seed).random(len(rows_low)) < _CONTROL_SHARE
    flux, missing = load_spectra(survey, rows_low)
    # residuals need the plane, not its last digits
    ppca = MaskedPPCA(n_components, tol=1e-3, loglike_tol=1e-8, max_iter=20, random_state=seed)
    ppca.fit(flux[~is_control], missing[~is_control])
    control = residual_moments(ppca, flux[is_control], missing[is_control])
    del flux, missing
    model, tasks, start = delayed(ppca), [], 0
    chunks = survey["flux"].chunks
    for size in chunks[0] if chunks else (survey.sizes["star"],):
        lo, hi = np.searchsorted(rows_high, [start, start + size])
        if hi > lo:
            block = survey[["flux", "ivar", "flags"]].isel(star=slice(start, start + size))
            tasks.append(delayed(_block_moments)(model, *_delayed_block(block), rows_high[lo:hi] - start))
        start += size
    found = compute(*tasks)
    signed, absolute = (finish_moments(combine_moments(*(f[i] for f in found))) for i in range(2))
    c_signed, c_absolute = map(finish_moments, control)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.sqrt(signed.variance / signed.count)
    dim = ("wavelength",)
    return xr.Dataset(
        {
            "residual": (dim, signed.mean),
            "absolute_residual": (dim, absolute.mean),
            "error": (dim, error),
            "control": (dim, c_signed.mean),
            "absolute_control": (dim, c_absolute.mean),
            "n_high": (dim, signed.count),
        },
        coords={"wavelength": survey["wavelength"]},
        attrs={
            "n_low": len(rows_low),
            "n_high": len(rows_high),
            "n_components": n_components,
            "basis": ppca.verdict,
        },
    )


def load_spectra(survey: xr.Dataset, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flux (n, pixels), 0 where unused, and boolean `missing` of sorted rows, read chunk by chunk."""
    chunks = survey["flux"].chunks
    parts, start = [], 0
    for size in chunks[0] if chunks else (survey.sizes["star"],):
        lo, hi = np.searchsorted(rows, [start, start + size])
        if hi > lo:
            block = survey[["flux", "ivar", "flags"]].isel(star=slice(start, start + size))
            values = [np.asarray(block[v].values)[rows[lo:hi] - start] for v in ("flux", "ivar", "flags")]
            parts.append(_clean(*values))
        start += size
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def _clean(flux: np.ndarray, ivar: np.ndarray, flags: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    missing = ((flags & _SELECTED) != 0) | ~(ivar > 0) | ~np.isfinite(flux)
    return np.where(missing, 0, flux).astype(np.float32), missing


def _delayed_block(block: xr.Dataset) -> list[Any]:
    """The three pixel variables of one chunk as delayed arrays (or plain ones for a survey in memory)."""
    out = []
    for name in ("flux", "ivar", "flags"):
        data = block[name].data
        out.append(data.rechunk(-1).to_delayed().ravel()[0] if hasattr(data, "to_delayed") else np.asarray(data))
    return out


def _block_moments(
    ppca: Any, flux: np.ndarray, ivar: np.ndarray, flags: np.ndarray, rows: np.ndarray
) -> tuple[Moments, Moments]:
    return residual_moments(ppca, *_clean(flux[rows], ivar[rows], flags[rows]))


def residual_moments(ppca: Any, flux: np.ndarray, missing: np.ndarray) -> tuple[Moments, Moments]:
    """Moments over stars, per pixel, of the residuals of a block and of their absolute values."""
    z = np.asarray(ppca.transform(flux, missing))
    residual = flux - (z @ np.nan_to_num(ppca.components_) + np.nan_to_num(ppca.mean_))
    unused = missing | ~ppca.pixel_used_
    return block_moments(residual, unused), block_moments(np.abs(residual), unused)


def score(excess: np.ndarray, *, smooth: float = 4.0, baseline: int = 601) -> np.ndarray:
    """Smoothed excess residual in units of its own robust scatter over wavelength; NaN where there is no pixel.

    Parameters
    ----------
    excess : array (n_pixels,)
        Residual of the high stars less that of the control stars.
    smooth : float
        Gaussian smoothing, pixels (bands are many pixels wide, noise is not).
    baseline : int
        Width in pixels of the running median taken off first: broad tilts are not bands.
    """
    good = np.isfinite(excess)
    out = np.full(len(excess), np.nan)
    if good.sum() < 3:
        return out
    x = excess[good]
    width = min(baseline, max(3, len(x) // 2 * 2 - 1))
    x = x - median_filter(x, width, mode="nearest")
    filled, weight = np.zeros(len(excess)), good.astype(float)
    filled[good] = x
    with np.errstate(invalid="ignore"):
        y = (gaussian_filter1d(filled, smooth) / gaussian_filter1d(weight, smooth))[good]
    scatter = median_abs_deviation(y, scale="normal")
    out[good] = y / (scatter or np.inf)
    return out


def select_windows(
    significance: np.ndarray,
    *,
    seed: float = 8.0,
    grow: float = 3.0,
    merge: int = 15,
    pad: int = 6,
    min_width: int = 5,
    sign: int = 0,
) -> list[tuple[int, int]]:
    """Windows around strong residuals, by hysteresis.

    A window starts at a pixel beyond `seed`, grows both ways while pixels stay beyond `grow`, is merged with windows
    fewer than `merge` pixels away and widened by `pad`.

    Parameters
    ----------
    significance : array (n_pixels,)
        From :func:`score`; NaN pixels end a window.
    seed, grow : float
        Upper and lower threshold.
    merge, pad, min_width : int
        Pixels.
    sign : {-1, 0, 1}
        Only absorption (-1), only excess (1), or both (0).

    Returns
    -------
    list of (start, stop)
        Pixel ranges, stop exclusive, in order, disjoint.
    """
    value = np.abs(significance) if sign == 0 else sign * significance
    with np.errstate(invalid="ignore"):
        above = np.nan_to_num(value, nan=-np.inf) > grow
    edges = np.flatnonzero(np.diff(np.concatenate([[0], above.astype(np.int8), [0]])))
    spans = []
    for start, stop in edges.reshape(-1, 2):
        if stop - start >= min_width and np.nanmax(value[start:stop]) > seed:
            spans.append((max(0, int(start) - pad), min(len(value), int(stop) + pad)))
    merged: list[tuple[int, int]] = []
    for start, stop in spans:
        if merged and start - merged[-1][1] <= merge:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged


def window_mask(windows: Sequence[tuple[int, int]], n_pixels: int) -> np.ndarray:
    """Boolean (n_pixels,), True inside a window."""
    mask = np.zeros(n_pixels, bool)
    for start, stop in windows:
        mask[start:stop] = True
    return mask


def interstellar_windows(
    survey: xr.Dataset,
    *,
    low: float = 0.005,
    high: float = 0.5,
    n_components: int = 30,
    max_basis: int = 6000,
    **selection: Any,
) -> tuple[list[tuple[int, int]], xr.Dataset]:
    """Interstellar windows of a survey (appendix A), from stars of extinction below `low` and above `high`.

    Parameters
    ----------
    survey : xarray.Dataset
    low, high : float
        Limits on ``extinction`` (paper: A_K < 0.005 and > 0.5 mag).
    n_components, max_basis
        As :func:`residual_spectrum`.
    **selection
        Passed to :func:`select_windows`.

    Returns
    -------
    (windows, Dataset)
        Pixel ranges, and the residual spectrum with ``significance`` and boolean ``window`` added.
    """
    extinction = _label(survey, "extinction")
    ds = residual_spectrum(survey, extinction < low, extinction > high, n_components=n_components, max_basis=max_basis)
    return _finish(ds, ds["residual"].values - np.nan_to_num(ds["control"].values), selection)


def velocity_windows(
    survey: xr.Dataset,
    *,
    low: float = 5.0,
    high: float = 80.0,
    n_components: int = 30,
    max_basis: int = 6000,
    both_signs: bool = True,
    **selection: Any,
) -> tuple[list[tuple[int, int]], xr.Dataset]:
    """Pixels whose residual depends on radial velocity (appendix B): \\|v\\| < `low` against \\|v\\| > `high` km/s.

    The paper's Figure 7 takes v > `high` alone: ``both_signs=False``. Uses absolute residuals, as telluric residuals
    have either sign. Arguments and results as :func:`interstellar_windows`.
    """
    velocity = _label(survey, "radial_velocity")
    speed = np.abs(velocity)
    fast = (speed if both_signs else velocity) > high
    ds = residual_spectrum(survey, speed < low, fast, n_components=n_components, max_basis=max_basis)
    excess = ds["absolute_residual"].values - np.nan_to_num(ds["absolute_control"].values)
    return _finish(ds, excess, {"sign": 1, **selection})


def _label(survey: xr.Dataset, name: str) -> np.ndarray:
    values = np.asarray(survey[name].values, float) if name in survey else np.empty(0)
    if not np.isfinite(values).any():
        raise DataError(f"the survey has no {name}", f"ingest one with the `{name}` variable")
    return values


def _finish(ds: xr.Dataset, excess: np.ndarray, selection: dict[str, Any]) -> tuple[list[tuple[int, int]], xr.Dataset]:
    ds["significance"] = ("wavelength", score(excess))
    windows = select_windows(ds["significance"].values, **selection)
    ds["window"] = ("wavelength", window_mask(windows, ds.sizes["wavelength"]))
    return windows, ds
