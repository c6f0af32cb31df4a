"""Does the guard over the axes tell trainings led astray from good ones? Ten of each, judged by the truth.

    python benchmarks/vae_guard.py --emulator lowres_emulator.npz --work DIR --out results/vae_guard.md

Led astray on purpose: windows of the groups exchanged (4), a KL divergence that weighs a thousand times more (3), 1,000
stars (3). Catalogue (the paper's halo from the emulator and from the built-in lines, and the Gaussian A and B), seed,
weights and batches differ from training to training; the guard sees no abundance. What is done is not done again when
the command is repeated (`--again`: trainings that are there are judged anew, without a training); some 40 s of one core
a training.
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
from vae import gaussian

from chemscale.runtime.jsonio import write_json
from chemscale.simulation.generator import Simulation
from chemscale.simulation.truth import truth_path, write_truth
from chemscale.survey.ingest.datasets import write_survey
from chemscale.survey.ingest.ingestion import ingest
from chemscale.survey.ingest.planning import plan_ingest
from chemscale.survey.sources.simulated import SimulatedSource
from chemscale.survey.store.open import open_survey
from chemscale.vae import pipeline
from chemscale.vae.alignment import of_training
from chemscale.vae.checkpoint import load_model
from chemscale.vae.evaluate import judged_against, label_of, pearson
from chemscale.vae.prepare import look_at
from chemscale.vae.regions import RegionSet, load_regions

#: Kind of the catalogue, and what its spectra are made of.
CATALOGUES = (("halo", "emulator"), ("A", "emulator"), ("B", "emulator"), ("halo", "lines"))
#: A short training, of a few thousand stars.
SHORT = {"batch": 256, "epochs": 80, "min_steps": (500, 100, 180), "decoder_finetune_epochs": 4}
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


def survey(work: Path, emulator: str, stars: int, seed: int, kind: str, spectra: str) -> str:
    """Path of a simulated catalogue, made where it is not there yet."""
    store = work / f"guard-{kind}-{spectra}-{stars}-{seed}.zarr"
    if kind != "halo":
        if not store.exists():
            ds, _ = gaussian(Path(emulator), stars, seed, kind)
            write_survey(ds, store, overwrite=True)
    elif not Path(truth_path(str(store))).exists():
        simulation = Simulation(stars, 0, seed, "lowres", "halo", emulator=emulator if spectra == "emulator" else None)
        source = SimulatedSource(**simulation.settings())
        ingest(source, str(store), overwrite=True, job=plan_ingest(source))
        write_truth(simulation, truth_path(str(store)), overwrite=True)
    return str(store)


def place(work: Path, args: argparse.Namespace, kind: str, number: int) -> tuple[str, Path]:
    """Paths of the catalogue of one training, made where it is not there, and of its run."""
    stars = 1000 if kind == "1,000 stars" else args.stars
    store = survey(work, args.emulator, stars, args.seed + number, *CATALOGUES[number % len(CATALOGUES)])
    return store, work / f"run-{kind.replace(' ', '-').replace(',', '')}-{number}"


def judge_again(work: Path, args: argparse.Namespace, found: dict[str, Any]) -> dict[str, Any]:
    """A trial with what today's guard says of its training."""
    store, run = place(work, args, found["kind"], found["number"])
    network, record = load_model(run / "vae")
    survey_ = look_at(open_survey(store), record["held_out"], record["split_seed"])
    known = {k: found[k] for k in ("kind", "number", "catalogue", "r", "cpu_s")}
    return known | of_training(network, survey_, record["train"]["seed"], record["train"]["floor"]).to_dict()


def trial(work: Path, args: argparse.Namespace, kind: str, number: int) -> dict[str, Any]:
    """One training: its warnings, and its correlations with the truth."""
    catalogue = CATALOGUES[number % len(CATALOGUES)]
    store, run = place(work, args, kind, number)
    settings: dict[str, Any] = {**SHORT, "seed": args.seed + 100 + number, **json.loads(args.settings)}
    if kind == "beta 3":
        settings["beta"] = 3.0
    regions = exchanged(EXCHANGES[number % len(EXCHANGES)]) if kind == "exchanged windows" else None
    start = time.process_time()
    summary = pipeline.train(store, run, settings=settings, regions=regions, overwrite=True)
    seconds = time.process_time() - start
    pipeline.infer(store, run, overwrite=True)
    ds, _, out = pipeline.latents(run)
    names = [str(n) for n in ds["latent"].values]
    truth, _ = judged_against(open_survey(store), store, np.asarray(ds["star_id"].values), "", names)
    z = np.asarray(ds["mean"].values)
    out &= np.isfinite(z).all(1)
    r = {label_of(n): abs(pearson(z[out, k], truth[label_of(n)][out])) for k, n in enumerate(names)}
    found = {"kind": kind, "number": number, "catalogue": " ".join(catalogue), "r": r, "cpu_s": seconds}
    return found | summary["alignment"]


def table(found: list[dict[str, Any]], args: argparse.Namespace) -> str:
    """Trials as Markdown, counts first."""
    good = [f for f in found if f["kind"] == "good"]
    astray = [f for f in found if f["kind"] != "good"]
    warned = [sum(bool(f["warnings"]) for f in some) for some in (astray, good)]
    lines = [
        f"The guard warns in {warned[0]} of {len(astray)} trainings led astray (bar: 9 of 10) and in {warned[1]} of "
        f"{len(good)} good ones (bar: at most 1 of 10). {args.stars:,} stars a catalogue, a short training each, seeds "
        f"from {args.seed}; {sum(f['cpu_s'] for f in found) / 60:.0f} CPU minutes.",
        "",
        "| training | catalogue | r [Fe/H] | r [alpha/Fe] | r [C/Fe] | warnings |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for f in found:
        r = [f"{f['r'][k]:.2f}" for k in ("fe_h", "alpha_fe", "c_fe")]
        lines.append(
            f"| {f['kind']} {f['number']} | {f['catalogue']} | {' | '.join(r)} | {'; '.join(f['warnings']) or 'none'} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--emulator", required=True, help="emulator file")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--stars", type=int, default=8000)
    parser.add_argument("--seed", type=int, default=40)
    parser.add_argument("--settings", default="{}", help="JSON overrides of the training settings")
    parser.add_argument("--again", action="store_true", help="judge the trainings that are there anew")
    parser.add_argument("--only", default="", help="one kind of training")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    args.work.mkdir(parents=True, exist_ok=True)
    done = args.work / "trials.json"
    found = json.loads(done.read_text()) if done.exists() else []
    if args.again:  # one by one: a run that is cut off carries on
        anew = args.work / "judged.json"
        judged = json.loads(anew.read_text()) if anew.exists() else []
        for f in found[len(judged) :]:
            judged.append(judge_again(args.work, args, f))
            write_json(anew, judged)
            print({k: v for k, v in judged[-1].items() if k != "cpu_s"}, flush=True)
        found = judged
    wanted = [] if args.again else [(kind, i) for kind, n in {**ASTRAY, "good": GOOD}.items() for i in range(n)]
    wanted = [w for w in wanted if args.only in ("", w[0])]
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
