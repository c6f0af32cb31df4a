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


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def invert_spd(matrices, inverse, logdet):
    """Inverses and log-determinants of symmetric positive definite matrices (n, K, K) by Cholesky.

    Five times as fast as LAPACK called matrix by matrix at K = 30. Returns False if one is not positive definite.
    """
    n, k, _ = matrices.shape
    low, inv = np.zeros((k, k)), np.zeros((k, k))  # L with the reciprocals of its diagonal; L^-1
    good = True
    for s in range(n):
        m, out = matrices[s], inverse[s]
        det = 0.0
        for j in range(k):
            row = low[j]
            for i in range(j):
                other = low[i]
                t = m[j, i]
                for q in range(i):
                    t -= row[q] * other[q]
                row[i] = t * other[i]
            t = m[j, j]
            for q in range(j):
                t -= row[q] * row[q]
            good &= t > 0.0
            det += np.log(t) if t > 0.0 else np.nan
            row[j] = 1.0 / np.sqrt(t)
        logdet[s] = det
        for i in range(k):
            row = inv[i]
            row[:i] = 0.0
            row[i] = low[i, i]
            for q in range(i):
                factor, other = -low[i, q] * low[i, i], inv[q]
                for c in range(q + 1):
                    row[c] += factor * other[c]
        for i in range(k):
            out[i, : i + 1] = 0.0
        for q in range(k):
            row = inv[q]
            for i in range(q + 1):
                factor, target = row[i], out[i]
                for c in range(i + 1):
                    target[c] += factor * row[c]
        for i in range(k):
            for c in range(i):
                out[c, i] = out[i, c]
    return good


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def _solve_in_place(low, x):
    """Solves one system by Cholesky: `low` (K, K; its lower triangle counts) becomes the factor, `x` the solution.

    Returns False, and leaves `x` alone, where the matrix is not positive definite.
    """
    k = x.size
    for j in range(k):
        row = low[j]
        for i in range(j):
            other = low[i]
            t = row[i]
            for q in range(i):
                t -= row[q] * other[q]
            row[i] = t * other[i]
        t = row[j]
        for q in range(j):
            t -= row[q] * row[q]
        if not t > 0.0:
            return False
        row[j] = 1.0 / np.sqrt(t)
    for j in range(k):
        t = x[j]
        for q in range(j):
            t -= low[j, q] * x[q]
        x[j] = t * low[j, j]
    for j in range(k - 1, -1, -1):
        x[j] *= low[j, j]
        for q in range(j):
            x[q] -= low[j, q] * x[j]
    return True


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def solve_missing(latent2, share, scale, rows):
    """Solves ``(1 - share scale_i U_ij scale_j) x = row`` for every pixel by Cholesky, in place.

    Parameters
    ----------
    latent2 : ndarray (P, K, K)
        U of every pixel, symmetric.
    share : float
    scale : ndarray (K,)
    rows : ndarray (P, K), float64
        Right-hand sides; left alone where the system is not positive definite.
    """
    n, k = rows.shape
    low = np.zeros((k, k))
    for s in range(n):
        u = latent2[s]
        for j in range(k):
            for i in range(j + 1):
                low[j, i] = -share * scale[j] * np.float64(u[j, i]) * scale[i]
            low[j, j] += 1.0
        _solve_in_place(low, rows[s])


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def solve_spd(matrices, right):
    """Solves a symmetric positive definite system for every pixel by Cholesky, in place of `right`.

    Parameters
    ----------
    matrices : ndarray (P, K, K), float64
        Lower triangles are overwritten.
    right : ndarray (P, K), float64

    Returns
    -------
    good : ndarray of bool (P,)
        False, and `right` left alone, where a matrix is not positive definite.
    """
    good = np.ones(right.shape[0], np.bool_)
    for s in range(right.shape[0]):
        good[s] = _solve_in_place(matrices[s], right[s])
    return good


