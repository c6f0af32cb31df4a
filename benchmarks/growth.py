"""Peak memory and time of every command against the number of stars, and bytes a star.

    python benchmarks/growth.py WORK --stars 20000 80000 320000 [--only NAME ...] [--limit SECONDS]
    python benchmarks/growth.py WORK --table benchmarks/results/growth.md

For each size a survey is written below WORK and every command is run on it in a process of its own, as a user does,
without workers. Peak memory is the largest resident memory of the command and its children (the kernel's own peak for
the command, sampled every 50 ms for the children). Results are kept in ``WORK/growth.json`` after every command, and
what is in there is not run again; --limit ends between commands. 400 pixels a star: memory of what reads spectra goes
with chunks, not with stars, and few pixels leave the time to what does grow.

A star's labels take about 330 bytes here, 210 of them its abundances and visits: what a command must hold to select.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import psutil
import xarray as xr

from chemscale.schema import VARIABLES, Flag, variable_attrs
from chemscale.survey.store.layout import Layout

BLOCK, CLUSTERS, MEMBERS, LATENTS, CHEMICAL = 4096, 22, 8, 12, 4
ELEMENTS = ("Fe", "Mg", "Si", "C", "N", "Ni", "Al", "Ca")
REGIONS = {
    "name": "growth",
    "medium": "vacuum",
    "groups": {"iron": [[4000, 4049.9]], "alpha": [[4050, 4099.9]], "carbon": [[4100, 4149.9]]},
}


def block(start: int, z: np.ndarray, pixels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """flux, ivar, flags of one block of stars."""
    basis = np.abs(np.random.default_rng(1).normal(0, 0.02, (LATENTS, pixels))).astype("f4")
    rng = np.random.default_rng([2, start])
    sigma = rng.uniform(0.005, 0.02, (len(z), 1)).astype("f4")
    flux = np.exp(-0.2 - 0.3 * z @ basis) + sigma * rng.standard_normal((len(z), pixels), dtype="f4")
    flags = (rng.random((len(z), pixels), dtype="f4") < 0.03) * np.uint8(Flag.SURVEY_BAD)
    return flux.astype("f4"), np.broadcast_to(1 / sigma**2, flux.shape).copy(), flags


def survey(n: int, pixels: int) -> xr.Dataset:
    """The lazy survey: `n` stars, members of clusters among them."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((n, LATENTS), dtype="f4")
    which = np.arange(CLUSTERS).repeat(MEMBERS)
    z[: len(which), :CHEMICAL] = rng.standard_normal((CLUSTERS, CHEMICAL))[which] + 0.05 * z[: len(which), :CHEMICAL]
    cluster = np.full(n, "", dtype=object)
    cluster[: len(which)] = [f"Cluster {i:02d}" for i in which]
    rows = tuple(min(BLOCK, n - s) for s in range(0, n, BLOCK))
    edges = np.concatenate([[0], np.cumsum(rows)])
    one = dask.delayed(block, nout=3)
    parts = [one(int(a), z[a:b], pixels) for a, b in itertools.pairwise(edges)]
    data: dict[str, Any] = {}
    for i, (name, dtype) in enumerate((("flux", "f4"), ("ivar", "f4"), ("flags", "u1"))):
        pieces = [da.from_delayed(p[i], (r, pixels), dtype) for p, r in zip(parts, rows, strict=True)]
        data[name] = (("star", "wavelength"), da.concatenate(pieces), variable_attrs(name))
    nights = rng.integers(58000, 58040, (n, 2))
    columns = {
        "star_id": np.array([f"T{i:07d}" for i in range(n)], dtype=object),
        "cluster": cluster,
        "teff": 5000 + 400 * np.tanh(z[:, -1]),
        "logg": 2.3 + 0.4 * np.tanh(z[:, -2]),
        "fe_h": 0.2 * z[:, 0],
        "alpha_m": 0.1 * z[:, 1],
        "c_fe": 0.2 * z[:, 2],
        "snr": rng.uniform(80, 300, n),
        "radial_velocity": rng.normal(0, 40, n),
        "extinction": rng.gamma(1.0, 0.15, n),
        "visits": np.array([f"r12-5000-{a}-1,r12-5000-{b}-1" for a, b in nights], dtype=object),
        "abundance": z[:, :CHEMICAL] @ rng.normal(0, 0.1, (CHEMICAL, 8)) + 0.02 * rng.standard_normal((n, 8)),
    }
    for name, values in columns.items():
        spec = VARIABLES[name]
        dtype = object if spec.dtype == "str" else spec.dtype
        data[name] = (spec.dims, np.asarray(values).astype(dtype), variable_attrs(name))
    wave = ("wavelength", 4000 + 0.5 * np.arange(pixels), variable_attrs("wavelength") | {"medium": "vacuum"})
    element = ("element", np.array(ELEMENTS, dtype=object), variable_attrs("element"))
    attrs = {"survey": "toy", "normalisation": "continuum-normalised"}
    return xr.Dataset(data, {"wavelength": wave, "element": element}, attrs)


