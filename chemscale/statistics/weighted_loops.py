"""Compiled loops over the pixels of a block with weights, and over its latents (Numba, no GIL held)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit


class Weighting(NamedTuple):
    """Arrays of a block with weights: buffers that :func:`weigh` fills."""

    x: np.ndarray  # (n, P) centred flux, 0 where missing
    weight: np.ndarray  # (n, P), 0 where missing
    weighted: np.ndarray  # (n, P) their product
    seen: np.ndarray  # (n,) pixels with positive weight
    logsum: np.ndarray  # (n,) sum of the logarithms of the weights
    strength: np.ndarray  # (n,) sum of the squared weights


@njit(nogil=True, cache=True, error_model="numpy")  # a check for division by zero keeps a loop from being vectorised
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
def take_out(listed, rows, basis, scale, arrays, right, system):
    """Takes the listed pixels of some stars out of their systems.

    Parameters
    ----------
    listed : Listed
        Of the m stars `rows`.
    rows : ndarray of int (m,)
    basis, scale : ndarray (P, K), (K,)
    arrays : Weighting
        Of all stars.
    right, system : ndarray (m, K), (m, K, K)
        Projections of the weighted flux on the loadings, and the systems of the latents, of the stars `rows`.
    """
    k = scale.size
    row = np.empty(k)
    for s in range(rows.size):
        i = rows[s]
        for at in range(listed.start[s], listed.start[s + 1]):
            p = listed.pixel[at]
            w, value = np.float64(arrays.weight[i, p]), np.float64(arrays.weighted[i, p])
            for c in range(k):
                row[c] = basis[p, c] * scale[c]
            for c in range(k):
                right[s, c] -= value * row[c]
                for d in range(k):
                    system[s, c, d] -= w * row[c] * row[d]


@njit(nogil=True, cache=True)
def drop_weights(listed, arrays):
    """Sets the weights of the listed pixels to 0, also in the sums over pixels; returns the sum of their logarithms."""
    logs = 0.0
    for i in range(arrays.seen.size):
        for at in range(listed.start[i], listed.start[i + 1]):
            p = listed.pixel[at]
            w = np.float64(arrays.weight[i, p])
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
