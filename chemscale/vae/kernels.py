"""Compiled loops over pixels for inference on CPUs (Numba, the GIL released).

Each makes one pass over a block where tensor code makes ten: what a star's pixels need
stays in the nearest cache from the first use to the last.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

#: Sums may be reordered; NaN and infinity keep their meaning.
_FAST = {"reassoc", "contract", "nsz"}


class PixelBuffers(NamedTuple):
    """Buffers (n, P) float32 that :func:`prepare_pixels` fills.

    Attributes
    ----------
    clean, weight : ndarray
        Flux (1 where missing) and inverse variance (0 where missing).
    precision, residual : ndarray
        ``v = w / (1 + w noise)`` and ``v (flux - mean)``.
    """

    clean: np.ndarray
    weight: np.ndarray
    precision: np.ndarray
    residual: np.ndarray


class PixelLayout(NamedTuple):
    """Where the predictions of each pixel lie among those of all decoders.

    Attributes
    ----------
    place : ndarray (P,) uint32
        Column that holds a pixel.
    extra : ndarray (E, 2) int32
        (pixel, column) of further predictions of pixels several decoders claim.
    share : ndarray (P,) float32
        One over the number of predictions of a pixel.
    runs : ndarray (R, 3) int32
        (part, start, stop): pixels of every group as ranges; part 0, the whole spectrum, is not listed.
    """

    place: np.ndarray
    extra: np.ndarray
    share: np.ndarray
    runs: np.ndarray


class ScoreBuffers(NamedTuple):
    """What :func:`score_pixels` fills.

    Attributes
    ----------
    sums : ndarray (n, parts, 5) float64
        Chi-square, squared residual, squared flux, number of used pixels, sum of their variances.
    local, window, quiet : ndarray (n,)
        Largest deviation of a window, its index, and the stillness of the stillest.
    """

    sums: np.ndarray
    local: np.ndarray
    window: np.ndarray
    quiet: np.ndarray


@njit(nogil=True, cache=True, fastmath=_FAST)
def prepare_pixels(flux, ivar, flags, bits, floor, mean, noise, buffers):
    """Cleaned spectra and what the PPCA front end multiplies with its basis, in one pass.

    Parameters
    ----------
    flux, ivar : ndarray (n, P) float32
        As stored.
    flags : ndarray (n, P) uint8, or (0, 0)
        Missing where ``flags & bits``; empty: not looked at.
    floor : float32
        Squared error added to every pixel.
    mean, noise : ndarray (P,) float32
        Mean spectrum and intrinsic variance of the front end.
    buffers : PixelBuffers
        Are filled.

    Returns
    -------
    (used, mixed) : ndarray (n,) int32, ndarray (n,) bool
        Used pixels of each star, and whether their weights v differ.
    """
    n, p = flux.shape
    largest = np.finfo(np.float32).max
    used, mixed = np.empty(n, np.int32), np.empty(n, np.bool_)
    one, zero = np.float32(1), np.float32(0)
    gone = np.empty(p, np.bool_)
    for i in range(n):
        x, w, c, v, y = flux[i], buffers.weight[i], buffers.clean[i], buffers.precision[i], buffers.residual[i]
        q = ivar[i]
        for j in range(p):
            gone[j] = not ((np.abs(x[j]) <= largest) & (q[j] > 0) & (q[j] <= largest))
        if flags.size > 0:
            f = flags[i]
            for j in range(p):
                gone[j] |= (f[j] & bits) != 0
        for j in range(p):
            w[j] = zero if gone[j] else q[j] / (one + floor * q[j])
            c[j] = one if gone[j] else x[j]
        low, high = np.float32(np.inf), zero
        for j in range(p):
            v[j] = w[j] / (one + w[j] * noise[j])
            y[j] = v[j] * (c[j] - mean[j])
            low, high = min(low, v[j]), max(high, v[j])
        count = 0
        for j in range(p):
            count += not gone[j]
        used[i] = count
        mixed[i] = low != high
    return used, mixed


@njit(nogil=True, cache=True)
def _deviation(total, count):
    """Wilson-Hilferty cube root of a chi-square of `count` degrees of freedom: a standard normal for noise."""
    width = 2.0 / (9.0 * count)
    return ((total / count) ** (1.0 / 3.0) - (1.0 - width)) / np.sqrt(width)


@njit(nogil=True, cache=True, fastmath=_FAST)
def score_pixels(clean, weight, predicted, layout, window, least, out):
    """Scores of a block of stars from their predictions, in one pass.

    Parameters
    ----------
    clean, weight : ndarray (n, P) float32
        `weight` is 0 where a pixel is missing or no decoder predicts it.
    predicted : ndarray (n, Q) float32
        Pixels of all decoders, one decoder after the other.
    layout : PixelLayout
    window, least : int
        Pixels of a window, and fewest used ones that count.
    out : ScoreBuffers
        Are filled.
    """
    place, extra, share, runs = layout.place, layout.extra, layout.share, layout.runs
    sums = out.sums
    n, p = clean.shape
    chi2, square = np.empty(p, np.float32), np.empty(p, np.float32)
    size, there = np.empty(p, np.float32), np.empty(p, np.float32)
    pull, guess = np.empty(p, np.float32), np.empty(p, np.float32)
    step, both = np.zeros(p, np.float32), np.zeros(p, np.float32)
    noise = np.empty(p, np.float32)
    one, zero, half = np.float32(1), np.float32(0), np.float32(0.5)
    for i in range(n):
        x, w, row = clean[i], weight[i], predicted[i]
        # simple loops, one thing each: they vectorise
        for j in range(p):
            guess[j] = row[place[j]]
        if extra.shape[0]:
            for e in range(extra.shape[0]):
                guess[extra[e, 0]] += row[extra[e, 1]]
            for j in range(p):
                guess[j] *= share[j]
        for j in range(p):
            there[j] = one if w[j] > zero else zero
        for j in range(p):
            d = (x[j] - guess[j]) * there[j]
            square[j] = d * d
            chi2[j] = d * d * w[j]
            pull[j] = d * np.sqrt(w[j])
            noise[j] = there[j] / (w[j] + (one - there[j]))
            size[j] = x[j] * x[j] * there[j]
        for j in range(p - 1):
            both[j] = there[j] * there[j + 1]
        for j in range(p - 1):
            t = pull[j + 1] - pull[j]
            step[j] = half * t * t * both[j]
        for part in range(sums.shape[1]):
            for k in range(5):
                sums[i, part, k] = 0.0
        for r in range(runs.shape[0]):
            part = runs[r, 0]
            a, b, c, m, v = zero, zero, zero, zero, zero
            for j in range(runs[r, 1], runs[r, 2]):
                a += chi2[j]
                b += square[j]
                c += size[j]
                m += there[j]
                v += noise[j]
            sums[i, part, 0] += a
            sums[i, part, 1] += b
            sums[i, part, 2] += c
            sums[i, part, 3] += m
            sums[i, part, 4] += v
        worst, index, still = 0.0, 0, -10.0
        for k in range((p + window - 1) // window):
            start, stop = k * window, min((k + 1) * window, p)
            a, b, c, m, pairs, d, f, v = zero, zero, zero, zero, zero, zero, zero, zero
            for j in range(start, stop):
                a += pull[j]
                b += chi2[j]
                m += there[j]
                c += step[j]
                pairs += both[j]
                d += square[j]
                f += size[j]
                v += noise[j]
            sums[i, 0, 0] += b
            sums[i, 0, 1] += d
            sums[i, 0, 2] += f
            sums[i, 0, 3] += m
            sums[i, 0, 4] += v
            if m >= least:
                value = max(abs(a) / np.sqrt(m), abs(_deviation(b, m)))
                if value > worst:
                    worst, index = value, k
            if pairs >= least:
                still = max(still, -_deviation(c / np.float32(1.5), pairs / np.float32(1.5)))
        out.local[i], out.window[i], out.quiet[i] = worst, index, still
