"""Compiled loops of the readers: what a file's pixels say, in one pass over a block (Numba, no GIL held)."""

from __future__ import annotations

import numpy as np
from numba import njit

from chemscale.schema import Flag

_GAP, _BAD = np.uint8(Flag.GAP), np.uint8(Flag.SURVEY_BAD)
#: No stellar spectrum has a signal-to-noise ratio of 10^6 in a pixel; a smaller error is a mistake.
SMALLEST_ERROR = np.float32(1e-12)
LARGEST_IVAR = np.float32(1e30)
#: Verdicts of :func:`weigh_block`, in the order in which they are looked for.
REASONS = (
    "",
    "flux is not finite in any pixel",
    "flux is 0 in every pixel",
    "no pixel has both a flux and a valid error",
)


@njit(nogil=True, cache=True, error_model="numpy")
def weigh_block(flux, error, bad, inside, big, absurd, ivar, flags, verdict):
    """Inverse variance and flags of a block of spectra with errors, and whether a star has anything to use.

    Parameters
    ----------
    flux, error : ndarray (n, P) float32
        As in the files; `flux` is not changed.
    bad : ndarray (n, P) bool
        The survey's own verdict; shape (0, 0) where it has none.
    inside : ndarray (P,) bool
        Pixels on a detector: flux 0 is bad inside and a gap outside.
    big : float32
        An error at or above this marks a bad pixel.
    absurd : float32
        A finite flux beyond this is a mistake.
    ivar : ndarray (n, P) float32
        Receives ``1 / error**2``; 0 where a pixel is bad, a gap, or its error is not a positive number.
    flags : ndarray (n, P) uint8
        Receives GAP and SURVEY_BAD.
    verdict : ndarray (n,) uint8
        Receives an index of :data:`REASONS`; 0 for a usable star.
    """
    zero, one, infinity = np.float32(0), np.float32(1), np.float32(np.inf)
    none = np.uint8(0)
    for i in range(flux.shape[0]):
        x, e, w, f = flux[i], error[i], ivar[i], flags[i]
        finite, lit, good = False, False, False
        for j in range(x.size):
            is_zero = x[j] == zero
            wrong = (is_zero & inside[j]) | (e[j] >= big)
            size = abs(x[j])
            strange = (size > absurd) & (size < infinity)
            r = one / e[j]
            r = min(r * r, LARGEST_IVAR)
            w[j] = r if (e[j] > SMALLEST_ERROR) & (not (wrong | is_zero | strange)) else zero
            f[j] = (_GAP if is_zero & (not inside[j]) else none) | (_BAD if wrong | strange else none)
        for j in range(x.size):
            known = abs(x[j]) < infinity
            shines = known & (x[j] != zero)
            finite |= known
            lit |= shines
            good |= shines & (e[j] > zero) & (e[j] < min(big, infinity))
        if bad.size:
            for j in range(x.size):
                if bad[i, j]:
                    w[j] = zero
                    f[j] |= _BAD
        verdict[i] = 0 if good else 3 if lit else 2 if finite else 1


@njit(nogil=True, cache=True)
def informed_rows(flux, ivar, out):
    """Whether any pixel of each row has a finite flux and weight; looks no further than the first."""
    infinity = flux.dtype.type(np.inf)
    for i in range(flux.shape[0]):
        out[i] = False
        for j in range(flux.shape[1]):
            if ivar[i, j] > 0 and abs(flux[i, j]) < infinity:
                out[i] = True
                break
