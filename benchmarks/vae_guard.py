"""Does the guard over the axes tell trainings led astray from good ones? Ten of each, judged by the truth.

    python benchmarks/vae_guard.py --emulator lowres_emulator.npz --work DIR --out results/vae_guard.md

Led astray on purpose: windows of the groups exchanged (4), a KL divergence that weighs a thousand times more (3), 1,000
stars (3). Catalogue, weights and batches differ from training to training; the guard sees no abundance. What is done
is not done again when the command is repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chemscale.runtime.jsonio import write_json
from chemscale.simulation.generator import Simulation
from chemscale.simulation.truth import truth_path, write_truth
from chemscale.survey.ingest.ingestion import ingest
from chemscale.survey.ingest.planning import plan_ingest
from chemscale.survey.sources.simulated import SimulatedSource
from chemscale.vae import pipeline
from chemscale.vae.evaluate import label_of, pearson, truth_columns
from chemscale.vae.regions import RegionSet, load_regions

#: Trainings of each kind.
GOOD = 10
ASTRAY = {"exchanged windows": 4, "beta 3": 3, "1,000 stars": 3}
#: Whose windows each group gets.
EXCHANGES = (
    {"iron": "carbon", "carbon": "alpha", "alpha": "iron"},
    {"iron": "alpha", "carbon": "iron", "alpha": "carbon"},
    {"iron": "carbon", "carbon": "iron", "alpha": "alpha"},
    {"iron": "iron", "carbon": "alpha", "alpha": "carbon"},
)


def exchanged(order: dict[str, str]) -> RegionSet:
    """The default windows, given to the wrong groups."""
    raw = load_regions("optical").to_dict()
    groups = {name: raw["groups"][other] for name, other in order.items()}
    return RegionSet.from_dict(raw | {"name": "exchanged", "groups": groups, "priority": []})


def survey(work: Path, emulator: str | None, stars: int, seed: int) -> str:
    """Path of a simulated halo, made where it is not there yet."""
    store = work / f"guard-{'emulator' if emulator else 'lines'}-{stars}-{seed}.zarr"
    if not Path(truth_path(str(store))).exists():
        simulation = Simulation(stars, 0, seed, "lowres", "halo", emulator=emulator)
        source = SimulatedSource(**simulation.settings())
        ingest(source, str(store), overwrite=True, job=plan_ingest(source))
        write_truth(simulation, truth_path(str(store)), overwrite=True)
    return str(store)


def trial(work: Path, args: argparse.Namespace, kind: str, number: int) -> dict[str, Any]:
    """One training: its warnings, and its correlations with the truth."""
    stars = 1000 if kind == "1,000 stars" else args.stars
    store = survey(work, args.emulator, stars, args.seed + number % args.catalogues)
    run = work / f"run-{kind.replace(' ', '-').replace(',', '')}-{number}"
    settings: dict[str, Any] = {"seed": args.seed + 100 + number}
    if kind == "beta 3":
        settings["beta"] = 3.0
    regions = exchanged(EXCHANGES[number % len(EXCHANGES)]) if kind == "exchanged windows" else None
    start = time.process_time()
    summary = pipeline.train(store, run, preset=args.preset, settings=settings, regions=regions, overwrite=True)
    seconds = time.process_time() - start
    pipeline.infer(store, run, overwrite=True)
    ds, _, out = pipeline.latents(run)
    names = [str(n) for n in ds["latent"].values]
    truth = truth_columns(store, np.asarray(ds["star_id"].values), names)
    assert truth is not None
    z = np.asarray(ds["mean"].values)
    r = {label_of(n): abs(pearson(z[out, k], truth[label_of(n)][out])) for k, n in enumerate(names)}
    return {"kind": kind, "number": number, "r": r, "cpu_s": seconds, **summary["alignment"]}


def table(found: list[dict[str, Any]], args: argparse.Namespace) -> str:
    """Trials as Markdown, counts first."""
    good = [f for f in found if f["kind"] == "good"]
    astray = [f for f in found if f["kind"] != "good"]
    warned = [sum(bool(f["warnings"]) for f in some) for some in (astray, good)]
    lines = [
        f"The guard warns in {warned[0]} of {len(astray)} trainings led astray (bar: 9 of 10) and in {warned[1]} of "
        f"{len(good)} good ones (bar: at most 1 of 10). {args.stars:,} halo stars from "
        f"{'an emulator' if args.emulator else 'the built-in lines'}, preset `{args.preset}`, seeds from {args.seed}.",
        "",
        "| training | r [Fe/H] | r [alpha/Fe] | r [C/Fe] | warnings |",
        "| --- | --- | --- | --- | --- |",
    ]
    for f in found:
        r = [f"{f['r'][k]:.2f}" for k in ("fe_h", "alpha_fe", "c_fe")]
        lines.append(f"| {f['kind']} {f['number']} | {' | '.join(r)} | {'; '.join(f['warnings']) or 'none'} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--emulator", help="emulator file; without one the built-in lines")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--stars", type=int, default=5000)
    parser.add_argument("--catalogues", type=int, default=3, help="different catalogues the trainings share")
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--seed", type=int, default=40)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    args.work.mkdir(parents=True, exist_ok=True)
    done = args.work / "trials.json"
    found = json.loads(done.read_text()) if done.exists() else []
    wanted = [(kind, i) for kind, n in {**ASTRAY, "good": GOOD}.items() for i in range(n)]
    # good and led astray in turn: a run that is cut off has some of both
    wanted.sort(key=lambda w: (w[1], w[0]))
    for kind, number in wanted:
        if not any((f["kind"], f["number"]) == (kind, number) for f in found):
            found.append(trial(args.work, args, kind, number))
            write_json(done, found)
            print(kind, number, found[-1]["r"], found[-1]["warnings"], f"{found[-1]['cpu_s']:.0f} s", flush=True)
        if args.out:
            args.out.write_text(table(found, args))
    print(table(found, args))


if __name__ == "__main__":
    main()
