"""Closing a store: per-star variables in large chunks, one list of markers, statistics.

During ingestion every shard leaves its per-star values in a small part of its own. Here
they are gathered, a label chunk at a time, so a million stars end in some hundred files.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from chemscale.errors import StoreError
from chemscale.runtime.files import Folder
from chemscale.schema import VARIABLES, variable_attrs
from chemscale.survey.layout import chunk_file, encode, metadata
from chemscale.survey.shards import (
    BOOK,
    COVERAGE_BINS,
    INPUTS,
    PLAN,
    REJECTED,
    SHARDS,
    STATISTICS,
    Header,
    checksum,
    dump,
    marker_name,
    part_name,
    read_marker,
    rejections,
    unpack,
    write_verified,
)
from chemscale.survey.sources.base import Rejection

#: File with the rejections of the planning stage.
PLANNED_REJECTIONS = f"{BOOK}/rejected-plan.json"
#: How many stars use each pixel (P,).
USED_PER_PIXEL = f"{BOOK}/used_per_pixel.npy"


def missing_shards(folder: Folder, header: Header) -> list[int]:
    """Shards without a marker."""
    from chemscale.survey.shards import done_shards

    return sorted(set(range(header.n_shards)) - done_shards(folder))


def describe_shards(shards: Sequence[int]) -> str:
    """``0-3, 7`` for a list of shard numbers."""
    runs: list[list[int]] = []
    for s in sorted(shards):
        if runs and s == runs[-1][1] + 1:
            runs[-1][1] = s
        else:
            runs.append([s, s])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)


def finalise_segment(folder: Folder, header: Header) -> dict[str, Any]:
    """Write labels, marker list, rejections and statistics of a fully written segment.

    One pass over the parts; holds one label chunk of all per-star variables.

    Returns
    -------
    dict
        ``hidden`` (empty slots, sorted), ``n_stars``, ``rejected``.
    """
    lost = missing_shards(folder, header)
    if lost:
        raise StoreError(
            f"{folder.root}: {len(lost)} of {header.n_shards} shards are not written: {describe_shards(lost)}",
            "run the missing --partition jobs, or repeat the ingest command with --resume",
        )
    markers = []
    for shard in range(header.n_shards):
        marker = read_marker(folder, shard)
        if marker is None:
            raise StoreError(
                f"{folder.where(marker_name(shard))}: unreadable marker", "remove that file, then run with --resume"
            )
        markers.append(marker)
    files: dict[str, Any] = {}
    used = np.zeros(header.n_pixels, np.int64)
    empty: list[np.ndarray] = []
    names = (*header.variables(), "status")
    for name in names:
        folder.write(f"{name}/zarr.json", label_metadata(header, name))
    per_chunk = header.layout.label_stars // header.layout.shard_stars
    for index, first in enumerate(range(0, header.n_shards, per_chunk)):
        parts = []
        for shard in range(first, min(first + per_chunk, header.n_shards)):
            parts.append(_read_part(folder, markers[shard]))
            used += parts[-1]["used_per_pixel"]
            empty.append(np.flatnonzero(parts[-1]["status"] == 0) + markers[shard]["rows"][0])
        for name in names:
            values = np.concatenate([p[name] for p in parts])
            dtype = "uint8" if name == "status" else VARIABLES[name].dtype
            file = chunk_file(name, index, values.ndim)
            files[file] = write_verified(folder, file, encode(name, dtype, values, header.layout))
    hidden = np.concatenate(empty) if empty else np.empty(0, "i8")
    planned = (
        [Rejection(**r) for r in json.loads(folder.read(PLANNED_REJECTIONS))]
        if folder.exists(PLANNED_REJECTIONS)
        else []
    )
    rejected = planned + rejections(markers)
    folder.write(REJECTED, dump([asdict(r) for r in rejected]))
    write_npy(folder, USED_PER_PIXEL, used)
    folder.write(STATISTICS, dump(_statistics(folder, header, markers, len(hidden), len(rejected))))
    consolidate(folder)
    kept = [{k: m[k] for k in ("shard", "rows", "fingerprint", "files", "statistics")} for m in markers]
    checks = {
        n: {"bytes": len(d), "crc32c": checksum(d)} for n, d in ((n, folder.read(n)) for n in small_files(folder))
    }
    folder.write(SHARDS, dump({"shards": kept, "labels": files, "small": checks}), sync=True)
    return {"hidden": hidden, "n_stars": header.n_slots - len(hidden), "rejected": rejected}


def small_files(folder: Folder) -> list[str]:
    """Files of a finalised segment besides shards, label chunks, the list of markers and the root record."""
    names = ["zarr.json", PLAN, INPUTS, PLANNED_REJECTIONS, REJECTED, STATISTICS, USED_PER_PIXEL]
    for array in folder.list():
        names.append(f"{array}/zarr.json")
    names += [chunk_file("wavelength", 0, 1), chunk_file("element", 0, 1)]
    return [n for n in names if folder.exists(n)]


def write_npy(folder: Folder, name: str, values: np.ndarray) -> None:
    """One array as .npy."""
    import io

    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    folder.write(name, buffer.getvalue())


def _read_part(folder: Folder, marker: dict[str, Any]) -> dict[str, np.ndarray]:
    name = part_name(marker["shard"])
    try:
        data = folder.read(name)
    except FileNotFoundError:
        data = b""
    if checksum(data) != marker["part"]["crc32c"] or not data:
        raise StoreError(
            f"{folder.where(name)}: missing or damaged",
            f"remove {folder.where(marker_name(marker['shard']))}, then run with --resume",
        )
    return unpack(data)


def label_metadata(header: Header, name: str) -> bytes:
    """The ``zarr.json`` of a per-star variable."""
    if name == "status":
        dims: tuple[str, ...] = ("star",)
        dtype, attrs = "uint8", {"long_name": "1 where the slot holds a star, 0 where it was quarantined"}
    else:
        dims, dtype, attrs = VARIABLES[name].dims, VARIABLES[name].dtype, variable_attrs(name)
    shape = (header.n_slots, len(header.elements))[: len(dims)]
    return metadata(name, dtype, shape, header.layout, dims, attrs)


def _statistics(
    folder: Folder, header: Header, markers: list[dict[str, Any]], n_empty: int, n_rejected: int
) -> dict[str, Any]:
    total: dict[str, Any] = {"n_stars": header.n_slots - n_empty, "n_slots": header.n_slots, "n_rejected": n_rejected}
    stats = [m["statistics"] for m in markers]
    total["n_pixels"] = header.n_pixels
    total["n_used"] = sum(s["n_used"] for s in stats)
    total["flagged"] = {k: sum(s["flagged"][k] for s in stats) for k in stats[0]["flagged"]} if stats else {}
    coverage = np.sum([s["coverage"] for s in stats], axis=0) if stats else np.zeros(COVERAGE_BINS, int)
    total["coverage"] = [int(c) for c in coverage]
    ranges = [s["flux_range"] for s in stats if s["flux_range"]]
    total["flux_range"] = [min(r[0] for r in ranges), max(r[1] for r in ranges)] if ranges else None
    total["pixel_bytes"] = sum(f["bytes"] for m in markers for f in m["files"].values())
    total["labels"] = {}
    for name in header.variables():
        spec = VARIABLES[name]
        values = read_column(folder, name)
        if spec.dtype == "str":
            text = [v for v in values if v]
            if name != "star_id":
                total["labels"][name] = {"present": len(text), "distinct": len(set(text))}
        elif len(spec.dims) == 1 and spec.dtype.startswith("float"):
            finite = values[np.isfinite(values)]
            entry: dict[str, Any] = {"present": len(finite)}
            if len(finite):
                low, p5, mid, p95, high = (float(q) for q in np.percentile(finite, (0, 5, 50, 95, 100)))
                entry |= {"min": low, "p5": p5, "median": mid, "p95": p95, "max": high, "units": spec.units}
            total["labels"][name] = entry
        elif len(spec.dims) == 2:
            total["labels"][name] = {"present": int(np.isfinite(values).sum()), "columns": values.shape[1]}
    if "cluster" in header.variables():
        names = Counter(map(str, read_column(folder, "cluster")))
        total["clusters"] = {k: int(c) for k, c in sorted(names.items()) if k}
    return total


def read_column(folder: Folder, name: str) -> np.ndarray:
    """All slots of a per-star variable, empty ones included; text as objects."""
    import zarr

    values: Any = zarr.open_array(folder.zarr_store(), path=name, mode="r")[...]
    return values.astype(object) if values.dtype.kind == "T" else values


def consolidate(folder: Folder) -> None:
    """Consolidated Zarr metadata, names sorted: one read opens the group, and equal stores have equal bytes."""
    group = json.loads(folder.read("zarr.json"))
    arrays = {n: json.loads(folder.read(f"{n}/zarr.json")) for n in folder.list() if folder.exists(f"{n}/zarr.json")}
    group["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": arrays}
    folder.write("zarr.json", dump(group), sync=True)
