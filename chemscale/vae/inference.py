"""Latents and scores of a whole survey: shards through a model held once per worker.

A shard is a range of stars. Its blocks (of the store's chunks) are read, cleaned and computed on a
few threads; then one chunk of every output array is written while the next shard's blocks are
under way. The stars' identifiers are written by the calling process meanwhile. Models never travel
in the graph: workers load them from the run directory, once a process. One pass over the survey.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from dask.system import CPU_COUNT

from chemscale.errors import DataError, InputError
from chemscale.runtime.devices import choose_device
from chemscale.runtime.product import ResumableProduct
from chemscale.runtime.shards import map_shards, per_worker
from chemscale.schema import flag_mask
from chemscale.survey.store.cleaning import check_cleaned
from chemscale.vae.checkpoint import grid_fingerprint, load_model
from chemscale.vae.engine import Engine
from chemscale.vae.model import ChemicalVAE
from chemscale.vae.product import LAYOUT, begin, write_star_ids
from chemscale.vae.scores import scores_in_batches
from chemscale.vae.shard_runner import Shard, ShardRunner

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)
#: Stars of a shard, about: large enough that writing a dozen small arrays costs little.
SHARD_STARS = 8192
#: Shards of a survey at most, by making them larger: more would keep the scheduler of a thousand workers busy.
MOST_SHARDS = 8192
#: Shards that a worker of two threads or more has in hand for its GPU: one is decoded while another is computed.
SHARDS_A_GPU = 2
#: Threads that decode for one GPU, at most: the rate of decoding grows up to about so many.
READERS = 16


def infer_arrays(
    model: ChemicalVAE, flux: np.ndarray, weight: np.ndarray, *, bfloat16: bool = False
) -> dict[str, np.ndarray]:
    """Latents and scores of cleaned NumPy spectra, see :func:`~chemscale.vae.scores.scores`; and `n_used`.

    `weight` is 0 at missing pixels. A star without a used pixel gets NaN everywhere. On the model's
    device; on a CPU through :class:`~chemscale.vae.engine.Engine`.
    """
    if model.mean.device.type == "cpu" and not bfloat16:
        return Engine(model)(flux, weight)
    return scores_in_batches(model, flux, weight, bfloat16=bfloat16)


def infer_shard(shard: Shard) -> None:
    """Read, compute and write one shard; runs on a worker, model and survey opened once a process."""

    from distributed import get_worker

    from chemscale.survey.store.open import open_survey

    def start() -> ShardRunner:
        model, _ = load_model(Path(shard.model), device=choose_device(shard.device))
        # one more than the worker's: a block waits for the store while the others are computed
        threads = get_worker().state.nthreads + 1
        if model.mean.device.type != "cpu":  # decoding for it needs more cores than a worker's one thread
            threads = max(threads, min(READERS, len(os.sched_getaffinity(0)) // max(1, torch.cuda.device_count())))
        return ShardRunner(open_survey(shard.store), model, threads, bfloat16=shard.bfloat16)

    key = ("chemscale.vae.runner", shard.store, shard.model, shard.sha256, shard.device, shard.bfloat16, os.getpid())
    per_worker(key, start)(shard)


@contextmanager
def _one_thread_each() -> Iterator[int]:
    """Tensor code on one thread for the time of the block; gives the number of blocks to run at once.

    That is every CPU this process may use: tensor libraries count cores, and leave the second thread
    of a core idle.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield int(os.environ.get("OMP_NUM_THREADS") or CPU_COUNT)
    finally:
        torch.set_num_threads(before)


@contextmanager
def _stopped_after() -> Iterator[Event]:
    """An event that is set when the block ends, however it does: work beside it does not outlive it."""
    stop = Event()
    try:
        yield stop
    finally:
        stop.set()


def check_grid(ds: xr.Dataset, record: Mapping[str, Any]) -> None:
    """Refuse a survey the model was not trained for.

    Raises
    ------
    InputError
        Other wavelength grid, medium or survey, or spectra that are not cleaned as those of the training were.
    """
    wave = np.asarray(ds["wavelength"].values)
    medium = str(ds["wavelength"].attrs.get("medium", ""))
    if grid_fingerprint(wave, medium) != record.get("grid"):
        was = record.get("wavelength", {})
        raise InputError(
            f"the survey's grid ({wave.size} pixels, {wave[0]:.1f}-{wave[-1]:.1f} Angstrom, {medium}) is not the "
            f"model's ({was.get('pixels')} pixels, {was.get('low')}-{was.get('high')} Angstrom, {was.get('medium')})",
            "ingest the survey onto the model's grid, or train on this one",
        )
    survey, trained_on = str(ds.attrs.get("survey", "")), str(record.get("survey", ""))
    if survey != trained_on:
        raise InputError(
            f"the survey is {survey!r}, the model was trained on {trained_on!r}",
            "train on this survey: line spread and normalisation differ from survey to survey",
        )
    check_cleaned(ds.attrs.get("cleaned", ()), record.get("cleaned", ()), "model")


