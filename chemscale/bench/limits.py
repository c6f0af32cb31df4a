"""What a stage cannot beat, decoding alone by the same workers; and how much of it is serial."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from chemscale.runtime.blocks import readers_of
from chemscale.runtime.shards import map_shards, per_worker

if TYPE_CHECKING:
    from distributed import Client

#: Stars a task of :func:`decode` reads.
DECODED_STARS = 1024


def decode(store: str, client: Client, stars: int) -> None:
    """Read and decode flux, inverse variance and flags of every star on the workers, and nothing else."""
    rows = {a: (a, min(a + DECODED_STARS, stars)) for a in range(0, stars, DECODED_STARS)}
    map_shards(_decode_rows, rows, client, shared=store, results=False, show=False).raise_for_failures("block of stars")


def _decode_rows(rows: tuple[int, int], store: str) -> None:
    for reader in per_worker(("chemscale.bench.limits", store), lambda: _readers(store)):
        reader.read(*rows, reuse=True)


def _readers(store: str) -> Sequence[Any]:
    from chemscale.survey.store.open import open_survey

    ds = open_survey(store)
    readers = readers_of([ds[n].data for n in ("flux", "ivar", "flags")])
    assert readers is not None, "a store as this benchmark makes it is read in its own chunks"
    return readers


def serial_fraction(workers: Sequence[int], seconds: Sequence[float]) -> float:
    """Share of one worker's time that more workers do not shorten (Amdahl 1967), by least squares; NaN for one number.

    ``T(n) = T(1) (s + (1 - s) / n)``; below 0 where more workers gain more than their number, as with caches.

    >>> round(serial_fraction([1, 2, 4], [100.0, 55.0, 32.5]), 3)
    0.1
    """
    n, t = np.asarray(workers, float), np.asarray(seconds, float)
    if 1 not in n or len(n) < 2:
        return float("nan")
    left, right = 1 - 1 / n, t / t[n == 1].min() - 1 / n
    return float((left * right).sum() / (left**2).sum())
