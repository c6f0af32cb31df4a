"""The dry run: which stages would run, how much they read, how long that may take, how much memory."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from rich.filesize import decimal

from chemscale.pipeline.execute import store_size
from chemscale.pipeline.file import MAKES_STORE, Pipeline, Stage, select
from chemscale.rsca.components import WIDE
from chemscale.runtime.observe import estimate_memory, human_seconds
from chemscale.runtime.settings import BatchSettings, ClusterSettings, LocalSettings
from chemscale.survey.store.layout import BYTES_PER_PIXEL, Layout, choose_layout
from chemscale.survey.store.open import block_stars

#: Seconds a stage takes whatever the survey: a process, its imports, a cluster that it joins.
START = {"simulate": 3.0, "fit": 5.0, "evaluate": 2.5, "train": 5.0, "infer": 4.0, "anomalies": 3.5, "report": 6.0}
#: Stars a second and thread for 7,514 pixels (`train`: stars times epochs). Measured on a two-core virtual machine
#: with a 12,000-star simulated survey and `chemscale bench scaling`: right within a factor of two there (a test keeps
#: them under four times what a small run takes), elsewhere an order of magnitude. A stage that has run before is
#: estimated from its own time, and a training from a few of its own steps where the store is there.
RATES = {"simulate": 210.0, "evaluate": 17_000.0, "train": 2900.0, "infer": 2000.0}
#: Of a pass of the fit (stars a second and thread), and seconds on the client between two, for K = 30.
PASS_RATE, BETWEEN = 7000.0, 0.25
#: Passes of a fit: few where the components are well separated, the most it may take where noise is fitted, too.
PASSES = (5, 12, 30)
#: Share of its pixels' bytes that a simulated survey takes on disk.
PACKED = 0.5
#: Bytes a pixel of the training data in memory, with what training makes of it.
TRAINING_BYTES = 13
#: Bytes of a process that has imported torch.
WITH_TORCH = 600_000_000
REFERENCE_PIXELS, REFERENCE_COMPONENTS = 7514, 30


def plan(pipeline: Pipeline, *, first: str | None = None, last: str | None = None) -> dict[str, Any]:
    """What :func:`chemscale.pipeline.execute.run` would do, JSON-able.

    Reads the store's own record; for an ingestion that has not begun, a sample of its files.
    """
    facts = store_size(pipeline)
    stages = []
    threads = _threads(pipeline.cluster)
    for stage in select(pipeline, first, last):
        status = "done" if pipeline.done(stage) and stage.name != first else "to do"
        if status == "to do" and pipeline.begun(stage):
            status = "continue"
        row: dict[str, Any] = {"stage": stage.name, "command": ["chemscale", *stage.arguments], "status": status}
        if stage.name in MAKES_STORE and facts is None:
            sample = _sample(pipeline, stage)
            if sample is not None:
                facts = {
                    "n_stars": sample["n_stars"],
                    "n_pixels": sample["n_pixels"],
                    "size_bytes": sample["bytes_to_write"],
                }
                row |= {"stars": sample["n_stars"], "bytes_in": sample["bytes_to_read"]}
                row |= {"bytes_out": sample["bytes_to_write"], "memory_bytes": sample["memory_per_worker"]}
                row["seconds"] = sample["seconds"] * max(1, sample["workers"]) / threads
            elif (facts := _simulated(stage)) is not None:
                row |= {"stars": facts["n_stars"], "bytes_out": facts["size_bytes"]}
                row |= _cost(pipeline, stage, facts, threads)
        elif facts is not None:
            row |= {"stars": facts["n_stars"], "bytes_in": facts["size_bytes"]}
            row |= _cost(pipeline, stage, facts, threads)
        stages.append(row)
    return {"pipeline": str(pipeline.file), "store": pipeline.store_path, "threads": threads, "stages": stages}


def _workers(settings: ClusterSettings | None) -> int:
    from chemscale.runtime.backends.local import local_shape

    if settings is None:
        return 1  # the stage's own process
    if settings.kind == "local":
        return local_shape(settings).workers
    return _processes(settings)


def _threads(settings: ClusterSettings | None) -> int:
    from chemscale.runtime.backends.local import local_shape

    if settings is None or settings.kind == "local":
        shape = local_shape(settings or LocalSettings())
        return shape.workers * shape.threads
    return _processes(settings) * (settings.threads or 1)


def _processes(settings: ClusterSettings) -> int:
    each = settings.processes if isinstance(settings, BatchSettings) else None
    return (settings.workers or 1) * (each or 1)


def _cost(pipeline: Pipeline, stage: Stage, facts: dict[str, Any], threads: int) -> dict[str, Any]:
    """Expected seconds (and for a fit the most they may be) and bytes a worker."""
    stars, pixels = int(facts["n_stars"]), int(facts["n_pixels"])
    out: dict[str, Any] = {}
    before = pipeline.state.get(stage.name, {})
    if before.get("status") == "done":
        out["seconds"] = before["wall_s"]
    elif stage.name == "train" and store_size(pipeline) is not None:
        out |= _measured(pipeline, stage)
    elif stage.name in START:
        out |= _seconds(stage, stars, pixels, threads)
    if stage.name in ("fit", "infer"):
        from chemscale.embedding.fit import KEEP_BYTES

        known = facts.get("layout", {})
        shard = known.get("shard_stars")
        layout = Layout(known["chunk_stars"], shard, shard) if shard else choose_layout(stars, pixels)
        block = block_stars(layout, pixels)
        need = estimate_memory(block, pixels, fixed=400_000_000 if stage.name == "fit" else WITH_TORCH).bytes_per_worker
        kept = stars * pixels * 4.125 if stage.name == "fit" else 0.0
        out["memory_bytes"] = int(need + (kept / _workers(pipeline.cluster) if kept <= KEEP_BYTES else 0))
    elif stage.name == "train":
        limit = float(stage.settings.get("memory", 4.0)) * 1e9
        out["memory_bytes"] = int(WITH_TORCH + min(limit, stars * pixels * TRAINING_BYTES))
    return out


def _seconds(stage: Stage, stars: int, pixels: int, threads: int) -> dict[str, float]:
    width = pixels / REFERENCE_PIXELS if stage.name != "evaluate" else 1.0
    start = START[stage.name]
    if stage.name == "fit":
        asked = stage.settings.get("components", REFERENCE_COMPONENTS)
        k = (WIDE if asked == "auto" else int(asked)) / REFERENCE_COMPONENTS
        one = stars * width * max(k, 0.3) / PASS_RATE / threads + BETWEEN * width * k
        whole = [start + one * (n + 1) for n in PASSES]
        return {"seconds": whole[1], "seconds_at_most": whole[2]}
    if stage.name == "train":
        from chemscale.vae.presets import recipe

        trained = int(stars * (1.0 - float(stage.settings.get("held_out", 0.3))))
        given = {key: int(stage.settings[key]) for key in ("epochs", "batch") if stage.settings.get(key)}
        config = recipe(str(stage.settings.get("preset", "default")), None, given)[1].scaled(trained)
        epochs = config.label_pretrain_epochs + config.epochs + config.decoder_finetune_epochs
        return {"seconds": start + trained * epochs * width / RATES["train"] / threads}
    if stage.name not in RATES:
        return {"seconds": start}
    return {"seconds": start + stars * width / RATES[stage.name] / threads}


def _measured(pipeline: Pipeline, stage: Stage) -> dict[str, Any]:
    """Seconds of a training from a few of its own steps, in a process of its own (it imports torch)."""
    command = [sys.executable, "-m", "chemscale", *stage.arguments, "--dry-run", "--json"]
    done = subprocess.run(command, cwd=pipeline.folder, capture_output=True, text=True)
    if done.returncode:
        return {"problem": " ".join(done.stderr.split())}
    return {"seconds": START["train"] + json.loads(done.stdout)["seconds"]}


def _simulated(stage: Stage) -> dict[str, Any] | None:
    """Stars, pixels and bytes of a survey that is to be simulated; None where an emulator's file decides."""
    from chemscale.simulation.generator import Simulation

    table = stage.settings
    if stage.name != "simulate" or table.get("as_release") or (table.get("emulator") and not table.get("grid")):
        return None
    population = str(table.get("population", "disc"))
    clusters = int(table.get("clusters", 22 if population == "disc" else 0))
    simulation = Simulation(
        int(table.get("stars", 12_000)), clusters, grid=str(table.get("grid", "hband")), population=population
    )
    stars, pixels = simulation.n_stars, simulation.wavelengths.wavelength.size
    return {"n_stars": stars, "n_pixels": pixels, "size_bytes": int(stars * pixels * BYTES_PER_PIXEL * PACKED)}


