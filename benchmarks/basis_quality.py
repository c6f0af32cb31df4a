"""Every figure the basis is held to, one command each; results gather in one file.

    python benchmarks/basis_quality.py speed STORE --recipe recommended --base PYTHON
    python benchmarks/basis_quality.py angles STORE --recipe shared --seeds 0 2
    python benchmarks/basis_quality.py survey --emulator hband_emulator.npz --seeds 301 302 303 304 305 --work DIR
    python benchmarks/basis_quality.py restarts STORE --starts 10
    python benchmarks/basis_quality.py doubled STORE
    python benchmarks/basis_quality.py saturated STORE
    python benchmarks/basis_quality.py components RUN...
    python benchmarks/basis_quality.py errors STORE
    python benchmarks/basis_quality.py lamost DATA --work DIR --base PYTHON
    python benchmarks/basis_quality.py table

``speed``: fits in units of one bare read-and-decode pass of the same run, the angle of the determined components to a
reference run to 1e-4 rad, and (``--base``: the Python of an environment that has another release) that release's fit of
the same store between two of ours. ``angles``: fits from several starts against tight ones from the same start, and
these against each other (shared noise with hits has more than one maximum). ``survey``: simulated surveys with
unflagged hits, fitted and rated by the commands. ``restarts``: scatter of the rate over seeds. ``doubled``: the rate
with K components against the first K of 2K. ``saturated``: one pixel of every tenth star at ten times the continuum.
``components``: rates of runs by every metric, against the number of components, and what choosing it on the other
clusters gives.
``errors``: statistical errors of the axes against how far halves of the survey turn them. ``lamost``: real repeats as
siblings, K = 20 and 30.

Rates are doppelganger rates, leave-one-cluster-out, with the paper's cuts on pairs. Results are written to
``benchmarks/results/basis_quality.json`` after every figure, with the command and the commit; `table` prints them.
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

import dask
import dask.array as da
import numpy as np
import xarray as xr
from basis_surveys import alone, components, lamost, survey
from passes import MOST, TIGHT, K, largest_angle, speed

from chemscale.schema import Flag

RESULTS = Path(__file__).parent / "results" / "basis_quality.json"


def recipe(name: str) -> dict[str, Any]:
    """Settings of a fit: the recommended recipe's, or its own with shared noise and every pixel."""
    from chemscale.rsca.recipes import RECIPES

    settings = RECIPES["recommended"].settings()
    return settings if name == "recommended" else settings | {"noise": "shared", "outlier_sigmas": None}


def opened(store: str) -> tuple[xr.Dataset, Any]:
    """A survey and the stars its default cuts keep."""
    import chemscale
    from chemscale.rsca.selection import default_settings, select_stars

    dask.config.set(scheduler="threads", num_workers=len(os.sched_getaffinity(0)) + 1)
    ds = chemscale.open_survey(store)
    return ds, select_stars(ds, default_settings(ds))


def fit_speed(args: argparse.Namespace) -> dict[str, Any]:
    """A recipe's fit against bare passes, a tight reference and another release (:func:`passes.speed`)."""
    return speed(args.store, recipe(args.recipe), base=args.base, reference=args.reference)


def angles(args: argparse.Namespace) -> dict[str, Any]:
    """Angles of the determined components: of fits to tight ones of the same start, and between these."""
    from chemscale.embedding.fit import fit_survey

    ds, _ = opened(args.store)
    settings, rows, tight = recipe(args.recipe), [], []
    for seed in args.seeds:
        start = time.process_time()
        found = fit_survey(ds, n_components=K, random_state=seed, **settings)
        cpu = time.process_time() - start
        more = settings | {"tol": TIGHT, "max_iter": MOST, "loglike_tol": 1e-15}
        tight.append(fit_survey(ds, n_components=K, random_state=seed, **more))
        d = min(found.n_determined_, tight[-1].n_determined_)
        rows.append(
            {
                "seed": seed,
                "passes": found.n_passes_,
                "cpu_s": round(cpu, 1),
                "verdict": found.verdict,
                "reference": tight[-1].verdict,
                "angle": largest_angle(found.components_, tight[-1].components_[:d]),
                "loglike_below_reference": max(tight[-1].loglike_) - found.loglike_[-1],
                "statistical_error": float(tight[-1].axis_error_[d - 1]),
            }
        )
        print(rows[-1], flush=True)
    d = min(t.n_determined_ for t in tight)
    first = tight[0]
    between = [largest_angle(first.components_, t.components_[:d]) for t in tight[1:]]
    loglikes = [max(t.loglike_) for t in tight]
    return {"starts_compared": rows, "angle_between_references": between, "reference_loglike": loglikes}


