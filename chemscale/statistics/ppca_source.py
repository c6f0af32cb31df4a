"""Where the blocks of a fit come from: NumPy arrays or Dask arrays.

A source knows how many stars and pixels there are, draws a subsample that depends only on the seed
(not on the chunking), and adds up a kernel over its blocks.  One call of :meth:`reduce` is one
pass over the data.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import dask
import dask.array as da
import numpy as np
from dask.delayed import Delayed

from chemscale.arrays import scratch
from chemscale.errors import InputError
from chemscale.runtime.blocks import compute_sum, map_groups, readers_of
from chemscale.runtime.cluster import current_client
from chemscale.statistics import blocks, pixel_loops
from chemscale.statistics.ppca_arrays import (
    ArraySource,
    Block,
    Kernel,
    Sample,
    add_moments,
    compact,
    count_moments,
    fill,
    keep_runs,
    on_compact,
    select,
)
from chemscale.statistics.ppca_kernels import Stats, add_into, add_stats
from chemscale.statistics.ppca_sample import ClusterSample, head, join_arrays, merge_heads


class Source(Protocol):
    """Blocks of stars a fit may pass over."""

    n_stars: int
    n_pixels: int
    dtype: np.dtype

    @property
    def has_errors(self) -> bool:
        """Whether blocks come with inverse variances."""
        ...

    def reduce(self, kernel: Kernel) -> Stats:
        """Sum of `kernel` over all blocks: one pass."""
        ...

    def survey(self, index: np.ndarray) -> tuple[Stats, Callable[[np.ndarray], Sample]]:
        """Valid stars of each pixel (``count``), valid stars (``n``), and the stars `index`: one pass.

        The second is a function of the pixels to use that gives those stars.
        """
        ...

    def using(self, keep: np.ndarray) -> Source:
        """The same stars restricted to the pixels `keep`."""
        ...

    def filled(self, mean: np.ndarray, unit: float) -> da.Array:
        """``flux / unit - mean / unit`` of the used pixels, 0 where missing: Dask blocks of (star, pixel)."""
        ...


class DaskSource:
    """Dask arrays, chunked along stars in any way; pixels are merged into one chunk.

    A pass over a store is one graph of one task per group of blocks (:mod:`chemscale.runtime.blocks`), over other Dask
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

    @property
    def has_errors(self) -> bool:
        """Whether blocks come with inverse variances."""
        return self.weighted and self.ivar is not None

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

    def without_errors(self) -> DaskSource:
        """The same values where no inverse variance is asked for, and none makes a pixel missing: it is not read."""
        assert not self.weighted
        return DaskSource(self.flux, self.mask, bits=self.bits, chosen=self.chosen, keep=self.keep)

    def _parts(
        self,
        function: Callable[..., Any],
        extra: np.ndarray | None = None,
        combine: Callable[[Any, Any], Any] | None = None,
    ) -> list[Delayed]:
        """Delayed ``function(flux, missing, ivar)`` of every block with a chosen star.

        With `extra` (per star) it is ``function(flux, missing, ivar, extra, alone)``, see :func:`fold_block`. With
        `combine` (total or None, result) the blocks of a store are added up group by group, each by one task.
        """
        rows = self.flux.chunks[0]
        chosen = np.ones(self.flux.shape[0], dtype=bool) if self.chosen is None else self.chosen
        stars = chosen[:, None] if extra is None else np.stack([chosen, extra], axis=1)
        arrays = [a for a in (self.flux, self.mask, self.ivar) if a is not None]
        load = partial(
            load_block,
            function=function,
            counted=extra is not None,
            has=(self.mask is not None, self.ivar is not None),
            bits=self.bits,
            keep=self.keep,
            weighted=self.weighted,
        )
        readers = readers_of(arrays) if combine is not None else None
        if combine is not None and readers is not None:
            return map_groups(partial(blocks.call, function=load), combine, readers, rows, stars)
        parts = blocks.map_blocks(load, [stars, *arrays], rows)
        starts = np.concatenate([[0], np.cumsum(rows)[:-1]]).astype(int)
        return [p for p, s, n in zip(parts, starts, rows) if chosen[s : s + n].any()]

    def reduce(self, kernel: Kernel) -> Stats:
        if self._cached is not None:
            shared = dask.delayed(kernel, pure=False)
            call = dask.delayed(on_compact, pure=False)
            parts = [call(block, shared) for block in self._cached]
        else:
            parts = self._parts(kernel, combine=add_into)
        if not parts:
            raise InputError("no star is selected", "check the selection")
        return compute_sum(blocks.tree(parts, add_stats))

    def filled(self, mean: np.ndarray, unit: float) -> da.Array:
        rows = self.flux.chunks[0]
        chosen = np.ones(self.flux.shape[0], dtype=bool) if self.chosen is None else self.chosen
        starts = np.concatenate([[0], np.cumsum(rows)[:-1]]).astype(int)
        sizes = [int(np.count_nonzero(chosen[s : s + n])) for s, n in zip(starts, rows)]
        parts = self._parts(partial(fill, mean=mean, unit=unit))
        shapes = [(size, self.n_pixels) for size in sizes if size]
        return da.concatenate([da.from_delayed(p, s, self.dtype) for p, s in zip(parts, shapes)])

    @property
    def nbytes(self) -> int:
        """Bytes of the used pixels of the chosen stars in memory (flux, packed mask, ivar)."""
        per_value = self.dtype.itemsize + 0.125 + (4 if self.weighted and self.ivar is not None else 0)
        return int(self.n_stars * self.n_pixels * per_value)

    @property
    def device_bytes(self) -> int:
        """Bytes of the same as tensors on a device, where a mask takes a byte a pixel."""
        return self.nbytes + int(self.n_stars * self.n_pixels * 0.875)

    def cache(self, keep: Callable[..., Any] = compact) -> None:
        """Keep the used pixels of every block, as `keep` gives them, from now on (one pass).

        They stay in the cluster's memory, or where `keep` puts them (:func:`.ppca_device.upload`).
        """
        self._cached = list(dask.persist(*self._parts(keep)))

    def survey(self, index: np.ndarray) -> tuple[Stats, Callable[[np.ndarray], Sample]]:
        chosen = np.flatnonzero(self.chosen) if self.chosen is not None else np.arange(self.flux.shape[0])
        wanted = np.zeros(self.flux.shape[0], dtype=bool)
        wanted[chosen[index]] = True
        parts = self._parts(count_and_sample, wanted, fold_samples)
        if current_client() is not None:
            kept, look = list(dask.persist(*parts)), dask.delayed(head, pure=False)
            total, sizes = compute_sum(blocks.tree([look(part) for part in kept], merge_heads))
            return total, lambda used: ClusterSample(kept, sizes, used, self.dtype)
        total, pieces = compute_sum(blocks.tree(parts, merge_samples))
        sample = tuple(join_arrays([piece[i] for piece in pieces]) for i in range(3))  # sorted, like `index`
        return total, lambda used: ArraySource(*select(sample, used))


