"""Marker files and a root record against icechunk: the same shards written, published, cut off.

    python benchmarks/transactions.py [--stars 8192] [--pixels 2048] [--out FILE.json]

Needs ``pip install icechunk``. Four questions: what does writing cost, what does publishing
cost when every shard must survive a kill (one marker, or one commit, a shard), how many files
and bytes are left, and who can read the result.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from chemscale.runtime.files import Folder
from chemscale.schema import VARIABLES
from chemscale.survey.ingest.finalise import finalise_store
from chemscale.survey.ingest.writing import write_shard
from chemscale.survey.store.create import create_store
from chemscale.survey.store.layout import PIXEL_VARIABLES, Layout, array_spec
from chemscale.survey.store.manifest import StoreHeader, empty_columns
from chemscale.survey.store.open import open_survey


def blocks(stars: int, pixels: int, size: int) -> list[dict[str, np.ndarray]]:
    """Noise spectra, one block a shard."""
    rng = np.random.default_rng(0)
    out = []
    for _ in range(0, stars, size):
        flux = (1 + 0.02 * rng.standard_normal((size, pixels))).astype("f4")
        ivar = rng.uniform(2e3, 2e4, (size, pixels)).astype("f4")
        out.append({"flux": flux, "ivar": ivar, "flags": np.zeros((size, pixels), "u1")})
    return out


def with_markers(path: Path, data: list[dict[str, np.ndarray]], layout: Layout) -> None:
    """chemscale's own way: verified shards, a marker each, a root record."""
    size, pixels = data[0]["flux"].shape
    header = StoreHeader("bench", "vacuum", size * len(data), pixels, (), (), layout)
    folder = Folder(path)
    create_store(folder, header, np.arange(1.0, pixels + 1))
    for shard, block in enumerate(data):
        columns = empty_columns(header, size)
        columns["star_id"][:] = [f"{shard}-{i}" for i in range(size)]
        write_shard(folder, header, shard, block, columns, np.ones(size, np.uint8))
    finalise_store(folder)


def with_icechunk(path: Path, data: list[dict[str, np.ndarray]], layout: Layout, commit_each: bool) -> None:
    """The same arrays in an icechunk repository; one commit a shard, or one in all."""
    import icechunk

    repository = icechunk.Repository.create(icechunk.local_filesystem_storage(str(path)))
    size, pixels = data[0]["flux"].shape
    session = repository.writable_session("main")
    for name in PIXEL_VARIABLES:
        spec = array_spec(name, VARIABLES[name].dtype, (size * len(data), pixels), layout)
        zarr.create_array(session.store, name=name, **spec)
    session.commit("arrays")
    session = repository.writable_session("main")
    for shard, block in enumerate(data):
        for name in PIXEL_VARIABLES:
            zarr.open_array(session.store, path=name)[shard * size : (shard + 1) * size] = block[name]
        if commit_each:
            session.commit(f"shard {shard}")
            session = repository.writable_session("main")
    if not commit_each:
        session.commit("all shards")


def size_of(path: Path) -> dict[str, int]:
    """Files and bytes below `path`."""
    files = [f for f in path.rglob("*") if f.is_file()]
    return {"files": len(files), "bytes": sum(f.stat().st_size for f in files)}


def main() -> None:
    """Run and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stars", type=int, default=8192)
    parser.add_argument("--pixels", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out")
    args = parser.parse_args()
    size = 512
    layout = Layout(128, size, args.stars)
    data = blocks(args.stars, args.pixels, size)
    ways: dict[str, Callable[[Path], None]] = {
        "markers": lambda p: with_markers(p, data, layout),
        "icechunk, one commit": lambda p: with_icechunk(p, data, layout, False),
        "icechunk, a commit a shard": lambda p: with_icechunk(p, data, layout, True),
    }
    result: dict[str, Any] = {"stars": args.stars, "pixels": args.pixels, "shards": len(data), "ways": {}}
    scratch = Path(tempfile.mkdtemp(prefix="chemscale-bench-"))
    try:
        for name, write in ways.items():
            times = []
            for _ in range(args.repeats):
                shutil.rmtree(scratch / "s", ignore_errors=True)
                begun = time.perf_counter(), time.process_time()
                write(scratch / "s")
                times.append((time.perf_counter() - begun[0], time.process_time() - begun[1]))
            wall, cpu = np.min(times, axis=0)
            result["ways"][name] = {"wall_seconds": wall, "cpu_seconds": cpu, **size_of(scratch / "s")}
            if name == "markers":
                assert open_survey(scratch / "s").sizes["star"] == args.stars
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        Path(args.out).write_text(text + "\n")


if __name__ == "__main__":
    main()
