"""Where the blocks of a fit come from: NumPy arrays or Dask arrays.

A source knows how many stars and pixels there are, draws a subsample that depends only on the seed
(not on the chunking), and adds up a kernel over its blocks.  One call of :meth:`reduce` is one
pass over the data.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

import dask
import dask.array as da
import numpy as np
from dask.delayed import Delayed

from chemscale.errors import InputError
from chemscale.runtime import lots
from chemscale.statistics import blocks, compiled
from chemscale.statistics.ppca_kernels import Stats, add_into, add_stats

#: A block of stars: flux (n, P), missing (n, P) bool, ivar (n, P) or None; no entry is NaN where not missing.
Block = tuple[np.ndarray, np.ndarray, np.ndarray | None]
Kernel = Callable[[np.ndarray, np.ndarray, np.ndarray | None], Stats]

#: Bytes of one block's flux; some ten arrays of this size exist at once inside a kernel.
BLOCK_BYTES = 16 * 2**20


class Source(Protocol):
    """Blocks of stars a fit may pass over."""

    n_stars: int
    n_pixels: int
    dtype: np.dtype

    def reduce(self, kernel: Kernel) -> Stats:
        """Sum of `kernel` over all blocks: one pass."""
        ...

    def survey(self, index: np.ndarray) -> tuple[Stats, Block]:
        """Valid stars of each pixel (``count``), valid stars (``n``), and the stars `index` in memory: one pass."""
        ...

    def using(self, keep: np.ndarray) -> Source:
        """The same stars restricted to the pixels `keep`."""
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
        threads = blocks.available_cores()
        if self.flux.nbytes < 4 * BLOCK_BYTES:
            threads = 1
        blocks.share_cores(threads)
        parts = list(self._blocks())
        if not parts:
            raise InputError("flux has no star", "pass at least two stars")
        if threads == 1:
            return add_stats(*(kernel(*part) for part in parts))
        total: Stats | None = None
        with ThreadPoolExecutor(threads) as pool:
            # A window of blocks in flight: results are added in order and forgotten at once.
            queue = deque(pool.submit(kernel, *part) for part in parts[: 2 * threads])
            for i in range(len(parts)):
                part = queue.popleft().result()
                if i + 2 * threads < len(parts):
                    queue.append(pool.submit(kernel, *parts[i + 2 * threads]))
                total = add_into(total, part)
        assert total is not None
        return total

    def using(self, keep: np.ndarray) -> ArraySource:
        return ArraySource(*select((self.flux, self.missing, self.ivar), keep))

    def survey(self, index: np.ndarray) -> tuple[Stats, Block]:
        sample = self.flux[index], self.missing[index], None if self.ivar is None else self.ivar[index]
        return self.reduce(count_stats), sample


class DaskSource:
    """Dask arrays, chunked along stars in any way; pixels are merged into one chunk.

    A pass over a store is one graph of one task per lot of blocks (:mod:`chemscale.runtime.lots`), over other Dask
    arrays of one per block, plus 1/3 of an adding task (see :mod:`.blocks`). Nothing is kept between passes unless
    :meth:`cache` is called.

    Parameters
    ----------
    mask : array, optional
        Boolean (True = missing), or flag bits of which `bits` count.
    chosen : ndarray of bool (star,), optional
        Stars to use; blocks without any are not read.
    keep : ndarray of bool (pixel,), optional
        Pixels to use.
    """

    def __init__(
        self,
        flux: da.Array,
        mask: Any = None,
        ivar: Any = None,
        *,
        weighted: bool = True,
        bits: int | None = None,
        chosen: np.ndarray | None = None,
        keep: np.ndarray | None = None,
    ):
        if np.isnan(flux.shape[0]):
            raise InputError("flux has chunks of unknown size", "call flux.compute_chunk_sizes() first")
        self.flux, self.mask, self.ivar = flux, mask, ivar
        self.weighted, self.bits, self.chosen, self.keep = weighted, bits, chosen, keep
        self.n_stars = int(flux.shape[0] if chosen is None else np.count_nonzero(chosen))
        self.n_pixels = int(flux.shape[1] if keep is None else np.count_nonzero(keep))
        self.dtype = np.dtype(flux.dtype if flux.dtype.kind == "f" else np.float64)
        self._cached: list[Delayed] | None = None

    def using(self, keep: np.ndarray) -> DaskSource:
        """The same stars restricted to the pixels `keep`."""
        return DaskSource(
            self.flux,
            self.mask,
            self.ivar,
            weighted=self.weighted,
            bits=self.bits,
            chosen=self.chosen,
            keep=keep,
        )

    def _parts(
        self,
        function: Callable[..., Any],
        extra: np.ndarray | None = None,
        combine: Callable[[Any, Any], Any] | None = None,
    ) -> list[Delayed]:
        """Delayed ``function(flux, missing, ivar[, extra])`` of every block with a chosen star; `extra` is per star.

        With `combine` (total or None, result) the blocks of a store are added up lot by lot, each lot by one task.
        """
        rows = self.flux.chunks[0]
        chosen = np.ones(self.flux.shape[0], dtype=bool) if self.chosen is None else self.chosen
        stars = chosen[:, None] if extra is None else np.stack([chosen, extra], axis=1)
        arrays = [a for a in (self.flux, self.mask, self.ivar) if a is not None]
        load = partial(
            load_block,
            function=function,
            has=(self.mask is not None, self.ivar is not None),
            bits=self.bits,
            keep=self.keep,
            weighted=self.weighted,
        )
        readers = lots.readers(arrays) if combine is not None else None
        if combine is not None and readers is not None:
            return lots.map_lots(partial(blocks.call, function=load), combine, readers, rows, stars)
        parts = blocks.map_blocks(load, [stars, *arrays], rows)
        starts = np.concatenate([[0], np.cumsum(rows)[:-1]]).astype(int)
        return [p for p, s, n in zip(parts, starts, rows) if chosen[s : s + n].any()]

    def reduce(self, kernel: Kernel) -> Stats:
        if self._cached is not None:
            shared = dask.delayed(kernel, pure=False)
            call = dask.delayed(_on_cached, pure=False)
            parts = [call(block, shared) for block in self._cached]
        else:
            parts = self._parts(kernel, combine=add_into)
        if not parts:
            raise InputError("no star is selected", "check the selection")
        return lots.compute(blocks.tree(parts, add_stats))

    @property
    def nbytes(self) -> int:
        """Bytes of the used pixels of the chosen stars in memory (flux, packed mask, ivar)."""
        per_value = self.dtype.itemsize + 0.125 + (4 if self.weighted and self.ivar is not None else 0)
        return int(self.n_stars * self.n_pixels * per_value)

    def cache(self) -> None:
        """Keep the used pixels of every block in the cluster's memory from now on (one pass)."""
        self._cached = list(dask.persist(*self._parts(_compact)))

    def survey(self, index: np.ndarray) -> tuple[Stats, Block]:
        chosen = np.flatnonzero(self.chosen) if self.chosen is not None else np.arange(self.flux.shape[0])
        wanted = np.zeros(self.flux.shape[0], dtype=bool)
        wanted[chosen[index]] = True
        parts = self._parts(count_and_sample, wanted, fold_samples)
        total, pieces = lots.compute(blocks.tree(parts, merge_samples))
        flux, missing, ivar = (  # sorted, like `index`
            None if pieces[0][i] is None else np.concatenate([piece[i] for piece in pieces]) for i in range(3)
        )
        assert flux is not None and missing is not None
        return total, (flux, missing, ivar)


