"""Compiled loops over pixels for inference on CPUs (Numba, the GIL released).

Each makes one pass over a block where tensor code makes ten: what a star's pixels need
stays in the nearest cache from the first use to the last.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

#: Windows of a tile: what the scores keep of its pixels stays in the nearest cache.
TILE_WINDOWS = 16
#: Pixels that the sums of a window go through, more than it has: a fixed number needs no rest of single pixels.
_LANES = 64
#: Sums may be reordered; NaN and infinity keep their meaning. A division by zero gives infinity: with the check that
#: raises an error instead no loop that divides is vectorised.
_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "cache": True,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "nsz"},
}


class PixelBuffers(NamedTuple):
    """Buffers (n, P) float32 that :func:`prepare_pixels` fills.

    Attributes
    ----------
    weight : ndarray
        Inverse variance, 0 where missing.
    precision : ndarray
        ``v = weight / (1 + weight noise)``.
    residual : ndarray
        ``v (flux - mean)``.
    """

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
        (pixel, column) of further predictions of pixels several decoders claim, by pixel.
    share : ndarray (P,) float32
        One over the number of predictions of a pixel.
    runs : ndarray (R, 3) int32
        (part, start, stop): pixels of every group as ranges that end where tiles (:data:`TILE_WINDOWS`) do, by tile;
        part 0, the whole spectrum, is not listed.
    tiles : ndarray (T + 1, 2) int32
        First run and first extra prediction of every tile, and where the last end.
    """

    place: np.ndarray
    extra: np.ndarray
    share: np.ndarray
    runs: np.ndarray
    tiles: np.ndarray


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


@njit(**_OPTIONS)
def prepare_pixels(flux, ivar, flags, bits, floor, mean, noise, buffers):
    """Weights, and what the PPCA front end multiplies with its basis, in one pass.

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
    (used, total, mixed, first) : ndarray (n,) int32, float32, bool, float32
        Used pixels of each star, the sum of their weights, whether its v differ from pixel to pixel, and that of its
        first pixel.
    """
    n, p = flux.shape
    largest = np.finfo(np.float32).max
    used, total = np.empty(n, np.int32), np.empty(n, np.float32)
    mixed, first = np.empty(n, np.bool_), np.empty(n, np.float32)
    one, zero = np.float32(1), np.float32(0)
    gone = np.empty(p, np.bool_)
    # loops that write one array each: the compiler must exclude that arrays overlap, and gives up at five
    for i in range(n):
        x, q, w, v, y = flux[i], ivar[i], buffers.weight[i], buffers.precision[i], buffers.residual[i]
        for j in range(p):
            gone[j] = not ((np.abs(x[j]) <= largest) & (q[j] > 0) & (q[j] <= largest))
        if flags.size > 0:
            f = flags[i]
            for j in range(p):
                gone[j] |= (f[j] & bits) != 0
        for j in range(p):
            w[j] = zero if gone[j] else q[j] / (one + floor * q[j])
        for j in range(p):
            v[j] = w[j] / (one + w[j] * noise[j])
        for j in range(p):
            y[j] = zero if gone[j] else v[j] * (x[j] - mean[j])
        count, other, weights = 0, 0, zero
        for j in range(p):
            count += not gone[j]
        for j in range(p):
            weights += w[j]
        for j in range(p):
            other += v[j] != v[0]
        used[i], total[i], mixed[i], first[i] = count, weights, other > 0, v[0]
    return used, total, mixed, first


@njit(**_OPTIONS)
def _width(count):
    """Variance of the cube root of a chi-square over `count`, its degrees of freedom (Wilson & Hilferty 1931)."""
    return 2.0 / (9.0 * count)


@njit(**_OPTIONS)
def _deviation(total, count):
    """Wilson-Hilferty cube root of a chi-square of `count` degrees of freedom: a standard normal for noise."""
    width = _width(count)
    return ((total / count) ** (1.0 / 3.0) - (1.0 - width)) / np.sqrt(width)


@njit(**_OPTIONS)
def _chi2_at(deviation, centre, spread, count):
    """Chi-square at which :func:`_deviation` has a value, of the tabulated moments: no root is drawn to compare."""
    root = centre + deviation * spread
    return root * root * root * count


@njit(**_OPTIONS)
def _sums(chi2, square, size, there, noise):
    """Five sums over pixels."""
    a, b, c, m, v = np.float32(0), np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    for j in range(len(chi2)):
        a += chi2[j]
        b += square[j]
        c += size[j]
        m += there[j]
        v += noise[j]
    return a, b, c, m, v


@njit(**_OPTIONS)
def _window_sums(inside, pull, chi2, step, there, both):
    """Five sums over the pixels of a window, among _LANES those where `inside` is 1."""
    a, b, c, m, v = np.float32(0), np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    zero = np.float32(0)
    for j in range(_LANES):
        # chosen, not multiplied by 0: a neighbour's infinity stays its own
        k, p, q, d, t, e = inside[j] > zero, pull[j], chi2[j], step[j], there[j], both[j]
        a += p if k else zero
        b += q if k else zero
        c += d if k else zero
        m += t if k else zero
        v += e if k else zero
    return a, b, c, m, v