def count_and_sample(
    flux: np.ndarray, missing: np.ndarray, ivar: np.ndarray | None, wanted: np.ndarray, by_errors: int
) -> tuple[Stats, list[Block]]:
    """Counts of a block and copies of the `wanted` stars in it; `by_errors` as in :func:`.count_moments`."""
    sample = flux[wanted], missing[wanted], None if ivar is None else ivar[wanted]
    return count_moments(flux, missing) | {"by_errors": np.array(float(by_errors))}, [sample]


def merge_samples(*parts: tuple[Stats, list[Block]]) -> tuple[Stats, list[Block]]:
    """Combine counts; samples stay in the order of the blocks."""
    return add_moments(*(p[0] for p in parts)), [piece for p in parts for piece in p[1]]


def fold_samples(total: tuple[Stats, list[Block]] | None, part: tuple[Stats, list[Block]]) -> Any:
    """:func:`merge_samples` of what there is so far and one block more."""
    return part if total is None else merge_samples(total, part)


def load_block(stars: np.ndarray, *arrays: Any, function: Callable[..., Any], counted: bool = False, **how: Any) -> Any:
    """Call `function` with what is chosen of one block (:func:`fold_block`); what it keeps it must copy."""
    flux, missing, ivar, stars, alone = fold_block(stars, *arrays, **how)
    return function(flux, missing, ivar, stars[:, 1], alone) if counted else function(flux, missing, ivar)


def fold_block(
    stars: np.ndarray,
    flux: Any,
    *others: Any,
    has: tuple[bool, bool],
    bits: int | None,
    keep: np.ndarray | None,
    weighted: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray, int]:
    """Select stars and pixels of one block, fold the reasons for missing pixels.

    Returns
    -------
    flux, missing, ivar : ndarray (n, P)
        Scratch arrays of this thread (see :func:`chemscale.arrays.scratch`).
    stars : ndarray (n, ...)
        Rows of `stars` that are chosen.
    alone : int
        Values that are missing for their inverse variance alone.
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
    values, missing = scratch("values", shape, flux.dtype), scratch("missing", shape, bool)
    alone = pixel_loops.fold_missing(flux, marks, which, errors, runs, values, missing)
    weights = None
    if weighted and ivar is not None:
        weights = scratch("weights", shape, ivar.dtype)
        pixel_loops.gather(ivar, runs, weights)
    return values, missing, weights, stars, alone
