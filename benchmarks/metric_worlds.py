"""The paper's recipe and `--metric auto` on surveys of many kinds, through the commands a user types.

Each survey is an NPZ file of :mod:`worlds` (12,000 field giants, 15 to 25 clusters) with labels and abundances,
without abundances, or without any label:

    python benchmarks/metric_worlds.py --emulator hband_emulator.npz --worlds isochrone independent --work DIR

Writes ``benchmarks/results/metric_worlds.json``: one record a survey and choice of labels.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from pathlib import Path

import numpy as np
from worlds import WORLDS, make

RESULTS = Path(__file__).parent / "results" / "metric_worlds.json"
#: Arrays left out of the file for each choice of labels.
WITHOUT = {
    "abundances": (),
    "labels": ("abundance", "element"),
    "none": ("abundance", "element", "teff", "logg", "fe_h", "alpha_m"),
}
KEPT = ("raw", "rsca", "rsca_top", "rsca_without_cross_validation", "auto", "n_field", "n_members", "n_clusters")


def command(*words: str) -> str:
    """Run a command; its stdout."""
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def main() -> None:
    """Run the surveys asked for and add them to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emulator", required=True)
    parser.add_argument("--worlds", nargs="+", choices=sorted(WORLDS), default=sorted(WORLDS))
    parser.add_argument("--labels", nargs="+", choices=sorted(WITHOUT), default=["labels", "none"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    known = json.loads(args.out.read_text()) if args.out.exists() else []
    for world, seed in [(w, s) for w in args.worlds for s in args.seeds]:
        arrays = make(WORLDS[world], seed, args.emulator)
        for labels in args.labels:
            name = f"{world}-{seed}-{labels}"
            table, store, run = (str(args.work / f"{name}{end}") for end in (".npz", ".zarr", ""))
            np.savez(table, **{k: v for k, v in arrays.items() if k not in WITHOUT[labels]})
            command("chemscale", "ingest", "table", table, "--out", store)
            start = time.perf_counter()
            command("chemscale", "rsca", "fit", store, "--run", run, "--components", "30", "--metric", "auto")
            seconds = time.perf_counter() - start
            found = json.loads(command("chemscale", "rsca", "evaluate", "--run", run, "--json"))
            worst = {
                metric: max(abs(v) for c in ("radial_velocity", "extinction") for v in rows.get(c, [0.0]))
                for metric, rows in found["correlations"].items()
            }
            record = {"world": world, "seed": seed, "labels": labels, **{k: found[k] for k in KEPT}}
            known.append({**record, "largest_correlation": worst, "fit_wall_s": seconds})
            args.out.write_text(json.dumps(known, indent=1) + "\n")
            print(known[-1], flush=True)


if __name__ == "__main__":
    main()
