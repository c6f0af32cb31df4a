"""Stars of a survey over the rows of its store.

A store is written as rows, one for every planned star. Rows that were quarantined, or
superseded by a later revision, are hidden: the stars a user sees are the others, in order.
Chunks stay whole: a block of stars is one block of rows less its hidden ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from xarray.backends import BackendArray
from xarray.core import indexing

from chemscale.arrays import cut_at, cut_every
from chemscale.errors import StoreError
from chemscale.runtime.files import Folder
from chemscale.schema import Flag
from chemscale.survey.store.cleaning import Cleaning
from chemscale.survey.store.decoding import ShardFiles
from chemscale.survey.store.layout import chunk_file
from chemscale.survey.store.ledger import Ledger, Touched
from chemscale.survey.store.root import RootRecord, token_of


@dataclass(frozen=True)
class StoreGroup:
    """One group of arrays: its URL, its number of rows, and the hidden ones (sorted)."""

    url: str
    n_rows: int
    hidden: np.ndarray
    #: identifies the content, so that caches never mix two stores at one path
    token: str = ""
    #: CRC32C of the group's list of markers, as the root record says
    ledger: int = 0

    @property
    def n_stars(self) -> int:
        """Rows that a reader sees."""
        return self.n_rows - len(self.hidden)

    def row_range(self, start: int, stop: int) -> tuple[int, int]:
        """Rows ``[first, last)`` that hold the stars ``[start, stop)``."""
        if stop <= start:
            return 0, 0
        before = self.hidden - np.arange(len(self.hidden))
        first = start + int(np.searchsorted(before, start, side="right"))
        last = stop - 1 + int(np.searchsorted(before, stop - 1, side="right"))
        return first, last + 1

    def star_chunks(self, size: int) -> list[int]:
        """Stars in each block of `size` rows (blocks without any are left out)."""
        edges = np.arange(0, self.n_rows + size, size).clip(max=self.n_rows)
        edges = np.unique(edges)
        counts = np.diff(edges) - np.diff(np.searchsorted(self.hidden, edges))
        return [int(c) for c in counts if c]

    def read(self, name: str, start: int, stop: int, reuse: bool = False, out: np.ndarray | None = None) -> np.ndarray:
        """Stars ``[start, stop)`` of a variable; `reuse` and `out` as in :meth:`Rows.read`."""
        first, last = self.row_range(start, stop)
        try:
            values = _open(self.url, name, self.token, self.ledger)(first, last, reuse, out)
        except Exception as err:
            raise self._failed(name, first, last, err) from err
        lo, hi = np.searchsorted(self.hidden, (first, last))
        if hi > lo:
            values = np.delete(values, self.hidden[lo:hi] - first, axis=0)
        return values.astype(object) if values.dtype.kind == "T" else values

    def _failed(self, name: str, first: int, last: int, err: Exception) -> StoreError:
        """What to say of rows that cannot be read: the store is another one by now, or it is damaged."""
        said = err.message if isinstance(err, StoreError) else err
        what = f"{self.url}: cannot read {name}, rows {first} to {last}: {said}"
        top = Folder(self.url.partition("/revisions/")[0])
        try:
            now = token_of(top, RootRecord.read(top))
        except (StoreError, OSError) as gone:
            why = gone.message if isinstance(gone, StoreError) else gone
            return StoreError(f"{what} (the store is gone since it was opened: {why})", "open it again")
        if now != self.token:
            return StoreError(f"{what} (the store has been replaced or changed since it was opened)", "open it again")
        return StoreError(what, "`chemscale verify STORE` names what is broken, `--repair` ingests it again")


@lru_cache(maxsize=512)
def _open(url: str, name: str, token: str, ledger: int) -> Callable[[int, int, bool, np.ndarray | None], np.ndarray]:
    """A function of (first, last row, reuse, out) that reads a variable; files are compared with the store's ledger."""
    import zarr

    folder = Folder(url)
    listed = Ledger.read(url, ledger)
    listed.content(f"{name}/zarr.json")
    touched = Touched(folder, {n: f for n, f in listed.files().items() if n.startswith(f"{name}/")})
    array: Any = zarr.open_array(folder.zarr_store(), path=name, mode="r")
    direct = None if folder.remote else ShardFiles.of(folder.root, name, array, touched)
    if direct is not None:
        return direct.read
    height = (array.shards or array.chunks)[0]

    def read(first: int, last: int, reuse: bool, out: np.ndarray | None) -> np.ndarray:
        for which, _, _ in cut_every(first, last, height):  # shards of object stores are too big to be fetched for this
            touched.check(chunk_file(name, which, array.ndim), digest=not (folder.remote and array.shards))
        return np.asarray(array[first:last])

    return read


