"""Peak memory and time of `anomalies` and `flags` against the number of stars.

    python benchmarks/blocks.py --stars 400000 1600000 --out benchmarks/results/blocks.json

Latents such as a survey would have (three chemical latents, two auxiliary ones, 50,000 labelled stars), written in
blocks; each command runs in a process of its own, which has imported what the command line imports.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import zarr

from chemscale.bench.scaling import provenance
from chemscale.runtime.jsonio import write_json
from chemscale.vae import pipeline  # noqa: F401  what the command line imports counts
from chemscale.vae.columns import text_type
from chemscale.vae.star_tables import Latents, find_anomalies, find_flags

NAMES = ("metal", "alpha", "carbon")
LABELLED = 50_000
BLOCK = 65_536


def make(path: Path, stars: int) -> None:
    """Latents of `stars` stars, in the layout of inference."""
    shapes = {"mean": (3,), "covariance": (3, 3), "auxiliary": (2,), "chi2": (4,), "relative_l2": (4,)}
    shapes |= {"local": (), "norm": (), "quiet": (), "local_window": (), "star_id": ()}
    group = zarr.create_group(str(path), attributes={"complete": True})
    for name, shape in shapes.items():
        kind = text_type() if name == "star_id" else "i4" if name == "local_window" else "f4"
        dims = ("star", *(f"{name}_{k}" for k in range(len(shape))))
        if name == "chi2":
            dims = ("star", "part")
        group.create_array(name, shape=(stars, *shape), chunks=(8192, *shape), dtype=kind, dimension_names=dims)
    part = group.create_array("part", shape=(4,), dtype=text_type(), dimension_names=("part",))
    part[:] = np.array(["all", *NAMES], dtype=object)
    for start in range(0, stars, BLOCK):
        n = min(BLOCK, stars - start)
        rng = np.random.default_rng([1, start])
        rows = slice(start, start + n)
        group["mean"][rows] = rng.standard_normal((n, 3))
        group["covariance"][rows] = (0.02 + 0.1 * rng.random((n, 3, 1))) * np.eye(3)
        group["auxiliary"][rows] = rng.standard_normal((n, 2))
        chi2 = rng.chisquare(400, (n, 4)) / 400
        group["chi2"][rows], group["relative_l2"][rows] = chi2, 0.01 * np.sqrt(chi2)
        group["local"][rows] = 3 + 0.5 * rng.standard_normal(n)
        group["norm"][rows] = np.sqrt(rng.chisquare(3, n))
        group["quiet"][rows] = 2 + 0.5 * rng.standard_normal(n)
        group["local_window"][rows] = rng.integers(0, 80, n)
        group["star_id"][rows] = np.array([f"2M{start + i:014d}" for i in range(n)], dtype=object)


def labels(path: Path) -> dict[str, dict[str, float]]:
    """Abundances of the first stars, as the latents say and with an error."""
    group = zarr.open_group(str(path), mode="r")
    z, ids = np.asarray(group["mean"][:LABELLED]), group["star_id"][:LABELLED]
    rng = np.random.default_rng(2)
    dex = np.array([-1.2, 0.2, 0.3]) + np.array([0.5, 0.2, 0.4]) * (z + 0.25 * rng.standard_normal(z.shape))
    return {str(i): dict(zip(NAMES, row)) for i, row in zip(ids, dex.tolist())}


def child(command: str, path: Path, stars: int) -> None:
    """One command in this process; prints seconds and peak memory."""
    latents = Latents(str(path), stars, 0.3, 0)
    begun = time.perf_counter()
    if command == "anomalies":
        find_anomalies(latents, path.with_name("anomalies.zarr"))
    elif command == "flags":
        find_flags(latents, path.with_name("flags.zarr"), NAMES, {}, labels=labels(path))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time(), "peak_bytes": peak}))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stars", type=int, nargs="+", default=[400_000])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child[0], Path(args.child[1]), int(args.child[2]))
        return
    rows = []
    for stars in args.stars:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "latents.zarr"
            make(path, stars)
            for command in ("nothing", "anomalies", "flags"):
                told = subprocess.run(
                    [sys.executable, __file__, "--child", command, str(path), str(stars)],
                    check=True,
                    capture_output=True,
                    text=True,
                )
                rows.append({"command": command, "stars": stars} | json.loads(told.stdout.splitlines()[-1]))
                print({k: round(v, 2) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    if args.out:
        write_json(args.out, {"rows": rows} | provenance())


if __name__ == "__main__":
    main()
