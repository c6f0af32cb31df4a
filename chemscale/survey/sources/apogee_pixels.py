"""Pixels of APOGEE files: the grid, the detectors, flags, and the checks a file must pass."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from chemscale.formats import kernels as compiled
from chemscale.formats.fits import HDU
from chemscale.formats.fits_columns import IMAGE_DTYPES
from chemscale.formats.fits_header import FitsError, Header
from chemscale.formats.paths import printable
from chemscale.schema import Flag
from chemscale.survey.continuum import running_quantile

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
#: The continuum is 1: a finite flux beyond this is a mistake.
_ABSURD = 1e3
#: APOGEE_PIXMASK bits that make a pixel bad: BADPIX, CRPIX, SATPIX, UNFIXABLE, BADDARK, BADFLAT,
#: BADERR, NOSKY, and SIG_SKYLINE (12), as in the survey's own badPixMask plus its sky-line bit.
BAD_PIXMASK = sum(1 << bit for bit in (0, 1, 2, 3, 4, 5, 6, 7, 12))


def wavelength_grid() -> np.ndarray:
    """The apStar grid, (8575,) float64, vacuum Angstrom."""
    return 10.0 ** (LOG_START + LOG_STEP * np.arange(N_PIXELS))


def check_identity(units: list[HDU], star_id: str) -> None:
    """Refuse a file whose header names another star than its file name."""
    for key in ("OBJ", "OBJID"):
        claimed = units[0].header.text(key)
        if claimed and claimed != star_id:
            raise FitsError(f"file name says {star_id!r}, its {key} keyword says {printable(claimed)!r}")


def copy_spectrum(units: list[HDU], index: int, what: str, out: np.ndarray) -> None:
    """Copy the (first row of the) 8575-pixel image in HDU `index` to `out`, its grid checked."""
    if len(units) <= index:
        raise FitsError(f"file has {len(units)} HDUs, {what} is expected in HDU {index}")
    unit = units[index]
    dtype = _stored_type(unit.header.raw, unit.kind, unit.shape, index, what)
    _check_grid(unit.header, units[0].header, index)
    if dtype is None:  # scaled values
        image = unit.image()
        pixels = image if image.ndim == 1 else image[0]
        # an undefined pixel of a mask has every bit set: it is bad
        out[:] = np.where(np.isfinite(pixels), pixels, -1) if what == "mask" else pixels
    elif unit.size < N_PIXELS * dtype.itemsize:
        raise FitsError(f"HDU {index} ({what}) declares {unit.size} bytes for {N_PIXELS} pixels")
    else:
        out[:] = np.frombuffer(unit.buffer, dtype, N_PIXELS, unit.offset)


@lru_cache(maxsize=256)  # once for all files of a release: their image headers are the same
def _stored_type(raw: bytes, kind: str, shape: tuple[int, ...], index: int, what: str) -> np.dtype | None:
    """Type of the values of a spectrum's HDU, checked against what is expected; None for scaled or undefined values."""
    header = Header(raw)
    if kind != "IMAGE":
        raise FitsError(f"HDU {index} ({what}) is a {kind}, not an image")
    if not shape or shape[-1] != N_PIXELS or len(shape) > 2 or 0 in shape:
        raise FitsError(f"HDU {index} ({what}) has shape {shape}, expected {N_PIXELS} pixels")
    bitpix = header.get("BITPIX")
    if (bitpix < 0) == (what == "mask"):
        raise FitsError(f"HDU {index} ({what}) has BITPIX {bitpix}, expected {'integers' if bitpix < 0 else 'floats'}")
    scaled = header.number("BSCALE", 1.0) != 1.0 or header.number("BZERO", 0.0) != 0.0
    scaled |= what == "mask" and header.get("BLANK") is not None
    return None if scaled else np.dtype(IMAGE_DTYPES[bitpix])


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
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Flux, ivar and flags of a block from what the files hold, and the verdict on each star.

    Parameters
    ----------
    flux, error : ndarray (n, P) float32
        `flux` is changed when it is normalised.
    bad : ndarray (n, P) bool
        Pixels the survey's mask calls bad; shape (0, 0) where it has none.
    normalise : bool
        Divide by a running quantile of each detector.

    Returns
    -------
    flux, ivar, flags : ndarray (n, P)
    verdict : ndarray (n,) uint8
        Index of :data:`chemscale.formats.kernels.REASONS`; 0 for a usable star.
    """
    ivar, flags, verdict = np.empty_like(flux), np.empty(flux.shape, np.uint8), np.empty(len(flux), np.uint8)
    absurd = np.float32(np.inf if normalise else _ABSURD)
    compiled.weigh_block(flux, error, bad, _INSIDE, np.float32(BAD_ERROR), absurd, ivar, flags, verdict)
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
            strange = (np.abs(flux) > _ABSURD) & (flux != np.inf) & (flux != -np.inf)
        ivar[strange] = 0.0
        flags[strange] |= np.uint8(Flag.SURVEY_BAD)
    return flux, ivar, flags, verdict
