"""How fast files become a store, against merely reading and parsing them with the same processes.

    python benchmarks/ingest.py RELEASE_DIR [--workers 2] [--readers] [--out FILE.json]

RELEASE_DIR holds aspcapStar files (``chemscale simulate --stars 20000 --as-release DIR``).
Both arms run on one Dask cluster, in turn, on the same (cached) files:

read    every file's bytes read and parsed into arrays and labels by the source (`ApogeeSource.read`)
parse   the FITS part of that alone: flux, error and label table of every file, nothing kept
astropy the same with astropy, without lazy loading or memory maps (on fewer files, scaled)
ingest  the whole of ``chemscale.ingest``: planning, reading, censoring, writing, verifying, finalising
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import shutil
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np


def parse_files(paths: list[str]) -> int:
    """Read and parse: flux, error, labels. The lower bound of any ingestion."""
    from chemscale.schema import APOGEE_ELEMENTS
    from chemscale.survey.sources.apogee_labels import file_labels
    from chemscale.survey.sources.fits import read_bytes, scan

    pixels = 0
    for path in paths:
        units = scan(read_bytes(path))
        flux, error = units[1].image(), units[2].image()
        file_labels(units, APOGEE_ELEMENTS)
        pixels += flux.size + error.size
    return pixels


def parse_pixels(paths: list[str]) -> int:
    """Read and parse the two spectra only."""
    from chemscale.survey.sources.fits import read_bytes, scan

    return sum(u[1].image().size + u[2].image().size for u in (scan(read_bytes(p)) for p in paths))


def read_source(items: list[Any]) -> int:
    """Read and parse with the source: arrays and labels of every star, in the blocks ingestion asks for."""
    from chemscale.schema import APOGEE_ELEMENTS
    from chemscale.survey.reading import READ_STARS
    from chemscale.survey.sources.apogee import ApogeeSource, wavelength_grid

    source, grid, n = ApogeeSource("."), wavelength_grid(), 0
    for i in range(0, len(items), READ_STARS):
        n += len(source.read(items[i : i + READ_STARS], grid, APOGEE_ELEMENTS).star_id)
    return n


def read_only(paths: list[str]) -> int:
    """Bytes only."""
    return sum(len(Path(p).read_bytes()) for p in paths)


def with_astropy(paths: list[str], lazy: bool = False, memmap: bool = False) -> int:
    """The same with astropy."""
    from astropy.io import fits

    pixels = 0
    for path in paths:
        with fits.open(path, lazy_load_hdus=lazy, memmap=memmap) as hdus:
            pixels += np.asarray(hdus[1].data, "f4").size + np.asarray(hdus[2].data, "f4").size
            hdus[4].data["FPARAM"]
    return pixels


def with_fitsio(paths: list[str]) -> int:
    """The same with fitsio."""
    import fitsio

    pixels = 0
    for path in paths:
        with fitsio.FITS(path) as hdus:
            pixels += hdus[1].read().size + hdus[2].read().size
            hdus[4].read(columns=["FPARAM"])
    return pixels


def timed_map(client: Any, func: Any, paths: list[Any], pieces: int) -> float:
    """Seconds to run `func` over `paths`, cut as the shards of a store are."""
    cuts = [paths[a:b] for a, b in itertools.pairwise(np.linspace(0, len(paths), pieces + 1).astype(int))]
    begun = time.perf_counter()
    client.gather([client.submit(func, c, pure=False) for c in cuts])
    return time.perf_counter() - begun


def compare_readers(paths: list[str], client: Any) -> dict[str, float]:
    """Files a second with each reader, in one process, in threads, in the cluster's processes."""
    readers: dict[str, Any] = {
        "bytes only": read_only,
        "chemscale, pixels": parse_pixels,
        "chemscale, pixels and labels": parse_files,
        "astropy, lazy": lambda p: with_astropy(p, lazy=True),
        "astropy, memmap": lambda p: with_astropy(p, lazy=True, memmap=True),
        "astropy, not lazy": with_astropy,
    }
    try:
        import fitsio  # noqa: F401

        readers["fitsio"] = with_fitsio
    except ImportError:
        pass
    rates = {}
    for name, reader in readers.items():
        reader(paths[:50])
        begun = time.perf_counter()
        reader(paths)
        rates[name] = len(paths) / (time.perf_counter() - begun)
    for name in ("chemscale, pixels and labels", "astropy, not lazy"):
        with ThreadPoolExecutor(2) as pool:
            begun = time.perf_counter()
            list(pool.map(readers[name], [paths[::2], paths[1::2]]))
            rates[f"{name}, 2 threads"] = len(paths) / (time.perf_counter() - begun)
        timed_map(client, readers[name], paths[:100], 2)
        rates[f"{name}, 2 processes"] = len(paths) / timed_map(client, readers[name], paths, 2)
    return rates


def main() -> None:
    """Run and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("release")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--readers", action="store_true", help="also compare FITS readers on 500 files")
    parser.add_argument("--out", help="write the result here as well")
    args = parser.parse_args()

    from chemscale import ingest
    from chemscale.runtime.cluster import connect
    from chemscale.runtime.observe import worker_peaks
    from chemscale.survey.layout import choose_layout
    from chemscale.survey.sources.apogee import ApogeeSource

    paths = sorted(str(p) for p in Path(args.release).rglob("aspcapStar*.fits"))
    pieces = choose_layout(len(paths), 8575).n_shards(len(paths))
    scratch = Path(tempfile.mkdtemp(prefix="chemscale-bench-", dir=Path(args.release).parent))
    result: dict[str, Any] = {"files": len(paths), "workers": args.workers, "shards": pieces}
    result["bytes"] = sum(Path(p).stat().st_size for p in paths)
    result["machine"] = {"python": platform.python_version(), "platform": platform.platform()}
    arms: dict[str, list[float]] = {"read": [], "parse": [], "astropy": [], "ingest": []}
    items = ApogeeSource(args.release).plan().items
    few = paths[:: max(1, len(paths) // 500)]
    try:
        with connect("local", workers=args.workers, threads=1) as client:
            timed_map(client, read_only, paths, pieces)  # warms the page cache for both arms
            for _ in range(args.repeats):
                arms["parse"].append(timed_map(client, parse_files, paths, pieces))
                arms["read"].append(timed_map(client, read_source, items, pieces))
                arms["astropy"].append(timed_map(client, with_astropy, few, 2) * len(paths) / len(few))
                begun = time.perf_counter()
                summary = ingest(ApogeeSource(args.release), scratch / "s.zarr", client=client, progress=False)
                arms["ingest"].append(time.perf_counter() - begun)
                shutil.rmtree(scratch / "s.zarr")
                print(json.dumps({k: round(v[-1], 2) for k, v in arms.items()}), file=sys.stderr)
            result["stars"], result["bytes_written"] = summary.n_stars, summary.bytes_written
            result["peak_memory_per_worker"] = max(worker_peaks(client).values())
            if args.readers:
                result["files_per_second"] = compare_readers(paths[:500], client)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    result["seconds"] = arms
    medians = {k: statistics.median(v) for k, v in arms.items()}
    result["stars_per_second"] = {k: len(paths) / v for k, v in medians.items()}
    result["ingest_rate_over"] = {k: medians[k] / medians["ingest"] for k in ("read", "parse", "astropy")}
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        Path(args.out).write_text(text + "\n")


if __name__ == "__main__":
    main()
