"""Compiled loops over the pixels of a block while it is in the processor's cache (Numba, no GIL held).

In NumPy the rules of :mod:`chemscale.survey.ingest.censoring` are some twenty passes over a block; here they are one.
Each loop does one thing to one row, so that the compiler turns it into vector instructions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from chemscale.schema import Flag

GAP, NON_FINITE, LARGE_ERROR = np.uint8(Flag.GAP), np.uint8(Flag.NON_FINITE), np.uint8(Flag.LARGE_ERROR)
SURVEY_BAD, INTERSTELLAR = np.uint8(Flag.SURVEY_BAD), np.uint8(Flag.INTERSTELLAR)
N_FLAGS = len(Flag)
#: Beyond these a value cannot be squared or weighted in float32: treated as not finite.
FLUX_LIMIT, IVAR_LIMIT = np.float32(1e9), np.float32(1e18)


class Pixels(NamedTuple):
    """Pixels of a block of stars.

    Attributes
    ----------
    flux, ivar : ndarray (n, P) float32
    flags : ndarray (n, P) uint8
    """

    flux: np.ndarray
    ivar: np.ndarray
    flags: np.ndarray


class Rules(NamedTuple):
    """What makes a pixel unusable.

    Attributes
    ----------
    limit : float32
        Smallest inverse variance that is not LARGE_ERROR.
    gaps : ndarray (P,) bool
        Pixels between detectors; empty where none is known.
    windows : ndarray (W, 2) int64
        Pixel ranges with interstellar absorption.
    """

    limit: np.float32
    gaps: np.ndarray
    windows: np.ndarray


class Tally(NamedTuple):
    """Counts over the stored pixels of a shard, added to in place.

    Attributes
    ----------
    flagged : ndarray (N_FLAGS,) int64
        Pixels with each flag.
    used_per_pixel : ndarray (P,) int64
        Stars that use a pixel: no flag, positive inverse variance.
    coverage : ndarray (bins,) int64
        Stars by the fraction of their pixels that is used.
    span : ndarray (2,) float64
        Lowest and highest flux.
    """

    flagged: np.ndarray
    used_per_pixel: np.ndarray
    coverage: np.ndarray
    span: np.ndarray


@njit(nogil=True, cache=True)
def _flag_row(flux, ivar, flags, rules, out):
    limit, gaps, windows = rules.limit, rules.gaps, rules.windows
    zero = flux.dtype.type(0)
    none = np.uint8(0)
    for j in range(flux.size):
        x, v, f = flux[j], ivar[j], flags[j]
        # "not small" catches NaN, infinities and absurd values at once
        bad = not ((abs(x) < FLUX_LIMIT) & (abs(v) < IVAR_LIMIT))
        gap = (x == zero) & ((f & SURVEY_BAD) == 0)
        noisy = ((v < limit) | (v <= zero)) & (not (gap | bad))
        out[j] = f | (GAP if gap else none) | (NON_FINITE if bad else none) | (LARGE_ERROR if noisy else none)
    if gaps.size:
        for j in range(flux.size):
            if gaps[j]:  # a gap carries no LARGE_ERROR bit of ours: there is nothing to measure an error of
                out[j] = flags[j] | GAP | (out[j] & NON_FINITE)
    for k in range(windows.shape[0]):
        for j in range(windows[k, 0], windows[k, 1]):
            out[j] |= INTERSTELLAR


@njit(nogil=True, cache=True)
def flag_block(pixels, rules, out):
    """Flags of a block (n, P) to `out`; see :func:`chemscale.survey.ingest.censoring.censor`."""
    for i in range(pixels.flux.shape[0]):
        _flag_row(pixels.flux[i], pixels.ivar[i], pixels.flags[i], rules, out[i])


@njit(nogil=True, cache=True)
def _clean_row(flux, ivar, flags, out_flux, out_ivar):
    zero = flux.dtype.type(0)
    some = False
    for j in range(flux.size):
        bad = (flags[j] & NON_FINITE) != 0
        v = zero if bad or not (ivar[j] > zero) else ivar[j]
        out_flux[j] = zero if bad else flux[j]
        out_ivar[j] = v
        some |= v > zero
    return some


@njit(nogil=True, cache=True)
def clean_block(flux, ivar, flags):
    """Zeroes, in place, what must not be stored; see :func:`chemscale.survey.ingest.censoring.clean`."""
    for i in range(flux.shape[0]):
        _clean_row(flux[i], ivar[i], flags[i], flux[i], ivar[i])


@njit(nogil=True, cache=True)
def censor_block(pixels, rules, rows, out, usable):
    """Censor and clean a block (n, P) on its way to rows `rows` (n,) of a bigger one, `out`.

    `usable` (n,) receives whether any pixel has weight; rows of unusable stars hold zeros.
    """
    flux, ivar, flags = pixels.flux, pixels.ivar, pixels.flags
    for i in range(flux.shape[0]):
        r = rows[i]
        _flag_row(flux[i], ivar[i], flags[i], rules, out.flags[r])
        usable[i] = _clean_row(flux[i], ivar[i], out.flags[r], out.flux[r], out.ivar[r])
        if not usable[i]:
            out.flux[r, :] = 0
            out.ivar[r, :] = 0
            out.flags[r, :] = 0


@njit(nogil=True, cache=True, fastmath={"nnan", "nsz"})  # stored flux is finite: a plain minimum may be vectorised
def _span(row):
    low, high = row[0], row[0]
    for j in range(row.size):
        low = min(low, row[j])
        high = max(high, row[j])
    return low, high


@njit(nogil=True, cache=True)
def count_block(pixels, filled, tally):
    """Adds a block of stored rows (n, P) to the :class:`Tally` of a shard; `filled` (n,) is 0 in empty rows.

    Returns
    -------
    int
        Used pixels of the block.
    """
    flux, ivar, flags = pixels.flux, pixels.ivar, pixels.flags
    flagged, used_per_pixel, coverage, span = tally.flagged, tally.used_per_pixel, tally.coverage, tally.span
    total = 0
    p = flux.shape[1]
    used = np.empty(p, np.uint8)
    for i in range(flux.shape[0]):
        if not filled[i]:
            continue
        v, f = ivar[i], flags[i]
        present = np.uint8(0)
        for j in range(p):
            present |= f[j]
        for j in range(p):
            used[j] = (f[j] == 0) & (v[j] > 0)
        n = 0
        for j in range(p):
            n += used[j]
        for j in range(p):
            used_per_pixel[j] += used[j]
        for b in range(N_FLAGS):
            if (present >> b) & 1:
                c = 0
                for j in range(p):
                    c += (f[j] >> b) & 1
                flagged[b] += c
        total += n
        coverage[min(n * coverage.size // max(p, 1), coverage.size - 1)] += 1
        low, high = _span(flux[i])
        span[0] = min(span[0], low)
        span[1] = max(span[1], high)
    return total
