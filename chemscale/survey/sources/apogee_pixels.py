"""Pixels of APOGEE files: the grid, the detectors, flags, and the checks a file must pass."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from chemscale.schema import Flag
from chemscale.survey.continuum import running_quantile
from chemscale.survey.sources.files import printable
from chemscale.survey.sources.fits import HDU, FitsError, Header
from chemscale.survey.sources.pixels import inverse_variance

N_PIXELS = 8575
LOG_START, LOG_STEP = 4.179, 6e-6
#: Pixel ranges [start, stop) of the three detectors in ASPCAP products (7514 pixels).
CHIPS = ((246, 3274), (3585, 6080), (6344, 8335))
_INSIDE = np.zeros(N_PIXELS, bool)
for _start, _stop in CHIPS:
    _INSIDE[_start:_stop] = True
#: Interstellar features the RSCA paper censors (section 4.1), pixel ranges [start, stop).
INTERSTELLAR_WINDOWS = ((720, 910), (2370, 2470), (2600, 2750), (4300, 4600))
#: An error at or above this marks a bad pixel.
BAD_ERROR = 1e10
#: APOGEE_PIXMASK bits that make a pixel bad: BADPIX, CRPIX, SATPIX, UNFIXABLE, BADDARK, BADFLAT,
#: BADERR, NOSKY, and SIG_SKYLINE (12), as in the survey's own badPixMask plus its sky-line bit.
BAD_PIXMASK = sum(1 << bit for bit in (0, 1, 2, 3, 4, 5, 6, 7, 12))


def wavelength_grid() -> np.ndarray:
    """The apStar grid, (8575,) float64, vacuum Angstrom."""
    return 10.0 ** (LOG_START + LOG_STEP * np.arange(N_PIXELS))


def check_identity(units: list[HDU], star_id: str) -> None:
    for key in ("OBJ", "OBJID"):
        claimed = units[0].header.text(key)
        if claimed and claimed != star_id:
            raise FitsError(f"file name says {star_id!r}, its {key} keyword says {printable(claimed)!r}")


def spectrum(units: list[HDU], index: int, what: str) -> np.ndarray:
    """The (first row of the) 8575-pixel image in HDU `index`, its grid checked."""
    if len(units) <= index:
        raise FitsError(f"file has {len(units)} HDUs, {what} is expected in HDU {index}")
    unit = units[index]
    if unit.kind != "IMAGE":
        raise FitsError(f"HDU {index} ({what}) is a {unit.kind}, not an image")
    if not unit.shape or unit.shape[-1] != N_PIXELS or len(unit.shape) > 2 or 0 in unit.shape:
        raise FitsError(f"HDU {index} ({what}) has shape {unit.shape}, expected {N_PIXELS} pixels")
    bitpix = unit.header.get("BITPIX")
    if (bitpix < 0) == (what == "mask"):
        raise FitsError(f"HDU {index} ({what}) has BITPIX {bitpix}, expected {'integers' if bitpix < 0 else 'floats'}")
    _check_grid(unit.header, units[0].header, index)
    image = unit.image()
    return image if image.ndim == 1 else image[0]


def _check_grid(header: Header, primary: Header, index: int) -> None:
    found = _grid_keys(header.raw)
    if found[0] != found[0]:  # not in this header: then in the primary one
        found = _grid_keys(primary.raw)
    start, step, reference = found
    first = start - (reference - 1.0) * step
    # a tenth of a pixel at either end
    if not (abs(first - LOG_START) < 0.1 * LOG_STEP and abs(step - LOG_STEP) * N_PIXELS < 0.1 * LOG_STEP):
        raise FitsError(
            f"HDU {index} is on another wavelength grid: CRVAL1 {start}, CDELT1 {step}, CRPIX1 {reference};"
            f" expected log10(lambda) = {LOG_START} + {LOG_STEP} i"
        )


@lru_cache(maxsize=256)
def _grid_keys(raw: bytes) -> tuple[float, float, float]:
    header = Header(raw)
    return header.number("CRVAL1"), header.number("CDELT1"), header.number("CRPIX1", 1.0)


def finish(
    flux: np.ndarray, error: np.ndarray, bad: np.ndarray, *, normalise: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flux, ivar and flags of a block from what the files hold (all stars at once)."""
    zero = flux == 0
    with np.errstate(invalid="ignore"):
        bad = bad | (zero & _INSIDE) | (error >= BAD_ERROR)
    flags = (zero & ~_INSIDE).view(np.uint8) * np.uint8(Flag.GAP)
    flags |= bad.view(np.uint8) * np.uint8(Flag.SURVEY_BAD)
    ivar = inverse_variance(error)
    ivar[bad | zero] = 0.0
    if normalise:
        grid = wavelength_grid()
        for start, stop in CHIPS:
            part = slice(start, stop)
            flux[:, part], ivar[:, part], _ = running_quantile(
                grid[part], flux[:, part], ivar[:, part], bin_width=10.0, window=100.0, quantile=0.9
            )
        outside = ~_INSIDE
        flux[:, outside], ivar[:, outside] = 0.0, 0.0
        flags[:, outside] |= np.uint8(Flag.GAP)
    with np.errstate(invalid="ignore"):
        absurd = (np.abs(flux) > 1e3) & (flux != np.inf) & (flux != -np.inf)  # the continuum is 1
    if absurd.any():
        ivar[absurd] = 0.0
        flags[absurd] |= np.uint8(Flag.SURVEY_BAD)
    return flux, ivar, flags