class Rated:
    """Stars of a survey in play, and the rate of any coordinates of theirs."""

    def __init__(self, ds: xr.Dataset, chosen: Any):
        from chemscale.rsca.stars import pair_covariates

        self.keep, self.chosen = chosen.keep, chosen
        rows = np.flatnonzero(chosen.keep)
        self.is_field = chosen.field[rows]
        labels = {n: np.asarray(ds[n].values[rows], float) for n in ("extinction", "radial_velocity") if n in ds}
        self.clusters = np.asarray(chosen.cluster)[rows][~self.is_field]
        self.covariates = pair_covariates(labels.get, self.is_field, ~self.is_field)

    def rates(self, coords: np.ndarray, *, k: int | None = None) -> dict[str, float]:
        """Raw, all features and the three most scaled."""
        from chemscale.rsca.doppelganger import Evaluation

        x = np.asarray(coords, float)[:, :k]
        engine = Evaluation(x[self.is_field], x[~self.is_field], self.clusters, self.covariates)
        return {
            "raw": engine.rates("raw").overall,
            "all": engine.rates("rsca").overall,
            "top3": engine.rates("rsca", n_features=3).overall,
        }


def fitted(ds: xr.Dataset, keep: np.ndarray, k: int = K, **changes: Any) -> tuple[Any, np.ndarray]:
    """The recommended fit of a survey's stars, and their coordinates."""
    from chemscale.embedding.fit import fit_survey

    model = fit_survey(ds, keep, n_components=k, **recipe("recommended") | changes)
    coords = model.transform(ds[["flux", "ivar", "flags"]].isel(star=np.flatnonzero(keep)))
    return model, np.asarray(coords.values)


def restarts(args: argparse.Namespace) -> dict[str, Any]:
    """Scatter of the rate over starts."""
    ds, chosen = opened(args.store)
    rated, rows, angles, first = Rated(ds, chosen), [], [], None
    for seed in range(1, args.starts + 1):
        model, coords = fitted(ds, chosen.keep, random_state=seed)
        rows.append(rated.rates(coords) | {"on_one_star": alone(coords), "passes": model.n_passes_})
        first = model if first is None else first
        d = min(first.n_determined_, model.n_determined_)
        angles.append(largest_angle(first.components_, model.components_[:d]))
        print(rows[-1], angles[-1], flush=True)
    spread = {n: float(np.std([r[n] for r in rows], ddof=1)) for n in ("raw", "all", "top3")}
    return {"starts": rows, "scatter": spread, "angle_to_first": angles, "determined": model.n_determined_}


def doubled(args: argparse.Namespace) -> dict[str, Any]:
    """The rate with K components, and with the first K (and others) of a fit of 2K."""
    ds, chosen = opened(args.store)
    rated, out = Rated(ds, chosen), {}
    for k in (K, 2 * K):
        model, coords = fitted(ds, chosen.keep, k)
        out[f"K = {k}"] = rated.rates(coords, k=K) | {"verdict": model.verdict}
    out["first of 2K"] = {str(k): rated.rates(coords, k=k)["all"] for k in range(10, 2 * K + 1, 10)}
    difference = {n: out[f"K = {2 * K}"][n] - out[f"K = {K}"][n] for n in ("raw", "all", "top3")}
    return out | {"difference": difference}


