"""Statistics of pixels over stars, with masks or weights, in one pass over the data.

Every function takes NumPy arrays (and computes) or Dask arrays (and stays lazy) of shape (star, pixel),
chunked in any way. The kernels of the moments are in :mod:`chemscale.statistics.moments`; their results are combined in
a tree.

====================================  ======  ===================================================
function                              passes  result
====================================  ======  ===================================================
:func:`masked_moments`                1       count, weight, mean, variance per pixel
:func:`masked_covariance`             1       mean, covariance and counts of pixel pairs
:func:`masked_quantiles`              1       quantiles per pixel, from histograms (2 without range)
:func:`masked_median_mad`             1       median and scaled MAD per pixel (2 without range)
====================================  ======  ===================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import dask.array as da
import numpy as np

from chemscale.errors import InputError
from chemscale.statistics import blocks
from chemscale.statistics.moments import (
    Moments,
    block_moments,
    block_pairs,
    combine_moments,
    combine_pairs,
    valid_weights,
)

#: Standard deviation of a normal distribution in units of its MAD.
MAD_SCALE = 1.4826022185056018
#: Histogram bins per pixel: resolution of quantiles is the range divided by this.
BINS = 1024


class MomentsResult(NamedTuple):
    """Per-pixel statistics (P,): number of valid values, sum of weights, mean, variance (NaN where none)."""

    count: Any
    weight: Any
    mean: Any
    variance: Any


class CovarianceResult(NamedTuple):
    """Pairwise-complete statistics: `mean` (P,), `covariance` (P, P), `count` (P, P) stars valid in both pixels."""

    mean: Any
    covariance: Any
    count: Any


# ------------------------------------------------------------------ kernels


def finish_moments(total: Moments) -> MomentsResult:
    """Count, weight, mean and variance (NaN where nothing is valid) from the moments of all blocks."""
    seen = total["weight"] > 0
    variance = np.divide(total["central"], total["weight"], out=np.full(seen.size, np.nan), where=seen)
    return MomentsResult(total["count"], total["weight"], np.where(seen, total["mean"], np.nan), variance)


def block_histogram(
    values: np.ndarray, mask: np.ndarray | None = None, *, low: np.ndarray, high: np.ndarray, bins: int
) -> dict[str, np.ndarray]:
    """Histogram of every pixel between its `low` and `high`; values outside go to the end bins."""
    n_pixels = values.shape[1]
    valid = valid_weights(values, mask, None) > 0
    width = np.where(high > low, high - low, 1.0) / bins
    with np.errstate(invalid="ignore", over="ignore"):
        position = np.floor((np.where(valid, values, low) - low) / width)
    index = np.clip(position, 0, bins - 1).astype(np.int64) + np.arange(n_pixels) * bins
    counts = np.bincount(index[valid], minlength=n_pixels * bins)
    return {"histogram": counts.reshape(n_pixels, bins)}


def block_range(values: np.ndarray, mask: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Smallest and largest valid value of each pixel (+inf, -inf where there is none)."""
    valid = valid_weights(values, mask, None) > 0
    return {
        "low": np.min(np.where(valid, values, np.inf), axis=0, initial=np.inf),
        "high": np.max(np.where(valid, values, -np.inf), axis=0, initial=-np.inf),
    }


