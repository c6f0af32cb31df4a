"""Real repeats as siblings: LAMOST stars observed twice or more against DR10 and DR1 stars, through the commands.

Rates of raw coordinates, the paper's recipe and `--metric auto`, and their ratio to raw in draws of the groups with
replacement (the groups are what limits a rate). The repeats have no labels:

    python benchmarks/repeats.py --data DATA --work DIR

DATA holds ``lamost_dr10/`` (spectra and labels.csv), ``lamost_dr1/`` and ``lamost_repeats/`` (spectra and groups.csv).
Writes ``benchmarks/results/repeats.json``: one record a number of components.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from blind import command

RESULTS = Path(__file__).parent / "results" / "repeats.json"
METHODS = ("rsca", "rsca_top", "auto")


def store(data: Path, work: Path) -> Path:
    """The survey, ingested once."""
    out = work / "lamost.zarr"
    if not out.exists():
        folders = (data / "lamost_dr10/spectra", data / "lamost_repeats/spectra", data / "lamost_dr1")
        words = ["chemscale", "ingest", "lamost", "--labels", str(data / "lamost_dr10/labels.csv"), "--out", str(out)]
        for folder in folders:
            words += ["--spectra", str(folder)]
        members = str(data / "lamost_repeats/groups.csv")
        command(*words, "--members", members, "--member-key", "file", "--member-column", "group")
    return out


def ratios(evaluation: dict[str, Any], draws: int = 200, seed: int = 0) -> dict[str, Any]:
    """Rates, and each method's ratio to raw: as it is, and mean, 16th and 84th percentile over draws of the groups."""
    table = [row for row in evaluation["per_cluster"].values() if row["raw"] is not None]
    size = np.array([row["n_members"] for row in table], float)
    rates = {m: np.array([row[m] for row in table], float) for m in ("raw", *METHODS)}
    pick = np.random.default_rng(seed).integers(0, len(table), (draws, len(table)))
    total = {m: np.sum((r * size)[pick], axis=1) for m, r in rates.items()}
    out: dict[str, Any] = {m: float(np.average(r, weights=size)) for m, r in rates.items()}
    for m in METHODS:
        drawn = total[m] / total["raw"]
        out[f"{m} / raw"] = {
            "all groups": out[m] / out["raw"],
            "mean of draws": float(drawn.mean()),
            "16 %": float(np.quantile(drawn, 0.16)),
            "84 %": float(np.quantile(drawn, 0.84)),
        }
    largest = sorted(evaluation["per_cluster"].items(), key=lambda item: -(item[1]["auto"] or 0) * item[1]["n_members"])
    out["groups that weigh most"] = {name: {m: row[m] for m in ("raw", "auto")} for name, row in largest[:3]}
    return out


def main() -> None:
    """Fit and rate at each number of components."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--components", type=int, nargs="+", default=[20, 30])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    survey = str(store(args.data, args.work))
    known = json.loads(args.out.read_text()) if args.out.exists() else {}
    for k in args.components:
        run = str(args.work / f"lamost-{k}")
        command("chemscale", "rsca", "fit", survey, "--run", run, "--components", str(k), "--metric", "auto")
        known[str(k)] = ratios(json.loads(command("chemscale", "rsca", "evaluate", "--run", run, "--json")))
        args.out.write_text(json.dumps(known, indent=1) + "\n")
        print(k, json.dumps(known[str(k)], indent=1), flush=True)


if __name__ == "__main__":
    main()
