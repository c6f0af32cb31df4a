"""Where the blocks of a fit come from: NumPy arrays or Dask arrays.

A source knows how many stars and pixels there are, draws a subsample that depends only on the seed
(not on the chunking), and adds up a kernel over its blocks.  One call of :meth:`reduce` is one
pass over the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import dask
import dask.array as da
import numpy as np
from dask.delayed import Delayed

from chemscale.errors import InputError
from chemscale.statistics.ppca_kernels import Stats, add_stats

#: A block of stars: flux (n, P), missing (n, P) bool, ivar (n, P) or None; no entry is NaN where not missing.
Block = tuple[np.ndarray, np.ndarray, np.ndarray | None]
Kernel = Callable[[np.ndarray, np.ndarray, np.ndarray | None], Stats]

#: Bytes of one block's flux; some ten arrays of this size exist at once inside a kernel.
BLOCK_BYTES = 48 * 2**20
#: Partial sums added in one task.
FAN_IN = 8


class Source(Protocol):
    """Blocks of stars a fit may pass over."""

    n_stars: int
    n_pixels: int
    dtype: np.dtype

    def reduce(self, kernel: Kernel) -> Stats:
        """Sum of `kernel` over all blocks: one pass."""
        ...

    def rows(self, index: np.ndarray) -> Block:
        """The stars `index` (sorted) in memory."""
        ...


def prepare(flux: Any, mask: Any = None, ivar: Any = None) -> Block:
    """One block with every reason for a missing pixel folded into one mask.

    A pixel is missing where `mask` is True, the flux is not finite, or `ivar` is not positive and finite.
    A :class:`numpy.ma.MaskedArray` brings its own mask along.
    """
    if isinstance(flux, np.ma.MaskedArray):
        own = np.ma.getmaskarray(flux)
        mask = own if mask is None else np.asarray(mask, dtype=bool) | own
        flux = flux.data
    flux = np.asarray(flux)
    if flux.dtype.kind != "f":
        flux = flux.astype(np.float64)
    missing = ~np.isfinite(flux)
    if mask is not None:
        np.logical_or(missing, np.asarray(mask, dtype=bool), out=missing)
    if ivar is not None:
        ivar = np.asarray(ivar)
        with np.errstate(invalid="ignore"):
            missing |= ~((ivar > 0) & np.isfinite(ivar))
    return flux, missing, ivar


def check_shapes(flux: Any, mask: Any, ivar: Any) -> None:
    """Raise :class:`InputError` unless all arrays are two-dimensional and of one shape."""
    if flux.ndim != 2:
        raise InputError(f"flux has {flux.ndim} dimension(s), must be (star, pixel)", "pass one row per star")
    for name, other in (("mask", mask), ("ivar", ivar)):
        if other is not None and other.shape != flux.shape:
            raise InputError(
                f"{name} has shape {other.shape}, flux has {flux.shape}", f"pass {name} with one entry per flux value"
            )


def rows_per_block(n_pixels: int, itemsize: int) -> int:
    """Stars whose flux fills :data:`BLOCK_BYTES`."""
    return max(64, BLOCK_BYTES // max(1, n_pixels * itemsize))


class ArraySource:
    """NumPy arrays; blocks are views."""

    def __init__(self, flux: np.ndarray, missing: np.ndarray, ivar: np.ndarray | None = None):
        self.flux, self.missing, self.ivar = flux, missing, ivar
        self.n_stars, self.n_pixels = flux.shape
        self.dtype = np.dtype(flux.dtype)

    def _blocks(self) -> Iterator[Block]:
        step = rows_per_block(self.n_pixels, self.dtype.itemsize)
        for start in range(0, self.n_stars, step):
            part = slice(start, start + step)
            yield self.flux[part], self.missing[part], None if self.ivar is None else self.ivar[part]

    def reduce(self, kernel: Kernel) -> Stats:
        total: Stats | None = None
        for block in self._blocks():
            part = kernel(*block)
            total = part if total is None else add_stats(total, part)
        if total is None:
            raise InputError("flux has no star", "pass at least two stars")
        return total

    def rows(self, index: np.ndarray) -> Block:
        return self.flux[index], self.missing[index], None if self.ivar is None else self.ivar[index]


class DaskSource:
    """Dask arrays, chunked along stars in any way; pixels are merged into one chunk.

    A pass is one graph: per block the loading tasks of the caller's arrays, one kernel task, and
    1/8 of a summing task.  Nothing is kept between passes unless the caller persisted the arrays.
    """

    def __init__(self, flux: da.Array, mask: Any = None, ivar: Any = None, keep: np.ndarray | None = None):
        self.n_stars, self.n_pixels = flux.shape
        if np.isnan(self.n_stars):
            raise InputError("flux has chunks of unknown size", "call flux.compute_chunk_sizes() first")
        self.dtype = np.dtype(flux.dtype if flux.dtype.kind == "f" else np.float64)
        flux = flux.rechunk({1: -1})
        rows = flux.chunks[0]
        self._rows = rows
        self._parts = [flux, _like(mask, rows), _like(ivar, rows)]
        self.keep = keep
        if keep is not None:
            self.n_pixels = int(keep.sum())

    def _delayed(self) -> Iterator[tuple[Delayed | None, ...]]:
        columns = [None if p is None else p.to_delayed().ravel() for p in self._parts]
        for i in range(len(self._rows)):
            yield tuple(None if c is None else c[i] for c in columns)

    def reduce(self, kernel: Kernel) -> Stats:
        call = dask.delayed(_apply, pure=False)
        shared = dask.delayed(kernel, pure=False)
        return compute_sum([call(shared, *block, self.keep) for block in self._delayed()])

    def rows(self, index: np.ndarray) -> Block:
        parts = dask.compute(*[None if p is None else p[index] for p in self._parts])
        return select(prepare(*parts), self.keep)


def _like(array: Any, rows: tuple[int, ...]) -> da.Array | None:
    if array is None:
        return None
    return da.asarray(array).rechunk({0: rows, 1: -1})


def select(block: Block, keep: np.ndarray | None) -> Block:
    """The pixels `keep` of a block."""
    if keep is None or keep.all():
        return block
    flux, missing, ivar = block
    return flux[:, keep], missing[:, keep], None if ivar is None else ivar[:, keep]


def _apply(kernel: Kernel, flux: Any, mask: Any, ivar: Any, keep: np.ndarray | None) -> Stats:
    return kernel(*select(prepare(flux, mask, ivar), keep))


def compute_sum(parts: list[Delayed]) -> Stats:
    """Add up delayed statistics in a tree of fan-in :data:`FAN_IN` and compute the total."""
    add = dask.delayed(add_stats, pure=False)
    while len(parts) > 1:
        parts = [add(*parts[i : i + FAN_IN]) for i in range(0, len(parts), FAN_IN)]
    return dask.compute(parts[0])[0]