@njit(nogil=True, cache=True)
def weigh(flux, ivar, missing, scale, mean, extra, sums, x, weight, weighted):
    """Centred flux, weights ``1 / (1 / ivar + extra)`` and their product, in one sweep.

    Parameters
    ----------
    flux, ivar, missing : ndarray (n, P)
    scale : float
        Reciprocal of the working unit of the flux; `mean` and `extra` are in working units.
    mean, extra : ndarray (P,)
    sums : bool
        False: the returned sums are not wanted and left 0.
    x, weight, weighted : ndarray (n, P)
        Receive ``flux * scale - mean``, the weight, and their product; 0 where `missing`.

    Returns
    -------
    seen, logsum, strength : ndarray (n,), float64
        Pixels with positive weight, sum of their log weights, sum of squared weights.
    """
    n, p = flux.shape
    seen, logsum, strength = np.zeros(n), np.zeros(n), np.zeros(n)
    zero, one = mean.dtype.type(0), mean.dtype.type(1)
    factor, per_unit = mean.dtype.type(scale), mean.dtype.type(1.0 / (scale * scale))
    for i in range(n):
        f, v, gone, xi, wi, xw = flux[i], ivar[i], missing[i], x[i], weight[i], weighted[i]
        for j in range(p):
            w = v[j] * per_unit
            w = zero if gone[j] else w / (one + w * extra[j])
            value = zero if gone[j] else f[j] * factor - mean[j]
            wi[j] = w
            xi[j] = value
            xw[j] = w * value
        if not sums:
            continue
        squares, logs, product, count = 0.0, 0.0, 1.0, 0
        # The logarithm of a product of eight: weights stay within the range of float32, products in that of float64.
        for j in range(p):
            w = np.float64(wi[j])
            if w > 0.0:
                squares += w * w
                product *= w
                count += 1
                if count & 7 == 0:
                    logs += np.log(product)
                    product = 1.0
        seen[i], logsum[i], strength[i] = count, logs + np.log(product), squares
    return seen, logsum, strength


@njit(nogil=True, cache=True)
def weighted_residuals(x, weight, predicted):
    """Sums over the weighted residuals ``r = x - predicted``.

    Returns
    -------
    chi2 : ndarray (n,)
        Sum over pixels of w r^2.
    w2r2, w2 : ndarray (P,)
        Sums over stars of (w r)^2 and w^2.
    """
    n, p = x.shape
    chi2, w2r2, w2 = np.zeros(n), np.zeros(p), np.zeros(p)
    for i in range(n):
        xi, wi, guess = x[i], weight[i], predicted[i]
        for j in range(p):
            r = xi[j] - guess[j]
            guess[j] = r * wi[j]
            xi[j] = r
        for j in range(p):
            w2r2[j] += np.float64(guess[j]) * np.float64(guess[j])
            w2[j] += np.float64(wi[j]) * np.float64(wi[j])
        total = 0.0
        for j in range(p):
            total += np.float64(xi[j]) * np.float64(guess[j])
        chi2[i] = total
    return chi2, w2r2, w2


@njit(nogil=True, cache=True)
def prior_system(packed, scale, system):
    """Systems ``1 + scale_i G_ij scale_j`` (n, K, K) from packed upper triangles of G (n, K(K+1)/2)."""
    n = packed.shape[0]
    k = scale.size
    for s in range(n):
        at = 0
        for i in range(k):
            for j in range(i, k):
                value = packed[s, at] * scale[i] * scale[j]
                system[s, i, j] = value
                system[s, j, i] = value
                at += 1
            system[s, i, i] += 1.0


@njit(nogil=True, cache=True)
def second_moments(latent, covariance, valid, out):
    """Rows [packed (z z^T + covariance), z, 1] of every valid star, 0 of the others: (n, K(K+1)/2 + K + 1)."""
    n, k = latent.shape
    for s in range(n):
        row = out[s]
        if not valid[s]:
            row[:] = 0
            continue
        at = 0
        for i in range(k):
            for j in range(i, k):
                row[at] = latent[s, i] * latent[s, j] + covariance[s, i, j]
                at += 1
        for i in range(k):
            row[at + i] = latent[s, i]
        row[at + k] = 1
