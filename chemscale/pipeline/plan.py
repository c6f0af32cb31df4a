"""The dry run: which stages would run, how much they read, how long that may take, how much memory."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from ..runtime.cluster import ClusterSettings
from ..runtime.observe import estimate_memory, human_bytes, human_seconds
from .execute import store_size
from .file import MAKES_STORE, Pipeline, Stage, select

#: Stars a second and thread for 7,514 pixels, measured on a quiet two-core virtual machine: fit (five passes, K = 30,
#: and the embedding) and infer by `chemscale bench scaling`; simulate and evaluate on a 12,000-star H-band survey,
#: train on the low-resolution part of the demo. An order of magnitude, not a promise; a stage that has run before is
#: estimated from its own time.
RATES = {"simulate": 190.0, "fit": 610.0, "evaluate": 17_000.0, "train": 50.0, "infer": 1600.0}
REFERENCE_PIXELS = 7514


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
        if stage.name == "ingest" and facts is None:
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
        elif facts is not None:
            row |= {"stars": facts["n_stars"], "bytes_in": facts["size_bytes"]}
            row |= _cost(pipeline, stage, facts, threads)
        stages.append(row)
    return {"pipeline": str(pipeline.file), "store": pipeline.store_path, "threads": threads, "stages": stages}


def _threads(settings: ClusterSettings | None) -> int:
    from ..runtime.backends import local_shape

    settings = settings or ClusterSettings()
    if settings.kind == "local":
        shape = local_shape(settings)
        return shape.workers * shape.threads
    return max(1, (settings.workers or 1) * (settings.processes or 1) * (settings.threads or 1))


def _cost(pipeline: Pipeline, stage: Stage, facts: dict[str, Any], threads: int) -> dict[str, Any]:
    stars, pixels = int(facts["n_stars"]), int(facts["n_pixels"])
    out: dict[str, Any] = {}
    before = pipeline.state.get(stage.name, {})
    if before.get("status") == "done":
        out["seconds"] = before["wall_s"]
    elif stage.name in RATES:
        width = pixels / REFERENCE_PIXELS if stage.name not in ("evaluate",) else 1.0
        out["seconds"] = stars * width / RATES[stage.name] / threads
    chunk = int(facts.get("layout", {}).get("chunk_stars", 512))
    if stage.name in ("fit", "infer", "train"):
        out["memory_bytes"] = estimate_memory(chunk, pixels).bytes_per_worker
    return out


def _sample(pipeline: Pipeline, stage: Stage) -> dict[str, Any] | None:
    """The ingestion's own estimate (``--plan-only``); None where its inputs do not exist yet."""
    if stage.name not in MAKES_STORE:
        return None
    command = [sys.executable, "-c", "from chemscale.cli import main; main()"]
    command += [*stage.arguments, "--plan-only", "--json"]
    done = subprocess.run(command, cwd=pipeline.folder, capture_output=True, text=True)
    if done.returncode:
        return None
    return json.loads(done.stdout)


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
            human_bytes(row["bytes_in"]) if "bytes_in" in row else "",
            human_seconds(row["seconds"]) if "seconds" in row else "",
            human_bytes(row["memory_bytes"]) if "memory_bytes" in row else "",
        )
    console.print(table)
