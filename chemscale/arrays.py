"""Small rules on plain arrays that every stage shares: which pixels are missing, runs, cuts of rows, scratch memory.

Each idea is decided here once. NumPy goes in and comes out; :func:`missing_pixels` takes Dask and xarray arrays too.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from chemscale.schema import ALL_FLAGS

_local = threading.local()


def missing_pixels(flux: Any, ivar: Any, flags: Any = None, bits: int = ALL_FLAGS) -> Any:
    """True where a pixel is not to be used: a flag, no positive inverse variance, no finite flux.

    Parameters
    ----------
    flux, ivar : array (N, P)
        NumPy, Dask or xarray.
    flags : array (N, P) of integers, optional
        Flag bits (:class:`chemscale.schema.Flag`).
    bits : int
        Flags that count (:func:`chemscale.schema.flag_mask`).

    Returns
    -------
    array (N, P) of bool
        Of the kind that was given.

    Examples
    --------
    >>> missing_pixels(np.array([1.0, np.nan, 1.0, 1.0]), np.array([9.0, 9.0, 0.0, 9.0]), np.array([0, 0, 0, 4]))
    array([False,  True,  True,  True])
    """
    missing = ~(ivar > 0) | ~np.isfinite(flux)
    return missing if flags is None else ((flags & bits) != 0) | missing


def runs_of_true(mask: np.ndarray) -> np.ndarray:
    """Ranges ``[start, stop)`` of neighbouring True values.

    Parameters
    ----------
    mask : ndarray (P,) of bool

    Returns
    -------
    ndarray (R, 2) of int
        In order, disjoint, none empty.

    Examples
    --------
    >>> runs_of_true(np.array([True, True, False, True])).tolist()
    [[0, 2], [3, 4]]
    """
    ends = np.flatnonzero(np.diff(np.concatenate([[0], np.asarray(mask).astype(np.int8), [0]])))
    return ends.reshape(-1, 2)


def cut_every(start: int, stop: int, size: int) -> Iterator[tuple[int, int, int]]:
    """The rows ``[start, stop)`` cut at the multiples of `size`: (which, low, high) of each range.

    Examples
    --------
    >>> list(cut_every(3, 9, 4))
    [(0, 3, 4), (1, 4, 8), (2, 8, 9)]
    """
    for which in range(start // size, -(-stop // size) if stop > start else 0):
        yield which, max(start, which * size), min(stop, (which + 1) * size)


def cut_at(start: int, stop: int, edges: Sequence[int] | np.ndarray) -> Iterator[tuple[int, int, int]]:
    """The rows ``[start, stop)`` cut where `edges` (increasing, first to last) lie: (which, low, high) of each range.

    Examples
    --------
    >>> list(cut_at(3, 9, [0, 5, 20]))
    [(0, 3, 5), (1, 5, 9)]
    """
    if stop <= start:
        return
    first = int(np.searchsorted(edges, start, side="right")) - 1
    last = int(np.searchsorted(edges, stop, side="left"))
    for which in range(first, last):
        low, high = max(start, int(edges[which])), min(stop, int(edges[which + 1]))
        if high > low:
            yield which, low, high


def scratch(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """A buffer of this thread that is used again, uninitialised; valid until the next call with the same `name`.

    Fresh arrays of tens of megabytes come from the kernel page by page, each page cleared first; that takes a
    third of the time of a pass over a survey.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    buffer = getattr(_local, name, None)
    if buffer is None or buffer.size < size:
        buffer = np.empty(size, dtype=np.uint8)
        setattr(_local, name, buffer)
    return buffer[:size].view(dtype).reshape(shape)
