"""Reading the stars of one shard: source -> censored pixels and per-star columns.

Whatever a source does, a star ends in its slot or in the list of rejections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chemscale.errors import ChemscaleError, InputError
from chemscale.quality.pixels import censor, clean
from chemscale.runtime.files import Folder
from chemscale.schema import VARIABLES
from chemscale.survey.shards import Header, clean_text, empty_columns
from chemscale.survey.sources.base import Item, Rejection, StarBlock

#: Stars handed to a source's `read` at once: few enough that their arrays stay in the cache.
READ_STARS = 64


@dataclass(frozen=True)
class ShardTask:
    """Everything a worker needs to write one shard."""

    folder: Folder
    header: Header
    shard: int
    source: Any
    items: list[Item]
    wavelength: np.ndarray
    fingerprint: str


def read_shard(
    task: ShardTask,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray, list[Rejection]]:
    """Pixels, per-star columns, slot status and rejections of a shard. Empty slots are zeros."""
    n, header = len(task.items), task.header
    pixels: dict[str, np.ndarray] = {
        "flux": np.zeros((n, header.n_pixels), np.float32),
        "ivar": np.zeros((n, header.n_pixels), np.float32),
        "flags": np.zeros((n, header.n_pixels), np.uint8),
    }
    columns = empty_columns(header, n)
    status = np.zeros(n, np.uint8)
    rejected: list[Rejection] = []
    windows = [(int(a), int(b)) for a, b in header.settings["windows"]]
    for start in range(0, n, READ_STARS):
        items = task.items[start : start + READ_STARS]
        block = read_safely(task.source, items, task.wavelength, header.elements)
        rejected += block.rejected
        flags = censor(block.flux, block.ivar, block.flags, max_error=header.settings["max_error"], windows=windows)
        clean(block.flux, block.ivar, flags)
        slot_of = {item.star_id: start + i for i, item in enumerate(items)}
        slots = np.array([slot_of[s] for s in block.star_id], dtype=np.intp)
        usable = (block.ivar > 0).any(axis=1) if len(slots) else np.zeros(0, bool)
        for row in np.flatnonzero(~usable):
            item = task.items[slots[row]]
            rejected.append(Rejection(item.path, "no pixel has a finite flux and a valid error", item.star_id))
        chosen: Any = slice(None) if usable.all() else usable
        slots = slots[chosen]
        whole = len(slots) == len(items)  # then rows are slots in order: a plain copy
        target: Any = slice(start, start + len(items)) if whole else slots
        for name, array in (("flux", block.flux), ("ivar", block.ivar), ("flags", flags)):
            pixels[name][target] = array[chosen]
        status[target] = 1
        _fill_columns(columns, target, block, chosen, [task.items[s] for s in slots])
    return pixels, columns, status, [_plain_rejection(r) for r in rejected]


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


def _plain_rejection(r: Rejection) -> Rejection:
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
        parts = [read_safely(source, part, wavelength, elements) for part in (items[:half], items[half:])]
        return _join(parts, len(items))
    _check_block(source, block, items, len(wavelength))
    return block


def _join(parts: list[StarBlock], n: int) -> StarBlock:
    filled = [p for p in parts if p.star_id]
    names = {k for p in filled for k in p.labels}
    lost = [k for k in names if any(k not in p.labels for p in filled)]
    labels = {k: np.concatenate([p.labels[k] for p in filled]) for k in names if k not in lost}
    for name in lost:  # a label that only some parts have: the others get its fill value
        columns = []
        for p in filled:
            like = next(q.labels[name] for q in filled if name in q.labels)
            shape = (len(p.star_id), *like.shape[1:])
            columns.append(p.labels.get(name, np.full(shape, VARIABLES[name].fill, dtype=like.dtype)))
        labels[name] = np.concatenate(columns)
    return StarBlock(
        [s for p in parts for s in p.star_id],
        flux=np.concatenate([p.flux for p in parts]),
        ivar=np.concatenate([p.ivar for p in parts]),
        flags=np.concatenate([p.flags for p in parts]),
        labels=labels,
        rejected=[r for p in parts for r in p.rejected],
    )


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
