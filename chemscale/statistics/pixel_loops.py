"""Compiled loops over pixels, where NumPy would pass over a block many times (Numba, no GIL held)."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import numpy as np
from numba import njit

_local = threading.local()


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
def listed_gram(listed, basis, gram):
    """Per star, the sum of ``basis_p basis_p^T`` over its listed pixels, to `gram` (n, K, K).

    With orthonormal `basis` the sum over the other pixels is the identity minus this: work proportional to what is
    missing, not to what is there.
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
        if count:
            gram[i] = np.dot(gathered[:count].T, gathered[:count])
        else:
            gram[i] = 0


@njit(nogil=True, cache=True)
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
    """Adds ``covariance_n basis_p`` of every star `n` that lists pixel `p` to row `p` of `out` (P, K), float64."""
    k = basis.shape[1]
    longest = 0
    for i in range(covariance.shape[0]):
        longest = max(longest, listed.start[i + 1] - listed.start[i])
    gathered = np.empty((longest, k), basis.dtype)
    for i in range(covariance.shape[0]):
        first, stop = listed.start[i], listed.start[i + 1]
        for at in range(first, stop):
            gathered[at - first] = basis[listed.pixel[at]]
        if stop > first:
            rows = np.dot(gathered[: stop - first], covariance[i])
            for at in range(first, stop):
                total, row = out[listed.pixel[at]], rows[at - first]
                for c in range(k):
                    total[c] += row[c]


@njit(nogil=True, cache=True)
def take_out(listed, residual, latent, basis, extra, rows, projection, gram):
    """Takes the listed pixels of some stars out of their projections and Gram matrices.

    Parameters
    ----------
    listed : Listed
        Of the m stars `rows`.
    residual : ndarray (m, P)
        Of the same stars, from the posterior with these pixels.
    latent : ndarray (m, K)
    basis, extra : ndarray (P, K), (P, L)
    rows : ndarray of int (m,)
    projection : ndarray (n, K + L)
        Of all stars on basis and extra: those of `rows` lose the flux of the listed pixels.
    gram : ndarray (n, K, K)
    """
    k = basis.shape[1]
    for s in range(rows.size):
        i = rows[s]
        for at in range(listed.start[s], listed.start[s + 1]):
            p = listed.pixel[at]
            row, other = basis[p], extra[p]
            value = residual[s, p]
            for c in range(k):
                value += row[c] * latent[s, c]
            for c in range(k):
                projection[i, c] -= value * row[c]
                for d in range(k):
                    gram[i, c, d] -= row[c] * row[d]
            for c in range(other.size):
                projection[i, k + c] -= value * other[c]


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


class Weighting(NamedTuple):
    """Arrays of a block with weights: buffers that :func:`weigh` fills."""

    x: np.ndarray  # (n, P) centred flux, 0 where missing
    weight: np.ndarray  # (n, P), 0 where missing
    weighted: np.ndarray  # (n, P) their product
    seen: np.ndarray  # (n,) pixels with positive weight
    logsum: np.ndarray  # (n,) sum of the logarithms of the weights
    strength: np.ndarray  # (n,) sum of the squared weights


@njit(nogil=True, cache=True)
def weigh(flux, ivar, missing, scale, mean, extra, sums, out):
    """Centred flux, weights ``1 / (1 / ivar + extra)`` and their product, in one sweep.

    Parameters
    ----------
    flux, ivar, missing : ndarray (n, P)
    scale : float
        Reciprocal of the working unit of the flux; `mean` and `extra` are in working units.
    mean, extra : ndarray (P,)
    sums : bool
        False: the sums over pixels are not wanted and left alone.
    out : Weighting
        Receives the results.
    """
    n, p = flux.shape
    zero, one = mean.dtype.type(0), mean.dtype.type(1)
    factor, per_unit = mean.dtype.type(scale), mean.dtype.type(1.0 / (scale * scale))
    for i in range(n):
        f, v, gone, xi, wi, xw = flux[i], ivar[i], missing[i], out.x[i], out.weight[i], out.weighted[i]
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
        out.seen[i], out.logsum[i], out.strength[i] = count, logs + np.log(product), squares


@njit(nogil=True, cache=True)
def drop_weights(listed, loadings, latent, arrays, right, system):
    """Sets the weights of the listed pixels to 0 and takes them out of every sum; returns the sum of their logarithms.

    Parameters
    ----------
    listed : Listed
    loadings : ndarray (P, K)
        Float64.
    latent : ndarray (n, K)
        With which ``arrays.x`` holds the residuals.
    arrays : Weighting
    right, system : ndarray (n, K), (n, K, K)
        Projections of the weighted flux on the loadings, and the systems of the latents.
    """
    k = loadings.shape[1]
    logs = 0.0
    for i in range(right.shape[0]):
        for at in range(listed.start[i], listed.start[i + 1]):
            p = listed.pixel[at]
            row = loadings[p]
            w = np.float64(arrays.weight[i, p])
            value = np.float64(arrays.x[i, p])
            for c in range(k):
                value += row[c] * latent[i, c]
            for c in range(k):
                right[i, c] -= w * value * row[c]
                for d in range(k):
                    system[i, c, d] -= w * row[c] * row[d]
            arrays.weight[i, p] = 0
            arrays.weighted[i, p] = 0
            arrays.seen[i] -= 1
            arrays.logsum[i] -= np.log(w)
            arrays.strength[i] -= w * w
            logs += np.log(w)
    return logs


@njit(nogil=True, cache=True)
def weighted_residuals(residual, weight, product):
    """The products of `weight` and `residual` (n, P), to `product`, and sums over them.

    Returns
    -------
    chi2, power : ndarray (n,)
        Sums over pixels of w r^2 and of (w r)^2.
    w2r2, w2 : ndarray (P,)
        Sums over stars of (w r)^2 and w^2.
    """
    n, p = residual.shape
    chi2, power, w2r2, w2 = np.zeros(n), np.zeros(n), np.zeros(p), np.zeros(p)
    for i in range(n):
        r, w, wr = residual[i], weight[i], product[i]
        for j in range(p):
            wr[j] = w[j] * r[j]
            w2r2[j] += np.float64(wr[j]) * np.float64(wr[j])
            w2[j] += np.float64(w[j]) * np.float64(w[j])
        total, squares = 0.0, 0.0
        for j in range(p):
            total += np.float64(r[j]) * np.float64(wr[j])
            squares += np.float64(wr[j]) * np.float64(wr[j])
        chi2[i], power[i] = total, squares
    return chi2, power, w2r2, w2


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
