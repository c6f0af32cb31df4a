"""How the work scales: strong and weak scaling of the real stages, and the scheduler alone.

Times are wall-clock times of this machine; a ratio between runs of the same call is what
to compare, not times from different days. Workers have a core each (:mod:`.pinning`) unless it is
asked for otherwise.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chemscale.bench.pinning import a_core_each
from chemscale.errors import InputError
from chemscale.runtime.jsonio import write_json
from chemscale.runtime.observe import worker_peaks
from chemscale.runtime.run import versions

if TYPE_CHECKING:
    import xarray as xr
    from distributed import Client

STAGES = ("fit", "embed", "infer", "evaluate")
#: Different spectra in the surveys timed here.
BASE_STARS = 2048
#: Components of the fits timed here, and their number of passes over all stars (fixed: passes must not vary).
COMPONENTS, PASSES = 30, 5


def hardware() -> dict[str, Any]:
    """What the numbers were measured on."""
    import psutil

    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            model = next((line.split(":", 1)[1].strip() for line in f if line.startswith("model name")), model)
    except OSError:
        pass
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
    }


def commit() -> str:
    """Commit of the checkout chemscale is imported from; '' outside of one."""
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def make_store(path: Path, stars: int, client: Client | None, seed: int = 7) -> str:
    """A survey of `stars` spectra (H band); kept if it is there already.

    The spectra of some 2,000 simulated stars, 22 clusters among them, repeated with fresh noise: their cost is that
    of `stars` different ones, and the store is made in seconds rather than minutes.
    """
    import dask
    import xarray as xr

    from chemscale.simulation.generator import Simulation
    from chemscale.survey.ingest.datasets import write_survey
    from chemscale.survey.ingest.ingestion import ingest
    from chemscale.survey.sources.simulated import SimulatedSource
    from chemscale.survey.store.layout import Layout
    from chemscale.survey.store.open import open_survey

    if path.exists():
        return open_survey(path).attrs["store"]
    source = SimulatedSource(**Simulation(BASE_STARS, 22, seed).settings())
    base_path = path.with_name("base.zarr")
    ingest(source, base_path, client=client, resume=base_path.exists(), progress=False)
    base = open_survey(base_path).load()
    # shards small enough that every worker has several even in a short benchmark
    layout = Layout(512, 1024, 65536)
    parts = []
    for start in range(0, stars, layout.shard_stars):
        rows = np.arange(start, min(start + layout.shard_stars, stars))
        parts.append(_repeated(base, rows, seed))
    part = path.with_name(f".{path.name}.part")
    with dask.config.set(scheduler="synchronous"):  # the base is in this process
        write_survey(xr.concat(parts, "star"), part, layout=layout, overwrite=part.exists())
    part.rename(path)
    return str(path)


def _repeated(base: xr.Dataset, rows: np.ndarray, seed: int) -> xr.Dataset:
    """Stars `rows` of the repeated survey, lazy; beyond the base they have noise of their own and no cluster."""
    import dask
    import dask.array as da

    which = rows % base.sizes["star"]
    out = base.drop_vars(["flux", "ivar", "flags"]).isel(star=which)
    out["star_id"] = ("star", np.array([f"R{i:09d}" for i in rows], dtype=object), base["star_id"].attrs)
    cluster = np.where(rows < base.sizes["star"], out["cluster"].values.astype(object), "")
    out["cluster"] = ("star", cluster, base["cluster"].attrs)
    for name in ("flux", "ivar", "flags"):
        values = dask.delayed(_take, pure=False, traverse=False)(base, name, which, seed + int(rows[0]))
        shape = (len(rows), base.sizes["wavelength"])
        out[name] = (base[name].dims, da.from_delayed(values, shape, base[name].dtype), base[name].attrs)
    return out


def _take(base: xr.Dataset, name: str, which: np.ndarray, seed: int) -> np.ndarray:
    values = base[name].values[which]
    if name == "flux":
        ivar = base["ivar"].values[which]
        error = np.where(ivar > 0, 1 / np.sqrt(np.maximum(ivar, 1e-12)), 0.0).astype(np.float32)
        values = values + error * np.random.default_rng(seed).standard_normal(values.shape, np.float32)
    return values


def _fit(store: str, client: Client, scratch: Path) -> Any:
    from chemscale.embedding.fit import fit_survey
    from chemscale.survey.store.open import open_survey

    ds = open_survey(store)
    return fit_survey(ds, n_components=COMPONENTS, tol=0.0, loglike_tol=0.0, max_iter=PASSES, keep_bytes=0)


def _embed(store: str, client: Client, scratch: Path) -> Any:
    from chemscale.embedding.product import embed_survey
    from chemscale.survey.store.open import open_survey

    return embed_survey(open_survey(store), _model(store, scratch), scratch / "embedding.zarr")


@lru_cache(maxsize=1)
def _model(store: str, scratch: Path) -> Any:
    """A PPCA of a few hundred stars: the cost of embedding does not depend on how good it is. Loaded once."""
    from chemscale.embedding.fit import fit_survey
    from chemscale.statistics.ppca import MaskedPPCA
    from chemscale.survey.store.open import open_survey

    file = scratch / "ppca.zarr"
    if not file.exists():
        ds = open_survey(store).isel(star=slice(0, 512))
        fit_survey(ds, n_components=COMPONENTS, max_iter=3).to_dataset().to_zarr(file, mode="w", consolidated=False)
    import xarray as xr

    return MaskedPPCA.from_dataset(xr.open_zarr(file, consolidated=False).load())


def _infer(store: str, client: Client, scratch: Path) -> Any:
    from chemscale.survey.store.open import open_survey
    from chemscale.vae.inference import infer_survey

    ds = open_survey(store)
    folder = untrained_vae(ds, scratch / "vae", _model(store, scratch))
    # the survey's own shards are small here: a task takes one of them
    infer_survey(ds, folder, scratch / "latents.zarr", store=store, client=client, shard_stars=512)
    return None


def untrained_vae(ds: Any, folder: Path, ppca: Any) -> Path:
    """The default model with random weights on the survey's grid: the cost of inference does not depend on them."""
    from chemscale.vae.checkpoint import grid_fingerprint, save_model
    from chemscale.vae.config import ModelConfig
    from chemscale.vae.model import ChemicalVAE
    from chemscale.vae.regions import REST

    if (folder / "model.json").exists():
        return folder
    config = ModelConfig()
    wave = np.asarray(ds["wavelength"].values)
    names = [g.name for g in config.groups] + ([REST] if config.rest else [])
    pixels = {name: np.arange(i, wave.size, len(names)) for i, name in enumerate(names)}
    front = {
        "components": ppca.components_,
        "scale": np.sqrt(ppca.explained_variance_),
        "noise": np.full(wave.size, float(np.mean(ppca.noise_variance_))),
        "mean": ppca.mean_,
    }
    model = ChemicalVAE(config, pixels, np.nan_to_num(ppca.mean_, nan=1.0), front)
    medium = str(ds["wavelength"].attrs.get("medium", ""))
    facts = {
        "grid": grid_fingerprint(wave, medium),
        "survey": str(ds.attrs.get("survey", "")),
        "wavelength": {"pixels": int(wave.size), "low": float(wave[0]), "high": float(wave[-1]), "medium": medium},
    }
    save_model(folder, model, facts)
    return folder