def saturated(args: argparse.Namespace) -> dict[str, Any]:
    """A pixel of every tenth star at ten times the continuum: what it does to rate and determined components.

    The same with these pixels flagged (`flagged`) is what no fit can do without: their information is gone.
    """
    ds, chosen = opened(args.store)
    rated = Rated(ds, chosen)
    before, coords = fitted(ds, chosen.keep)
    flux = np.array(ds["flux"].values)
    rng = np.random.default_rng(0)
    stars = rng.choice(len(flux), len(flux) // 10, replace=False)
    used = np.flatnonzero(before.pixel_used_)
    pixels = rng.choice(used, len(stars))
    flux[stars, pixels] = 10.0
    flags = np.array(ds["flags"].values)
    hit = int(np.count_nonzero((flags[stars, pixels] == 0) & chosen.keep[stars]))
    flags[stars, pixels] |= int(Flag.SURVEY_BAD)
    out: dict[str, Any] = {"pixels": hit, "before": rated.rates(coords)}
    found = [int(before.outlier_count_.sum())]
    for name, values in (("flux", flux), ("flags", flags)):
        lazy = da.from_array(values, chunks=ds[name].data.chunks)
        after, moved = fitted(ds.assign({name: (ds[name].dims, lazy, ds[name].attrs)}), chosen.keep)
        d = min(before.n_determined_, after.n_determined_)
        found.append(int(after.outlier_count_.sum()))
        out["after" if name == "flux" else "flagged"] = {
            **rated.rates(moved),
            "on_one_star": alone(moved),
            "angle": largest_angle(before.components_, after.components_[:d]),
        }
    return out | {"outliers": found, "statistical_error": float(before.axis_error_[before.n_determined_ - 1])}


def errors(args: argparse.Namespace) -> dict[str, Any]:
    """Stated errors of the axes of two halves against the angle between their subspaces (sqrt(2) of the error of one).

    Both halves are fitted to a tenth of the recommended angle, so that what is left is the sampling.
    """
    from chemscale.embedding.fit import fit_survey

    ds, chosen = opened(args.store)
    rows = np.flatnonzero(chosen.keep)
    first = np.zeros(len(chosen.keep), bool)
    first[np.random.default_rng(args.seed).choice(rows, len(rows) // 2, replace=False)] = True
    settings = recipe(args.recipe) | {"tol": 1e-3, "max_iter": MOST}
    one, two = (fit_survey(ds, s, n_components=K, **settings) for s in (first, chosen.keep & ~first))
    stated = np.hypot(one.axis_error_, two.axis_error_)
    angle = [subspace_angle(one.components_, two.components_, d) for d in range(1, K + 1)]
    return {
        "determined": [one.n_determined_, two.n_determined_],
        "stated": np.round(stated, 4).tolist(),
        "angle": np.round(angle, 4).tolist(),
        "verdicts": [one.verdict, two.verdict],
    }


def subspace_angle(a: np.ndarray, b: np.ndarray, d: int) -> float:
    """Largest angle (radian) between the first `d` rows of either."""
    s = np.linalg.svd(np.nan_to_num(a[:d]) @ np.nan_to_num(b[:d]).T, compute_uv=False)
    return float(np.arccos(min(1.0, s[-1])))


def commit() -> str:
    """Short name of the commit, with a plus where files differ from it."""
    here = Path(__file__).parent
    name = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=here, capture_output=True, text=True)
    return name.stdout.strip()


def record(out: Path, key: str, words: list[str], result: dict[str, Any]) -> None:
    """Add or replace one figure in the file of results."""
    known = json.loads(out.read_text()) if out.exists() else {}
    cores = len(os.sched_getaffinity(0))
    line = "python benchmarks/basis_quality.py " + " ".join(Path(w).name if "/" in w else w for w in words)
    known[key] = {"command": line, "commit": commit(), "cores": cores, **result}
    out.write_text(json.dumps(known, indent=1) + "\n")
    print(key, json.dumps(result), flush=True)


def table(path: Path) -> str:
    """What there is, as Markdown."""
    lines = ["| figure | value | cores | commit |", "| --- | --- | --- | --- |"]
    for key, r in sorted(json.loads(path.read_text()).items()):
        facts = {k: v for k, v in r.items() if k not in ("command", "commit", "cores", "starts", "wall_s")}
        short = "; ".join(f"{k} {_shown(v)}" for k, v in facts.items())
        lines.append(f"| {key} | {short} | {r['cores']} | {r['commit']} |")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{k} {_shown(v)}" for k, v in value.items())
    if isinstance(value, list):
        return " ".join(_shown(v) for v in value)
    return str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    commands = parser.add_subparsers(dest="what", required=True)
    for name in ("speed", "angles", "restarts", "doubled", "saturated", "errors"):
        one = commands.add_parser(name)
        one.add_argument("store")
        if name in ("speed", "angles", "errors"):
            one.add_argument("--recipe", choices=["shared", "recommended"], default="recommended")
        if name == "speed":
            one.add_argument("--base", metavar="PYTHON", help="Python of an environment with another release.")
            one.add_argument("--reference", action="store_true", help="Compare with a fit to 1e-4 rad.")
        if name == "angles":
            one.add_argument("--seeds", type=int, nargs="+", default=[0, 2])
        if name == "restarts":
            one.add_argument("--starts", type=int, default=10)
        if name == "errors":
            one.add_argument("--seed", type=int, default=0)
    many = commands.add_parser("survey")
    many.add_argument("--emulator")
    many.add_argument("--seeds", type=int, nargs="+", default=[301, 302, 303, 304, 305])
    many.add_argument("--stars", type=int, default=12_000)
    many.add_argument("--hits", type=float, default=1e-4)
    many.add_argument("--keep", action="store_true", help="Keep the stores.")
    many.add_argument("--options", nargs="*", default=[], help="More words for `rsca fit`, e.g. components=auto.")
    many.add_argument("--work", type=Path, required=True)
    real = commands.add_parser("lamost")
    real.add_argument("data", type=Path)
    real.add_argument("--work", type=Path, required=True)
    real.add_argument("--base", metavar="PYTHON")
    runs = commands.add_parser("components")
    runs.add_argument("runs", nargs="+")
    commands.add_parser("table")
    args = parser.parse_args()
    words = sys.argv[sys.argv.index(args.what) :]

    def keep(key: str, result: dict[str, Any]) -> None:
        record(args.out, key, words, result)

    if args.what == "table":
        print(table(args.out))
    elif args.what == "survey":
        args.options = [w for o in args.options for w in (f"--{o.split('=')[0]}", *o.split("=")[1:])]
        survey(args, keep)
    elif args.what == "components":
        components(args, keep)
    elif args.what == "lamost":
        lamost(args, keep)
    else:
        label = f" {args.recipe}" if args.what in ("speed", "angles", "errors") else ""
        result = {
            "speed": fit_speed,
            "angles": angles,
            "restarts": restarts,
            "doubled": doubled,
            "saturated": saturated,
            "errors": errors,
        }
        keep(f"{args.what}{label} {Path(args.store).name}", result[args.what](args))


if __name__ == "__main__":
    main()
