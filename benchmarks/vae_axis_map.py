"""What the axis map changes: the last stage of finished trainings, anew and with the map, judged by the truth.

    python benchmarks/vae_axis_map.py RUN STORE [RUN STORE ...] --work DIR --out results/vae_axis_map.md

Encoder and decoders are those of RUN (a run directory of ``chemscale vae train`` on a simulated STORE, which has its
truth beside it); the map is fitted to its training stars, and the decoders learn alone once more, as in a training.
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

from chemscale.runtime.run import Run
from chemscale.survey.store.open import open_survey
from chemscale.vae import pipeline
from chemscale.vae.checkpoint import load_model, save_model
from chemscale.vae.errors import LEAST, STARS, measure_errors
from chemscale.vae.evaluate import boosted_r2, judged_against
from chemscale.vae.prepare import look_at, training_data, unseen_rows
from chemscale.vae.train_config import TrainConfig
from chemscale.vae.training import Trainer

#: Splits of the held-out stars into those the trees learn from and those they are judged on.
SPLITS = (0, 1, 2)
SHOWN = ("r_fe_h", "r_alpha_fe", "r_c_fe", "relative_l2")


def last_stage(run: Path, store: str, target: Path) -> float:
    """Map and decoders of the model in `run`, anew, as a run of its own; processor seconds."""
    network, facts = load_model(run / "vae")
    config = TrainConfig.from_dict(facts["train"] | {"map_axes": True})
    survey = look_at(open_survey(store), facts["held_out"], facts["split_seed"])
    start = time.process_time()
    source, validation, _ = training_data(survey, network, config)
    network.train()
    Trainer(network, source, config, validation=validation).finetune_decoders()
    network.eval()
    flux, weight, _ = unseen_rows(survey, STARS, LEAST, config.seed, config.floor)
    for name, values in measure_errors(network, flux, weight, config.seed).buffers().items():
        getattr(network, name).copy_(torch.as_tensor(values, dtype=torch.float32))
    seconds = time.process_time() - start
    Run.create(target, store=store)
    dropped = ("format", "version", "sha256", "model")
    save_model(target / "vae", network, {k: v for k, v in facts.items() if k not in dropped})
    return seconds


def judge(run: Path, store: str, truth: str | None) -> dict[str, Any]:
    """Numbers of a run; R^2 of Teff over :data:`SPLITS`."""
    if not (run / pipeline.PRODUCT).exists():
        pipeline.infer(store, run)
    found = pipeline.evaluate(run, store=store, truth=truth)
    ds, _, out = pipeline.latents(run)
    judged, _ = judged_against(open_survey(store), store, np.asarray(ds["star_id"].values))
    z = np.asarray(ds["mean"].values, float)[out]
    found["r2"] = [boosted_r2(z, judged["teff"][out], seed=s) for s in SPLITS]
    return found


def row(name: str, which: str, f: dict[str, Any]) -> str:
    """One line of the table."""
    r = [f"{f[k]:.3f}" for k in SHOWN[:3]] + [f"{f['relative_l2']:.4f}"]
    flags = [f["flags"].get(k) for k in ("cemp", "alpha_poor", "cemp_printed", "alpha_poor_printed")]
    quality = ["-" if q is None else f"{q['precision']:.2f} / {q['recall']:.2f}" for q in flags]
    r2 = " ".join(f"{x:.3f}" for x in f["r2"])
    return f"| {name} | {which} | {' | '.join(r)} | {r2} | {f['r2_logg']:.3f} | {' | '.join(quality)} |"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", help="RUN STORE, in turn")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    args.work.mkdir(parents=True, exist_ok=True)
    lines = [
        "| catalogue | axis map | r [Fe/H] | r [alpha/Fe] | r [C/Fe] | relative L2 | R2 Teff, three splits | "
        "R2 log g | CEMP, learned | alpha-poor, learned | CEMP, as printed | alpha-poor, as printed |",
        "| --- " * 12 + "|",
    ]
    for run, store in zip(args.runs[::2], args.runs[1::2], strict=True):
        name = Path(store).stem
        target, done = args.work / f"run-{name}", args.work / f"{name}.json"
        noise_free = Path(store).with_suffix(".npy")
        truth = str(noise_free) if noise_free.exists() else None
        if not done.exists():
            if not (target / "vae" / "model.json").exists():
                print(name, f"last stage: {last_stage(Path(run), store, target):.0f} s of one core", flush=True)
            found = {"without": judge(Path(run), store, truth), "with": judge(target, store, truth)}
            done.write_text(json.dumps(found, default=float))
        found = json.loads(done.read_text())
        lines += [row(name, which, found[which]) for which in ("without", "with")]
        print("\n".join(lines[-2:]), flush=True)
        if args.out:
            args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
