"""The paper's recipe and `--metric auto` on surveys of many kinds, through the commands a user types.

Each survey is an NPZ file of :mod:`worlds` (12,000 field giants, 15 to 25 clusters), ingested, fitted and evaluated by
the commands; ``without`` holds `auto` on the same basis with abundances, or more labels, hidden from it:

    python benchmarks/metric_worlds.py --emulator hband_emulator.npz --worlds isochrone independent --work DIR

Writes ``benchmarks/results/metric_worlds.json``: one record a survey.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from blind import HIDDEN, auto_without, command, fit_and_evaluate
from worlds import TRUTH, WORLDS, make

RESULTS = Path(__file__).parent / "results" / "metric_worlds.json"


def window_quality(windows: list[dict], bands: np.ndarray) -> dict[str, Any]:
    """How well found windows match the bands that were put in.

    A band counts as found where a window holds its centre; a window is true where it overlaps a band's centre +- 3
    sigma, wider by what velocities smear (12 pixels). `covered`: share of all bands' equivalent width inside windows.
    """
    spans = [w["pixels"] for w in windows]
    real = [b for b in bands if b[1] > 0]
    hit = [any(a <= c < b for a, b in spans) for c, _, _ in real]
    true = [any(a < c + 3 * s + 12 and b > c - 3 * s - 12 for c, _, s in real) for a, b in spans]
    x = np.arange(8575)
    inside = np.zeros(len(x), bool)
    for a, b in spans:
        inside[a:b] = True
    width = sum(d * np.exp(-0.5 * ((x - c) / np.hypot(s, 10)) ** 2) for c, d, s in real) if real else np.zeros(len(x))
    return {
        "bands": len(real),
        "found": int(sum(hit)),
        "depths_missed": [float(b[1]) for b, h in zip(real, hit, strict=True) if not h],
        "windows": len(spans),
        "true_windows": int(sum(true)),
        "covered": float(width[inside].sum() / width.sum()) if real else None,
        "masked_pixels": int(inside.sum()),
    }


def main() -> None:
    """Run the surveys asked for and add them to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emulator", required=True)
    parser.add_argument("--worlds", nargs="+", choices=sorted(WORLDS), default=sorted(WORLDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--stars", type=int, default=12_000, help="Field stars.")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--mask", action="store_true", help="Mask interstellar windows before the fit.")
    parser.add_argument("--brief", action="store_true", help="Rates alone: no windows or nuisances; the run goes.")
    parser.add_argument("--without", nargs="*", choices=sorted(HIDDEN), default=[], help="Brief: labels hidden too.")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    for world, seed in [(w, s) for w in args.worlds for s in args.seeds]:
        table, store, run = (str(args.work / f"{world}-{seed}{end}") for end in (".npz", ".zarr", ""))
        arrays = make(WORLDS[world], seed, args.emulator, args.stars)
        bands, _ = (arrays.pop(name) for name in TRUTH)
        np.savez(table, **arrays)
        del arrays
        command("chemscale", "ingest", "table", table, "--out", store)
        Path(table).unlink()
        if args.brief:
            record = {"world": world, "seed": seed, "stars": args.stars, **fit_and_evaluate(store, run)}
            record["without"] = auto_without(run, args.without)
            shutil.rmtree(store)
            shutil.rmtree(run)
            remember(args.out, record)
            continue
        dry = () if args.mask else ("--dry-run",)
        found = json.loads(command("chemscale", "mask", store, "--find", "extinction", *dry, "--json"))
        record = {
            "world": world,
            "seed": seed,
            "stars": args.stars,
            "masked": args.mask,
            **fit_and_evaluate(store, run),
        }
        record |= {"without": auto_without(run, HIDDEN), "interstellar": window_quality(found["windows"], bands)}
        for covariate in ("radial_velocity", "extinction"):
            words = ("rsca", "nuisance", "--run", run, "--covariate", covariate, "--json")
            record[f"nuisance_{covariate}"] = json.loads(command("chemscale", *words))
        shutil.rmtree(store)
        remember(args.out, record)


def remember(path: Path, record: dict[str, Any]) -> None:
    """Add a record to the results, in the place of an earlier one of the same survey."""

    def key(r: dict[str, Any]) -> tuple[Any, ...]:
        return r["world"], r["seed"], r.get("masked", False), r.get("stars", 12_000)

    known = json.loads(path.read_text()) if path.exists() else []
    path.write_text(json.dumps([k for k in known if key(k) != key(record)] + [record], indent=1) + "\n")
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
