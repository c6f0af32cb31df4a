"""Interstellar windows found by `chemscale mask` against the bands that `chemscale simulate` puts in.

    python benchmarks/interstellar.py STORE [STORE ...] --out benchmarks/results/interstellar.json

A band counts as found where a window holds its centre; a window is right where it overlaps the three sigma of a band
(wider by 2 Angstrom: the gas moves against the star).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from blind import command

from chemscale.simulation.atomic import rows


def main() -> None:
    """Find windows in every store and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", nargs="+")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "interstellar.json")
    args = parser.parse_args()
    bands = [(float(r["wavelength"]), float(r["sigma"])) for r in rows("interstellar.csv") if r["grid"] == "hband"]
    known = []
    for store in args.stores:
        words = ("chemscale", "mask", store, "--find", "extinction", "--dry-run", "--json")
        found = json.loads(command(*words))
        spans = [(w["first"], w["last"]) for w in found["windows"]]
        missed = [c for c, _ in bands if not any(a <= c <= b for a, b in spans)]
        wrong = [s for s in spans if not any(s[0] < c + 3 * w + 2 and s[1] > c - 3 * w - 2 for c, w in bands)]
        known.append(
            {
                "store": Path(store).name,
                "bands": len(bands),
                "missed": missed,
                "windows": [[round(a, 1), round(b, 1)] for a, b in spans],
                "wrong": wrong,
                "share_of_pixels": found["share_of_pixels"],
            }
        )
        print(known[-1], flush=True)
    total, windows = sum(k["bands"] for k in known), sum(len(k["windows"]) for k in known)
    result = {
        "command": "chemscale mask STORE --find extinction --dry-run --json",
        "recall": 1 - sum(len(k["missed"]) for k in known) / total,
        "precision": 1 - sum(len(k["wrong"]) for k in known) / max(windows, 1),
        "stores": known,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
