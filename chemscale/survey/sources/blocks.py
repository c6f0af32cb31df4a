"""The part of reading every file-per-star source shares: batches, empty stars, labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from chemscale.formats.kernels import informed_rows
from chemscale.formats.paths import printable
from chemscale.schema import VARIABLES
from chemscale.survey.sources.base import Item, Rejection, StarBlock
from chemscale.survey.sources.labels import block_labels

#: Stars worked on at once: temporaries in float64 stay under about 100 MB whatever a block's size.
BATCH = 256


@dataclass
class Batch:
    """Stars that could be read: their items, what their files say, (n, P) pixels; and the rest."""

    items: list[Item]
    own: list[dict[str, Any]] | dict[str, np.ndarray]
    flux: np.ndarray
    ivar: np.ndarray
    flags: np.ndarray
    rejected: list[Rejection] = field(default_factory=list)


def read_in_batches(
    items: Sequence[Item],
    elements: Sequence[str],
    read_batch: Callable[[Sequence[Item]], Batch],
    *,
    size: int = BATCH,
) -> StarBlock:
    """One StarBlock from `read_batch` over slices of `items`, in order.

    A star none of whose pixels carries information is rejected with that reason.
    """
    blocks = [
        _informed(read_batch(items[start : start + size]), elements) for start in range(0, max(1, len(items)), size)
    ]
    return blocks[0] if len(blocks) == 1 else join(blocks)


def _informed(batch: Batch, elements: Sequence[str]) -> StarBlock:
    """A batch as a block, without the stars that have no usable pixel."""
    informed = np.empty(len(batch.items), bool)
    informed_rows(batch.flux, batch.ivar, informed)
    labels = block_labels(batch.items, batch.own, elements)
    rejected = list(batch.rejected)
    block = StarBlock([i.star_id for i in batch.items], batch.flux, batch.ivar, batch.flags, labels, rejected)
    if informed.all():
        return block
    block.rejected += [
        Rejection(printable(batch.items[row].path), "no usable pixel", batch.items[row].star_id)
        for row in np.flatnonzero(~informed)
    ]
    block.star_id = [s for s, good in zip(block.star_id, informed, strict=True) if good]
    block.flux, block.ivar, block.flags = (a[informed] for a in (block.flux, block.ivar, block.flags))
    block.labels = {name: values[informed] for name, values in labels.items()}
    return block


def join(parts: Sequence[StarBlock]) -> StarBlock:
    """Blocks one after the other; a label that only some of them have gets its fill value in the others."""
    filled = [p for p in parts if p.star_id]
    names = {k for p in filled for k in p.labels}
    labels = {}
    for name in names:
        like = next(p.labels[name] for p in filled if name in p.labels)
        columns = []
        for p in filled:
            shape = (len(p.star_id), *like.shape[1:])
            columns.append(p.labels[name] if name in p.labels else np.full(shape, VARIABLES[name].fill, like.dtype))
        labels[name] = np.concatenate(columns)
    return StarBlock(
        [s for p in parts for s in p.star_id],
        flux=np.concatenate([p.flux for p in parts]),
        ivar=np.concatenate([p.ivar for p in parts]),
        flags=np.concatenate([p.flags for p in parts]),
        labels=labels,
        rejected=[r for p in parts for r in p.rejected],
    )