def combine_range(*parts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Range of the union of blocks."""
    return {
        "low": np.minimum.reduce([p["low"] for p in parts]),
        "high": np.maximum.reduce([p["high"] for p in parts]),
    }


def add_histograms(*parts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Histograms of the union of blocks."""
    return {"histogram": sum((p["histogram"] for p in parts[1:]), parts[0]["histogram"])}


def histogram_quantiles(histogram: np.ndarray, low: np.ndarray, high: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Quantiles (Q, P) of binned values, linear inside a bin; NaN for an empty pixel."""
    total = histogram.sum(axis=1)
    cumulative = np.cumsum(histogram, axis=1)
    width = (high - low) / histogram.shape[1]
    out = np.full((q.size, histogram.shape[0]), np.nan)
    seen = np.flatnonzero(total > 0)
    for row, level in enumerate(q):
        target = level * total
        index = np.minimum((cumulative < target[:, None]).sum(axis=1), histogram.shape[1] - 1)
        inside = histogram[np.arange(total.size), index]
        before = cumulative[np.arange(total.size), index] - inside
        part = np.divide(target - before, inside, out=np.zeros(total.size), where=inside > 0)
        out[row, seen] = (low + (index + np.clip(part, 0, 1)) * width)[seen]
    return out


def histogram_median_mad(histogram: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Median and scaled MAD (2, P) of binned values: the MAD solves F(m + t) - F(m - t) = 1/2."""
    median = histogram_quantiles(histogram, low, high, np.array([0.5]))[0]
    total = histogram.sum(axis=1)
    cumulative = np.concatenate([np.zeros((len(total), 1)), np.cumsum(histogram, axis=1)], axis=1)
    width = np.where(high > low, high - low, 1.0) / histogram.shape[1]
    rows = np.arange(len(total))

    def below(x: np.ndarray) -> np.ndarray:
        position = np.clip((x - low) / width, 0, histogram.shape[1])
        index = np.minimum(position.astype(np.int64), histogram.shape[1] - 1)
        left = cumulative[rows, index]
        return left + (position - index) * (cumulative[rows, index + 1] - left)

    t_low, t_high = np.zeros(len(total)), np.maximum(high - low, 0.0)
    centre = np.nan_to_num(median)
    for _ in range(40):
        middle = 0.5 * (t_low + t_high)
        enough = below(centre + middle) - below(centre - middle) >= 0.5 * total
        t_high = np.where(enough, middle, t_high)
        t_low = np.where(enough, t_low, middle)
    return np.stack([median, np.where(total > 0, MAD_SCALE * t_high, np.nan)])


# --------------------------------------------------------------- public API


def masked_moments(values: Any, mask: Any = None, weights: Any = None) -> MomentsResult:
    """Count, weight, mean and variance of every pixel.

    Parameters
    ----------
    values : array (star, pixel)
        NumPy or Dask. Values that are not finite never count.
    mask : array of bool (star, pixel), optional
        True = missing.
    weights : array (star, pixel), optional
        Inverse variances, say; values that are not positive and finite count as missing.

    Returns
    -------
    MomentsResult
        Arrays (P,); mean and variance (divided by the sum of weights) are NaN where nothing is valid.
    """
    return MomentsResult(*_run(values, mask, weights, block_moments, combine_moments, finish_moments, 4))


def masked_covariance(values: Any, mask: Any = None, weights: Any = None) -> CovarianceResult:
    """Covariance of every pair of pixels over the stars valid in both.

    Needs four P x P float64 matrices per task: 1.8 GB at 7,500 pixels. With weights, the weight of a
    pair is the geometric mean of the two. For complete data, the ordinary covariance (divided by n).
    """
    n = values.shape[1]
    shapes = ((n,), (n, n), (n, n))
    return CovarianceResult(*_run(values, mask, weights, block_pairs, combine_pairs, _finish_pairs, 3, shapes))


def masked_quantiles(
    values: Any, q: Sequence[float] | float, mask: Any = None, *, range: tuple[Any, Any] | None = None, bins: int = BINS
) -> Any:
    """Quantiles of every pixel, from a histogram of `bins` bins.

    Parameters
    ----------
    q : float or sequence of float
        Levels between 0 and 1.
    range : (low, high), optional
        Scalars or arrays (P,). Values beyond are counted in the end bins. Left out, the range of the data is
        found first: a second pass, computed at once.

    Returns
    -------
    array (P,) or (Q, P)
        Exact to ``(high - low) / bins``; NaN where nothing is valid.
    """
    levels = np.atleast_1d(np.asarray(q, dtype=np.float64))
    if levels.size == 0 or np.any((levels < 0) | (levels > 1) | ~np.isfinite(levels)):
        raise InputError(f"quantile levels {q!r}", "give numbers between 0 and 1")
    low, high = _range(values, mask, range)
    finish = partial(_finish_quantiles, low=low, high=high, q=levels)
    out = _histogram(values, mask, low, high, bins, finish, (levels.size, values.shape[1]))
    return out[0] if np.ndim(q) == 0 else out


def masked_median_mad(
    values: Any, mask: Any = None, *, range: tuple[Any, Any] | None = None, bins: int = BINS
) -> tuple[Any, Any]:
    """Median and MAD x 1.4826 (a standard deviation for normal data) of every pixel, (P,) each.

    Parameters and accuracy as in :func:`masked_quantiles`; one histogram serves both.
    """
    low, high = _range(values, mask, range)
    finish = partial(_finish_mad, low=low, high=high)
    out = _histogram(values, mask, low, high, bins, finish, (2, values.shape[1]))
    return out[0], out[1]


# ------------------------------------------------------------------- layers


def _finish_pairs(total: Moments) -> tuple[np.ndarray, ...]:
    weight = total["pair_weight"]
    seen = weight > 0
    safe = np.where(seen, weight, 1.0)
    mean = total["pair_sum"] / safe
    covariance = np.where(seen, total["pair_product"] / safe - mean * mean.T, np.nan)
    return np.where(total["weight"] > 0, total["mean"], np.nan), covariance, total["pair_count"]


def _finish_quantiles(total: dict[str, np.ndarray], low: Any, high: Any, q: np.ndarray) -> tuple[np.ndarray]:
    return (histogram_quantiles(total["histogram"], low, high, q),)


def _finish_mad(total: dict[str, np.ndarray], low: Any, high: Any) -> tuple[np.ndarray]:
    return (histogram_median_mad(total["histogram"], low, high),)


def _range(values: Any, mask: Any, given: tuple[Any, Any] | None) -> tuple[np.ndarray, np.ndarray]:
    n = values.shape[1]
    if given is not None:
        low, high = (np.broadcast_to(np.asarray(v, dtype=np.float64), (n,)) for v in given)
        if not np.all(low < high):
            raise InputError("range: low must be below high for every pixel", "pass (low, high)")
        return low, high
    low, high = (
        np.asarray(v) for v in _run(values, mask, None, _ranged, combine_range, lambda t: (t["low"], t["high"]), 2)
    )
    empty = low > high
    low, high = np.where(empty, 0.0, low), np.where(empty, 1.0, high)
    return low, np.where(high > low, high, low + np.maximum(np.abs(low), 1.0) * 1e-12)


def _ranged(values: np.ndarray, mask: np.ndarray | None, weights: None) -> dict[str, np.ndarray]:
    return block_range(values, mask)


def _histogram(values: Any, mask: Any, low: np.ndarray, high: np.ndarray, bins: int, finish: Any, shape: Any) -> Any:
    def kernel(x: np.ndarray, m: np.ndarray | None, w: None) -> dict[str, np.ndarray]:
        return block_histogram(x, m, low=low, high=high, bins=bins)

    return _run(values, mask, None, kernel, add_histograms, finish, 1, (shape,))[0]


def _run(
    values: Any,
    mask: Any,
    weights: Any,
    kernel: Any,
    combine: Any,
    finish: Any,
    n_out: int,
    shapes: Sequence[tuple[int, ...]] | None = None,
) -> tuple[Any, ...]:
    """Map, combine in a tree, finish: eagerly for NumPy, lazily for Dask."""
    for name, other in (("mask", mask), ("weights", weights)):
        if other is not None and tuple(other.shape) != tuple(values.shape):
            raise InputError(f"{name} has shape {other.shape}, values have {values.shape}", "they must be equal")
    if values.ndim != 2:
        raise InputError(f"values have {values.ndim} dimension(s), must be (star, pixel)", "reshape first")
    if not any(isinstance(a, da.Array) for a in (values, mask, weights)):
        step = max(256, (64 << 20) // max(1, 8 * values.shape[1]))
        parts = [
            kernel(*(None if a is None else np.asarray(a)[i : i + step] for a in (values, mask, weights)))
            for i in np.arange(0, max(values.shape[0], 1), step)
        ]
        return finish(combine(*parts))
    first = next(a for a in (values, mask, weights) if isinstance(a, da.Array))
    rows = values.chunks[0] if isinstance(values, da.Array) else first.chunks[0]
    given = [a is not None for a in (values, mask, weights)]

    def call(*parts: np.ndarray) -> Any:
        rest = iter(parts)
        return kernel(*(next(rest) if g else None for g in given))

    arrays = [a for a in (values, mask, weights) if a is not None]
    total = blocks.tree(blocks.map_blocks(call, arrays, rows), combine)
    done: Any = blocks.finish(total, finish)
    shapes = shapes or ((values.shape[1],),) * n_out
    return tuple(da.from_delayed(done[i], shape=shape, dtype=np.float64) for i, shape in enumerate(shapes))
