"""Reading the stars of one shard: source -> censored pixels and per-star columns.

Whatever a source does, a star ends in its row or in the list of rejections.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from chemscale.errors import ChemscaleError, InputError
from chemscale.runtime.files import Folder
from chemscale.schema import VARIABLES
from chemscale.survey.ingest.censoring import NO_GAPS, error_limit
from chemscale.survey.ingest.writing import Counts
from chemscale.survey.sources.base import Item, Rejection, StarBlock
from chemscale.survey.sources.blocks import join
from chemscale.survey.sources.labels import PackedItems
from chemscale.survey.store.layout import PIXEL_VARIABLES
from chemscale.survey.store.manifest import StoreHeader, clean_text, empty_columns

#: Stars handed to a source's `read` at once: few enough that their arrays stay in the cache. A source whose file
#: is cheaper to read in longer blocks says so by an attribute `read_stars`.
READ_STARS = 32
#: Bytes of a file that are asked for in advance: a spectrum's file is kilobytes.
_AHEAD = 1 << 20


@dataclass(frozen=True)
class ShardTask:
    """Everything a worker needs to write one shard."""

    folder: Folder
    header: StoreHeader
    shard: int
    source: Any
    items: list[Item]
    wavelength: np.ndarray
    fingerprint: str

    def __reduce__(self) -> tuple[Any, ...]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return _unpack_task, (values | {"items": PackedItems.of(self.items)},)


def _unpack_task(values: dict[str, Any]) -> ShardTask:
    return ShardTask(**values | {"items": values["items"].unpack()})


class RowReader:
    """Reads the stars of a shard, some rows at a time; collects their columns, status and rejections.

    Attributes
    ----------
    columns : dict of ndarray
        Per-star values of the whole shard; NaN, '' or 0 in empty rows.
    status : ndarray (n,) uint8
        1 where a row holds a star.
    rejected : list of Rejection
    """

    def __init__(self, task: ShardTask):
        from chemscale.survey.ingest import censoring_kernels as kernels

        self.task = task
        self.columns = empty_columns(task.header, len(task.items))
        self.status = np.zeros(len(task.items), np.uint8)
        self.rejected: list[Rejection] = []
        self._announced = 0
        settings = task.header.settings
        self._step = int(getattr(task.source, "read_stars", READ_STARS))
        windows = np.array(settings["windows"], np.int64).reshape(-1, 2)
        self._rules = kernels.Rules(error_limit(settings["max_error"]), NO_GAPS, windows)

    def fill(self, pixels: dict[str, np.ndarray], start: int, stop: int, counts: Counts | None = None) -> None:
        """Rows ``[start, stop)`` of the shard to the first rows of `pixels`; empty rows are zeros.

        `counts` counts every block of rows as it comes, which is cheaper than afterwards: it is in the cache.
        """
        for first in range(start, stop, self._step):
            self._look_ahead(first + self._step)
            last = min(first + self._step, stop)
            self._fill_block(pixels, start, first, last)
            if counts is not None:
                rows = slice(first - start, last - start)
                counts.add({name: values[rows] for name, values in pixels.items()}, self.status[first:last])
        empty = np.flatnonzero(self.status[start:stop] == 0)
        for values in pixels.values():
            values[empty] = 0
            values[stop - start :] = 0

    def _look_ahead(self, stop: int) -> None:
        """Have the files of the stars up to the block after `stop` on their way from the disk."""
        items = self.task.items
        if self._announced == 0 and not os.path.isfile(items[0].path):  # rows of a table, objects, made-up spectra
            self._announced = len(items)
        stop = min(stop + self._step, len(items))
        will_read(item.path for item in items[self._announced : stop])
        self._announced = max(self._announced, stop)

    def _fill_block(self, pixels: dict[str, np.ndarray], base: int, start: int, stop: int) -> None:
        from chemscale.survey.ingest import censoring_kernels as kernels

        task = self.task
        items = task.items[start:stop]
        block = read_safely(task.source, items, task.wavelength, task.header.elements)
        self.rejected += block.rejected
        n = len(block.star_id)
        if n == len(items) and block.star_id == [i.star_id for i in items]:
            rows = np.arange(start, stop)
        else:
            row_of = {item.star_id: start + i for i, item in enumerate(items)}
            rows = np.array([row_of[s] for s in block.star_id], dtype=np.intp)
        usable = np.empty(n, bool)
        read = kernels.Pixels(*(np.ascontiguousarray(a) for a in (block.flux, block.ivar, block.flags)))
        out = kernels.Pixels(pixels["flux"], pixels["ivar"], pixels["flags"])
        kernels.censor_block(read, self._rules, rows - base, out, usable)
        for index in np.flatnonzero(~usable):
            item = task.items[rows[index]]
            self.rejected.append(Rejection(item.path, "no pixel has a finite flux and a valid error", item.star_id))
        chosen: Any = slice(None) if usable.all() else usable
        rows = rows[chosen]
        self.status[rows] = 1
        _fill_columns(self.columns, rows, block, chosen, [task.items[row] for row in rows])


def will_read(paths: Iterable[str]) -> None:
    """Ask the system to bring local files into memory while we do something else; problems are left to the reader.

    One file after the other keeps a disk waiting for us half of the time, and a disk far away longer.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    for path in paths:
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError):
            continue
        with contextlib.suppress(OSError):
            os.posix_fadvise(handle, 0, _AHEAD, os.POSIX_FADV_WILLNEED)
        os.close(handle)


