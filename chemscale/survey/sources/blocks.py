"""The part of reading every file-per-star source shares: batches, empty stars, labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from chemscale.survey.sources.base import Item, Rejection, StarBlock
from chemscale.survey.sources.files import printable
from chemscale.survey.sources.labels import block_labels

#: Stars worked on at once: temporaries in float64 stay under about 100 MB whatever a block's size.
BATCH = 256


@dataclass
class Batch:
    """Stars that could be read: their items, what their files say, (n, P) pixels; and the rest."""

    items: list[Item]
    own: list[dict[str, Any]]
    flux: np.ndarray
    ivar: np.ndarray
    flags: np.ndarray
    rejected: list[Rejection] = field(default_factory=list)


def read_in_batches(
    items: Sequence[Item],
    n_pixels: int,
    elements: Sequence[str],
    read_batch: Callable[[Sequence[Item]], Batch],
    *,
    size: int = BATCH,
) -> StarBlock:
    """Fill one StarBlock from `read_batch` over slices of `items`, in order.

    A star none of whose pixels carries information is rejected with that reason.
    """
    flux = np.zeros((len(items), n_pixels), np.float32)
    ivar = np.zeros_like(flux)
    flags = np.zeros(flux.shape, np.uint8)
    kept: list[Item] = []
    own: list[dict[str, Any]] = []
    rejected: list[Rejection] = []
    for start in range(0, len(items), size):
        batch = read_batch(items[start : start + size])
        rejected += batch.rejected
        informed = np.any((batch.ivar > 0) & np.isfinite(batch.flux), axis=1)
        rows = slice(len(kept), len(kept) + int(informed.sum()))
        chosen = slice(None) if informed.all() else informed
        flux[rows], ivar[rows], flags[rows] = batch.flux[chosen], batch.ivar[chosen], batch.flags[chosen]
        for item, said, good in zip(batch.items, batch.own, informed.tolist(), strict=True):
            if good:
                kept.append(item)
                own.append(said)
            else:
                rejected.append(Rejection(printable(item.path), "no usable pixel", item.star_id))
    n = len(kept)
    labels = block_labels(kept, own, elements)
    return StarBlock([i.star_id for i in kept], flux[:n], ivar[:n], flags[:n], labels, rejected)
