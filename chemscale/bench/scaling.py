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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chemscale.bench import busy
from chemscale.bench.limits import decode, serial_fraction
from chemscale.bench.pinning import a_core_each
from chemscale.bench.stages import PRODUCTS, READS, STAGES, prepare, run_stage
from chemscale.bench.surveys import make_store
from chemscale.errors import InputError
from chemscale.runtime.jsonio import write_json
from chemscale.runtime.observe import worker_peaks
from chemscale.runtime.run import versions

if TYPE_CHECKING:
    from distributed import Client


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


def measure(
    workers: Iterable[int],
    stars: int,
    scratch: Path,
    *,
    stages: Iterable[str] = STAGES,
    mode: str = "strong",
    repeat: int = 1,
    pinned: bool = True,
    cluster: str | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Time the stages on 1, 2, ... workers, and bare decoding by the same workers as their limit.

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
        where there are as many; otherwise every process may use every core. Local workers only.
    cluster : str, optional
        Any cluster that :func:`chemscale.runtime.cluster.connect` knows, with as many of its workers; `scratch` must
        be a folder that all of them see. Default: local workers of one thread each.

    Returns
    -------
    dict
        `rows` with stage, workers, stars, seconds, stars_per_s, speedup and efficiency relative to the smallest
        number of workers, whether they were pinned, processor time of the workers and of this process (client
        and scheduler), `idle_seconds` in which no worker was at work (:mod:`.busy`), and for stages that read pixels
        `limit_stars_per_s` and `share_of_limit`; `serial_fraction` by stage, fitted to the times, and `idle_fraction`,
        the idle share of the time that the fewest workers take; and commit, versions, hardware.
    """
    from chemscale.runtime.cluster import connect

    workers, stages = sorted(set(workers)), tuple(stages)
    unknown = set(stages) - set(STAGES)
    if unknown or mode not in ("strong", "weak"):
        raise InputError(
            f"unknown stage or mode: {', '.join(sorted(unknown) or [mode])}", f"stages: {', '.join(STAGES)}"
        )
    if "anomalies" in stages and "infer" not in stages:
        raise InputError("anomalies without infer", "measure infer too: it makes the latents")
    scratch.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for n in workers:
        total = stars * (n if mode == "weak" else 1)
        with (
            connect(cluster or "local", workers=n, threads=None if cluster else 1) as client,
            busy.watched(client),
        ):
            client.wait_for_workers(n, timeout=120)
            store = make_store(scratch / f"survey-{total}.zarr", total, client)
            prepare(store, scratch, stages)
            with a_core_each(client) if pinned and not cluster else nullcontext(False) as held:
                decoding = _decoding(store, client, total) if set(stages) & set(READS) else 0.0
                for stage in stages:
                    row = _timed(stage, store, client, scratch, total, repeat)
                    if stage in READS:
                        limit = total / (READS[stage] * decoding)
                        row |= {"limit_stars_per_s": limit, "share_of_limit": row["stars_per_s"] / limit}
                    rows.append({"mode": mode, "stage": stage, "workers": n, "pinned": held} | row)
                    report(
                        f"{mode} {stage}: {n} worker(s) {'on a core each' if held else 'on any core'}, "
                        f"{row['stars']:,} stars: {row['seconds']:.2f} s, processor time of the workers "
                        f"{row['worker_cpu_seconds']:.1f} s, of client and scheduler {row['client_cpu_seconds']:.1f} s"
                        f"; no worker at work for {row['idle_seconds']:.2f} s"
                        + (f"; {row['share_of_limit']:.0%} of the rate of bare decoding" if stage in READS else "")
                    )
    shares = {"serial_fraction": serial_fractions(rows), "idle_fraction": idle_fractions(rows)}
    return {"rows": relative(rows)} | shares | provenance()


def _decoding(store: str, client: Client, stars: int) -> float:
    """Seconds of bare decoding, the better of two runs: the first opens the store on the workers."""
    times = []
    for _ in range(2):
        begun = time.perf_counter()
        decode(store, client, stars)
        times.append(time.perf_counter() - begun)
    return min(times)


def serial_fractions(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Serial fraction of each stage under strong scaling, where one and more workers were measured."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for row in rows:
        if row["mode"] == "strong":
            workers, seconds = found.setdefault(row["stage"], ([], []))
            workers.append(row["workers"])
            seconds.append(row["seconds"])
    both = {stage: serial_fraction(*measured) for stage, measured in found.items()}
    return {stage: value for stage, value in both.items() if np.isfinite(value)}


def idle_fractions(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Share of the time of each stage under strong scaling, on the fewest workers, in which none was at work."""
    fewest: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        if row["mode"] == "strong" and row["workers"] <= fewest.get(row["stage"], row)["workers"]:
            fewest[row["stage"]] = row
    return {stage: row["idle_seconds"] / row["seconds"] for stage, row in fewest.items()}


def _timed(stage: str, store: str, client: Client, scratch: Path, total: int, repeat: int) -> dict[str, Any]:
    """Best of some runs of a stage."""
    times, cpu, idle = [], [], []
    for _ in range(max(1, repeat)):
        if stage in PRODUCTS:  # of the run before
            shutil.rmtree(scratch / PRODUCTS[stage], ignore_errors=True)
        before = _cpu_seconds(client)
        since, begun = time.time(), time.perf_counter()
        number = run_stage(stage, store, client, scratch, total)
        times.append(time.perf_counter() - begun)
        idle.append(busy.idle_seconds(client, since, since + times[-1]))
        cpu.append([after - start for after, start in zip(_cpu_seconds(client), before)])
    best = int(np.argmin(times))
    on_workers, on_client = cpu[best]
    return {
        "stars": number,
        "seconds": min(times),
        "all_seconds": times,
        "stars_per_s": number / min(times),
        "worker_peak_bytes": max(worker_peaks(client).values(), default=0),
        "worker_cpu_seconds": on_workers,
        "client_cpu_seconds": on_client,
        "idle_seconds": idle[best],
    }


def _cpu_seconds(client: Client) -> tuple[float, float]:
    """Processor time so far of all workers, and of this process with the scheduler in it."""
    return sum(client.run(time.process_time).values()), time.process_time()


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
