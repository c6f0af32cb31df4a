"""The paper's recipe and `--metric auto` on emulator surveys, generated, fitted and evaluated by the commands.

    python benchmarks/rsca_emulator.py --emulator hband_emulator.npz --seeds 101 102 103 104 105 --work DIR

Each survey has 12,000 field giants and 22 clusters with 185 members. ``without`` holds `auto` on the same basis with
abundances, or more labels, hidden from it. Writes ``benchmarks/results/rsca_emulator.json`` after every survey.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from blind import HIDDEN, auto_without, command, fit_and_evaluate

RESULTS = Path(__file__).parent / "results" / "rsca_emulator.json"
RATES = ("raw", "scaled", "rsca", "rsca_top", "rsca_without_cross_validation", "auto")


def summary(surveys: list[dict]) -> dict[str, dict[str, float]]:
    """Mean over surveys, scatter between surveys, and standard error of the mean, of every rate."""
    columns = {k: [s[k] for s in surveys] for k in surveys[0] if k in RATES or k.startswith("abundances")}
    common = [c for c in HIDDEN if all(c in s["without"] for s in surveys)]
    columns |= {f"auto_{c}": [s["without"][c]["auto"] for s in surveys] for c in common}
    out = {}
    for name, values in columns.items():
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
        out[name] = {"mean": float(np.mean(values)), "scatter": spread, "error": spread / len(values) ** 0.5}
    return out


def main() -> None:
    """Run the seeds asked for; those already in the results are replaced."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emulator", required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[101, 102, 103, 104, 105])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--choices", nargs="+", choices=list(HIDDEN), default=list(HIDDEN), help="Labels to hide.")
    parser.add_argument("--keep", action="store_true", help="Keep the stores.")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    known = json.loads(args.out.read_text())["surveys"] if args.out.exists() else []
    for seed in args.seeds:
        store, run = str(args.work / f"e{seed}.zarr"), str(args.work / f"r{seed}")
        size = ("--stars", "12000", "--clusters", "22", "--seed", str(seed))
        if not Path(store).exists():  # kept by an earlier call; its run is continued
            command("chemscale", "simulate", *size, "--emulator", args.emulator, "--out", store)
        record = {"seed": seed, **fit_and_evaluate(store, run), "without": auto_without(run, args.choices)}
        known = sorted([s for s in known if s["seed"] != seed] + [record], key=lambda s: s["seed"])
        print(json.dumps(record), flush=True)
        if not args.keep:
            shutil.rmtree(store)
        complete = [s for s in known if "without" in s]
        args.out.write_text(
            json.dumps(
                {
                    "command": "python benchmarks/rsca_emulator.py --emulator hband_emulator.npz --work DIR",
                    "seeds_not_used_in_development": True,
                    "surveys": known,
                    "summary": summary(complete),
                },
                indent=1,
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
