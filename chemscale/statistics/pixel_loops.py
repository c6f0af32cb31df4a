"""Compiled loops over pixels, where NumPy would pass over a block many times (Numba, no GIL held)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit


class Listed(NamedTuple):
    """Pixels of every star of a block as a list: those of star `n` are ``pixel[start[n] : start[n + 1]]``."""

    start: np.ndarray  # (n + 1,) int64
    pixel: np.ndarray  # int32

    @classmethod
    def of(cls, marked: np.ndarray) -> Listed:
        """The pixels `marked` (n, P) is True at."""
        return cls.from_flat(np.flatnonzero(marked), *marked.shape)

    @classmethod
    def from_flat(cls, flat: np.ndarray, n: int, p: int) -> Listed:
        """Sorted positions in a flattened (n, p) array."""
        start = np.searchsorted(flat, np.arange(n + 1) * p)
        return cls(start.astype(np.int64), (flat % p).astype(np.int32))

    def flat(self, p: int) -> np.ndarray:
        """Positions in the flattened (n, p) array."""
        return np.repeat(np.arange(len(self.start) - 1) * p, np.diff(self.start)) + self.pixel

    def marked(self, p: int) -> np.ndarray:
        """True at the listed pixels, (n, p)."""
        out = np.zeros((len(self.start) - 1, p), dtype=bool)
        out.ravel()[self.flat(p)] = True
        return out

    def union(self, other: Listed, p: int) -> Listed:
        """The pixels that either lists, of `p`."""
        return Listed.from_flat(np.union1d(self.flat(p), other.flat(p)), len(self.start) - 1, p)

    def of_rows(self, rows: np.ndarray) -> Listed:
        """The lists of the stars `rows`."""
        parts = [self.pixel[self.start[i] : self.start[i + 1]] for i in rows]
        return Listed(np.cumsum([0, *map(len, parts)]).astype(np.int64), np.concatenate(parts))


@njit(nogil=True, cache=True)
def fold_missing(flux, flags, bits, ivar, runs, values, missing):
    """Used pixels of a block and which of them are missing, in one pass over flux, flags and ivar.

    Parameters
    ----------
    flux, ivar : ndarray (n, P)
        `ivar` of shape (0, 0): not looked at.
    flags : ndarray (n, P), integer
        Missing where ``flags & bits``; shape (0, 0): not looked at.
    runs : ndarray of int (R, 2)
        Ranges ``[start, stop)`` of pixels to keep, Q in all.
    values : ndarray (n, Q)
        Receives the flux, 0 where missing.
    missing : ndarray of bool (n, Q)
        Receives which pixels are missing.

    Returns
    -------
    int
        Values that are missing for their `ivar` alone.
    """
    n, alone = flux.shape[0], 0
    largest = np.finfo(flux.dtype).max
    zero = flux.dtype.type(0)
    # One simple loop per condition and run: each vectorises.
    for i in range(n):
        at = 0
        for start, stop in runs:
            size = stop - start
            x, gone, out = flux[i, start:stop], missing[i, at : at + size], values[i, at : at + size]
            for j in range(size):
                gone[j] = not (np.abs(x[j]) <= largest)
            if flags.size > 0:
                f = flags[i, start:stop]
                for j in range(size):
                    gone[j] |= (f[j] & bits) != 0
            if ivar.size > 0:
                w = ivar[i, start:stop]
                top = np.finfo(ivar.dtype).max
                for j in range(size):
                    bad = not ((w[j] > 0) & (w[j] <= top))
                    alone += bad & (not gone[j])
                    gone[j] |= bad
            for j in range(size):
                out[j] = zero if gone[j] else x[j]
            at += size
    return alone


@njit(nogil=True, cache=True)
def gather(array, runs, out):
    """Copies the ranges ``[start, stop)`` of pixels in `runs` (R, 2) of `array` (n, P) to `out` (n, Q)."""
    for i in range(array.shape[0]):
        at = 0
        for start, stop in runs:
            out[i, at : at + stop - start] = array[i, start:stop]
            at += stop - start


@njit(nogil=True, cache=True)
def centre(flux, missing, scale, mean, out):
    """Writes ``flux * scale - mean``, 0 where `missing`, to `out` (n, P)."""
    n, p = flux.shape
    zero, factor = mean.dtype.type(0), mean.dtype.type(scale)
    for i in range(n):
        x, gone, row = flux[i], missing[i], out[i]
        for j in range(p):
            row[j] = zero if gone[j] else x[j] * factor - mean[j]


@njit(nogil=True, cache=True)
def unlisted_gram(listed, basis, whole, gram):
    """Per star, the sum of ``basis_p basis_p^T`` over the pixels that are not listed, to `gram` (n, K, K), float64.

    Parameters
    ----------
    whole : ndarray (K, K), float64
        The sum over all pixels: less that of the listed ones, work is proportional to what is missing.
    """
    k = basis.shape[1]
    longest = 0
    for i in range(gram.shape[0]):
        longest = max(longest, listed.start[i + 1] - listed.start[i])
    gathered = np.empty((longest, k), basis.dtype)
    for i in range(gram.shape[0]):
        count = 0
        for at in range(listed.start[i], listed.start[i + 1]):
            gathered[count] = basis[listed.pixel[at]]
            count += 1
        gram[i] = whole
        if count:
            gram[i] -= np.dot(gathered[:count].T, gathered[:count])


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def project_listed(listed, basis, extra, latent, projection):
    """Adds ``sum_p (basis_p . latent_n) extra_p`` over the listed pixels of every star to `projection` (n, L)."""
    for i in range(projection.shape[0]):
        u, out = latent[i], projection[i]
        for at in range(listed.start[i], listed.start[i + 1]):
            p = listed.pixel[at]
            row, other = basis[p], extra[p]
            value = basis.dtype.type(0)
            for k in range(u.size):
                value += row[k] * u[k]
            for c in range(out.size):
                out[c] += value * other[c]


@njit(nogil=True, cache=True)
def covariance_of_listed(listed, basis, covariance, out):
    """Adds ``covariance_n basis_p`` of every star `n` that lists pixel `p` to row `p` of `out` (P, K).

    The products and their sums are in the precision of `basis`.
    """
    k = basis.shape[1]
    own = np.empty((k, k), basis.dtype)
    longest = 0
    for i in range(covariance.shape[0]):
        longest = max(longest, listed.start[i + 1] - listed.start[i])
    gathered = np.empty((longest, k), basis.dtype)
    for i in range(covariance.shape[0]):
        first, stop = listed.start[i], listed.start[i + 1]
        for at in range(first, stop):
            gathered[at - first] = basis[listed.pixel[at]]
        if stop > first:
            own[:] = covariance[i]
            rows = np.dot(gathered[: stop - first], own)
            for at in range(first, stop):
                total, row = out[listed.pixel[at]], rows[at - first]
                for c in range(k):
                    total[c] += row[c]


@njit(nogil=True, cache=True)
def take_out(listed, rows, residual, latent, basis, extra, projection, gram):
    """Takes the listed pixels of some stars out of their projections and Gram matrices.

    Parameters
    ----------
    listed : Listed
        Of the m stars `rows`.
    rows : ndarray of int (m,)
    residual, latent : ndarray (n, P), (n, K)
        Of all stars, from the posterior with these pixels.
    basis, extra : ndarray (P, K), (P, L)
    projection, gram : ndarray (m, K + L), (m, K, K)
        Of the stars `rows`, on basis and extra.
    """
    k = basis.shape[1]
    for s in range(rows.size):
        i = rows[s]
        for at in range(listed.start[s], listed.start[s + 1]):
            p = listed.pixel[at]
            row, other = basis[p], extra[p]
            value = residual[i, p]
            for c in range(k):
                value += row[c] * latent[i, c]
            for c in range(k):
                projection[s, c] -= value * row[c]
                for d in range(k):
                    gram[s, c, d] -= row[c] * row[d]
            for c in range(other.size):
                projection[s, k + c] -= value * other[c]


@njit(nogil=True, cache=True)
def clear_listed(listed, x, squares):
    """Sets the listed pixels of `x` (n, P) to 0 and writes the sum of squares of every row to `squares` (n,)."""
    zero = x.dtype.type(0)
    for i in range(x.shape[0]):
        row = x[i]
        for at in range(listed.start[i], listed.start[i + 1]):
            row[listed.pixel[at]] = zero
        squares[i] = np.dot(row, row)


class PixelSums(NamedTuple):
    """Sums over stars for every pixel (P,), float64: buffers that :func:`sum_pixels` fills."""

    valid: np.ndarray  # valid values
    weight: np.ndarray  # their weights
    pivot: np.ndarray  # the first valid value, 0 where there is none
    first: np.ndarray  # weighted sum of value - pivot
    second: np.ndarray  # weighted sum of its square


@njit(nogil=True, cache=True)
def sum_pixels(values, missing, weights, out):
    """Weighted sums about a pivot, in one sweep; values that are missing or not finite do not count.

    Parameters
    ----------
    values : ndarray (n, P)
    missing : ndarray of bool (n, P), or (0, 0) for none
    weights : ndarray (n, P), or (0, 0) for 1
        Entries that are not positive and finite make a value missing.
    out : PixelSums
        All zero at first.
    """
    n, p = values.shape
    for i in range(n):
        x = values[i]
        for j in range(p):
            value = np.float64(x[j])
            w = 1.0
            if weights.size:
                w = np.float64(weights[i, j])
            if missing.size and missing[i, j]:
                w = 0.0
            if not (w > 0.0 and w < np.inf and np.abs(value) < np.inf):
                continue
            if out.valid[j] == 0.0:
                out.pivot[j] = value
            d = value - out.pivot[j]
            out.valid[j] += 1.0
            out.weight[j] += w
            out.first[j] += w * d
            out.second[j] += w * d * d


@njit(nogil=True, cache=True)
def count_missing(missing):
    """Missing pixels of every star and stars missing every pixel, float64."""
    n, p = missing.shape
    stars, pixels = np.zeros(n), np.zeros(p, np.int64)
    for i in range(n):
        gone = missing[i]
        total = 0
        for d in range(p):
            total += gone[d]
            pixels[d] += gone[d]
        stars[i] = total
    return stars, pixels.astype(np.float64)