@njit(**_OPTIONS)
def score_pixels(flux, weight, predicted, layout, window, least, out):
    """Scores of a block of stars from their predictions, in one pass.

    Parameters
    ----------
    flux, weight : ndarray (n, P) float32
        `weight` is 0 where a pixel is missing or no decoder predicts it; `flux` may be anything there.
    predicted : ndarray (n, Q) float32
        Pixels of all decoders, one decoder after the other.
    layout : PixelLayout
    window, least : int
        Pixels of a window, 64 at most, and fewest used ones that count.
    out : ScoreBuffers
        Are filled.
    """
    place, extra, share, runs, tiles = layout.place, layout.extra, layout.share, layout.runs, layout.tiles
    sums = out.sums
    n, p = flux.shape
    size_of_tile = TILE_WINDOWS * window
    length = size_of_tile + _LANES  # a tile, the next one's first pixel (for differences of neighbours), and lanes
    pull, guess = np.zeros(length, np.float32), np.zeros(length, np.float32)
    chi2, square, size = np.zeros(length, np.float32), np.zeros(length, np.float32), np.zeros(length, np.float32)
    there, noise = np.zeros(length, np.float32), np.zeros(length, np.float32)
    step, both = np.zeros(length, np.float32), np.zeros(length, np.float32)
    inside = np.zeros(_LANES, np.float32)
    one, zero, half = np.float32(1), np.float32(0), np.float32(0.5)
    # centre and spread of the cube root of a chi-square over its degrees of freedom, for 1 to `window` of them, and
    # for as many differences of neighbours, which share pixels: two thirds as many
    centre, spread = np.ones(window + 1), np.ones(window + 1)
    centre_of_steps, spread_of_steps = np.ones(window + 1), np.ones(window + 1)
    for k in range(1, window + 1):
        centre[k], spread[k] = 1.0 - _width(k), np.sqrt(_width(k))
        centre_of_steps[k], spread_of_steps[k] = 1.0 - _width(k / 1.5), np.sqrt(_width(k / 1.5))
    for i in range(n):
        row = predicted[i]
        for part in range(sums.shape[1]):
            for k in range(5):
                sums[i, part, k] = 0.0
        worst, index, still = 0.0, 0, -10.0
        for tile in range(len(tiles) - 1):
            first = tile * size_of_tile
            last = min(first + size_of_tile, p)
            reach = min(last + 1, p) - first
            x, w, at = flux[i, first : first + reach], weight[i, first : first + reach], place[first : first + reach]
            # loops that write one array each, see :func:`prepare_pixels`
            for j in range(reach):
                guess[j] = row[at[j]]
            if extra.shape[0]:
                e = tiles[tile, 1]
                while e < extra.shape[0] and extra[e, 0] < first + reach:
                    guess[extra[e, 0] - first] += row[extra[e, 1]]
                    e += 1
                for j in range(reach):
                    guess[j] *= share[first + j]
            for j in range(reach):
                there[j] = one if w[j] > zero else zero
            for j in range(reach):
                y = x[j]
                y = y if w[j] > zero else zero
                size[j] = y * y
            for j in range(reach):
                r = x[j] - guess[j]
                guess[j] = r if w[j] > zero else zero
            for j in range(reach):
                square[j] = guess[j] * guess[j]
            for j in range(reach):
                chi2[j] = square[j] * w[j]
            for j in range(reach):
                pull[j] = guess[j] * np.sqrt(w[j])
            for j in range(reach):
                noise[j] = there[j] / (w[j] + (one - there[j]))
            step[reach - 1] = both[reach - 1] = zero
            for j in range(reach - 1):
                both[j] = there[j] * there[j + 1]
            for j in range(reach - 1):
                t = pull[j + 1] - pull[j]
                step[j] = half * t * t * both[j]
            for r in range(tiles[tile, 0], tiles[tile + 1, 0]):
                part = runs[r, 0]
                a, b, c, m, v = zero, zero, zero, zero, zero
                for j in range(runs[r, 1] - first, runs[r, 2] - first):  # mostly short
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
            here = slice(0, last - first)
            a, b, c, m, v = _sums(chi2[here], square[here], size[here], there[here], noise[here])
            sums[i, 0, 0] += a
            sums[i, 0, 1] += b
            sums[i, 0, 2] += c
            sums[i, 0, 3] += m
            sums[i, 0, 4] += v
            for start in range(0, last - first, window):
                inside[:] = zero
                inside[: min(window, last - first - start)] = one
                here = slice(start, start + _LANES)
                total, scatter, moved, count, pairs = _window_sums(
                    inside, pull[here], chi2[here], step[here], there[here], both[here]
                )
                if count >= least:
                    k = int(count)
                    if total * total > worst * worst * k:
                        worst, index = abs(total) / np.sqrt(np.float64(k)), (first + start) // window
                    if (
                        scatter > _chi2_at(worst, centre[k], spread[k], k)
                        or scatter < _chi2_at(-worst, centre[k], spread[k], k)
                    ):  # fmt: skip
                        value = abs(_deviation(np.float64(scatter), np.float64(k)))
                        if value > worst:
                            worst, index = value, (first + start) // window
                if pairs >= least:
                    k = int(pairs)
                    if moved < _chi2_at(-still, centre_of_steps[k], spread_of_steps[k], k):
                        still = max(still, -_deviation(moved / 1.5, k / 1.5))
        out.local[i], out.window[i], out.quiet[i] = worst, index, still
