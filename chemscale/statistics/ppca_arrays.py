"""Blocks of a fit as plain arrays: missing pixels folded, passes in one process, blocks kept in memory."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import dask.array as da
import numpy as np

from chemscale.errors import InputError
from chemscale.statistics import blocks
from chemscale.statistics.moments import block_moments, combine_moments
from chemscale.statistics.ppca_kernels import Stats, add_stats

#: A block of stars: flux (n, P), missing (n, P) bool, ivar (n, P) or None; no entry is NaN where not missing.
Block = tuple[np.ndarray, np.ndarray, np.ndarray | None]
Kernel = Callable[[np.ndarray, np.ndarray, np.ndarray | None], Stats]

#: Bytes of one block's flux; some ten arrays of this size exist at once inside a kernel.
BLOCK_BYTES = 16 * 2**20


class Sample(Protocol):
    """Some stars of a source, kept in memory."""

    n_stars: int
    n_pixels: int

    def reduce(self, kernel: Kernel) -> Stats:
        """As :meth:`Source.reduce`."""
        ...

    def few(self, size: int) -> ArraySource:
        """At most `size` of the stars, evenly spread, as arrays."""
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

    @property
    def has_errors(self) -> bool:
        """Whether blocks come with inverse variances."""
        return self.ivar is not None

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
        total = Adder()
        if threads == 1:
            for part in parts:
                total.add(kernel(*part))
            return total.result()
        with ThreadPoolExecutor(threads) as pool:
            # A window of blocks in flight: results are added in order and forgotten at once.
            queue = deque(pool.submit(kernel, *part) for part in parts[: 2 * threads])
            for i in range(len(parts)):
                result = queue.popleft().result()
                if i + 2 * threads < len(parts):
                    queue.append(pool.submit(kernel, *parts[i + 2 * threads]))
                total.add(result)
        return total.result()

    def using(self, keep: np.ndarray) -> ArraySource:
        return ArraySource(*select((self.flux, self.missing, self.ivar), keep))

    def survey(self, index: np.ndarray) -> tuple[Stats, Callable[[np.ndarray], ArraySource]]:
        sample = self.flux[index], self.missing[index], None if self.ivar is None else self.ivar[index]
        total = add_moments(*(count_moments(*block) for block in self._blocks()))
        return total, lambda used: ArraySource(*select(sample, used))

    def filled(self, mean: np.ndarray, unit: float) -> da.Array:
        step = rows_per_block(self.n_pixels, self.dtype.itemsize)
        values = [fill(*block, mean=mean, unit=unit) for block in self._blocks()]
        return da.from_array(np.concatenate(values), chunks=(step, -1))

    def few(self, size: int) -> ArraySource:
        """At most `size` stars, evenly spread."""
        if self.n_stars <= size:
            return self
        rows = spread_rows(self.n_stars, size)
        return ArraySource(self.flux[rows], self.missing[rows], None if self.ivar is None else self.ivar[rows])


def spread_rows(n: int, size: int) -> np.ndarray:
    """Numbers of at most `size` of `n` rows, spread evenly."""
    return np.unique(np.linspace(0, n - 1, min(n, size)).round().astype(int))


class Adder:
    """Adds results one by one in the order of :func:`.blocks.tree`, so that the sum is that of a cluster to the bit."""

    def __init__(self) -> None:
        self.waiting: list[list[Stats]] = [[]]

    def add(self, part: Stats) -> None:
        """The next result."""
        for level in itertools.count():
            if level == len(self.waiting):
                self.waiting.append([])
            self.waiting[level].append(part)
            if len(self.waiting[level]) < blocks.FAN_IN:
                return
            part = add_stats(*self.waiting[level])
            self.waiting[level] = []

    def result(self) -> Stats:
        """The sum of what was added."""
        total: Stats | None = None
        for level in self.waiting:
            last = level if total is None else [*level, total]
            total = add_stats(*last) if last else None
        assert total is not None
        return total


def count_moments(flux: np.ndarray, missing: np.ndarray, ivar: np.ndarray | None = None) -> Stats:
    """Count, mean and scatter of every pixel over the valid stars, and the stars with any valid pixel (``n``).

    ``by_errors`` is the number of values that are missing for their inverse variance alone, where it was counted.
    """
    n = float(np.count_nonzero(~missing.all(axis=1)))
    return block_moments(flux, missing) | {"n": np.array(n), "by_errors": np.array(0.0)}


def add_moments(*parts: Stats) -> Stats:
    """Moments of the union of blocks."""
    return combine_moments(*parts) | {name: np.array(sum(float(p[name]) for p in parts)) for name in ("n", "by_errors")}


def fill(
    flux: np.ndarray, missing: np.ndarray, ivar: np.ndarray | None = None, *, mean: np.ndarray, unit: float
) -> np.ndarray:
    """``(flux - mean) / unit``, 0 where missing: the block filled with the mean."""
    return np.where(missing, 0.0, (flux - mean) / unit).astype(flux.dtype)


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


def compact(flux: np.ndarray, missing: np.ndarray, ivar: np.ndarray | None) -> Any:
    """A block as it is kept in memory."""
    return flux.copy(), np.packbits(missing, axis=1), None if ivar is None else ivar.copy()


def on_compact(block: Any, kernel: Kernel) -> Stats:
    """``kernel(*block)`` of a block from :func:`compact`, or of tensors from :func:`.ppca_device.upload`."""
    blocks.share_cores(blocks.task_threads())
    flux, packed, ivar = block
    if not isinstance(flux, np.ndarray):
        return kernel(flux, packed, ivar)
    return kernel(flux, np.unpackbits(packed, axis=1, count=flux.shape[1]).view(bool), ivar)


def select(block: Block, keep: np.ndarray | None) -> Block:
    """The pixels `keep` of a block."""
    if keep is None or keep.all():
        return block
    flux, missing, ivar = block
    return columns(flux, keep), columns(missing, keep), None if ivar is None else columns(ivar, keep)
