"""The VAE on real LAMOST F and G stars, and how well any low-rank model could do on them.

    python benchmarks/vae_lamost.py --spectra DIR --labels labels.csv --work DIR [--repeats DIR --groups groups.csv]

The limit is a masked PPCA fitted to the same training stars and judged on the same held-out ones, twice: on the pixels
it was given (many components follow the noise) and on a random tenth of the pixels hidden from it. Repeated spectra of
one star have the same chemistry: their latents must differ by their stated errors (`groups.csv` has file and group).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from chemscale import MaskedPPCA
from chemscale.survey.store.open import open_survey
from chemscale.vae import pipeline
from chemscale.vae.data import clean, held_out
from chemscale.vae.evaluate import pearson
from chemscale.vae.product import open_latents


def relative_l2(guess: np.ndarray, flux: np.ndarray, where: np.ndarray) -> np.ndarray:
    """||x - x_hat|| / ||x|| of each star over the pixels `where`; NaN without any."""
    with np.errstate(invalid="ignore"):
        return np.sqrt((where * (guess - flux) ** 2).sum(1) / (where * flux**2).sum(1))


def low_rank(flux: np.ndarray, seen: np.ndarray, out: np.ndarray, snr: np.ndarray, ranks: list[int]) -> list[dict]:
    """Errors of masked PPCA of each rank on held-out stars, by the S/N they have at least."""
    hidden = np.random.default_rng(0).random(flux.shape) < 0.1
    rows = []
    for rank in ranks:
        model = MaskedPPCA(rank, noise="shared", tol=0.05, max_iter=10, random_state=0).fit(flux[~out], ~seen[~out])
        given = model.mean_ + model.transform(flux[out], ~seen[out]) @ model.components_
        blind = model.mean_ + model.transform(flux[out], ~(seen & ~hidden)[out]) @ model.components_
        errors = relative_l2(given, flux[out], seen[out]), relative_l2(blind, flux[out], (seen & hidden)[out])
        for least in (0, 20, 100):
            use = snr[out] > least
            rows.append(
                {"rank": rank, "snr_above": least, "given": np.nanmean(errors[0][use])}
                | {"hidden": np.nanmean(errors[1][use])}
            )
    return rows


def scatter_of_repeats(run: Path, spectra: Path, groups: Path, store: Path, continuum: str) -> list[dict]:
    """Differences of latents between spectra of one star, in units of their stated errors, by least S/N."""
    if not store.exists():
        command = ["ingest", "lamost", "--spectra", str(spectra), "--continuum", continuum, "--out", str(store)]
        subprocess.run([str(Path(sys.executable).with_name("chemscale")), *command], check=True)
    ds = open_survey(store)
    pipeline.infer(str(store), run, overwrite=True, product="repeats.zarr")
    found = open_latents(run / "repeats.zarr")
    mean = found["mean"].values
    variance = np.diagonal(found["covariance"].values, axis1=1, axis2=2)
    teff = found["label"].values[:, [str(n) for n in found["label_name"].values].index("teff")]
    group = {row["file"]: row["group"] for row in csv.DictReader(groups.open())}
    star = np.array([group[Path(str(f)).name] for f in ds["source_file"].values])
    snr = ds["snr"].values
    rows = []
    for least in (0, 20, 50):
        pairs = [
            (i, j)
            for i in range(len(star))
            for j in range(i)
            if star[i] == star[j]
            and min(snr[i], snr[j]) > least
            and np.isfinite(mean[[i, j]]).all()
            and 5200 < teff[[i, j]].mean() < 7200  # like the stars trained on
        ]
        one, two = np.array(pairs).reshape(-1, 2).T
        pull = (mean[one] - mean[two]) / np.sqrt(variance[one] + variance[two])
        row = {"snr_above": least, "pairs": len(pairs)}
        for k, name in enumerate(str(n) for n in found["latent"].values):
            # the width of two thirds, and with the outliers
            row |= {f"{name}_width": float(np.median(np.abs(pull[:, k])) / 0.6745)}
            row |= {f"{name}_rms": float(np.sqrt(np.mean(pull[:, k] ** 2)))}
        rows.append(row)
    return rows


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spectra", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--continuum", default="running-quantile")
    parser.add_argument("--ranks", type=int, nargs="*", default=[3, 5, 10, 20, 32, 64])
    parser.add_argument("--snr", type=float, default=0.0, help="train and judge on stars above this S/N only")
    parser.add_argument("--settings", default="{}")
    parser.add_argument("--model", default="{}")
    parser.add_argument("--regions", default="", help="region set, or a JSON file; default by the grid")
    parser.add_argument("--repeats", type=Path, help="spectra of stars observed more than once")
    parser.add_argument("--groups", type=Path, help="CSV of those: file, group")
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    args.work.mkdir(parents=True, exist_ok=True)
    folder, store = args.work / f"spectra-{args.snr:g}", args.work / f"lamost-{args.continuum}-{args.snr:g}.zarr"
    if not store.exists():
        folder.mkdir(parents=True, exist_ok=True)
        for row in csv.DictReader(args.labels.open()):
            link = folder / row["file"]
            if row["subclass"][0] in "FG" and float(row["snrg"]) > args.snr and not link.exists():
                link.symlink_to((args.spectra / row["file"]).resolve())
        command = ["ingest", "lamost", "--spectra", str(folder), "--labels", str(args.labels)]
        subprocess.run(
            [
                str(Path(sys.executable).with_name("chemscale")),
                *command,
                "--continuum",
                args.continuum,
                "--out",
                str(store),
            ],
            check=True,
        )
    ds = open_survey(store)
    out = held_out(ds["star_id"].values.astype(str), 0.3, 0)
    flux, weight = clean(*(ds[n].values for n in ("flux", "ivar", "flags")), selected=255)
    snr = ds["snr"].values
    result = {"stars": len(out), "held_out": int(out.sum())}
    if args.ranks:
        result["low_rank"] = low_rank(flux, weight > 0, out, snr, args.ranks)
        print(json.dumps(result["low_rank"], indent=1), flush=True)
    run = args.work / f"run-{args.continuum}-{args.snr:g}"
    summary = pipeline.train(
        str(store),
        run,
        model=json.loads(args.model),
        settings=json.loads(args.settings),
        regions=args.regions or None,
        overwrite=True,
    )
    result["error_factors"] = summary["error_factors"]
    pipeline.infer(str(store), run, overwrite=True)
    result["evaluation"] = pipeline.evaluate(run)
    found, _, _ = pipeline.latents(run)
    z, error = found["mean"].values[:, 0], found["relative_l2"].values[:, 0]
    noise = found["noise_l2"].values[:, 0]
    result["by_snr"] = [
        {
            "snr_above": least,
            "stars": int((out & (snr > least)).sum()),
            "relative_l2_observed": float(np.nanmean(error[out & (snr > least)])),
            "noise_l2": float(np.nanmean(noise[out & (snr > least)])),
            "r_fe_h": abs(pearson(z[out & (snr > least)], ds["fe_h"].values[out & (snr > least)])),
        }
        for least in (0, 20, 100)
    ]
    print(json.dumps(result["by_snr"], indent=1))
    if args.repeats:
        repeats = args.work / f"repeats-{args.continuum}.zarr"
        result["repeats"] = scatter_of_repeats(run, args.repeats, args.groups, repeats, args.continuum)
        print(json.dumps({"error_factors": result["error_factors"], "repeats": result["repeats"]}, indent=1))
    name = f"lamost-{args.continuum}-{args.snr:g}.json"
    (args.work / name).write_text(json.dumps(result, indent=1, default=float))


if __name__ == "__main__":
    main()
