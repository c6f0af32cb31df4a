"""Time and memory of fitting and embedding a survey, in units of one bare read-and-decode pass.

    python benchmarks/passes.py build STORE --stars 151145
    python benchmarks/passes.py measure STORE --noise shared --out benchmarks/results/passes-shared.json

Any survey store can be measured, such as one of `chemscale simulate --hits 1e-4`.
`build` writes a linear-Gaussian survey: 8,575 pixels of which 7,514 are used, 3 % of them missing at random, 30
components whose variances fall by a factor 1,000 (the last one some 20 times the noise eigenvalue), errors
that vary from star to star and from pixel to pixel. `measure` opens it with Dask's threads (one more than cores), times
one pass that reads and decodes the variables the fit reads and does nothing else, then the fit and
the embedding, samples the memory of this process and its children, and compares the
result with a fit run to a hundred times smaller tolerance.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
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

PIXELS, USED, K = 8575, 7514, 30
BLOCK = 2048
#: Angle of a reference, and the passes it may take.
TIGHT, MOST = 1e-4, 80
#: Fit with another release: only names that both have.
OTHER = """
import json, sys, time, dask, chemscale
dask.config.set(scheduler="threads", num_workers={threads})
ds = chemscale.open_survey({store!r})
from chemscale import MaskedPPCA
flux, gone, ivar = ds["flux"].data, ds["flags"].data != 0, ds["ivar"].data
MaskedPPCA(5, max_iter=2).fit(flux[:2000], gone[:2000], ivar[:2000])
start, cpu = time.perf_counter(), time.process_time()
fit = MaskedPPCA(n_components={k}, random_state=0, tol={tol}).fit(flux, gone, ivar)
seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
told = {{"seconds": seconds, "cpu": cpu, "passes": fit.n_passes_, "version": chemscale.__version__}}
if {embedding!r}:
    try:
        from chemscale.embedding.product import embed_survey
    except ImportError:  # the first release
        from chemscale.statistics.embedding import embed_survey
    start, cpu = time.perf_counter(), time.process_time()
    embed_survey(ds, fit, {embedding!r}, overwrite=True)
    told["embed_seconds"], told["embed_cpu"] = time.perf_counter() - start, time.process_time() - cpu
print(json.dumps(told))
"""


def axes(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Smooth-ish orthonormal axes (K, USED) and standard deviations (K,) of the truth."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((USED, K)))[0].T
    return basis.astype("f4"), np.geomspace(2.0, 0.063, K).astype("f4")


def used_pixels() -> np.ndarray:
    """Three detectors' worth of used pixels."""
    used = np.ones(PIXELS, bool)
    for start, stop in ((0, 200), (3000, 3350), (6000, 6300), (PIXELS - 211, PIXELS)):
        used[start:stop] = False
    assert used.sum() == USED, used.sum()
    return used


