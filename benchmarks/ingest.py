"""How fast files become a store, against merely reading and parsing them with the same processes.

    python benchmarks/ingest.py RELEASE_DIR [--workers 2] [--cold] [--out FILE.json]

RELEASE_DIR holds aspcapStar files (``chemscale simulate --stars 20000 --as-release DIR``).
All arms run in turn on one Dask cluster, on the same files, cut as the shards are:

bytes    every file read, nothing parsed
arrays   the chosen reader (chemscale's own, `survey/sources/fits.py`), called as a user would for every file: flux and
         error as native arrays, and the row of labels with all its values; nothing kept
ahead    the same, while the files to come are announced to the system as ingestion does
source   `ApogeeSource.read`: the same in blocks, plus inverse variance, flags and labels as columns
fitsio   flux, error and the row of labels with fitsio (where it is installed; on fewer files, scaled)
astropy  the same with astropy, without lazy loading or memory maps (on fewer files, scaled)
ingest   the whole of ``chemscale.ingest``: planning, reading, censoring, counting, compressing, writing,
         reading back, finalising

``--cold`` drops the files from the page cache before every arm (as root also the inodes and directories of
everything): a release of terabytes is never in it.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def read_only(paths: list[str]) -> int:
    """Bytes only."""
    return sum(len(Path(p).read_bytes()) for p in paths)


def parse_files(paths: list[str]) -> int:
    """Flux, error and label row of every file with chemscale's reader."""
    from chemscale.formats.fits import read_bytes, scan

    values = 0
    for path in paths:
        units = scan(read_bytes(path))
        values += units[1].image().size + units[2].image().size + len(units[4].table()[0].item())
    return values


def parse_ahead(paths: list[str]) -> int:
    """As :func:`parse_files`, with the next two blocks of files on their way from the disk."""
    from chemscale.survey.ingest.reading import READ_STARS, will_read

    values = 0
    will_read(paths[:READ_STARS])
    for i in range(0, len(paths), READ_STARS):
        will_read(paths[i + READ_STARS : i + 2 * READ_STARS])
        values += parse_files(paths[i : i + READ_STARS])
    return values


def read_source(items: list[Any]) -> int:
    """Read and parse with the source: arrays and labels of every star, in the blocks ingestion asks for."""
    from chemscale.schema import APOGEE_ELEMENTS
    from chemscale.survey.ingest.reading import READ_STARS
    from chemscale.survey.sources.apogee import ApogeeSource, wavelength_grid

    source, grid, n = ApogeeSource("."), wavelength_grid(), 0
    for i in range(0, len(items), READ_STARS):
        n += len(source.read(items[i : i + READ_STARS], grid, APOGEE_ELEMENTS).star_id)
    return n


def with_astropy(paths: list[str]) -> int:
    """The same three HDUs with astropy."""
    from astropy.io import fits

    values = 0
    for path in paths:
        with fits.open(path, lazy_load_hdus=False, memmap=False) as hdus:
            values += np.asarray(hdus[1].data, "f4").size + np.asarray(hdus[2].data, "f4").size
            values += len(np.asarray(hdus[4].data)[0].item())
    return values


def with_fitsio(paths: list[str]) -> int:
    """The same three HDUs with fitsio."""
    import fitsio

    values = 0
    for path in paths:
        with fitsio.FITS(path) as hdus:
            values += hdus[1].read().size + hdus[2].read().size + len(hdus[4].read()[0].item())
    return values


def forget(paths: list[str]) -> None:
    """Drop files from the page cache (written out first); as root also inodes and directories."""
    os.sync()
    with contextlib.suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("2")
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


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
        client.gather([client.submit(_with_memory, func, c, pure=False) for c in cuts])
    return clock


def _with_memory(func: Any, piece: list[Any]) -> Any:
    """As ingestion works: every arm keeps the buffers it frees."""
    from chemscale.runtime.memory import keep_freed_memory

    with keep_freed_memory():
        return func(piece)


