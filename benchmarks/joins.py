"""How fast a label catalogue is joined to the stars of a survey, and in how much memory.

    python benchmarks/joins.py [--stars 1000000] [--rows 10000000] [--by id position] [--out FILE.json]

A catalogue of ROWS rows (FITS: a 64-bit identifier, ra, dec, teff, logg) is written, of which every STARS/ROWS-th row
is a star of the survey; each join runs in a process of its own. The bar is 60 s and 2 GiB on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np


def write_catalogue(path: Path, rows: int) -> None:
    """A made-up catalogue, written block by block."""
    from astropy.io import fits

    dtype = np.dtype([("source_id", ">i8"), ("ra", ">f8"), ("dec", ">f8"), ("teff", ">f4"), ("logg", ">f4")])
    columns = [fits.Column(n, f) for n, f in zip(dtype.names or (), ("K", "D", "D", "E", "E"))]
    header = fits.BinTableHDU.from_columns(columns, nrows=0).header
    header["NAXIS2"] = rows
    with path.open("wb") as stream:
        stream.write(fits.PrimaryHDU().header.tostring().encode())
        stream.write(header.tostring().encode())
        for start in range(0, rows, 1_000_000):
            block = np.zeros(min(1_000_000, rows - start), dtype)
            at = np.arange(start, start + len(block))
            block["source_id"] = 4_000_000_000_000_000_000 + 37 * at
            block["ra"], block["dec"] = sky(at, rows)
            block["teff"], block["logg"] = 4000 + at % 2000, 2 + at % 3
            stream.write(block.tobytes())
        stream.write(b"\0" * (-stream.tell() % 2880))


def sky(at: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions spread evenly over the sphere, degrees."""
    golden = (1 + 5**0.5) / 2
    return (360 * at / golden) % 360, np.degrees(np.arcsin(1 - 2 * (at + 0.5) / rows))


def join(path: str, stars: int, rows: int, by: str) -> dict[str, Any]:
    """One join, in this process."""
    from chemscale.catalogues.labels import join_labels
    from chemscale.catalogues.star_keys import StarKeys

    at = np.arange(stars) * (rows // stars)
    names = [str(4_000_000_000_000_000_000 + 37 * i) for i in at.tolist()]
    keys = StarKeys({"source_id": lambda: names}, position=lambda: sky(at, rows))
    before = resource.getrusage(resource.RUSAGE_SELF)
    begun = time.perf_counter()
    found = join_labels(path, keys, stars, key="coordinates" if by == "position" else None, radius=1.0)
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF)
    return {
        "matched": int(found.found.sum()),
        "right": bool(np.array_equal(found.columns["teff"], (4000 + at % 2000).astype("f4"))),
        "wall_s": round(wall, 1),
        "cpu_s": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "peak_gib": round(after.ru_maxrss / 2**20, 2),
    }


def main() -> None:
    """Run and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stars", type=int, default=1_000_000)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--by", nargs="+", default=["id", "position"], choices=("id", "position"))
    parser.add_argument("--out", help="write the result here as well")
    parser.add_argument("--in-this-process", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.in_this_process:
        print(json.dumps(join(args.in_this_process, args.stars, args.rows, args.by[0])))
        return
    result: dict[str, Any] = {"stars": args.stars, "rows": args.rows, "cores": len(os.sched_getaffinity(0))}
    with tempfile.TemporaryDirectory(prefix="chemscale-bench-") as folder:
        path = Path(folder) / "catalogue.fits"
        write_catalogue(path, args.rows)
        for by in args.by:
            command = [sys.executable, __file__, "--in-this-process", str(path), "--by", by]
            command += ["--stars", str(args.stars), "--rows", str(args.rows)]
            result[by] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        result["load_average"] = round(os.getloadavg()[0], 1)
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        Path(args.out).write_text(text + "\n")


if __name__ == "__main__":
    main()
