"""Time and memory of fitting and embedding against stars, components and pixels.

    python benchmarks/passes.py build STORE --stars 1000000
    python benchmarks/scaling.py STORE --stars 10000 30000 100000 300000 --out benchmarks/results/scaling-fit

Cuts of one store (the first N stars), shared noise, Dask's threads. Each cut is fitted to the same tolerance, embedded,
and set beside one bare read-and-decode pass. Components and pixels vary at `--at` stars. Workers are the matter of
``chemscale bench scaling``.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import dask
import numpy as np
import xarray as xr
from passes import K, Memory, bare_pass

import chemscale
from chemscale.embedding.fit import fit_survey
from chemscale.embedding.product import embed_survey


def one(ds: xr.Dataset, k: int, tol: float, scratch: str) -> dict[str, Any]:
    """One cut: seconds, passes, peak memory."""
    names = ("flux", "ivar", "flags")
    bare, bare_cpu = bare_pass(ds, names)
    with Memory() as memory:
        start, cpu = time.perf_counter(), time.process_time()
        fit = fit_survey(ds, n_components=k, tol=tol)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
        start = time.perf_counter()
        embed_survey(ds, fit, scratch, overwrite=True)
        embed = time.perf_counter() - start
    n = ds.sizes["star"]
    row = {"stars": n, "pixels_used": int(fit.pixel_used_.sum()), "components": k, "passes": fit.n_passes_}
    row |= {"bare_seconds": bare, "fit_seconds": seconds, "fit_cpu_seconds": cpu_seconds, "embed_seconds": embed}
    row |= {"ms_per_star": 1e3 * (seconds + embed) / n, "peak_gib": memory.peak / 2**30, "bare_cpu_seconds": bare_cpu}
    print(json.dumps({name: round(v, 3) if isinstance(v, float) else v for name, v in row.items()}), flush=True)
    return row


def narrowed(ds: xr.Dataset, pixels: int) -> xr.Dataset:
    """The survey with all but `pixels` of its pixels flagged: what a narrower instrument would give to fit."""
    keep = xr.DataArray(np.arange(ds.sizes["wavelength"]) < pixels, dims="wavelength")
    return ds.assign(flags=ds["flags"].where(keep, np.uint8(255)))


def plot(rows: dict[str, list[dict[str, Any]]], path: str) -> None:
    """Three panels: time and memory against stars, time against components, time against pixels."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained")
    for axis, (name, label) in zip(
        axes, (("stars", "stars"), ("components", "components K"), ("pixels_used", "used pixels"))
    ):
        cut = sorted(rows[name], key=lambda r: r[name])
        x = [r[name] for r in cut]
        axis.plot(x, [r["fit_seconds"] for r in cut], "o-", color="#0072B2", label="fit")
        axis.plot(x, [r["embed_seconds"] for r in cut], "s-", color="#E69F00", label="embed all")
        axis.plot(x, [r["bare_seconds"] for r in cut], "^--", color="#555555", label="bare pass")
        axis.set(xscale="log", yscale="log", xlabel=label, ylabel="seconds")
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.xaxis.set_minor_formatter("")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("")
        axis.set_xticks([r[name] for r in cut])
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3, which="both")
    cut = sorted(rows["stars"], key=lambda r: r["stars"])
    twin = axes[0].twinx()
    twin.plot([r["stars"] for r in cut], [r["peak_gib"] for r in cut], "x:", color="#CC79A7", label="peak memory")
    twin.set_ylabel("memory, GiB", color="#CC79A7")
    twin.set_ylim(0, None)
    axes[0].legend(fontsize=7, loc="upper left")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("--stars", type=int, nargs="+", default=[10_000, 30_000, 100_000])
    parser.add_argument("--components", type=int, nargs="+", default=[10, 60])
    parser.add_argument("--pixels", type=int, nargs="+", default=[2000, 4000])
    parser.add_argument("--at", type=int, default=30_000, help="stars where components and pixels vary")
    parser.add_argument("--tol", type=float, default=5e-3)
    parser.add_argument("--embedding", default="embedding-benchmark.zarr", help="scratch product")
    parser.add_argument("--out", default="scaling-fit")
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    dask.config.set(scheduler="threads", num_workers=cores + 1)
    ds = chemscale.open_survey(args.store)
    cut = ds.isel(star=slice(0, args.at))
    fit_survey(ds.isel(star=slice(0, 2000)), n_components=5, tol=0.1)  # imports, file handles
    rows: dict[str, list[dict[str, Any]]] = {"stars": [], "components": [], "pixels_used": []}
    for n in args.stars:
        rows["stars"].append(one(ds.isel(star=slice(0, n)), K, args.tol, args.embedding))
    for k in args.components:
        rows["components"].append(one(cut, k, args.tol, args.embedding))
    for p in args.pixels:
        rows["pixels_used"].append(one(narrowed(cut, p), K, args.tol, args.embedding))
    middle = [r for r in rows["stars"] if r["stars"] == args.at] or [one(cut, K, args.tol, args.embedding)]
    rows["components"] += middle
    rows["pixels_used"] += middle
    facts = {"cores": cores, "threads": cores + 1, "tol": args.tol, "noise": "shared"}
    facts |= {"versions": {m.__name__: m.__version__ for m in (np, dask, xr)}}
    Path(args.out + ".json").write_text(json.dumps(facts | rows, indent=1) + "\n")
    plot(rows, args.out + ".png")


if __name__ == "__main__":
    main()
