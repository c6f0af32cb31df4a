"""Which pixels may be used: gaps, non-finite values, large errors, interstellar windows.

Kernels on plain arrays, applied block by block during ingestion. The rules are those of
section 4.1 of the RSCA paper; thresholds and windows are arguments.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

#: Largest error of a usable pixel of continuum-normalised flux (RSCA paper, section 4.1).
MAX_ERROR = 0.05
#: Windows of interstellar absorption left out in the RSCA paper (section 4.1), vacuum
#: Angstrom: the pixels [720, 910), [2370, 2470), [2600, 2750), [4300, 4600) of APOGEE's grid.
APOGEE_WINDOWS = tuple(
    (10 ** (4.179 + 6e-6 * (start - 0.5)), 10 ** (4.179 + 6e-6 * (stop - 0.5)))
    for start, stop in ((720, 910), (2370, 2470), (2600, 2750), (4300, 4600))
)
#: For kernels: no pixel is a gap by itself.
NO_GAPS = np.zeros(0, bool)


def windows_for(wavelength: np.ndarray, medium: str) -> tuple[tuple[float, float], ...]:
    """Interstellar windows known for a wavelength grid: APOGEE's for vacuum H-band grids, else none."""
    h_band = medium == "vacuum" and wavelength.size > 0 and wavelength[0] > 14000 and wavelength[-1] < 18000
    return APOGEE_WINDOWS if h_band else ()


def window_pixels(wavelength: np.ndarray, windows: Iterable[Sequence[float]]) -> list[tuple[int, int]]:
    """Pixel ranges ``[start, stop)`` of wavelength windows.

    Parameters
    ----------
    wavelength : ndarray (P,)
        Increasing grid, Angstrom.
    windows : iterable of (low, high)
        Windows in Angstrom, in the grid's medium. Those outside the grid are left out.
    """
    ranges = []
    for low, high in windows:
        start, stop = np.searchsorted(wavelength, (low, high))
        if stop > start:
            ranges.append((int(start), int(stop)))
    return ranges


def censor(
    flux: np.ndarray,
    ivar: np.ndarray,
    flags: np.ndarray,
    *,
    max_error: float | None = MAX_ERROR,
    gaps: np.ndarray | None = None,
    windows: Iterable[tuple[int, int]] = (),
) -> np.ndarray:
    """Add the reasons why pixels cannot be used to `flags`.

    Parameters
    ----------
    flux, ivar : ndarray (N, P)
        Flux and inverse variance; NaN and infinities allowed.
    flags : ndarray (N, P) uint8
        Bits known so far (the survey's own); not modified.
    max_error : float or None
        A pixel whose error ``1/sqrt(ivar)`` exceeds this is LARGE_ERROR (so is ``ivar <= 0``).
        None: only pixels without information (``ivar <= 0``).
    gaps : ndarray (P,) bool, optional
        Pixels between detectors. Pixels whose flux is exactly 0 are gaps in any case (unless
        the survey says they are bad): that is how surveys write "no detector here".
    windows : iterable of (start, stop)
        Pixel ranges with interstellar absorption.

    Returns
    -------
    ndarray (N, P) uint8
        `flags` with GAP, NON_FINITE, LARGE_ERROR and INTERSTELLAR added. A gap carries no
        LARGE_ERROR bit: there is nothing to measure an error of.
    """
    from chemscale.survey.ingest import censoring_kernels as kernels

    out = np.empty_like(flags)
    ranges = np.array([tuple(w) for w in windows], np.int64).reshape(-1, 2)
    no_flux = NO_GAPS if gaps is None else np.ascontiguousarray(gaps)
    kernels.flag_block(kernels.Pixels(flux, ivar, flags), kernels.Rules(error_limit(max_error), no_flux, ranges), out)
    return out


def error_limit(max_error: float | None) -> np.float32:
    """Smallest inverse variance of a pixel whose error is not LARGE_ERROR."""
    return np.float32(0.0 if max_error is None else 1.0 / float(max_error) ** 2)


def clean(flux: np.ndarray, ivar: np.ndarray, flags: np.ndarray) -> None:
    """Zero, in place, flux and ivar of NON_FINITE pixels and negative ivar, so that stored pixels are always finite."""
    from chemscale.survey.ingest import censoring_kernels as kernels

    kernels.clean_block(flux, ivar, flags)
