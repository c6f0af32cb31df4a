"""The VAE against its bars: train on a simulated catalogue, judge on its held-out part.

    python benchmarks/vae.py --emulator lowres_emulator.npz --work DIR --kind A --seeds 0 1 2

Writes ``DIR/A0.json`` and so on; a training that is stopped (time limit, Ctrl-C) carries on when the command is
repeated. ``--summary FILE`` collects what is there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "vae"))
from vae_catalogue import catalogue

from chemscale.runtime.jsonio import write_json
from chemscale.runtime.run import Run
from chemscale.survey.ingest.datasets import write_survey
from chemscale.survey.store.open import open_survey
from chemscale.vae import pipeline
from chemscale.vae.checkpoint import load_model
from chemscale.vae.corrupt import hide_blocks, hide_random, separation
from chemscale.vae.data import clean
from chemscale.vae.evaluate import pearson
from chemscale.vae.inference import infer_arrays


def noise_free_l2(model, flux, weight, truth, batch=1000):
    """Mean over stars of ||x_hat - x|| / ||x|| to the noise-free spectra: whole, and pixels of the groups only."""
    groups = np.unique(np.concatenate([model.pixels[g.name] for g in model.config.groups]))
    whole, inside = [], []
    with torch.inference_mode():
        for i in range(0, len(flux), batch):
            f, w = torch.from_numpy(flux[i : i + batch]), torch.from_numpy(weight[i : i + batch])
            p = model.encode(model.features(f, w))
            x = model.reconstruct(p.mean, p.auxiliary).numpy()
            t = truth[i : i + batch]
            for out, index in ((whole, slice(None)), (inside, groups)):
                out.append(np.linalg.norm((x - t)[:, index], axis=1) / np.linalg.norm(t[:, index], axis=1))
    return float(np.mean(np.concatenate(whole))), float(np.mean(np.concatenate(inside)))


def judge(run, store, truth):
    """Every number the bars are about."""
    result = pipeline.evaluate(run, store=store)
    ds = open_survey(store)
    _, _, out = pipeline.latents(run)
    rows = np.flatnonzero(out)
    flux, weight = clean(*(np.asarray(ds[n].data)[rows] for n in ("flux", "ivar", "flags")), selected=255)
    model, _ = load_model(Path(run) / "vae")
    result["relative_l2_noise_free"], result["relative_l2_noise_free_groups"] = noise_free_l2(
        model, flux, weight, truth[rows]
    )
    part = slice(0, 4000)
    result["anomalies"] = separation(model, flux[part], weight[part])
    labels = {"metal": "fe_h", "alpha": "alpha_m", "carbon": "c_fe"}
    known = {k: np.asarray(ds[v].values)[rows][part] for k, v in labels.items()}
    rng = np.random.default_rng(0)
    result["hidden"] = {}
    for name, hide in (("none", lambda w, r: w), ("random", hide_random), ("blocks", hide_blocks)):
        z = infer_arrays(model, flux[part], hide(weight[part], rng))["mean"]
        result["hidden"][name] = {k: abs(pearson(z[:, j], known[k])) for j, k in enumerate(model.config.latents)}
    return result


#: Other surveys than the catalogue's own: stars wanted, S/N, selection by the survey's labels, missing pixels.
VARIANTS = {
    "": {},
    "small": {"stars": 10_000},
    "giants": {"stars": 20_000, "logg_below": 3.5, "teff_below": 5500.0},
    "snr30": {"stars": 20_000, "snr": (30.0, 6.0)},
    "snr100": {"stars": 20_000, "snr": (100.0, 20.0)},
    "gaps": {"stars": 20_000, "missing": 0.05},
}


def make(emulator, stars, seed, kind, snr=(50.0, 10.0), logg_below=np.inf, teff_below=np.inf, missing=0.0):
    """A catalogue and its noise-free spectra; `missing`: fraction of pixels flagged, half of them in blocks of 60."""
    chance = min(1.0, (logg_below - 2.5) / 2.5) * min(1.0, (teff_below - 4000.0) / 3000.0)
    ds, noise_free = catalogue(emulator, int(stars / chance * 1.1) if chance < 1 else stars, seed, kind, snr)
    chosen = np.flatnonzero((ds["logg"].values < logg_below) & (ds["teff"].values < teff_below))[:stars]
    ds, noise_free = ds.isel(star=chosen), noise_free[chosen]
    if missing:
        rng = np.random.default_rng([seed, 3])
        flags = ds["flags"].values
        flags[rng.random(flags.shape) < missing / 2] = 1
        for row, start in zip(*np.nonzero(rng.random(flags.shape) < missing / 120)):
            flags[row, start : start + 60] = 1
        ds["flux"].values[flags > 0] = np.nan
    return ds, noise_free


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--emulator", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--kind", default="A", choices=["A", "B"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--stars", type=int, default=40_000)
    parser.add_argument("--variant", default="", choices=list(VARIANTS))
    parser.add_argument("--preset", default="default")
    parser.add_argument("--settings", default="{}", help="JSON overrides of the training settings")
    parser.add_argument("--model", default="{}", help="JSON overrides of the model settings")
    parser.add_argument("--regions", default="")
    parser.add_argument("--tag", default="")
    parser.add_argument("--summary", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    for seed in args.seeds:
        survey = f"{args.kind}{seed}{args.variant}"
        name = f"{survey}{args.tag}"
        store, truth = args.work / f"{survey}.store", args.work / f"{survey}_clean.npy"
        if not truth.exists():
            ds, noise_free = make(
                args.emulator, **{"stars": args.stars, "seed": seed, "kind": args.kind} | VARIANTS[args.variant]
            )
            write_survey(ds, store, overwrite=True)
            np.save(truth, noise_free)
        run = args.work / f"run_{name}"
        if not (run / "vae" / "model.json").exists():
            start = time.perf_counter()
            summary = pipeline.train(
                str(store),
                run,
                preset=args.preset,
                settings={"seed": seed, **json.loads(args.settings)},
                model=json.loads(args.model),
                regions=args.regions or None,
                resume=True,
                on_epoch=lambda e: e["epoch"] % 10 == 9 and print(_short(e), flush=True),
            )
            summary["wall_s"] = time.perf_counter() - start
            print(summary, flush=True)
        print(pipeline.infer(str(store), run), flush=True)
        result = judge(run, str(store), np.load(truth, mmap_mode="r"))
        result["train"] = Run.open(run).manifest["stages"]["vae.train"]
        write_json(args.work / f"{name}.json", result)
        keys = [k for k in result if k.startswith(("r_", "r2_", "rmse_", "relative_l2_noise"))]
        print(name, {k: round(result[k], 4) for k in keys}, flush=True)
        print(json.dumps(result["flags"]), json.dumps(result["anomalies"]), json.dumps(result["hidden"]), flush=True)
    if args.summary:
        found = {f.stem: json.loads(f.read_text()) for f in sorted(args.work.glob("[AB]*.json"))}
        args.summary.write_text(json.dumps(found, indent=1) + "\n")


def _short(entry):
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in entry.items()}


if __name__ == "__main__":
    main()