def read_shard(
    task: ShardTask,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray, list[Rejection]]:
    """Pixels, per-star columns, row status and rejections of a whole shard in memory."""
    n = len(task.items)
    pixels = empty_pixels(n, task.header.n_pixels)
    reader = RowReader(task)
    reader.fill(pixels, 0, n)
    return pixels, reader.columns, reader.status, [plain_rejection(r) for r in reader.rejected]


def empty_pixels(n: int, n_pixels: int) -> dict[str, np.ndarray]:
    """Arrays (n, P) of the pixel variables, not initialised."""
    return {name: np.empty((n, n_pixels), VARIABLES[name].dtype) for name in PIXEL_VARIABLES}


def _fill_columns(
    columns: dict[str, np.ndarray], target: Any, block: StarBlock, chosen: Any, items: Sequence[Item]
) -> None:
    for name, column in columns.items():
        spec = VARIABLES[name]
        if name == "star_id":
            values: Any = [i.star_id for i in items]
        elif name in block.labels:
            values = np.asarray(block.labels[name])[chosen]
        else:
            values = [i.labels.get(name, spec.fill) for i in items]
            if len(spec.dims) == 2:
                width = column.shape[1]
                values = [v if isinstance(v, (list, tuple, np.ndarray)) else [np.nan] * width for v in values]
        if spec.dtype == "str":
            values = [clean_text(v) for v in values]
        elif spec.dtype.startswith("float"):
            values = np.array(values, dtype=column.dtype)
            values[~np.isfinite(values)] = np.nan
        if len(items):
            column[target] = values


def plain_rejection(r: Rejection) -> Rejection:
    """`r` with text that any report can hold."""
    return Rejection(clean_text(r.path), clean_text(r.reason), clean_text(r.star_id), r.stage)


def read_safely(source: Any, items: Sequence[Item], wavelength: np.ndarray, elements: Sequence[str]) -> StarBlock:
    """`source.read`, with every exception turned into rejections of the stars that raise it."""
    try:
        block = source.read(items, wavelength, elements)
    except ChemscaleError:
        raise
    except Exception as err:
        if len(items) == 1:
            reason = f"reader failed: {type(err).__name__}: {err}"
            empty = np.zeros((0, len(wavelength)), np.float32)
            return StarBlock(
                [], empty, empty, empty.astype(np.uint8), {}, [Rejection(items[0].path, reason, items[0].star_id)]
            )
        half = len(items) // 2
        return join([read_safely(source, some, wavelength, elements) for some in (items[:half], items[half:])])
    _check_block(source, block, items, len(wavelength))
    return block


def _check_block(source: Any, block: StarBlock, items: Sequence[Item], n_pixels: int) -> None:
    """A source must keep its side of the protocol: shapes, identifiers, every star accounted for."""
    n = len(block.star_id)
    problems = []
    for name, dtype in (("flux", np.float32), ("ivar", np.float32), ("flags", np.uint8)):
        array = getattr(block, name)
        if array.shape != (n, n_pixels):
            problems.append(f"{name} has shape {array.shape}, must be {(n, n_pixels)}")
        elif array.dtype != dtype or not array.flags.writeable:
            setattr(block, name, array.astype(dtype))
    known = {i.star_id for i in items}
    strange = [s for s in block.star_id if s not in known]
    if strange or len(set(block.star_id)) != n:
        problems.append(f"star_id of the block do not match the items asked for: {(strange or block.star_id)[:3]}")
    lost = known - set(block.star_id) - {r.star_id for r in block.rejected}
    if lost and not problems:
        problems.append(f"{len(lost)} stars are neither read nor rejected, e.g. {sorted(lost)[0]!r}")
    for name, values in block.labels.items():
        if len(values) != n:
            problems.append(f"label {name} has {len(values)} values for {n} stars")
    if problems:
        raise InputError(f"source {getattr(source, 'name', source)!r}: " + "; ".join(problems), "mend its read()")
