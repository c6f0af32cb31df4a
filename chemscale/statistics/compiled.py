"""Compiled loops over pixels, where NumPy would pass over a block many times (Numba, no GIL held)."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numba import njit

_local = threading.local()


def scratch(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """A reused buffer of this thread, uninitialised; valid until the next call with the same `name`.

    Fresh arrays of tens of megabytes come from the kernel page by page, each page cleared first; that took a
    third of the time of a pass.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    buffer = getattr(_local, name, None)
    if buffer is None or buffer.size < size:
        buffer = np.empty(size, dtype=np.uint8)
        setattr(_local, name, buffer)
    return buffer[:size].view(dtype).reshape(shape)


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
    """
    n = flux.shape[0]
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
                    gone[j] |= not ((w[j] > 0) & (w[j] <= top))
            for j in range(size):
                out[j] = zero if gone[j] else x[j]
            at += size


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
def missing_gram(missing, basis):
    """Per star, the sum of ``basis_d basis_d^T`` over its missing pixels: (n, K, K) in the dtype of `basis`.

    With orthonormal `basis` the sum over the observed pixels is the identity minus this: work proportional to what is
    missing, not to what is there.
    """
    n, p = missing.shape
    k = basis.shape[1]
    out = np.zeros((n, k, k), basis.dtype)
    gathered = np.empty((p, k), basis.dtype)
    for i in range(n):
        count = 0
        for d in range(p):
            if missing[i, d]:
                gathered[count] = basis[d]
                count += 1
        if count:
            out[i] = np.dot(gathered[:count].T, gathered[:count])
    return out


@njit(nogil=True, cache=True)
def subtract_where_seen(x, model, missing):
    """``x -= model`` in place, 0 where `missing`; returns the sum of squares of every row, float64."""
    n, p = x.shape
    squares = np.zeros(n)
    zero = x.dtype.type(0)
    for i in range(n):
        row, guess, gone = x[i], model[i], missing[i]
        for j in range(p):
            row[j] = zero if gone[j] else row[j] - guess[j]
        squares[i] = np.dot(row, row)
    return squares


@njit(nogil=True, cache=True)
def sum_over_missing(missing, rows):
    """For every pixel, the sum of `rows` (n, R) over the stars that miss it: (P, R) in the dtype of `rows`.

    The product ``missing.T @ rows`` with work proportional to what is missing.
    """
    n, p = missing.shape
    start = np.zeros(p + 1, np.int64)
    for i in range(n):
        gone = missing[i]
        for d in range(p):
            start[d + 1] += gone[d]
    for d in range(p):
        start[d + 1] += start[d]
    at = start[:-1].copy()
    stars = np.empty(start[p], np.int32)
    for i in range(n):
        gone = missing[i]
        for d in range(p):
            if gone[d]:
                stars[at[d]] = i
                at[d] += 1
    out = np.zeros((p, rows.shape[1]), rows.dtype)
    for d in range(p):
        total = out[d]
        for a in range(start[d], start[d + 1]):
            row = rows[stars[a]]
            for c in range(row.size):
                total[c] += row[c]
    return out