def commands(pixels: int) -> dict[str, list[str]]:
    """Name -> arguments, in an order in which each finds what it needs; S, R, V: the store and two runs."""
    run, vae = ["--run", "R"], ["--run", "V"]
    return {
        "write_survey": [sys.executable, __file__, "S", "--build", "N", "--pixels", str(pixels)],
        "info": ["info", "S"],
        "verify": ["verify", "S"],
        "mask": ["mask", "S", "--find", "none", "--max-error", "0.03"],
        "rsca fit": ["rsca", "fit", "S", *run, "--components", "20", "--max-passes", "4"],
        "rsca evaluate": ["rsca", "evaluate", *run],
        "rsca siblings": ["rsca", "siblings", "T0000003", *run],
        "rsca siblings --stars": ["rsca", "siblings", "--stars", "hundred.txt", *run, "--out", "siblings.fits"],
        "rsca pair": ["rsca", "pair", "T0000003", "T0000004", *run],
        "rsca nuisance": ["rsca", "nuisance", *run],
        "rsca elements": ["rsca", "elements", *run, "--windows", "windows.csv"],
        "rsca export": ["rsca", "export", *run, "--out", "model.safetensors"],
        "rsca transform": ["rsca", "transform", "S", *run, "--out", "features.fits"],
        "rsca neighbours": ["rsca", "neighbours", *run, "--k", "10"],
        "rsca fit --metric auto": ["rsca", "fit", "S", "--run", "A", "--components", "20", "--metric", "auto"],
        "study dimensionality": ["study", "dimensionality", *run],
        "study kept_dimensions": ["study", "kept_dimensions", *run],
        "study together": ["study", "together", *run],
        "export": ["export", "R", "--out", "stars.fits"],
        "report": ["report", *run],
        "vae train": ["vae", "train", "S", *vae, "--regions", "regions.json", "--epochs", "1", "--components", "20"],
        "vae infer": ["vae", "infer", "S", *vae],
        "vae evaluate": ["vae", "evaluate", *vae],
        "anomalies": ["anomalies", *vae],
        "flags": ["flags", *vae],
        "report of a vae run": ["report", *vae],
        "verify --run": ["verify", *run],
    }


