"""Closing a store: per-star variables in large chunks, one list of markers, statistics.

During ingestion every shard leaves its per-star values in a small file of its own. Here
they are gathered, a label chunk at a time, so a million stars end in some hundred files.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import numpy as np

from chemscale.errors import StoreError
from chemscale.runtime.files import Folder
from chemscale.runtime.jsonio import dump
from chemscale.schema import VARIABLES, variable_attrs
from chemscale.survey.sources.base import Rejection
from chemscale.survey.store.create import group_attrs, tidy
from chemscale.survey.store.layout import chunk_file, encode, metadata
from chemscale.survey.store.manifest import (
    COVERAGE_BINS,
    INPUTS,
    LEDGER,
    PLAN,
    REJECTED,
    ROOT,
    SHARDS,
    STATISTICS,
    StoreHeader,
    checksum,
    columns_name,
    file_entry,
    marker_name,
    read_marker,
    rejections,
    unpack,
    write_verified,
)
from chemscale.survey.store.root import RootRecord, publish_first

#: File with the rejections of the planning stage.
PLANNED_REJECTIONS = f"{LEDGER}/rejected-plan.json"
#: How many stars use each pixel (P,).
USED_PER_PIXEL = f"{LEDGER}/used_per_pixel.npy"

#: Holds a file named after every number of partitions a store was written in (until finalised).
PARTITIONS = f"{LEDGER}/partitions"
#: Chunks of per-star variables on their way to the disk at once.
_WRITERS = 8


def missing_shards(folder: Folder, header: StoreHeader) -> list[int]:
    """Shards without a marker."""
    from chemscale.survey.store.manifest import done_shards

    return sorted(set(range(header.n_shards)) - done_shards(folder))


def note_partition(folder: Folder, n: int) -> None:
    """Remember that the store is written in `n` partitions, so that missing ones can be named."""
    folder.write(f"{PARTITIONS}/{n}", b"\n")


def _missing_partitions(folder: Folder, lost: Sequence[int]) -> str:
    """The partitions that write the shards in `lost`, as far as partitions were used."""
    said = []
    for n in sorted(int(name) for name in folder.list(PARTITIONS) if name.isdigit()):
        partitions = sorted({shard % n + 1 for shard in lost})
        said.append(f"; missing or unfinished of {n} partitions: {describe_shards(partitions)}")
    return "".join(said)


def describe_shards(shards: Sequence[int]) -> str:
    """``0-3, 7`` for a list of shard numbers."""
    runs: list[list[int]] = []
    for s in sorted(shards):
        if runs and s == runs[-1][1] + 1:
            runs[-1][1] = s
        else:
            runs.append([s, s])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)


def finalise_group(folder: Folder, header: StoreHeader) -> dict[str, Any]:
    """Write labels, marker list, rejections and statistics of a fully written group.

    One pass over these files; holds one label chunk of all per-star variables.

    Returns
    -------
    dict
        ``hidden`` (empty rows, sorted), ``n_stars``, ``rejected``.
    """
    lost = missing_shards(folder, header)
    if lost:
        raise StoreError(
            f"{folder.root}: {len(lost)} of {header.n_shards} shards are not written: {describe_shards(lost)}"
            + _missing_partitions(folder, lost),
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
    columns: dict[str, np.ndarray] = {}
    for index, first in enumerate(range(0, header.n_shards, per_chunk)):
        gathered: list[dict[str, np.ndarray]] = []
        for shard in range(first, min(first + per_chunk, header.n_shards)):
            gathered.append(_read_columns(folder, markers[shard]))
            used += gathered[-1]["used_per_pixel"]
            empty.append(np.flatnonzero(gathered[-1]["status"] == 0) + markers[shard]["rows"][0])
        columns = {name: np.concatenate([p.pop(name) for p in gathered]) for name in names}
        files |= _write_chunks(folder, header, index, columns)
    if header.n_shards > per_chunk:
        columns = {}  # of the last chunk only
    hidden = np.concatenate(empty) if empty else np.empty(0, "i8")
    planned = (
        [Rejection(**r) for r in json.loads(folder.read(PLANNED_REJECTIONS))]
        if folder.exists(PLANNED_REJECTIONS)
        else []
    )
    rejected = planned + rejections(markers)
    folder.write(REJECTED, dump([asdict(r) for r in rejected]))
    folder.write(USED_PER_PIXEL, npy_bytes(used))
    folder.write(STATISTICS, dump(statistics(folder, header, markers, columns, len(hidden), len(rejected))))
    folder.write("zarr.json", group_metadata(header, folder), sync=True)
    kept = [{k: m[k] for k in ("shard", "rows", "fingerprint", "files", "statistics")} for m in markers]
    checks = {name: file_entry(name, folder.read(name)) for name in small_files(folder)}
    folder.write(SHARDS, dump({"shards": kept, "labels": files, "small": checks}), sync=True)
    return {"hidden": hidden, "n_stars": header.n_rows - len(hidden), "rejected": rejected}


def _write_chunks(folder: Folder, header: StoreHeader, index: int, columns: dict[str, np.ndarray]) -> dict[str, Any]:
    """Write and verify chunk `index` of every per-star variable; side by side, for each waits for the disk."""

    def put(name: str) -> tuple[str, dict[str, Any]]:
        values = columns[name]
        dtype = "uint8" if name == "status" else VARIABLES[name].dtype
        file = chunk_file(name, index, values.ndim)
        return file, write_verified(folder, file, encode(name, dtype, values, header.layout))

    with ThreadPoolExecutor(_WRITERS) as pool:
        return dict(pool.map(put, columns))


def small_files(folder: Folder) -> list[str]:
    """Files of a finalised group besides shards, label chunks, the list of markers and the root record."""
    names = ["zarr.json", PLAN, INPUTS, PLANNED_REJECTIONS, REJECTED, STATISTICS, USED_PER_PIXEL]
    for array in folder.list():
        names.append(f"{array}/zarr.json")
    names += [chunk_file("wavelength", 0, 1), chunk_file("element", 0, 1)]
    return [n for n in names if folder.exists(n)]


def npy_bytes(values: np.ndarray) -> bytes:
    """One array as the bytes of a .npy file."""
    import io

    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def _read_columns(folder: Folder, marker: dict[str, Any]) -> dict[str, np.ndarray]:
    name = columns_name(marker["shard"])
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


def label_metadata(header: StoreHeader, name: str) -> bytes:
    """The ``zarr.json`` of a per-star variable."""
    if name == "status":
        dims: tuple[str, ...] = ("star",)
        dtype, attrs = "uint8", {"long_name": "1 where the slot holds a star, 0 where it was quarantined"}
    else:
        dims, dtype, attrs = VARIABLES[name].dims, VARIABLES[name].dtype, variable_attrs(name)
    shape = (header.n_rows, len(header.elements))[: len(dims)]
    return metadata(name, dtype, shape, header.layout, dims, attrs)


def statistics(
    folder: Folder,
    header: StoreHeader,
    markers: list[dict[str, Any]],
    columns: dict[str, np.ndarray],
    n_empty: int,
    n_rejected: int,
) -> dict[str, Any]:
    """What ``chemscale info`` shows; per-star variables that are not in `columns` are read from the store."""

    def column(name: str) -> np.ndarray:
        return columns[name] if name in columns else read_column(folder, name)

    total: dict[str, Any] = {"n_stars": header.n_rows - n_empty, "n_slots": header.n_rows, "n_rejected": n_rejected}
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
        values = column(name)
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
        names = Counter(map(str, column("cluster")))
        total["clusters"] = {k: int(c) for k, c in sorted(names.items()) if k}
    return total


def read_column(folder: Folder, name: str) -> np.ndarray:
    """All rows of a per-star variable, empty ones included; text as objects."""
    import zarr

    values: Any = zarr.open_array(folder.zarr_store(), path=name, mode="r")[...]
    return values.astype(object) if values.dtype.kind == "T" else values


def group_metadata(header: StoreHeader, folder: Folder) -> bytes:
    """The group's ``zarr.json`` with those of its arrays, names sorted: one read opens the group."""
    group: dict[str, Any] = {"attributes": group_attrs(header), "node_type": "group", "zarr_format": 3}
    arrays = {n: json.loads(folder.read(f"{n}/zarr.json")) for n in folder.list() if folder.exists(f"{n}/zarr.json")}
    group["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": arrays}
    return dump(group)


def finalise_store(folder: Folder) -> RootRecord:
    """Close a store whose shards are all written: labels, statistics, root record.

    Idempotent: an interrupted call is repeated safely, and a complete store is only tidied.

    Raises
    ------
    StoreError
        Shards are missing; the message lists them.
    """
    header = StoreHeader.read(folder)
    if not folder.exists(ROOT):
        summary = finalise_group(folder, header)
        publish_first(folder, header, summary["hidden"])
    tidy(folder)
    return RootRecord.read(folder)