def count_stats(flux: np.ndarray, missing: np.ndarray, ivar: np.ndarray | None = None) -> Stats:
    """Valid stars of each pixel, and stars with any valid pixel."""
    return {
        "count": len(missing) - np.count_nonzero(missing, axis=0).astype(np.float64),
        "n": np.array(float(np.count_nonzero(~missing.all(axis=1)))),
    }


def count_and_sample(
    flux: np.ndarray, missing: np.ndarray, ivar: np.ndarray | None, wanted: np.ndarray
) -> tuple[Stats, list[Block]]:
    """Counts of a block and copies of the `wanted` stars in it."""
    sample = flux[wanted], missing[wanted], None if ivar is None else ivar[wanted]
    return count_stats(flux, missing), [sample]


def merge_samples(*parts: tuple[Stats, list[Block]]) -> tuple[Stats, list[Block]]:
    """Combine counts; samples stay in the order of the blocks."""
    return add_stats(*(p[0] for p in parts)), [piece for p in parts for piece in p[1]]


def fold_samples(total: tuple[Stats, list[Block]] | None, part: tuple[Stats, list[Block]]) -> Any:
    """:func:`merge_samples` of what there is so far and one block more."""
    return part if total is None else merge_samples(total, part)


def load_block(
    stars: np.ndarray,
    flux: Any,
    *others: Any,
    function: Callable[..., Any],
    has: tuple[bool, bool],
    bits: int | None,
    keep: np.ndarray | None,
    weighted: bool,
) -> Any:
    """Select stars and pixels of one block, fold the reasons for missing pixels, call `function`.

    `function` gets scratch arrays (see :func:`.compiled.scratch`): what it keeps of them it must copy.
    """
    rest = list(others)
    parts: list[Any] = [flux, rest.pop(0) if has[0] else None, rest.pop(0) if has[1] else None]
    chosen = stars[:, 0]
    if not chosen.all():
        parts = [None if a is None else a[chosen] for a in parts]
        stars = stars[chosen]
    flux, mask, ivar = parts
    if flux.dtype.kind != "f":
        flux = flux.astype(np.float64)
    runs = keep_runs(np.ones(flux.shape[1], dtype=bool) if keep is None else keep)
    marks = np.zeros((0, 0), dtype=np.uint8) if mask is None else mask.view(np.uint8) if mask.dtype == bool else mask
    errors = np.zeros((0, 0), dtype=flux.dtype) if ivar is None else ivar
    which = marks.dtype.type(np.iinfo(marks.dtype).max if bits is None else bits)
    shape = (flux.shape[0], int(np.diff(runs).sum()))
    values, missing = compiled.scratch("values", shape, flux.dtype), compiled.scratch("missing", shape, bool)
    compiled.fold_missing(flux, marks, which, errors, runs, values, missing)
    weights = None
    if weighted and ivar is not None:
        weights = compiled.scratch("weights", shape, ivar.dtype)
        compiled.gather(ivar, runs, weights)
    return function(values, missing, weights, *stars[:, 1:].T)


