"""Whether flux is normalised to its continuum, and dividing by one where it is not."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from chemscale.errors import InputError
from chemscale.formats.pixels import inverse_variance
from chemscale.schema import Flag
from chemscale.survey.continuum import divide, running_quantile
from chemscale.survey.resample import Rebinner

CONTINUA = ("as-given", "running-quantile", "median")
#: The typical flux of a continuum-normalised star lies in here, M dwarfs and noisy stars included.
NORMAL_FLUX = (0.1, 10.0)
REMEDY = (
    "let it be divided by its continuum: --continuum running-quantile (or median), or give flux that is divided already"
)


def check_normalised(
    flux: np.ndarray, ivar: np.ndarray | None, error: np.ndarray | None, unit: str, where: str
) -> None:
    """Refuse flux that is not normalised: by its unit, or by the typical value of a sample of stars.

    Parameters
    ----------
    flux : ndarray (n, P)
        Some stars, as they are in the file.
    ivar, error : ndarray (n, P) or None
        Pixels without information do not count.
    unit : str
        That the file states for the flux.
    where : str
        File, for the message.

    Raises
    ------
    InputError
    """
    if unit and _is_physical(unit):
        raise InputError(f"{where}: flux is in {unit!r}, not continuum-normalised", REMEDY)
    level = typical(flux, ivar, error)
    if np.isfinite(level) and not NORMAL_FLUX[0] <= level <= NORMAL_FLUX[1]:
        raise InputError(
            f"{where}: flux is not continuum-normalised: it is typically {level:.3g}, where a continuum is 1", REMEDY
        )


def typical(flux: np.ndarray, ivar: np.ndarray | None, error: np.ndarray | None) -> float:
    """Median over stars of the median |flux| of their pixels with information; NaN where there are none."""
    flux = np.asarray(flux, np.float64)
    good = np.isfinite(flux) & (flux != 0)
    for weight in (ivar, error):
        if weight is not None:
            with np.errstate(invalid="ignore"):
                good &= np.isfinite(weight) & (weight > 0)
    levels = [float(np.median(np.abs(row[use]))) for row, use in zip(flux, good) if use.any()]
    return float(np.median(levels)) if levels else float("nan")


def _is_physical(unit: str) -> bool:
    from astropy import units

    try:
        return units.Unit(unit).physical_type != "dimensionless"
    except (ValueError, TypeError):
        return False


def weighted(raw: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Flux and inverse variance of a block as they are in a file, in the precision of the file.

    The inverse variance is 0 where it (or the error) is not a positive finite number; errors of any size count.
    """
    flux = np.array(raw["flux"], np.float64)
    with np.errstate(all="ignore"):
        if "ivar" in raw:
            ivar = np.array(raw["ivar"], np.float64)
        else:
            error = np.asarray(raw["error"], np.float64)
            ivar = np.where(error > 0, 1.0 / np.square(error), 0.0)
    ivar[~(np.isfinite(ivar) & (ivar > 0))] = 0.0
    return flux, ivar


def as_given(raw: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Normalised flux and its inverse variance as float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        flux = raw["flux"].astype(np.float32)
        if "ivar" not in raw:
            return flux, inverse_variance(raw["error"])
        ivar = raw["ivar"].astype(np.float32)
    ivar[~(np.isfinite(ivar) & (ivar > 0))] = 0.0
    return flux, ivar


def divide_by(
    continuum: str, wavelength: np.ndarray, flux: np.ndarray, ivar: np.ndarray, flags: np.ndarray, window: float
) -> tuple[np.ndarray, np.ndarray]:
    """Flux and inverse variance (n, P) over the continuum, float32; flagged pixels do not shape it.

    Physical units are scaled to about 1 first, so that nothing overflows on the way.
    """
    trusted = np.where(flags == 0, ivar, 0.0)
    scale = np.ones(len(flux))
    for i, (row, weight) in enumerate(zip(flux, trusted)):
        use = np.isfinite(row) & (weight > 0) & (row != 0)
        level = np.median(np.abs(row[use])) if use.any() else 0.0
        scale[i] = level if level > 0 else 1.0
    flux, ivar = flux / scale[:, None], ivar * np.square(scale)[:, None]
    if continuum == "median":
        out = flux.astype(np.float32), ivar.astype(np.float32)
    else:
        trusted = trusted * np.square(scale)[:, None]
        bin_width = max(window / 30.0, 2.5 * float(np.median(np.diff(wavelength))))
        level = running_quantile(wavelength, flux, trusted, bin_width=bin_width, window=max(window, 3 * bin_width))[2]
        out = divide(flux, ivar, level)
    out[1][~np.isfinite(out[1])] = 0.0
    return out


def over_continuum(
    flux: np.ndarray, ivar: np.ndarray, flags: np.ndarray, continuum: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Flux and inverse variance (n, P) over the continuum, float32.

    A pixel beyond 1000 times its continuum, or without one, loses its weight and is SURVEY_BAD in `flags`.
    """
    out_flux, out_ivar = divide(flux, ivar, continuum)
    with np.errstate(invalid="ignore"):
        absurd = ~(np.abs(out_flux) <= 1e3)
    out_ivar[absurd] = 0.0
    flags[absurd | ((out_ivar <= 0) & (ivar > 0))] |= np.uint8(Flag.SURVEY_BAD)
    return out_flux, out_ivar


def implied_continuum(normalised: np.ndarray, ivar: np.ndarray, rebinner: Rebinner, flux: np.ndarray) -> np.ndarray:
    """The continuum that `normalised` flux on a file's own pixels implies for `flux` on the grid; NaN where none."""
    resampled, weight, _ = rebinner(normalised, np.where(ivar > 0, 1.0, 0.0))
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = flux / resampled
    return np.where((weight > 0) & (resampled > 0.01) & (ratio > 0), ratio, np.nan)
