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
import os
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


class Clock:
    """Wall seconds, and CPU seconds of this process and the workers: the latter hold on a busy machine too."""

    def __init__(self, client: Any):
        self.client = client

    def now(self) -> tuple[float, float]:
        used = self.client.run(time.process_time)
        return time.perf_counter(), sum(used.values()) + time.process_time()

    def __enter__(self) -> Clock:
        self.begun = self.now()
        return self

    def __exit__(self, *error: object) -> None:
        ended = self.now()
        self.wall, self.cpu = ended[0] - self.begun[0], ended[1] - self.begun[1]


def timed_map(client: Any, func: Any, paths: list[Any], pieces: int) -> Clock:
    """Time `func` over `paths`, cut as the shards of a store are."""
    cuts = [paths[a:b] for a, b in itertools.pairwise(np.linspace(0, len(paths), pieces + 1).astype(int))]
    with Clock(client) as clock:
        client.gather([client.submit(func, c, pure=False) for c in cuts])
    return clock


def compare_readers(paths: list[str]) -> dict[str, float]:
    """Files a CPU second with each reader, one process, one thread."""
    readers: dict[str, Any] = {
        "bytes only": read_only,
        "chemscale, pixels": parse_pixels,
        "chemscale, pixels and labels": parse_files,
        "astropy, lazy, memmap": lambda p: with_astropy(p, lazy=True, memmap=True),
        "astropy, lazy": lambda p: with_astropy(p, lazy=True),
        "astropy, not lazy": with_astropy,
    }
    try:
        import fitsio  # noqa: F401

        readers["fitsio"] = with_fitsio
    except ImportError:
        pass
    rates = {}
    for name, reader in readers.items():
        reader(paths[:20])
        begun = time.process_time()
        reader(paths)
        rates[name] = round(len(paths) / (time.process_time() - begun), 1)
    begun = time.perf_counter()
    parse_files(paths)
    alone = time.perf_counter() - begun
    with ThreadPoolExecutor(2) as pool:
        begun = time.perf_counter()
        list(pool.map(parse_files, [paths[::2], paths[1::2]]))
        rates["speed-up of 2 threads over 1 (wall)"] = round(alone / (time.perf_counter() - begun), 2)
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
    result["load_average"] = os.getloadavg()[0]
    result["machine"] = {"python": platform.python_version(), "platform": platform.platform()}
    items = ApogeeSource(args.release).plan().items
    few = paths[:: max(1, len(paths) // 400)]
    wall: dict[str, list[float]] = {"read": [], "parse": [], "astropy": [], "ingest": []}
    cpu: dict[str, list[float]] = {name: [] for name in wall}

    def note(name: str, clock: Clock, scale: float = 1.0) -> None:
        wall[name].append(clock.wall * scale)
        cpu[name].append(clock.cpu * scale)
        print(f"{name}: {clock.wall * scale:.1f} s wall, {clock.cpu * scale:.1f} s CPU", file=sys.stderr, flush=True)

    try:
        with connect("local", workers=args.workers, threads=1) as client:
            timed_map(client, read_only, paths, pieces)  # warms the page cache for all arms
            for _ in range(args.repeats):
                note("read", timed_map(client, read_source, items, pieces))
                note("parse", timed_map(client, parse_files, paths, pieces))
                note("astropy", timed_map(client, with_astropy, few, 2), len(paths) / len(few))
                with Clock(client) as clock:
                    summary = ingest(ApogeeSource(args.release), scratch / "s.zarr", client=client, progress=False)
                note("ingest", clock)
                shutil.rmtree(scratch / "s.zarr")
            result["stars"], result["bytes_written"] = summary.n_stars, summary.bytes_written
            result["peak_memory_per_worker"] = max(worker_peaks(client).values())
            if args.readers:
                result["files_per_cpu_second"] = compare_readers(paths[:500])
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    for kind, arms in (("wall", wall), ("cpu", cpu)):
        medians = {k: statistics.median(v) for k, v in arms.items()}
        result[f"{kind}_seconds"] = {k: [round(x, 2) for x in v] for k, v in arms.items()}
        result[f"ingest_rate_over_{kind}"] = {k: medians[k] / medians["ingest"] for k in arms if k != "ingest"}
        result[f"stars_per_{kind}_second"] = {k: len(paths) / v for k, v in medians.items()}
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        Path(args.out).write_text(text + "\n")


if __name__ == "__main__":
    main()