def keep_runs(keep: np.ndarray) -> np.ndarray:
    """Ranges [start, stop) of the pixels to keep, (R, 2)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], keep.astype(np.int8), [0]])))
    return edges.reshape(-1, 2)


def columns(array: np.ndarray, keep: np.ndarray | None) -> np.ndarray:
    """The pixels `keep`: a view when they are one run, copies of runs otherwise (faster than a boolean index)."""
    if keep is None or keep.all():
        return array
    runs = [array[:, a:b] for a, b in keep_runs(keep)]
    if len(runs) == 1:
        return runs[0]
    return np.concatenate(runs, axis=1) if runs and len(runs) < 200 else array[:, keep]


def _compact(flux: np.ndarray, missing: np.ndarray, ivar: np.ndarray | None) -> Any:
    return flux.copy(), np.packbits(missing, axis=1), None if ivar is None else ivar.copy()


def _on_cached(block: Any, kernel: Kernel) -> Stats:
    blocks.share_cores(blocks.task_threads())
    flux, packed, ivar = block
    return kernel(flux, np.unpackbits(packed, axis=1, count=flux.shape[1]).view(bool), ivar)


def select(block: Block, keep: np.ndarray | None) -> Block:
    """The pixels `keep` of a block."""
    if keep is None or keep.all():
        return block
    flux, missing, ivar = block
    return columns(flux, keep), columns(missing, keep), None if ivar is None else columns(ivar, keep)