def _evaluate(store: str, client: Client, scratch: Path, stars: int = 2_000_000) -> Any:
    """Rates of 22 clusters against a lazy field of `stars` coordinates made on the workers."""
    import dask.array as da

    from chemscale.rsca.doppelganger import doppelganger_rates

    rng = np.random.default_rng(0)
    chunk = 65_536
    field = da.random.default_rng(1).standard_normal((stars, COMPONENTS), chunks=(chunk, COMPONENTS))
    members = rng.standard_normal((22, 1, COMPONENTS)) + 0.3 * rng.standard_normal((22, 9, COMPONENTS))
    names = np.repeat([f"c{i}" for i in range(22)], 9)
    return doppelganger_rates(field, members.reshape(-1, COMPONENTS), names)


_WORK: dict[str, Callable[[str, Any, Path], Any]] = {
    "fit": _fit,
    "embed": _embed,
    "infer": _infer,
    "evaluate": _evaluate,
}


def measure(
    workers: Iterable[int],
    stars: int,
    scratch: Path,
    *,
    stages: Iterable[str] = STAGES,
    mode: str = "strong",
    repeat: int = 1,
    pinned: bool = True,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Time the stages on 1, 2, ... local workers of one thread each.

    Parameters
    ----------
    workers : iterable of int
        Numbers of workers.
    stars : int
        Stars in all (``strong``) or for each worker (``weak``).
    scratch : Path
        Stores and products; kept, so that a second call finds its stores.
    mode : {'strong', 'weak'}
    repeat : int
        Times each stage is run; the fastest counts (the first pays for imports on the workers).
    pinned : bool
        Hold each worker to a core of its own and client and scheduler to the workers' cores (:mod:`.pinning`),
        where there are as many; otherwise every process may use every core.

    Returns
    -------
    dict
        `rows` with stage, workers, stars, seconds, stars_per_s, speedup and efficiency relative to the smallest
        number of workers, whether they were pinned, processor time of the workers and of this process (client
        and scheduler); and commit, versions, hardware.
    """
    from chemscale.runtime.cluster import connect

    workers, stages = sorted(set(workers)), tuple(stages)
    unknown = set(stages) - set(STAGES)
    if unknown or mode not in ("strong", "weak"):
        raise InputError(
            f"unknown stage or mode: {', '.join(sorted(unknown) or [mode])}", f"stages: {', '.join(STAGES)}"
        )
    scratch.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for n in workers:
        total = stars * (n if mode == "weak" else 1)
        with connect("local", workers=n, threads=1) as client:
            client.wait_for_workers(n, timeout=120)
            store = make_store(scratch / f"survey-{total}.zarr", total, client)
            _prepare(store, scratch, stages)
            with a_core_each(client) if pinned else nullcontext(False) as held:
                for stage in stages:
                    row = _timed(stage, store, client, scratch, total, repeat)
                    rows.append({"mode": mode, "stage": stage, "workers": n, "pinned": held} | row)
                    report(
                        f"{mode} {stage}: {n} worker(s) {'on a core each' if held else 'on any core'}, "
                        f"{row['stars']:,} stars: {row['seconds']:.2f} s, processor time of the workers "
                        f"{row['worker_cpu_seconds']:.1f} s, of client and scheduler {row['client_cpu_seconds']:.1f} s"
                    )
    return {"rows": relative(rows)} | provenance()


def _timed(stage: str, store: str, client: Client, scratch: Path, total: int, repeat: int) -> dict[str, Any]:
    """Best of some runs of a stage."""
    times, cpu = [], []
    for _ in range(max(1, repeat)):
        for product in ("embedding.zarr", "latents.zarr"):  # of the run before
            shutil.rmtree(scratch / product, ignore_errors=True)
        before = _cpu_seconds(client)
        begun = time.perf_counter()
        if stage == "evaluate":
            _evaluate(store, client, scratch, stars=100 * total)
        else:
            _WORK[stage](store, client, scratch)
        times.append(time.perf_counter() - begun)
        cpu.append([after - start for after, start in zip(_cpu_seconds(client), before)])
    on_workers, on_client = cpu[int(np.argmin(times))]
    number = 100 * total if stage == "evaluate" else total
    return {
        "stars": number,
        "seconds": min(times),
        "all_seconds": times,
        "stars_per_s": number / min(times),
        "worker_peak_bytes": max(worker_peaks(client).values(), default=0),
        "worker_cpu_seconds": on_workers,
        "client_cpu_seconds": on_client,
    }


def _cpu_seconds(client: Client) -> tuple[float, float]:
    """Processor time so far of all workers, and of this process with the scheduler in it."""
    return sum(client.run(time.process_time).values()), time.process_time()


def _prepare(store: str, scratch: Path, stages: Iterable[str]) -> None:
    """What the stages need beforehand, outside of the time measured."""
    from chemscale.survey.store.open import open_survey

    if {"embed", "infer"} & set(stages):
        model = _model(store, scratch)
        if "infer" in stages:
            untrained_vae(open_survey(store), scratch / "vae", model)


def provenance() -> dict[str, Any]:
    """Commit, versions, hardware and time of a measurement."""
    return {
        "commit": commit(),
        "versions": versions(),
        "hardware": hardware(),
        "measured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def relative(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add speedup and efficiency: rate relative to the fewest workers of the same stage, mode and way of pinning."""
    for row in rows:
        same = [r for r in rows if all(r.get(k) == row.get(k) for k in ("mode", "stage", "pinned"))]
        base = min(same, key=lambda r: r["workers"])
        row["speedup"] = row["stars_per_s"] / base["stars_per_s"]
        row["efficiency"] = row["speedup"] * base["workers"] / row["workers"]
    return rows


def plot(results: Mapping[str, Any], file: str | os.PathLike[str]) -> str:
    """Speedup and efficiency over workers, one line a stage and mode."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    most = 1
    kinds = dict.fromkeys((r["mode"], bool(r.get("pinned"))) for r in results["rows"])
    for mode, pinned in kinds:
        style = ("-" if pinned else "--") + ("o" if mode == "strong" else "s")
        for stage in STAGES:
            same = {"mode": mode, "stage": stage}
            rows = [r for r in results["rows"] if same.items() <= r.items() and bool(r.get("pinned")) == pinned]
            if not rows:
                continue
            rows.sort(key=lambda r: r["workers"])
            x = [r["workers"] for r in rows]
            most = max(most, *x)
            colour = f"C{STAGES.index(stage)}"
            label = f"{stage} ({mode}, {'a core each' if pinned else 'any core'})"
            left.plot(x, [r["speedup"] for r in rows], style, color=colour, label=label)
            right.plot(x, [r["efficiency"] for r in rows], style, color=colour)
    left.plot([1, most], [1, most], ":", color="0.6", label="ideal")
    left.set(xlabel="workers", ylabel="rate relative to the fewest workers")
    right.axhline(1, ls=":", color="0.6")
    right.set(xlabel="workers", ylabel="efficiency", ylim=(0, 1.15))
    left.legend(fontsize=7, frameon=False, handlelength=4)
    for axes in (left, right):
        axes.set_xticks(sorted({r["workers"] for r in results["rows"]}))
    figure.savefig(file, dpi=130)
    return str(file)


def save(results: Mapping[str, Any], out: str | os.PathLike[str], name: str = "scaling") -> list[str]:
    """Write ``NAME.json`` and, for the stages, ``NAME.png`` below `out`."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", results)
    files = [str(folder / f"{name}.json")]
    if "rows" in results and any("mode" in r for r in results["rows"]):
        files.append(plot(results, folder / f"{name}.png"))
    return files
