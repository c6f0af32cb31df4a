"""Codecs and layouts of the pixel variables: size, time to write, time to read.

    python benchmarks/storage.py --out benchmarks/results/storage

Spectra of benchmarks/passes.py (noise and all), written to a Zarr array in a temporary folder and read back
whole; one thread of work at a time. ``BitRound`` keeps as many mantissa bits of the flux as hold the
rounding error below `--bound` of the smallest error bar, and 8 bits (0.2 %) of the inverse variance: it is
lossy, an option only.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from passes import PIXELS, spectra
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

CODECS: dict[str, list[Any]] = {
    "none": [],
    "lz4-1 + bitshuffle": [BloscCodec(cname="lz4", clevel=1, shuffle="bitshuffle")],
    "lz4-5 + bitshuffle": [BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle")],
    "zstd-1 + bitshuffle": [BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle")],
    "zstd-3 + bitshuffle": [BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle")],
    "zstd-5 + bitshuffle": [BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle")],
    "zstd-1 + shuffle": [BloscCodec(cname="zstd", clevel=1, shuffle="shuffle")],
    "zstd-1, no shuffle": [ZstdCodec(level=1)],
}


def bitround(values: np.ndarray, keep: int) -> np.ndarray:
    """Float32 rounded to `keep` explicit mantissa bits (round half to even)."""
    bits = values.view(np.uint32)
    drop = 23 - keep
    half = np.uint32((1 << (drop - 1)) - 1)
    rounded = bits + half + ((bits >> np.uint32(drop)) & np.uint32(1))
    return (rounded & np.uint32((0xFFFFFFFF << drop) & 0xFFFFFFFF)).view(np.float32)


def bits_for(flux: np.ndarray, ivar: np.ndarray, bound: float) -> int:
    """Mantissa bits that keep the rounding error of the flux below `bound` of its error bar."""
    good = ivar > 0
    relative = bound / np.sqrt(ivar[good]) / np.abs(flux[good])
    return int(np.clip(np.ceil(-np.log2(relative.min()) - 1), 1, 22))


def trial(values: np.ndarray, codecs: list[Any], chunk: int, shard: int | None, folder: Path) -> dict[str, float]:
    """Write and read one array."""
    where = folder / "array"
    shutil.rmtree(where, ignore_errors=True)
    array = zarr.create_array(
        str(where),
        shape=values.shape,
        dtype=values.dtype,
        chunks=(chunk, values.shape[1]),
        shards=None if shard is None else (shard, values.shape[1]),
        compressors=[*codecs, Crc32cCodec()],
    )
    start = time.perf_counter()
    array[...] = values
    written = time.perf_counter() - start
    size = sum(f.stat().st_size for f in where.rglob("*") if f.is_file())
    reads = []
    for _ in range(3):
        start = time.perf_counter()
        back = array[...]
        reads.append(time.perf_counter() - start)
    assert np.array_equal(back, values)
    n_files = sum(1 for f in where.rglob("*") if f.is_file())
    mib = values.nbytes / 2**20
    return {
        "ratio": values.nbytes / size,
        "write_mib_s": mib / written,
        "read_mib_s": mib / min(reads),
        "files": n_files,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stars", type=int, default=4096)
    parser.add_argument("--bound", type=float, default=1 / 16)
    parser.add_argument("--out", default="storage")
    args = parser.parse_args()
    flux, ivar, flags = spectra(0, args.stars)
    keep = bits_for(flux, ivar, args.bound)
    folder = Path(tempfile.mkdtemp())
    rows = []
    try:
        for name, codecs in CODECS.items():
            for variable, values in (("flux", flux), ("ivar", ivar), ("flags", flags)):
                rows.append({"variable": variable, "codec": name, "chunk": 512, "shard": 4096})
                rows[-1] |= trial(values, codecs, 512, min(4096, args.stars), folder)
        for label, values in ((f"BitRound {keep} bits", bitround(flux, keep)), ("BitRound 8 bits", bitround(ivar, 8))):
            variable = "flux" if values.shape == flux.shape and label != "BitRound 8 bits" else "ivar"
            for name in ("lz4-1 + bitshuffle", "zstd-1 + bitshuffle"):
                rows.append({"variable": variable, "codec": f"{label}, {name}", "chunk": 512, "shard": 4096})
                rows[-1] |= trial(values, CODECS[name], 512, min(4096, args.stars), folder)
        for chunk, shard in ((128, None), (512, None), (2048, None), (128, 4096), (1024, 4096), (4096, None)):
            rows.append({"variable": "flux", "codec": "lz4-1 + bitshuffle", "chunk": chunk, "shard": shard or 0})
            rows[-1] |= trial(flux, CODECS["lz4-1 + bitshuffle"], chunk, shard, folder)
    finally:
        shutil.rmtree(folder)
    result = {"stars": args.stars, "pixels": PIXELS, "flux_bits": keep, "bound": args.bound, "rows": rows}
    Path(args.out + ".json").write_text(json.dumps(result, indent=1) + "\n")
    lines = ["| variable | codec | chunk | shard | ratio | write MiB/s | read MiB/s |", "| --- " * 7 + "|"]
    for r in rows:
        lines.append(
            f"| {r['variable']} | {r['codec']} | {r['chunk']} | {r['shard'] or '-'} | {r['ratio']:.2f} "
            f"| {r['write_mib_s']:.0f} | {r['read_mib_s']:.0f} |"
        )
    Path(args.out + ".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