def _sample(pipeline: Pipeline, stage: Stage) -> dict[str, Any] | None:
    """The ingestion's own estimate (``--plan-only``); None where its inputs do not exist yet."""
    if stage.name != "ingest":
        return None
    command = [sys.executable, "-m", "chemscale"]
    command += [*stage.arguments, "--plan-only", "--json"]
    done = subprocess.run(command, cwd=pipeline.folder, capture_output=True, text=True)
    if done.returncode:
        return None
    return json.loads(done.stdout)


def _time(row: dict[str, Any]) -> str:
    if "seconds" not in row:
        return str(row.get("problem", ""))
    most = f", at most {human_seconds(row['seconds_at_most'])}" if "seconds_at_most" in row else ""
    return human_seconds(row["seconds"]) + most


def render(planned: dict[str, Any], console: Any) -> None:
    """The plan as a table."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"{escape(planned['pipeline'])} on {planned['threads']} thread(s)")
    for name in ("stage", "status", "stars", "reads", "time, about", "memory a worker"):
        table.add_column(name)
    for row in planned["stages"]:
        table.add_row(
            row["stage"],
            row["status"],
            f"{row['stars']:,}" if "stars" in row else "",
            decimal(row["bytes_in"]) if "bytes_in" in row else "",
            escape(_time(row)),
            decimal(row["memory_bytes"]) if "memory_bytes" in row else "",
        )
    console.print(table)
