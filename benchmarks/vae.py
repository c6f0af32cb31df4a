"""The autoencoder against its bars: simulate a catalogue, train, judge the held-out stars by the truth.

    python benchmarks/vae.py --emulator lowres_emulator.npz --work DIR --kind halo --seeds 0 1 2
    python benchmarks/vae.py --work DIR --kind halo --seeds 0          # built-in lines, 3000 to 7000 K
    python benchmarks/vae.py --work DIR --table results/vae.md         # the table of everything found in DIR
    python benchmarks/vae.py --emulator E --work DIR --seeds 0 --cuts   # what the paper's plain cuts can give

Kinds: `halo`, the paper's catalogue (``chemscale simulate --population halo``), and the Gaussian catalogues `A` and
`B`, which need an emulator. One seed writes ``DIR/KIND-SPECTRA-SEED.json``; a training that was stopped carries on when
the command is repeated, and what is finished is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "vae"))
from vae_catalogue import catalogue

from chemscale.runtime.jsonio import write_json
from chemscale.runtime.run import Run
from chemscale.simulation.generator import Simulation
from chemscale.simulation.truth import truth_path, write_truth
from chemscale.survey.ingest.datasets import write_survey
from chemscale.survey.ingest.ingestion import ingest
from chemscale.survey.ingest.planning import plan_ingest
from chemscale.survey.sources.simulated import SimulatedSource
from chemscale.survey.store.open import open_survey
from chemscale.vae import pipeline
from chemscale.vae.checkpoint import load_model
from chemscale.vae.corrupt import hide_blocks, hide_random, separation
from chemscale.vae.data import clean
from chemscale.vae.evaluate import CLASSES, class_truth, judged_against, label_of, pearson, precision_recall
from chemscale.vae.flags import PRESETS, PRINTED
from chemscale.vae.inference import infer_arrays

#: Bars by kind: r of [Fe/H], [alpha/Fe], [C/Fe].
BARS = {"halo": (0.92, 0.70, 0.90), "B": (0.92, 0.65, 0.85), "A": (0.985, 0.89, 0.90)}
#: Precision and recall of the paper.
PAPER_FLAGS = {"cemp": (0.96, 0.68), "alpha_poor": (0.84, 0.11)}
#: Other surveys than the catalogue's own: stars wanted, S/N, selection by the survey's labels, missing pixels.
VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "small": {"stars": 10_000},
    "giants": {"stars": 20_000, "logg_below": 3.5, "teff_below": 5500.0},
    "snr30": {"stars": 20_000, "snr": (30.0, 6.0)},
    "snr100": {"stars": 20_000, "snr": (100.0, 20.0)},
    "gaps": {"stars": 20_000, "missing": 0.05},
}


def gaussian(emulator, stars, seed, kind, snr=(50.0, 10.0), logg_below=np.inf, teff_below=np.inf, missing=0.0):
    """Catalogue A or B and its noise-free spectra; `missing`: fraction of pixels flagged, half in blocks of 60."""
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


def make(store: Path, args: argparse.Namespace, seed: int) -> Path | None:
    """Write the survey where it is not there yet; the file of its noise-free spectra, None where the truth has them."""
    if args.kind == "halo":
        if not Path(truth_path(str(store))).exists():
            simulation = Simulation(args.stars, 0, seed, "lowres", "halo", emulator=args.emulator)
            source = SimulatedSource(**simulation.settings())
            ingest(source, str(store), overwrite=True, job=plan_ingest(source))
            write_truth(simulation, truth_path(str(store)), overwrite=True, noise_free=True)
        return None
    noise_free = store.with_suffix(".npy")
    if not noise_free.exists():
        wanted = {"stars": args.stars, "seed": seed, "kind": args.kind} | VARIANTS[args.variant]
        ds, flux = gaussian(Path(args.emulator), **wanted)
        write_survey(ds, store, overwrite=True)
        np.save(noise_free, flux)
    return noise_free


def robustness(run: Path, store: Path) -> dict[str, Any]:
    """Separation of damaged spectra, and r with 5 per cent of the pixels hidden; on 4,000 held-out stars."""
    ds = open_survey(store)
    latents, _, out = pipeline.latents(run)
    rows = np.flatnonzero(out)[:4000]
    flux, weight = clean(*(np.asarray(ds[n].data)[rows] for n in ("flux", "ivar", "flags")), selected=255)
    model, _ = load_model(run / "vae")
    labels, _ = judged_against(ds, str(store), np.asarray(latents["star_id"].values), "", model.config.latents)
    rng = np.random.default_rng(0)
    hidden = {}
    for name, hide in (("none", lambda w, r: w), ("random", hide_random), ("blocks", hide_blocks)):
        z = infer_arrays(model, flux, hide(weight, rng))["mean"]
        known = {k: labels[label_of(k)][rows] for k in model.config.latents}
        hidden[name] = {k: abs(pearson(z[:, j], known[k])) for j, k in enumerate(model.config.latents)}
    return {"anomalies": separation(model, flux, weight), "hidden": hidden}


def one(args: argparse.Namespace, seed: int) -> None:
    """Simulate, train, infer and judge one catalogue."""
    spectra = "emulator" if args.emulator else "lines"
    survey = f"{args.kind}-{spectra}-{seed}{args.variant}"
    name = f"{survey}{args.tag}"
    done = args.work / f"{name}.json"
    if done.exists():
        return
    store, run = args.work / f"{survey}.zarr", args.work / f"run-{name}"
    noise_free = make(store, args, seed)
    clock = args.work / f"{name}.clock"  # processor seconds of earlier, stopped attempts
    before, start = float(clock.read_text()) if clock.exists() else 0.0, time.process_time()

    def watch(entry: dict[str, Any]) -> None:
        clock.write_text(str(before + time.process_time() - start))
        if entry["epoch"] % 20 == 19:
            print({k: round(v, 4) if isinstance(v, float) else v for k, v in entry.items()}, flush=True)

    if not (run / "vae" / "model.json").exists():
        pipeline.train(
            str(store),
            run,
            preset=args.preset,
            settings={"seed": seed, **json.loads(args.settings)},
            model=json.loads(args.model),
            regions=args.regions or None,
            resume=True,
            on_epoch=watch,
        )
        clock.write_text(str(before + time.process_time() - start))
    pipeline.infer(str(store), run, overwrite=True)
    result = pipeline.evaluate(run, store=str(store), truth=noise_free)
    if args.robustness:
        result |= robustness(run, store)
    result["train"] = Run.open(run).manifest["stages"]["vae.train"]
    result["cpu_s"] = float(clock.read_text())
    result["cores"] = len(os.sched_getaffinity(0))
    result["kind"], result["spectra"], result["seed"], result["variant"] = (
        args.kind,
        spectra,
        seed,
        args.variant + args.tag,
    )
    result["commit"] = commit()
    write_json(done, result)
    shown = {k: v for k, v in result.items() if k.startswith(("r_", "r2_", "rmse_")) and isinstance(v, float)}
    print(name, {k: round(v, 3) for k, v in shown.items()}, flush=True)
    print(json.dumps(result["flags"]), result["alignment"]["warnings"], flush=True)


def cuts(work: Path, survey: str) -> None:
    """Print precision and recall of plain cuts over all stars of a survey, as printed and at the class's definition.

    On the true abundances, as if they were the latents; on the latents of its runs; on the truth blurred by normal
    errors until it correlates with itself as each latent does; and on latents of which one is replaced by the truth.
    """
    store = work / f"{survey}.zarr"
    ds = open_survey(store)
    judged, _ = judged_against(ds, str(store), np.asarray(ds["star_id"].values))
    runs = [r for r in sorted(work.glob(f"run-{survey}*")) if (r / pipeline.PRODUCT).exists()]
    names = sorted({latent for rule in PRINTED.values() for latent in rule})
    truth = {k: judged[label_of(k)] for k in names}
    rows = {"true abundances": truth}
    for run in runs:
        latents, rng = pipeline.latents(run)[0], np.random.default_rng(0)
        columns = {str(k): latents["mean"].values[:, i] for i, k in enumerate(latents["latent"].values)}
        rows[run.name] = found = {k: columns[k] * np.sign(pearson(columns[k], truth[k])) for k in names}
        blurred = rows[f"true abundances, blurred to r of {run.name}"] = {}
        for k in names:
            error = np.nanstd(truth[k]) * np.sqrt(1 / pearson(found[k], truth[k]) ** 2 - 1)
            blurred[k] = truth[k] + error * rng.standard_normal(len(truth[k]))
        rows |= {f"{run.name}, but true {k}": found | {k: truth[k]} for k in names}
    for name, values in rows.items():
        qualities = []
        for kind, cut in CLASSES.items():
            member = class_truth(judged, cut)
            for rule in (PRINTED[kind], PRESETS[kind]["sigma"]):
                beyond = np.ones(len(member), bool)
                for latent, (side, position) in rule.items():
                    x = values[latent]
                    at = (x - np.nanmean(x)) / np.nanstd(x)
                    beyond &= at < position if side == "<" else at > position
                quality = precision_recall(beyond, member)
                qualities.append(f"{quality['precision']:.2f} / {quality['recall']:.2f}")
        print(f"| {survey} | {name} | {' | '.join(qualities)} |", flush=True)


def commit() -> str:
    """Short hash of the checked-out commit."""
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def _row(found: list[dict[str, Any]]) -> dict[str, str]:
    """Mean and scatter of some seeds in words."""

    def spread(values: list[float], digits: int = 3) -> str:
        text = f"{np.nanmean(values):.{digits}f}"
        return text if len(values) == 1 else f"{text} +- {np.nanstd(values, ddof=1):.{digits}f}"

    def quality(name: str) -> str:
        rows = [f["flags"].get(name) for f in found]
        if any(r is None for r in rows):
            return "-"
        return " / ".join(spread([r[k] for r in rows], 2) for k in ("precision", "recall"))

    first = found[0]
    row = {
        "catalogue": f"{first['kind']}{' ' + first['variant'] if first['variant'] else ''}, {first['spectra']}",
        "stars": f"{first['n_stars']:,}",
        "seeds": " ".join(str(f["seed"]) for f in found),
    }
    for key, title in (("fe_h", "r [Fe/H]"), ("alpha_fe", "r [alpha/Fe]"), ("c_fe", "r [C/Fe]")):
        row[title] = spread([f[f"r_{key}"] for f in found])
    row["R2 Teff"] = spread([f["r2_teff"] for f in found])
    row["R2 log g"] = spread([f["r2_logg"] for f in found])
    row["relative L2"] = spread([f["relative_l2"] for f in found], 4)
    row["CEMP, plain"], row["alpha-poor, plain"] = quality("cemp_sigma"), quality("alpha_poor_sigma")
    row["CEMP, as printed"], row["alpha-poor, as printed"] = quality("cemp_printed"), quality("alpha_poor_printed")
    row["CEMP, learned"], row["alpha-poor, learned"] = quality("cemp"), quality("alpha_poor")
    row["guard"] = f"{sum(bool(f['alignment']['warnings']) for f in found)} of {len(found)} warn"
    row["training, CPU min"] = spread([f["cpu_s"] / 60 for f in found], 1)
    row["commit"] = " ".join(dict.fromkeys(f["commit"] for f in found))
    return row


def table(work: Path) -> str:
    """Everything found in a folder as a Markdown table: one row a catalogue, mean and scatter of its seeds."""
    found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for file in sorted(work.glob("*-*.json")):
        result = json.loads(file.read_text())
        if "kind" in result:
            found.setdefault((result["kind"], result["spectra"], result["variant"]), []).append(result)
    rows = [_row(v) for v in found.values()]
    if not rows:
        return "no results\n"
    heads = list(rows[0])
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    lines += ["| " + " | ".join(r[h] for h in heads) + " |" for r in rows]
    bars = "; ".join(f"{k} {' / '.join(f'{x:g}' for x in v)}" for k, v in BARS.items())
    flags = "; ".join(f"{k} {p:g} / {r:g}" for k, (p, r) in PAPER_FLAGS.items())
    return "\n".join(lines) + f"\n\nBars for r: {bars}; R2 0.02; plain flags (precision / recall): {flags}.\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--emulator", help="emulator file; without one the built-in lines")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--kind", default="halo", choices=list(BARS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[])
    parser.add_argument("--stars", type=int, default=40_000)
    parser.add_argument("--variant", default="", choices=list(VARIANTS), help="another survey, of kinds A and B")
    parser.add_argument("--preset", default="default")
    parser.add_argument("--settings", default="{}", help="JSON overrides of the training settings")
    parser.add_argument("--model", default="{}", help="JSON overrides of the model settings")
    parser.add_argument("--regions", default="")
    parser.add_argument("--tag", default="", help="added to the names of runs and results")
    parser.add_argument("--robustness", action="store_true", help="also damaged spectra and hidden pixels")
    parser.add_argument("--cuts", action="store_true", help="only the plain cuts, on true abundances and kept latents")
    parser.add_argument("--table", type=Path, help="write the table of all results in the work folder")
    args = parser.parse_args()
    if args.kind != "halo" and args.seeds and not args.emulator:
        parser.error("catalogues A and B need --emulator")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    args.work.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        if args.cuts:
            cuts(args.work, f"{args.kind}-{'emulator' if args.emulator else 'lines'}-{seed}{args.variant}")
        else:
            one(args, seed)
    if args.table:
        text = table(args.work)
        args.table.write_text(text)
        print(text)


if __name__ == "__main__":
    main()
