"""What readers do with pixels before `quality.pixels` sees them."""

from __future__ import annotations

import numpy as np

from chemscale.survey.sources.fits import FitsError

#: No stellar spectrum has a signal-to-noise ratio of 10^6 in a pixel; a smaller error is a mistake.
_SMALLEST_ERROR = 1e-12
_LARGEST_IVAR = np.float32(1e30)


def inverse_variance(error: np.ndarray) -> np.ndarray:
    """``1 / error**2`` as float32; 0 where the error is not a positive finite number."""
    # float32 throughout: a relative error of 1e-7 in a weight; several times faster than through float64
    with np.errstate(all="ignore"):
        error = np.asarray(error, np.float32)
        ivar = np.reciprocal(error)
        np.square(ivar, out=ivar)
        np.minimum(ivar, _LARGEST_IVAR, out=ivar)
        ivar[~(error > _SMALLEST_ERROR)] = 0.0  # NaN too; an infinite error gives 0 by itself
    return ivar


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
