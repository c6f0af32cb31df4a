"""Every stage of this chemscale beside another installation of it, in turns, in one run.

    python benchmarks/release.py WORK --peer /path/to/other/.venv/bin/python --prepare
    python benchmarks/release.py WORK --peer /path/to/other/.venv/bin/python [--rounds 5] [--out FILE.md]

--prepare simulates, with the peer, what both read: an APOGEE-like release of FITS files, a store of low-resolution
spectra and an autoencoder trained on it for two epochs. Then ingest, fit, embed and infer are run by each in turn
(peer, this, this, peer, ...), each command in a process of its own, without workers, and rounds are added to
``WORK/release.json``: the same command carries on. A stage's seconds are those that its own record states (the run's
manifest; for ingest the whole command), so that starting Python does not hide or blur differences; CPU seconds are
those of the whole command. The paper's recipe and a fixed number of components are fitted on both sides.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STAGES = {"ingest": "ingest", "fit": "ppca", "embed": "embed", "infer": "vae.infer"}


def chemscale(python: str, work: Path, line: str) -> tuple[float, float]:
    """Wall and CPU seconds of a command of one installation, run in `work`."""
    used, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [str(Path(python).with_name("chemscale")), *line.split()]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, env=os.environ | {"NO_COLOR": "1"})
    if done.returncode:
        raise SystemExit(f"{line}: {done.stderr[-2000:]}")
    seconds, now = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime


def prepare(peer: str, work: Path, stars: int) -> None:
    """What both sides read, made by the peer."""
    work.mkdir(parents=True, exist_ok=True)
    for made, line in {
        "release": f"simulate --stars {stars} --clusters 12 --seed 5 --as-release release",
        "h.zarr": f"simulate --stars {4 * stars} --clusters 12 --seed 6 --out h.zarr",
        "v.zarr": f"simulate --stars {8 * stars} --clusters 2 --grid lowres --seed 7 --out v.zarr",
        "vae": "vae train v.zarr --run vae --preset quick --epochs 2",
    }.items():
        if not (work / made).exists():
            print(line, flush=True)
            chemscale(peer, work, line)


def of_stages(run: Path) -> dict[str, float]:
    """Seconds of the stages of a run, from its manifest."""
    stages = json.loads((run / "manifest.json").read_text())["stages"]
    return {name: stages[key]["wall_s"] for name, key in STAGES.items() if key in stages}


def one_round(python: str, side: str, work: Path) -> dict[str, dict[str, float]]:
    """Seconds of every stage on one side."""
    for name in (f"{side}.zarr", f"{side}-run"):
        shutil.rmtree(work / name, ignore_errors=True)
    if not (work / f"{side}-vae").exists():
        shutil.copytree(work / "vae", work / f"{side}-vae")
    found: dict[str, dict[str, float]] = {}
    (allstar,) = (work / "release").glob("allStar*.fits")
    line = f"ingest apogee --spectra release --allstar {allstar.relative_to(work)} --out {side}.zarr"
    seconds, cpu = chemscale(python, work, line)
    found["ingest"] = {"seconds": seconds, "command_cpu": cpu}
    recipe = "" if side == "peer" else "--recipe paper"
    _, cpu = chemscale(python, work, f"rsca fit h.zarr --run {side}-run --components 20 {recipe}")
    stages = of_stages(work / f"{side}-run")
    for name in ("fit", "embed"):
        found[name] = {"seconds": stages[name], "command_cpu": cpu}
    _, cpu = chemscale(python, work, f"vae infer v.zarr --run {side}-vae --overwrite")
    found["infer"] = {"seconds": of_stages(work / f"{side}-vae")["infer"], "command_cpu": cpu}
    return found


def table(rounds: list[dict[str, Any]]) -> str:
    """Medians and least values of both sides, and their ratio."""
    lines = [
        "| stage | peer: median s (least) | this: median s (least) | ratio of medians (of least) | CPU s, command |",
        "|---|---:|---:|---:|---:|",
    ]
    for name in STAGES:
        sides = [[r["stages"][name] for r in rounds if r["side"] == side] for side in ("peer", "this")]
        median = [statistics.median(s["seconds"] for s in side) for side in sides]
        least = [min(s["seconds"] for s in side) for side in sides]
        cpu = [min(s["command_cpu"] for s in side) for side in sides]
        told = [f"{m:.2f} ({x:.2f})" for m, x in zip(median, least, strict=True)]
        ratio = f"{median[1] / median[0]:.3f} ({least[1] / least[0]:.3f})"
        lines.append(f"| {name} | {told[0]} | {told[1]} | {ratio} | {cpu[0]:.1f} to {cpu[1]:.1f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Prepare, or measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--peer", required=True, metavar="PYTHON", help="Python of the other installation")
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--stars", type=int, default=1500, help="files of the release; stores are larger")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each side in all")
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds after which no round is begun")
    parser.add_argument("--facts", default="", help="commit and machine, for the page")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.prepare:
        prepare(args.peer, args.work, args.stars)
        return
    began, file = time.monotonic(), args.work / "release.json"
    rounds: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
    while len(rounds) < 2 * args.rounds and time.monotonic() - began < args.limit:
        side = ("peer", "this", "this", "peer")[len(rounds) % 4]
        python = args.peer if side == "peer" else sys.executable
        rounds.append({"side": side, "stages": one_round(python, side, args.work)})
        file.write_text(json.dumps(rounds, indent=1) + "\n")
    text = table(rounds)
    sys.stdout.write(text)
    if args.out:
        head = "# Stages beside an earlier release\n\n"
        args.out.write_text(head + (f"{args.facts}\n\n" if args.facts else "") + text)


if __name__ == "__main__":
    main()
