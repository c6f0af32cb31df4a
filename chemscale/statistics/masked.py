"""Moments of pixels over stars, with masks or weights, in one pass over the data.

NumPy arrays are computed, Dask arrays stay lazy; both are (star, pixel), chunked in any way. The kernels are in
:mod:`chemscale.statistics.moments`; their results are combined in a tree.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import dask.array as da
import numpy as np

from chemscale.errors import InputError
from chemscale.statistics import blocks
from chemscale.statistics.moments import Moments, block_moments, combine_moments


class MomentsResult(NamedTuple):
    """Per-pixel statistics (P,): number of valid values, sum of weights, mean, variance (NaN where none)."""

    count: Any
    weight: Any
    mean: Any
    variance: Any


def finish_moments(total: Moments) -> MomentsResult:
    """Count, weight, mean and variance (NaN where nothing is valid) from the moments of all blocks."""
    seen = total["weight"] > 0
    variance = np.divide(total["central"], total["weight"], out=np.full(seen.size, np.nan), where=seen)
    return MomentsResult(total["count"], total["weight"], np.where(seen, total["mean"], np.nan), variance)


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
    for name, other in (("mask", mask), ("weights", weights)):
        if other is not None and tuple(other.shape) != tuple(values.shape):
            raise InputError(f"{name} has shape {other.shape}, values have {values.shape}", "they must be equal")
    if values.ndim != 2:
        raise InputError(f"values have {values.ndim} dimension(s), must be (star, pixel)", "reshape first")
    if not any(isinstance(a, da.Array) for a in (values, mask, weights)):
        step = max(256, (64 << 20) // max(1, 8 * values.shape[1]))
        here = [None if a is None else np.asarray(a) for a in (mask, weights)]
        parts = [
            block_moments(np.asarray(values)[i : i + step], *(None if a is None else a[i : i + step] for a in here))
            for i in range(0, max(values.shape[0], 1), step)
        ]
        return finish_moments(combine_moments(*parts))
    first = next(a for a in (values, mask, weights) if isinstance(a, da.Array))
    rows = values.chunks[0] if isinstance(values, da.Array) else first.chunks[0]
    given = [a is not None for a in (mask, weights)]

    def call(*parts: np.ndarray) -> Any:
        rest = iter(parts[1:])
        return block_moments(parts[0], *(next(rest) if g else None for g in given))

    arrays = [a for a in (values, mask, weights) if a is not None]
    total = blocks.tree(blocks.map_blocks(call, arrays, rows), combine_moments)
    done: Any = blocks.finish(total, finish_moments)
    shape = (values.shape[1],)
    return MomentsResult(*(da.from_delayed(done[i], shape=shape, dtype=np.float64) for i in range(4)))
