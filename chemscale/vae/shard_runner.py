"""A worker's share of an inference: the shards of a survey, one after the other, each stage ahead of the next.

On CPUs the blocks of a shard are decoded and computed by the same threads, those of the next shard before the current
one is written. For a GPU threads decode the shard after the next, another has the next computed, and the caller writes
the current one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
import zarr

from chemscale.runtime.blocks import readers_of
from chemscale.runtime.product import mark_done
from chemscale.vae.data import values_here
from chemscale.vae.device_engine import DeviceEngine
from chemscale.vae.engine import Engine
from chemscale.vae.model import ChemicalVAE
from chemscale.vae.product import outputs


@dataclass(frozen=True)
class Shard:
    """A range of stars and everything a worker needs to find the rest."""

    index: int
    start: int
    stop: int
    store: str
    model: str
    sha256: str
    #: the group it is written to, and the folder of the marks
    product: str
    partial: str
    #: tells one making of a product at a path from the next, whose chunks may be others
    begun: str
    flags: int
    floor: float
    device: str | None
    bfloat16: bool


class ShardRunner:
    """Does shards of an open survey, one after the other, their blocks on `threads` threads.

    Parameters
    ----------
    ds : xarray.Dataset
        The survey (lazy).
    model : ChemicalVAE
        On the device it shall run on.
    shards : sequence of Shard
        In the order in which they will be asked for; the blocks of the one after the current are
        begun early. Empty: nothing is begun early.
    bfloat16 : bool
        Autocast.
    """

    def __init__(
        self,
        ds: xr.Dataset,
        model: ChemicalVAE,
        threads: int,
        shards: Sequence[Shard] = (),
        *,
        bfloat16: bool = False,
    ):
        self.ds, self.model = ds, model
        #: None where the survey is not a store's own chunks: then Dask reads
        self.readers = readers_of([ds[n].data for n in ("flux", "ivar", "flags")])
        compiled = model.mean.device.type == "cpu" and not bfloat16
        self.engine = Engine(model) if compiled else DeviceEngine(model, bfloat16=bfloat16)
        self.pool = ThreadPoolExecutor(max(1, threads), thread_name_prefix="chemscale-vae")
        self.following = {a.index: b for a, b in itertools.pairwise(shards)}
        self.asked: set[int] = set()
        self.begun: dict[int, list[Future[Any]]] = {}
        #: of a device: it computes a shard while the one before is written and the one after decoded
        self.computing = ThreadPoolExecutor(1, thread_name_prefix="chemscale-vae-device")
        self.computed: dict[int, Future[dict[str, np.ndarray]]] = {}
        self.opened: tuple[tuple[str, str], dict[str, zarr.Array]] | None = None

    def close(self) -> None:
        """Stop the threads."""
        self.computing.shutdown(cancel_futures=True)
        self.pool.shutdown(cancel_futures=True)

    def __call__(self, shard: Shard) -> None:
        """Read, compute and write one shard."""
        self.asked.add(shard.index)
        if isinstance(self.engine, DeviceEngine):
            self._write(shard, self._on_device(shard))
            return
        futures = self._begin(shard)
        after = self._next(shard)
        if after is not None:
            self._begin(after)
        del self.begun[shard.index]  # before they are looked at: a shard that is tried again is begun again
        blocks = [future.result() for future in futures]
        self._write(shard, {key: np.concatenate([b[key] for b in blocks]) for key in blocks[0]})

    def _on_device(self, shard: Shard) -> dict[str, np.ndarray]:
        """Latents and scores of a shard; those of the next are under way, and the pixels of the one after it."""
        coming: Shard | None = shard
        for ahead in range(3):
            if coming is None:
                break
            self._begin(coming)
            if ahead < 2 and coming.index not in self.computed:
                self.computed[coming.index] = self.computing.submit(self._compute, coming)
            coming = self._next(coming)
        try:
            return self.computed[shard.index].result()
        finally:
            del self.computed[shard.index]

    def _next(self, shard: Shard) -> Shard | None:
        """The shard to be begun early; none that was in hand before: one that is tried again is the last."""
        after = self.following.get(shard.index)
        return None if after is None or after.index in self.asked else after

    def _compute(self, shard: Shard) -> dict[str, np.ndarray]:
        assert isinstance(self.engine, DeviceEngine)
        futures = self.begun.pop(shard.index)
        return self.engine([future.result() for future in futures], shard.flags, shard.floor)

    def _begin(self, shard: Shard) -> list[Future[Any]]:
        """The blocks of a shard, on their way since the first time they were asked for."""
        if shard.index not in self.begun and shard.index not in self.computed:
            self.begun[shard.index] = [self.pool.submit(self._block, shard, rows) for rows in _blocks(self.ds, shard)]
        return self.begun.get(shard.index, [])

    def _block(self, shard: Shard, rows: slice) -> Any:
        """A block's latents and scores; on a device its pixels, ready to be fetched."""
        if isinstance(self.engine, DeviceEngine):
            return self.engine.load(rows.stop - rows.start, self.ds.sizes["wavelength"], partial(self._decode, rows))
        flux, ivar, flags = self._pixels(rows)
        return self.engine(flux, ivar, flags, shard.flags, shard.floor)

    def _pixels(self, rows: slice, out: Sequence[np.ndarray | None] = (None, None, None)) -> list[np.ndarray]:
        """Flux, inverse variance and flags of some stars: in `out`, or valid until this thread reads again."""
        if self.readers is not None:
            return [r.read(rows.start, rows.stop, reuse=True, out=o) for r, o in zip(self.readers, out)]
        part = self.ds[["flux", "ivar", "flags"]].isel(star=rows)
        return [values_here(part[n]) for n in ("flux", "ivar", "flags")]

    def _decode(self, rows: slice, buffers: Sequence[np.ndarray]) -> None:
        """Pixels of some stars into `buffers`, without a copy where the store can be read that way."""
        for values, buffer in zip(self._pixels(rows, buffers), buffers):
            if values is not buffer:
                np.copyto(buffer, values, casting="same_kind")

    def _write(self, shard: Shard, whole: dict[str, np.ndarray]) -> None:
        with torch.inference_mode():
            w = torch.from_numpy(whole["auxiliary"]).to(self.model.mean.device)
            whole["label"] = self.model.labels(w).cpu().numpy()
        for name, array in self._arrays(shard).items():
            array[shard.start : shard.stop] = whole[name].astype(array.dtype, copy=False)
        facts = {"start": shard.start, "stop": shard.stop, "model": shard.sha256}
        mark_done(shard.partial, shard.index, facts)

    def _arrays(self, shard: Shard) -> dict[str, zarr.Array]:
        """The product's variables: to open them takes as long as to write a small shard."""
        key = shard.product, shard.begun
        if self.opened is None or self.opened[0] != key:
            group = zarr.open_group(shard.product, mode="r+")
            self.opened = key, {name: group[name] for name in outputs(self.model)}  # type: ignore[misc]
        return self.opened[1]


def _blocks(ds: xr.Dataset, shard: Shard) -> list[slice]:
    """Rows of a shard, cut where the store's blocks end."""
    chunks = ds["flux"].chunks
    edges = np.concatenate([[0], np.cumsum(chunks[0])]) if chunks else np.array([0, ds.sizes["star"]])
    inner = edges[(edges > shard.start) & (edges < shard.stop)]
    return [slice(a, b) for a, b in itertools.pairwise([shard.start, *(int(e) for e in inner), shard.stop])]