def measure(argv: list[str], where: Path) -> dict[str, Any]:
    """Wall and CPU seconds, and peak memory in bytes, of a command run in `where`."""
    began, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with (where / "said.txt").open("w") as said:
        process = psutil.Popen(argv, cwd=where, stdout=said, stderr=said)
        children = Children(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        below = children.stop()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    found = {"seconds": time.perf_counter() - began, "cpu_seconds": cpu, "peak": usage.ru_maxrss * 1024 + below}
    if status:
        found["failed"] = (where / "said.txt").read_text()[-600:]
    return found


class Children(threading.Thread):
    """Largest resident memory of the children of a process."""

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self._process, self._end, self.peak = psutil.Process(pid), threading.Event(), 0
        self.start()

    def run(self) -> None:
        while not self._end.wait(0.05):
            total = 0
            try:
                for child in self._process.children(recursive=True):
                    total += child.memory_info().rss
            except psutil.Error:
                continue
            self.peak = max(self.peak, total)

    def stop(self) -> int:
        """Bytes."""
        self._end.set()
        self.join()
        return self.peak


def prepare(where: Path) -> None:
    """Small inputs of commands."""
    where.mkdir(parents=True, exist_ok=True)
    (where / "regions.json").write_text(json.dumps(REGIONS))
    (where / "windows.csv").write_text("element,low,high\nFe,4000,4020\nMg,4050,4070\nC,4100,4120\n")
    (where / "hundred.txt").write_text("\n".join(f"T{i:07d}" for i in range(100)) + "\n")


def run_all(work: Path, sizes: list[int], pixels: int, only: list[str], limit: float) -> None:
    """Every command at every size that is not measured yet."""
    began, file = time.perf_counter(), work / "growth.json"
    work.mkdir(parents=True, exist_ok=True)
    known: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
    chemscale = str(Path(sys.executable).with_name("chemscale"))
    for n in sizes:
        where = work / str(n)
        prepare(where)
        for name, arguments in commands(pixels).items():
            done = str(n) in known.get(name, {}) and "failed" not in known[name][str(n)]
            if done or (only and name not in only):
                continue
            if time.perf_counter() - began > limit:
                print("the time is up: the same command carries on")
                return
            if name == "rsca fit --metric auto":
                shutil.rmtree(where / "A", ignore_errors=True)
            argv = arguments if arguments[0] == sys.executable else [chemscale, *arguments]
            found = measure([str(n) if a == "N" else a for a in argv], where)
            known.setdefault(name, {})[str(n)] = found
            file.write_text(json.dumps(known, indent=1) + "\n")
            shown = f"{found['seconds']:.1f} s, {found['peak'] / 2**20:.0f} MiB"
            print(f"{n:>8,} {name}: {shown} {found.get('failed', '')}", flush=True)


def table(work: Path, facts: str) -> str:
    """The results as Markdown."""
    known = json.loads((work / "growth.json").read_text())
    sizes = sorted({int(n) for row in known.values() for n in row})
    lines = [
        "# Memory and time against the number of stars",
        "",
        facts,
        "",
        "| command | "
        + " | ".join(f"{n:,} stars: MiB" for n in sizes)
        + " | bytes a star | "
        + " | ".join(f"{n:,}: s" for n in sizes)
        + " |",
        "|---|" + "---:|" * (2 * len(sizes) + 1),
    ]
    for name, row in known.items():
        whole = {n: row[str(n)] for n in sizes if str(n) in row and "failed" not in row[str(n)]}
        memory = [f"{whole[n]['peak'] / 2**20:.0f}" if n in whole else "–" for n in sizes]
        seconds = [f"{whole[n]['seconds']:.1f}" if n in whole else "–" for n in sizes]
        ends = sorted(whole)[-2:]
        slope = "–"
        if len(ends) == 2:
            slope = f"{(whole[ends[1]]['peak'] - whole[ends[0]]['peak']) / (ends[1] - ends[0]):.0f}"
        lines.append(f"| `{name}` | {' | '.join(memory)} | {slope} | {' | '.join(seconds)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--stars", type=int, nargs="+", default=[20_000, 80_000, 320_000])
    parser.add_argument("--pixels", type=int, default=400)
    parser.add_argument("--only", nargs="+", default=[], help="names of commands")
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds after which no command is begun")
    parser.add_argument("--build", type=int, help="write a survey of so many stars as the store WORK, nothing else")
    parser.add_argument("--table", type=Path, help="write the results as Markdown")
    parser.add_argument("--facts", default="", help="commit and machine, for the table")
    args = parser.parse_args()
    if args.build:
        from chemscale.survey.ingest.datasets import write_survey

        # one layout at every size: else the slope is that of larger chunks
        layout = Layout(chunk_stars=2048, shard_stars=8192, label_stars=65536)
        write_survey(survey(args.build, args.pixels), args.work, layout=layout, overwrite=True)
    elif args.table:
        args.table.write_text(table(args.work, args.facts))
    else:
        run_all(args.work, args.stars, args.pixels, args.only, args.limit)


if __name__ == "__main__":
    main()