def spectra(start: int, stop: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """flux, ivar, flags of the stars of one block."""
    basis, scale = axes(seed)
    rng = np.random.default_rng([seed, start])
    n = stop - start
    used = used_pixels()
    flux = np.zeros((n, PIXELS), "f4")
    ivar = np.zeros((n, PIXELS), "f4")
    flags = np.full((n, PIXELS), int(Flag.GAP), "u1")
    shape = 1 + 0.5 * np.abs(np.sin(np.arange(USED) / 300.0)).astype("f4")
    sigma = np.exp(rng.normal(np.log(0.008), 0.4, (n, 1))).astype("f4") * shape
    values = 1 + (rng.standard_normal((n, K), dtype="f4") * scale) @ basis
    values += sigma * rng.standard_normal((n, USED), dtype="f4")
    missing = rng.random((n, USED), dtype="f4") < 0.03
    flux[:, used], ivar[:, used] = values, 1 / sigma**2
    flags[:, used] = missing * np.uint8(Flag.SURVEY_BAD)
    return flux, ivar, flags


def build(path: str, stars: int) -> None:
    """Write the survey."""
    from chemscale.survey.ingest.datasets import write_survey

    rows = tuple(min(BLOCK, stars - s) for s in range(0, stars, BLOCK))
    starts = np.concatenate([[0], np.cumsum(rows)])
    one = dask.delayed(spectra, nout=3)
    parts = [one(int(a), int(b)) for a, b in itertools.pairwise(starts)]
    data = {}
    for i, (name, dtype) in enumerate((("flux", "f4"), ("ivar", "f4"), ("flags", "u1"))):
        pieces = [da.from_delayed(p[i], (r, PIXELS), dtype) for p, r in zip(parts, rows)]
        data[name] = (("star", "wavelength"), da.concatenate(pieces), variable_attrs(name))
    ids = np.array([f"T{i:07d}" for i in range(stars)], dtype=object)
    data["star_id"] = (VARIABLES["star_id"].dims, ids, variable_attrs("star_id"))
    wavelength = (
        "wavelength",
        10 ** (4.179 + 6e-6 * np.arange(PIXELS)),
        variable_attrs("wavelength") | {"medium": "vacuum"},
    )
    ds = xr.Dataset(data, {"wavelength": wavelength}, {"survey": "toy", "normalisation": "continuum-normalised"})
    start = time.perf_counter()
    write_survey(ds, path, overwrite=True)
    print(f"{stars} stars written in {time.perf_counter() - start:.0f} s")


class Memory:
    """Largest resident memory of this process and its children, sampled every 50 ms."""

    def __enter__(self) -> Memory:
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(0.05):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.peak = max(self.peak, total)

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()


def bare_pass(ds: xr.Dataset, names: tuple[str, ...]) -> tuple[float, float]:
    """Wall and CPU seconds to read and decode `names`, block by block, keeping nothing."""
    from chemscale.statistics import blocks

    arrays = [ds[n].data for n in names]
    start, cpu = time.perf_counter(), time.process_time()
    dask.compute(
        blocks.tree(
            blocks.map_blocks(lambda *a: sum(b.shape[0] for b in a), arrays, arrays[0].chunks[0]), lambda *p: sum(p)
        )
    )
    return time.perf_counter() - start, time.process_time() - cpu


def other_release(
    python: str, store: str, threads: int, tol: float | None, embedding: str | None = None
) -> dict[str, Any]:
    """Seconds, processor seconds and passes of a shared-noise fit by the release that `python` imports.

    With a path for it, those of the embedding, too.
    """
    code = OTHER.format(threads=threads, store=store, k=K, tol=tol, embedding=embedding)
    run = subprocess.run((python, "-P", "-c", code), check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(run.stdout.splitlines()[-1]))


def largest_angle(a: np.ndarray, b: np.ndarray) -> float:
    """Largest principal angle between two sets of orthonormal rows."""
    a, b = np.nan_to_num(a), np.nan_to_num(b)
    return float(np.arcsin(min(1.0, np.linalg.norm(b - (b @ a.T) @ a, 2))))


def measure(args: argparse.Namespace) -> dict:
    """Bare pass, fit, embedding; with the exact solution if asked for."""
    import chemscale
    from chemscale.embedding.fit import fit_survey
    from chemscale.embedding.product import embed_survey

    cores = len(os.sched_getaffinity(0))
    threads = args.threads or cores + 1
    dask.config.set(scheduler="threads", num_workers=threads)
    ds = chemscale.open_survey(args.store)
    if args.stars:
        ds = ds.isel(star=slice(0, args.stars))
    names = ("flux", "ivar", "flags")
    fit_survey(ds.isel(star=slice(0, 2000)), n_components=5, tol=0.1)  # imports, file handles
    out: dict = {
        "stars": ds.sizes["star"],
        "pixels": ds.sizes["wavelength"],
        "noise": args.noise,
        "cores": cores,
        "threads": threads,
    }
    settings = {"noise": args.noise, "tol": args.tol, "outlier_sigmas": args.outlier_sigmas, "start": args.start}
    bare = [bare_pass(ds, names)]
    with Memory() as memory:
        start, cpu = time.perf_counter(), time.process_time()
        fit = fit_survey(ds, n_components=K, **settings, keep_bytes=args.keep_bytes)
        out["fit_seconds"] = time.perf_counter() - start
        out["fit_cpu_seconds"] = time.process_time() - cpu
    out["fit_peak_gib"] = memory.peak / 2**30
    bare.append(bare_pass(ds, names))
    if args.base:
        other = other_release(args.base, args.store, threads, args.tol, f"{args.embedding}-other")
        out |= {"other": other, "faster": other["seconds"] / out["fit_seconds"]}
        out["faster_cpu"] = other["cpu"] / out["fit_cpu_seconds"]
    with Memory() as memory:
        start, cpu = time.perf_counter(), time.process_time()
        embed_survey(ds, fit, args.embedding, overwrite=True)
        out["embed_seconds"] = time.perf_counter() - start
        out["embed_cpu_seconds"] = time.process_time() - cpu
    out["embed_peak_gib"] = memory.peak / 2**30
    if args.base:
        out["embed_faster"] = other["embed_seconds"] / out["embed_seconds"]
        out["embed_faster_cpu"] = other["embed_cpu"] / out["embed_cpu_seconds"]
    bare.append(bare_pass(ds, names))
    out["bare_pass_seconds"], out["bare_pass_cpu_seconds"] = ([b[i] for b in bare] for i in (0, 1))
    typical, typical_cpu = float(np.median(out["bare_pass_seconds"])), float(np.median(out["bare_pass_cpu_seconds"]))
    out |= {
        "fit_over_bare": out["fit_seconds"] / typical,
        "embed_over_bare": out["embed_seconds"] / typical,
        "fit_over_bare_cpu": out["fit_cpu_seconds"] / typical_cpu,
        "embed_over_bare_cpu": out["embed_cpu_seconds"] / typical_cpu,
        "passes": fit.n_passes_,
        "converged": fit.converged_,
        "stopping_reason": fit.stopping_reason_,
        "determined": fit.n_determined_,
        "outliers": int(fit.outlier_count_.sum()),
        "estimated_angle": fit.angle_,
        "tol": args.tol,
        "keep_bytes": args.keep_bytes,
        "cpu": platform.processor() or platform.machine(),
        "versions": {m.__name__: m.__version__ for m in (np, dask, xr)},
    }
    if args.model:
        fit.to_dataset().to_zarr(args.model, mode="w")
    if args.exact:
        start = time.perf_counter()
        exact = fit_survey(
            ds, n_components=K, **settings | {"tol": args.tol / 100}, loglike_tol=1e-15, max_iter=args.exact
        )
        out["exact_seconds"] = time.perf_counter() - start
        out["exact_passes"], out["exact_estimated_angle"] = exact.n_passes_, exact.angle_[-1]
        d = min(fit.n_determined_, exact.n_determined_)
        out["angle_to_exact"] = largest_angle(fit.components_, exact.components_[:d])
    return out


def speed(store: str, settings: dict[str, Any], *, base: str | None = None, reference: bool = False) -> dict[str, Any]:
    """Fit of all stars, from disk, against bare passes, a tight reference and another release (`base`, its Python).

    Processor time beside wall time: other work on the machine disturbs it less.
    """
    import chemscale
    from chemscale.embedding.fit import fit_survey

    threads = len(os.sched_getaffinity(0)) + 1
    dask.config.set(scheduler="threads", num_workers=threads)
    ds = chemscale.open_survey(store)
    names = ("flux", "ivar", "flags")
    fit_survey(ds.isel(star=slice(0, 2000)), n_components=5, **settings | {"tol": 0.1})  # imports, file handles
    bare, fits, laps, found, others = [], [], [], None, []
    for turn in range(2):
        bare.append(bare_pass(ds, names))
        ended: list[float] = []
        start, cpu = time.perf_counter(), time.process_time()
        found = fit_survey(ds, n_components=K, progress=lambda *_: ended.append(time.process_time()), **settings)
        fits.append((time.perf_counter() - start, time.process_time() - cpu))
        laps += np.diff(ended).tolist()
        bare.append(bare_pass(ds, names))
        if base and turn == 0:
            others.append(other_release(base, store, threads, None))
    assert found is not None
    wall, work = (float(np.mean([f[i] for f in fits])) for i in range(2))
    bare_wall, bare_work = (float(np.median([b[i] for b in bare])) for i in range(2))
    out = {
        "stars": int(ds.sizes["star"]),
        "bare_seconds": [round(b[0], 2) for b in bare],
        "bare_cpu_seconds": [round(b[1], 2) for b in bare],
        "fit_seconds": [round(f[0], 1) for f in fits],
        "fit_cpu_seconds": [round(f[1], 1) for f in fits],
        "fit_over_bare": wall / bare_wall,
        "fit_over_bare_cpu": work / bare_work,
        "pass_over_bare_cpu": float(np.median(laps)) / bare_work,
        "passes": found.n_passes_,
        "estimated_angle": [round(a, 5) if np.isfinite(a) else None for a in found.angle_],
        "verdict": found.verdict,
    }
    if others:
        out |= {"other": others[0], "faster": others[0]["seconds"] / wall, "faster_cpu": others[0]["cpu"] / work}
    if reference:
        tight = settings | {"tol": TIGHT, "max_iter": MOST, "random_state": 1, "loglike_tol": 1e-15}
        exact = fit_survey(ds, n_components=K, **tight)
        d = min(found.n_determined_, exact.n_determined_)
        out |= {
            "reference": exact.verdict,
            "angle_to_reference": largest_angle(found.components_, exact.components_[:d]),
            "statistical_error": float(exact.axis_error_[d - 1]),
        }
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("build")
    one.add_argument("store")
    one.add_argument("--stars", type=int, default=151_145)
    two = commands.add_parser("measure")
    two.add_argument("store")
    two.add_argument("--stars", type=int, default=0, help="only the first N stars")
    two.add_argument("--noise", choices=["shared", "per-pixel"], default="shared")
    two.add_argument("--outlier-sigmas", type=float, help="leave outliers out, 6 = as the recommended recipe does")
    two.add_argument("--start", choices=["subsample", "incremental"], default="subsample")
    two.add_argument("--threads", type=int, help="Dask threads; default one more than cores, so that reading overlaps")
    two.add_argument("--tol", type=float, default=5e-3)
    two.add_argument("--keep-bytes", type=int, default=2 * 2**30)
    two.add_argument("--embedding", default="embedding-benchmark.zarr")
    two.add_argument("--model", help="store the fitted model here")
    two.add_argument(
        "--exact", type=int, default=0, metavar="PASSES", help="compare with a fit of up to PASSES more passes"
    )
    two.add_argument("--base", metavar="PYTHON", help="fit all stars with another release, too (shared noise)")
    two.add_argument("--out")
    args = parser.parse_args()
    if args.command == "build":
        build(args.store, args.stars)
        return
    result = measure(args)
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        Path(args.out).write_text(text + "\n")


if __name__ == "__main__":
    main()