def codec_rate(path: Path) -> dict[str, float]:
    """Bytes a second one core compresses and decompresses, on the first chunk of the store just written."""
    import zarr
    from numcodecs import blosc

    rates = {}
    blosc.use_threads = False
    for name, shuffle in (("flux", 1), ("ivar", 1), ("flags", 0)):
        array: Any = zarr.open_array(path / name, mode="r")
        values = np.ascontiguousarray(array[: array.chunks[0]])
        packed = blosc.compress(values, b"lz4", 1, shuffle, 1 << 16)
        for what, work in (
            ("compress", lambda v=values, s=shuffle: blosc.compress(v, b"lz4", 1, s, 1 << 16)),
            ("decompress", lambda p=packed: blosc.decompress(p)),
        ):
            best = min(_seconds(work) for _ in range(5))
            rates[f"{name}, {what}, GB/s"] = round(values.nbytes / best / 1e9, 2)
        rates[f"{name}, size over original"] = round(len(packed) / values.nbytes, 3)
    return rates


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def main() -> None:
    """Run and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("release")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=3, help="threads of a worker, as `chemscale ingest` uses")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--few", type=int, default=600, help="files for astropy and fitsio; 0 leaves both out")
    parser.add_argument("--cold", action="store_true", help="drop the files from the page cache before every arm")
    parser.add_argument("--out", help="write the result here as well")
    args = parser.parse_args()

    from chemscale import ingest
    from chemscale.runtime.cluster import connect
    from chemscale.runtime.observe import worker_peaks
    from chemscale.survey.sources.apogee import ApogeeSource
    from chemscale.survey.store.layout import choose_layout

    items = ApogeeSource(args.release).plan().items
    paths = [i.path for i in items]
    pieces = choose_layout(len(paths), 8575).n_shards(len(paths))
    few = paths[:: max(1, len(paths) // args.few)] if args.few else []
    scratch = Path(tempfile.mkdtemp(prefix="chemscale-bench-", dir=Path(args.release).parent))
    result: dict[str, Any] = {"files": len(paths), "workers": args.workers, "threads": args.threads, "shards": pieces}
    result["page_cache"] = "cold" if args.cold else "warm"
    result["chosen_reader"] = "arrays: chemscale.formats.fits (read_bytes and scan)"
    result["bytes"] = sum(Path(p).stat().st_size for p in paths)
    result["load_average"] = os.getloadavg()[0]
    result["machine"] = {"python": platform.python_version(), "platform": platform.platform()}
    arms: dict[str, tuple[Any, list[Any], float]] = {
        "bytes": (read_only, paths, 1.0),
        "arrays": (parse_files, paths, 1.0),
        "ahead": (parse_ahead, paths, 1.0),
        "source": (read_source, items, 1.0),
    }
    if args.few:
        arms["astropy"] = (with_astropy, few, len(paths) / len(few))
    try:
        if not args.few:
            raise ImportError
        import fitsio

        result["machine"]["fitsio"] = fitsio.__version__
        arms["fitsio"] = (with_fitsio, few, len(paths) / len(few))
    except ImportError:
        print("fitsio is not installed, or not asked for: left out", file=sys.stderr)
    wall: dict[str, list[float]] = {name: [] for name in (*arms, "ingest")}
    cpu: dict[str, list[float]] = {name: [] for name in wall}

    def note(name: str, clock: Clock, scale: float = 1.0) -> None:
        wall[name].append(clock.wall * scale)
        cpu[name].append(clock.cpu * scale)
        print(f"{name}: {clock.wall * scale:.2f} s wall, {clock.cpu * scale:.2f} s CPU", file=sys.stderr, flush=True)

    try:
        with connect("local", workers=args.workers, threads=args.threads) as client:
            ingest(ApogeeSource(args.release), scratch / "s.zarr", client=client, progress=False)  # warms caches, Numba
            for _ in range(args.repeats):
                for name, (func, over, scale) in arms.items():
                    if args.cold:
                        forget(over if over and isinstance(over[0], str) else paths)
                    note(name, timed_map(client, func, over, pieces if scale == 1 else 2 * args.workers), scale)
                shutil.rmtree(scratch / "s.zarr")
                if args.cold:
                    forget(paths)
                with Clock(client) as clock:
                    summary = ingest(ApogeeSource(args.release), scratch / "s.zarr", client=client, progress=False)
                note("ingest", clock)
            result["stars"], result["bytes_written"] = summary.n_stars, summary.bytes_written
            result["peak_memory_per_worker"] = max(worker_peaks(client).values())
        result["codec_of_one_core"] = codec_rate(scratch / "s.zarr")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    for kind, times in (("wall", wall), ("cpu", cpu)):
        medians = {k: statistics.median(v) for k, v in times.items()}
        result[f"{kind}_seconds"] = {k: [round(x, 2) for x in v] for k, v in times.items()}
        result[f"ingest_rate_over_{kind}"] = {k: round(medians[k] / medians["ingest"], 3) for k in arms}
        result[f"files_per_{kind}_second"] = {k: round(len(paths) / v) for k, v in medians.items()}
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        Path(args.out).write_text(text + "\n")


if __name__ == "__main__":
    main()
