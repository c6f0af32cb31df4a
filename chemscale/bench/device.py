"""One device: what it could do, measured, and how much of that chemscale does; on a GPU, or on a CPU in its place.

Limits and work are measured in the same call on the same survey. The limits of inference are decoding by as many
threads, copies from page-locked memory and the model on spectra that lie on the device; that of a training step is the
time its kernels take; those of a pass of masked PPCA are decoding and the products of matrices it cannot do without.
"""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from chemscale.bench.scaling import provenance
from chemscale.bench.stages import COMPONENTS, PASSES, prepare
from chemscale.bench.surveys import make_store
from chemscale.runtime.devices import choose_device
from chemscale.survey.store.open import open_survey

if TYPE_CHECKING:
    import xarray as xr

    from chemscale.vae.model import ChemicalVAE

#: Steps of a training that are timed, after as many that are not.
STEPS = 30
#: Stars of the batch that the model and the copies are timed with.
BATCH = 8192


def measure(
    stars: int, scratch: Path, device: str | None = None, report: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Limits of a device and chemscale's share of them.

    Parameters
    ----------
    stars : int
        Of the simulated H-band survey that is read.
    scratch : Path
        The survey and what is made of it; kept.
    device : str, optional
        Default: CUDA where there is one.

    Returns
    -------
    dict
        `limits` and `work` (spectra/s but for `training`, in seconds a step), `share` of the tightest limit by stage,
        device, commit, versions, hardware.

    Raises
    ------
    InputError
        No such device.
    """
    where = choose_device(device)
    scratch.mkdir(parents=True, exist_ok=True)
    store = make_store(scratch / f"survey-{stars}.zarr", stars, None)
    prepare(store, scratch, ["infer"])
    ds = open_survey(store)
    threads = _threads(where)
    limits: dict[str, float] = {}
    work: dict[str, float] = {}

    def told(table: dict[str, float], name: str, value: float, unit: str = "spectra/s") -> None:
        table[name] = value
        report(f"{'limit' if table is limits else 'chemscale'}: {name} {value:,.4g} {unit}")

    told(limits, f"decoding, {threads} threads", stars / best(lambda: _decode(ds, threads)))
    pixels = _batch(ds)
    told(limits, "copies to the device", len(pixels[0]) / best(lambda: _copied(pixels, where)))
    told(limits, "the model on the device", len(pixels[0]) / _model_seconds(scratch, pixels, where))
    told(work, "inference", stars / _inference_seconds(ds, scratch, where))
    step, kernels = _training_seconds(ds, where)
    told(work, "training", step, "s a step")
    told(limits, "training", kernels, "s of kernels a step")
    told(limits, "products of a pass", len(pixels[0]) / _product_seconds(pixels[0], where))
    told(work, "fit, one pass", stars / _pass_seconds(ds, where))
    reading, copying, model = list(limits.values())[:3]
    share = {
        "inference": work["inference"] / min(reading, copying, model),
        "training": limits["training"] / work["training"],
        "fit, one pass": work["fit, one pass"] / min(reading, limits["products of a pass"]),
    }
    for name, value in share.items():
        report(f"{name}: {value:.0%} of the tightest limit")
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu"
    facts = {"stars": stars, "pixels": int(ds.sizes["wavelength"]), "threads": threads, "device": name}
    return facts | {"limits": limits, "work": work, "share": share} | provenance()


def _threads(device: torch.device) -> int:
    from chemscale.vae.inference import READERS

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(READERS, cores) if device.type == "cuda" else cores


def best(call: Callable[[], Any], times: int = 3) -> float:
    """Seconds of a call, the best of some; work that it left on a GPU included."""
    found = []
    for _ in range(times):
        begun = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(time.perf_counter() - begun)
    return min(found)


def _decode(ds: xr.Dataset, threads: int) -> None:
    """Flux, inverse variance and flags of every star, by so many threads, and nothing else."""
    from chemscale.runtime.blocks import readers_of
    from chemscale.vae.data import star_blocks

    readers = readers_of([ds[n].data for n in ("flux", "ivar", "flags")])
    assert readers is not None, "a store as this benchmark makes it is read in its own chunks"

    def read(rows: tuple[int, int]) -> None:
        for reader in readers:
            reader.read(*rows, True)

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(read, star_blocks(ds)):
            pass


def _batch(ds: xr.Dataset) -> list[torch.Tensor]:
    """Raw pixels of some stars where a GPU fetches from."""
    part = ds[["flux", "ivar", "flags"]].isel(star=slice(0, BATCH)).load()
    found = [torch.from_numpy(part[name].values) for name in ("flux", "ivar", "flags")]
    return [t.pin_memory() for t in found] if torch.cuda.is_available() else found


def _copied(pixels: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    return [t.to(device, non_blocking=True, copy=True) for t in pixels]


def _model_seconds(scratch: Path, pixels: list[torch.Tensor], device: torch.device) -> float:
    """Cleaning, latents and scores of a batch that is there already."""
    from chemscale.vae.checkpoint import load_model
    from chemscale.vae.device_engine import DeviceEngine

    model, _ = load_model(scratch / "vae", device=device)
    if device.type == "cpu":
        return _compiled_seconds(model, [t.numpy() for t in pixels])
    engine = DeviceEngine(model)
    flux, ivar, flags = _copied(pixels, device)
    with torch.inference_mode():
        engine._batch(flux, ivar, flags, 255, 0.0)
        return best(lambda: engine._batch(flux, ivar, flags, 255, 0.0))


def _compiled_seconds(model: ChemicalVAE, pixels: list[np.ndarray]) -> float:
    """The same as inference does it on CPUs: compiled, a share of the stars on each thread."""
    from chemscale.vae.engine import Engine
    from chemscale.vae.inference import _one_thread_each

    engine = Engine(model)
    flux, ivar, flags = pixels
    with _one_thread_each() as threads, ThreadPoolExecutor(threads) as pool:
        edges = np.linspace(0, len(pixels[0]), threads + 1).astype(int)
        rows = [slice(a, b) for a, b in itertools.pairwise(edges) if b > a]

        def work() -> None:
            for _ in pool.map(lambda r: engine(flux[r], ivar[r], flags[r], 255, 0.0), rows):
                pass

        work()
        return best(work)


def _inference_seconds(ds: xr.Dataset, scratch: Path, device: torch.device) -> float:
    """From the store to the product, the better of two runs."""
    from chemscale.vae.inference import infer_survey

    product, seconds = scratch / "latents.zarr", []
    for _ in range(2):
        shutil.rmtree(product, ignore_errors=True)
        seconds.append(infer_survey(ds, scratch / "vae", product, device=str(device))["seconds"])
    return min(seconds)


def _training_seconds(ds: xr.Dataset, device: torch.device) -> tuple[float, float]:
    """A step of the default recipe, and the time of its kernels alone (on a CPU: of its operators)."""
    from torch.profiler import ProfilerActivity, profile

    from chemscale.vae.prepare import build, choose_regions, look_at, training_data
    from chemscale.vae.presets import recipe
    from chemscale.vae.training import Trainer

    survey = look_at(ds.isel(star=slice(0, 4096)))
    model_config, config, regions = recipe("default", None, None)
    config = config.scaled(int(survey.trained.sum()))
    network = build(survey, model_config, config, choose_regions(survey, regions))
    network.train()
    source, _, _ = training_data(survey, network, config)
    trainer = Trainer(network, source, config, device=str(device))
    batches = [trainer._move(b) for b in source.epoch(0)]

    def steps(n: int) -> None:
        for k in range(n):
            trainer.step(batches[k % len(batches)], 0)

    steps(STEPS)
    step = best(lambda: steps(STEPS), times=2) / STEPS
    gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as seen:
        steps(STEPS // 3)
        if gpu:
            torch.cuda.synchronize()
    name = "self_device_time_total" if gpu else "self_cpu_time_total"
    return step, sum(getattr(e, name) for e in seen.key_averages()) * 1e-6 / (STEPS // 3)


def _product_seconds(flux: torch.Tensor, device: torch.device) -> float:
    """The two large products of a pass: pixels times the K(K+1)/2 outer products of the basis, and back."""
    k = COMPONENTS
    pixels = torch.nan_to_num(flux).to(device)
    outer = torch.randn(flux.shape[1], k * (k + 1) // 2, device=device)

    def products() -> None:
        systems = pixels @ outer
        pixels.T @ systems

    products()
    return best(products)


def _pass_seconds(ds: xr.Dataset, device: torch.device) -> float:
    """One pass of a fit, blocks left on the device where they fit: the time of five, less what surrounds them."""
    from chemscale.embedding.fit import fit_survey

    own = None if device.type == "cpu" else str(device)  # a fit on CPUs has the compiled kernels
    settings: dict[str, Any] = {"tol": 0.0, "loglike_tol": 0.0, "keep_bytes": 0, "device": own}
    seconds = [
        best(lambda n=n: fit_survey(ds, n_components=COMPONENTS, max_iter=n, **settings), times=1)  # type: ignore[misc]
        for n in (1, PASSES + 1)
    ]
    return max(1e-9, seconds[1] - seconds[0]) / PASSES