@dataclass(frozen=True)
class Mask:
    """What `chemscale mask` adds to the flags of a store when they are read.

    Attributes
    ----------
    windows : tuple of (start, stop, bit)
        Pixels flagged for every star.
    max_error : float or None
        Pixels of a larger error of the flux are LARGE_ERROR.
    """

    windows: tuple[tuple[int, int, int], ...] = ()
    max_error: float | None = None

    @classmethod
    def of(cls, stored: dict[str, Any]) -> Mask | None:
        """From the root record; None when it asks for nothing."""
        windows = tuple((int(a), int(b), int(bit)) for a, b, bit in stored.get("windows", ()))
        limit = stored.get("max_error")
        return cls(windows, limit) if windows or limit is not None else None

    def apply(self, flags: np.ndarray, ivar: np.ndarray | None) -> np.ndarray:
        """Flags (n, P) with the mask's bits set; `ivar` (n, P) is needed with `max_error` only."""
        out = flags.copy()
        for start, stop, bit in self.windows:
            out[:, start:stop] |= np.uint8(bit)
        if self.max_error is not None:
            assert ivar is not None
            out[ivar < np.float32(1.0 / self.max_error**2)] |= np.uint8(Flag.LARGE_ERROR)
        return out


class Rows:
    """Stars of one variable over all groups; what dask blocks and lazy columns read from."""

    def __init__(
        self,
        groups: tuple[StoreGroup, ...],
        name: str,
        shape: tuple[int, ...],
        dtype: Any,
        mask: Mask | None = None,
        cleaning: Cleaning | None = None,
    ):
        self.groups = groups
        self.name = name
        self.mask = mask
        self.cleaning = cleaning
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.ndim = len(shape)

    def read(self, start: int, stop: int, reuse: bool = False, out: np.ndarray | None = None) -> np.ndarray:
        """Rows ``[start, stop)``.

        `out` is where they are wanted: it is filled and returned if it fits and nothing has to be done to the stored
        rows (no stars hidden, no mask, one group, a local store); otherwise another array is.

        With `reuse` they may be in a buffer of this thread that the next such read of the variable fills again: for
        whoever goes through a survey block by block and keeps nothing. New arrays of tens of megabytes come from the
        kernel page by page, each page cleared first.
        """
        if self.cleaning is not None:
            flux = self._stored(self.name, start, stop, reuse)
            return self.cleaning.apply(flux, lambda name: self._stored(name, start, stop, False))
        if self.mask is None:
            return self._stored(self.name, start, stop, reuse, out)
        ivar = None if self.mask.max_error is None else self._stored("ivar", start, stop, reuse)
        return self.mask.apply(self._stored(self.name, start, stop, reuse), ivar)

    def _stored(self, name: str, start: int, stop: int, reuse: bool, out: np.ndarray | None = None) -> np.ndarray:
        edges = np.cumsum([0, *(g.n_stars for g in self.groups)])
        wanted = [(self.groups[i], low - edges[i], high - edges[i]) for i, low, high in cut_at(start, stop, edges)]
        if len(wanted) == 1:
            group, lo, hi = wanted[0]
            return group.read(name, lo, hi, reuse, out)
        if not wanted:
            return np.empty((0, *self.shape[1:]) if name == self.name else 0, self.dtype)
        return np.concatenate([group.read(name, lo, hi) for group, lo, hi in wanted])

    def __getitem__(self, key: Any) -> np.ndarray:
        key = key if isinstance(key, tuple) else (key,)
        start, stop, step = key[0].indices(self.shape[0])
        return self.read(start, stop)[(slice(None, None, step), *key[1:])]

    def __dask_tokenize__(self) -> Any:
        return (
            self.name,
            self.shape,
            self.mask,
            self.cleaning,
            tuple((g.url, g.token, g.n_rows, len(g.hidden)) for g in self.groups),
        )


class Column(BackendArray):
    """Lazy per-star variable for xarray: read when its values are asked for."""

    def __init__(self, rows: Rows):
        self.rows = rows
        self.shape = rows.shape
        self.dtype = rows.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._get)

    def _get(self, key: tuple[Any, ...]) -> Any:
        first = key[0]
        if isinstance(first, slice):
            start, stop, step = first.indices(self.shape[0])
            if step > 0:
                return self.rows.read(start, stop)[(slice(None, None, step), *key[1:])]
            return self.rows.read(0, self.shape[0])[key]
        first = int(first) % self.shape[0]
        return self.rows.read(first, first + 1)[(0, *key[1:])]