def infer_survey(
    ds: xr.Dataset,
    model_dir: Path,
    product: Path,
    *,
    store: str | None = None,
    client: Client | None = None,
    overwrite: bool = False,
    device: str | None = None,
    bfloat16: bool = False,
    flags: Any = "all",
    shard_stars: int | None = None,
    made_from: Mapping[str, str | None] | None = None,
) -> dict[str, Any]:
    """Infer every star of a survey into a Zarr product; resumable, one pass.

    Parameters
    ----------
    ds : xarray.Dataset
        The survey (lazy).
    model_dir : path
        Directory of ``model.safetensors`` and ``model.json``; workers read it.
    product : path
        ``latents.zarr``; shards with a marker are skipped.
    store : str, optional
        Path or URL under which workers open the survey; needed with `client`.
    client : distributed.Client, optional
        GPU workers are used by their resource ``GPU`` where any worker has it.
    device : str, optional
        Default: CUDA where there is one.
    bfloat16 : bool
        Autocast: less exact, and no faster where it was measured.
    made_from : mapping, optional
        Identities of the products that the record names (:mod:`chemscale.runtime.product`).

    Raises
    ------
    InputError
        Other grid or survey than the model's; no `store` for a client.
    DataError
        No stars.
    ResumeError
        `product` holds results of another model or survey.
    """
    n = int(ds.sizes.get("star", 0))
    if n == 0:
        raise DataError("the survey has no stars", "ingest spectra first")
    # workers were started elsewhere
    model_dir, product = Path(model_dir).absolute(), Path(product).absolute()
    if store and "://" not in store:
        store = str(Path(store).absolute())
    model, record = load_model(model_dir)
    check_grid(ds, record)
    if client is not None and not store:
        raise InputError("workers need the path of the survey store", "pass store=")
    size = shard_stars or _shard_stars(n, int(ds["flux"].chunks[0][0]) if ds["flux"].chunks else n)
    plan = {
        "store": store or str(ds.attrs.get("store", "")),
        "revision": int(ds.attrs.get("revision", 0)),
        "stars": n,
        "model": record["sha256"],
        "shard_stars": size,
        "layout": LAYOUT,
        "flags": flag_mask(flags),
    }
    new = ResumableProduct(product, plan)
    done = begin(new, model, overwrite)
    if done is None:
        return {"stars": n, "computed": 0, "seconds": 0.0, "stars_per_s": 0.0}
    resources, begun = _resources(client), uuid.uuid4().hex
    shards = {
        i: Shard(
            i,
            start,
            min(start + size, n),
            plan["store"],
            str(model_dir),
            record["sha256"],
            str(new.folder),
            new.partial.root,
            begun,
            plan["flags"],
            float(record.get("train", {}).get("floor", 0.0)),
            device,
            bfloat16,
        )
        for i, start in enumerate(range(0, n, size))
    }
    todo = [s for i, s in shards.items() if i not in done]
    with _one_thread_each() as threads:
        func: Callable[[Shard], None] = infer_shard
        runner = None
        if client is None:
            local = model.to(choose_device(device))
            at_once = threads if local.mean.device.type == "cpu" else min(READERS, os.cpu_count() or 1)
            func = runner = ShardRunner(ds, local, at_once, todo, bfloat16=bfloat16)
        try:
            with ThreadPoolExecutor(1) as pool, _stopped_after() as stop:
                named = pool.submit(write_star_ids, new.folder, ds, stop)
                report = map_shards(
                    func,
                    shards,
                    client,
                    done=done,
                    results=False,
                    resources=resources,
                    description="inference",
                    unit="stars",
                    weight=lambda i: shards[i].stop - shards[i].start,
                ).raise_for_failures("inference shard")
                named.result()
        finally:
            if runner is not None:
                runner.close()
    new.finish(made_from or {}, {"complete": True, "model": record["sha256"]})
    computed = sum(s.stop - s.start for s in todo)
    rate = computed / report.seconds if report.seconds > 0 else 0.0
    return {"stars": n, "computed": computed, "seconds": report.seconds, "stars_per_s": rate}


def _shard_stars(n: int, block: int) -> int:
    """Stars of a shard of a survey of `n` in blocks of `block`: whole blocks."""
    block = max(1, block)
    return block * max(1, SHARD_STARS // block, -(-n // (block * MOST_SHARDS)))


def _resources(client: Client | None) -> dict[str, float] | None:
    if client is None:
        return None
    workers = client.scheduler_info(n_workers=-1).get("workers", {})
    return {"GPU": 1 / SHARDS_A_GPU} if any("GPU" in (w.get("resources") or {}) for w in workers.values()) else None
