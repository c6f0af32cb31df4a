"""How long it takes to find siblings: one star among N, and every star's k nearest.

python benchmarks/siblings.py --stars 1000000 --features 30 --rows 20000
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from chemscale.rsca.neighbours import SiblingIndex
from chemscale.runtime.jsonio import write_json


def main() -> None:
    """Time the searches and write ``benchmarks/results/siblings.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stars", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=30)
    parser.add_argument("--rows", type=int, default=20_000, help="stars of the all-pairs table that are timed")
    parser.add_argument("--methods", nargs="+", default=["exact"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "siblings.json")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    scale = np.geomspace(12, 0.3, args.features).astype(np.float32)  # as an RSCA metric's features
    x = rng.standard_normal((args.stars, args.features), dtype=np.float32) * scale
    index = SiblingIndex(x, np.arange(args.stars).astype(str))
    index.nearest(0, 20)
    times, wrong = [], 0
    for row in rng.integers(0, args.stars, 20):
        start = time.perf_counter()
        index.nearest(int(row), 20)
        times.append(time.perf_counter() - start)
    for row in rng.integers(0, args.stars, 5):
        d = np.einsum("ij,ij->i", x - x[row], x - x[row], dtype=np.float64)
        d[row] = np.inf
        wrong += len(np.setdiff1d(index.nearest(int(row), 20)[0], np.argpartition(d, 20)[:20]))
    result = {
        "stars": args.stars,
        "features": args.features,
        "one_star_median_ms": 1e3 * float(np.median(times)),
        "one_star_worst_ms": 1e3 * max(times),
        "wrong_of_100": wrong,
    }
    for method in args.methods:
        # the approximate search builds an index first, whose time does not scale with the rows asked: all of them
        n = args.stars if method == "approximate" else args.rows
        start, cpu = time.perf_counter(), time.process_time()
        rows, _ = index.all_nearest(10, method=method, rows=slice(0, n))
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        recall = np.mean([np.isin(rows[r], index.nearest(r, 10)[0]).mean() for r in range(0, n, n // 50)])
        result[method] = {
            "rows": n,
            "seconds": seconds,
            "cpu_seconds": cpu,
            "whole_table_minutes": seconds * args.stars / n / 60,
            "recall": float(recall),
        }
    args.out.parent.mkdir(exist_ok=True)
    write_json(args.out, result)
    print(result)


if __name__ == "__main__":
    main()
