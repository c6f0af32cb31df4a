"""The subsample a fit starts from, where a cluster is there: on its workers.

Passes over it are then the cluster's work like those over all stars; the client sees a thousand stars of it. The
blocks, and the order in which their sums are added, are those of the same subsample in one process, so the
fit is the same to the last bit.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import dask
import numpy as np
from dask.delayed import Delayed

from chemscale.runtime.blocks import compute_sum, in_order_on_workers
from chemscale.statistics import blocks
from chemscale.statistics.ppca_arrays import (
    ArraySource,
    Block,
    Kernel,
    add_moments,
    compact,
    on_compact,
    rows_per_block,
    select,
    spread_rows,
)
from chemscale.statistics.ppca_kernels import Stats, add_stats

#: What :func:`~chemscale.statistics.ppca_source.count_and_sample` gives: sums, and pieces of the subsample.
Part = tuple[Stats, list[Block]]


class ClusterSample:
    """Stars in the memory of the workers, in blocks of :func:`rows_per_block`.

    Parameters
    ----------
    parts : list of Delayed
        Persisted results of ``count_and_sample``, in the order of the stars.
    sizes : list of int
        Stars in each.
    used : ndarray of bool (pixel,)
        Pixels to keep.
    """

    def __init__(self, parts: list[Delayed], sizes: list[int], used: np.ndarray, dtype: np.dtype):
        self.n_stars, self.n_pixels, self.dtype = sum(sizes), int(np.count_nonzero(used)), dtype
        self.step = rows_per_block(self.n_pixels, dtype.itemsize)
        edges = np.concatenate([[0], np.cumsum(sizes)]).astype(int)
        join, keep = dask.delayed(_join, pure=False), dask.delayed(used, pure=False)
        made = []
        for start in range(0, self.n_stars, self.step):
            stop = min(start + self.step, self.n_stars)
            first = int(np.searchsorted(edges, start, side="right")) - 1
            last = int(np.searchsorted(edges, stop, side="left"))
            skip = start - int(edges[first])
            made.append(partial(join, skip, stop - start, keep, parts[first:last]))
        self._blocks: list[Delayed] = list(dask.persist(*in_order_on_workers(made)))

    def reduce(self, kernel: Kernel) -> Stats:
        """Sum of `kernel` over the blocks."""
        shared, call = dask.delayed(kernel, pure=False), dask.delayed(on_compact, pure=False)
        return compute_sum(blocks.tree([call(block, shared) for block in self._blocks], add_stats))

    def few(self, size: int) -> ArraySource:
        """At most `size` stars, evenly spread, in this process."""
        index = spread_rows(self.n_stars, size)
        take = dask.delayed(_take, pure=False)
        owner = index // self.step
        found = [take(self._blocks[b], index[owner == b] - b * self.step) for b in np.unique(owner)]
        pieces = compute_sum(dask.delayed(list, pure=False)(found))
        return ArraySource(*(join_arrays([piece[i] for piece in pieces]) for i in range(3)))


def head(part: Part) -> tuple[Stats, list[int]]:
    """What the client needs of a part: its sums, and how many stars of the subsample it holds."""
    return part[0], [sum(len(piece[0]) for piece in part[1])]


def merge_heads(*heads: tuple[Stats, list[int]]) -> tuple[Stats, list[int]]:
    """Sums added, sizes in the order of the stars."""
    return add_moments(*(h[0] for h in heads)), [size for h in heads for size in h[1]]


def join_arrays(arrays: list[Any]) -> Any:
    """One array from pieces; None where there are no values (inverse variances nobody asked for)."""
    return None if arrays[0] is None else np.concatenate(arrays)


def _join(skip: int, size: int, used: np.ndarray, parts: list[Part]) -> Any:
    """`size` stars of consecutive parts after the first `skip`, restricted to the pixels `used`."""
    pieces = [piece for part in parts for piece in part[1]]
    flux, missing, ivar = (join_arrays([piece[i] for piece in pieces]) for i in range(3))
    rows = slice(skip, skip + size)
    return compact(*select((flux[rows], missing[rows], None if ivar is None else ivar[rows]), used))


def _take(block: Any, rows: np.ndarray) -> Block:
    flux, packed, ivar = block
    missing = np.unpackbits(packed[rows], axis=1, count=flux.shape[1]).view(bool)
    return flux[rows], missing, None if ivar is None else ivar[rows]
