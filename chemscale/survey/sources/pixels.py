"""What readers do with pixels before `quality.pixels` sees them."""

from __future__ import annotations

import numpy as np

from chemscale.survey.sources.fits import FitsError

#: No stellar spectrum has a signal-to-noise ratio of 10^6 in a pixel; a smaller error is a mistake.
_SMALLEST_ERROR = 1e-12
_LARGEST_IVAR = np.float32(1e30)


def inverse_variance(error: np.ndarray) -> np.ndarray:
    """``1 / error**2`` as float32; 0 where the error is not a positive finite number."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        good = np.isfinite(error) & (error > _SMALLEST_ERROR)
        ivar = np.where(good, 1.0 / np.square(error, dtype=np.float64), 0.0)
    return np.minimum(ivar, _LARGEST_IVAR).astype(np.float32)


def usable(flux: np.ndarray, error: np.ndarray, bad_error: float = np.inf) -> None:
    """Raise FitsError with the precise reason when a spectrum holds nothing to use."""
    finite = np.isfinite(flux)
    if not finite.any():
        raise FitsError("flux is not finite in any pixel")
    if not np.any(flux[finite] != 0):
        raise FitsError("flux is 0 in every pixel")
    with np.errstate(invalid="ignore"):
        good = finite & (flux != 0) & np.isfinite(error) & (error > 0) & (error < bad_error)
    if not good.any():
        raise FitsError("no pixel has both a flux and a valid error")
