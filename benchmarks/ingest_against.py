"""Ingestion side by side with another chemscale: the same files, the command lines in turn.

    python benchmarks/ingest_against.py RELEASE_DIR --other PATH/TO/chemscale [--repeats 5] [--out FILE.json]

RELEASE_DIR holds aspcapStar files and an allStar file (``chemscale simulate --stars 6000 --as-release DIR``). Each
command ingests all of them in one process (``--workers 0``), without and with ``--allstar``; wall and CPU seconds and
the largest resident memory of the process are those the system counts. On a busy machine CPU seconds hold.
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def timed(command: list[str]) -> dict[str, float]:
    """Wall and CPU seconds and peak memory (MB) of a command."""
    begun = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"failed: {' '.join(command)}")
    return {
        "wall": time.perf_counter() - begun,
        "cpu": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss / 1024,
    }


def main() -> None:
    """Run and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("release")
    parser.add_argument("--other", required=True, help="the other chemscale executable")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", help="write the result here as well")
    args = parser.parse_args()
    ours = str(Path(sys.executable).parent / "chemscale")
    (allstar,) = glob.glob(str(Path(args.release) / "allStar*.fits"))
    scratch = Path(tempfile.mkdtemp(prefix="chemscale-bench-", dir=Path(args.release).parent))
    found: dict[str, list[dict[str, float]]] = {}
    try:
        for turn in range(args.repeats + 1):  # the first fills the page cache and the caches of Numba
            for name, executable in (("this", ours), ("other", args.other)):
                for kind, more in (("files", []), ("allstar", ["--allstar", allstar])):
                    out = ["--out", str(scratch / "s.zarr"), "--overwrite", "--workers", "0"]
                    took = timed([executable, "ingest", "apogee", "--spectra", args.release, *more, *out])
                    if turn:
                        found.setdefault(f"{kind}, {name}", []).append(took)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    result: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), "load_average": round(os.getloadavg()[0], 1)}
    result["runs"] = {k: [{n: round(x, 2) for n, x in r.items()} for r in v] for k, v in found.items()}
    for unit in ("wall", "cpu", "peak_mb"):
        medians = {k: statistics.median(r[unit] for r in v) for k, v in found.items()}
        result[unit] = {k: round(v, 2) for k, v in medians.items()}
        for kind in ("files", "allstar"):
            result[unit][f"{kind}, this / other"] = round(medians[f"{kind}, this"] / medians[f"{kind}, other"], 3)
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        Path(args.out).write_text(text + "\n")


if __name__ == "__main__":
    main()
