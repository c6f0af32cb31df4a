"""The ledger of a store: what it will hold, what is written and verified, and the markers that say so.

Everything a store needs to know about its own making lives in the folder ``_chemscale``
beside the Zarr arrays:

``plan.json``            header: what the store will hold, layout, settings, fingerprint
``inputs.npz``           identity, size and time of every input file (for resume and repair)
``shards/00000.json``    marker of a shard that is written and verified (until finalised)
``parts/00000.npz``      per-star values of a shard (until finalised)
``shards.json``          all markers, checksums included (after finalising)
``rejected.json``        quarantined inputs with their reasons
``statistics.json``      what ``chemscale info`` shows
``root.json``            the root record: present only when the store is complete
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import google_crc32c
import numpy as np

from chemscale.errors import StoreError
from chemscale.runtime.files import Folder
from chemscale.runtime.jsonio import dump
from chemscale.schema import STORE_VERSION, VARIABLES, ordered
from chemscale.survey.sources.base import Rejection
from chemscale.survey.store.layout import Layout

LEDGER = "_chemscale"
PLAN = f"{LEDGER}/plan.json"
INPUTS = f"{LEDGER}/inputs.npz"
SHARDS = f"{LEDGER}/shards.json"
REJECTED = f"{LEDGER}/rejected.json"
STATISTICS = f"{LEDGER}/statistics.json"
ROOT = f"{LEDGER}/root.json"
#: Bins of the histogram of the fraction of usable pixels of a star.
COVERAGE_BINS = 20


@dataclass(frozen=True)
class StoreHeader:
    """What a store (or one revision of it) is going to hold."""

    survey: str
    medium: str
    #: one for every planned star, quarantined ones included
    n_rows: int
    n_pixels: int
    labels: tuple[str, ...]
    elements: tuple[str, ...]
    layout: Layout
    #: attributes of the dataset (survey, normalisation, provenance, ...)
    attrs: dict[str, Any] = field(default_factory=dict)
    #: what must not change between a job and its continuation: name -> digest
    fingerprint: dict[str, str] = field(default_factory=dict)
    #: how to build the source again: {"name", "options"}; empty for stores written from a dataset
    source: dict[str, Any] = field(default_factory=dict)
    #: settings of censoring
    settings: dict[str, Any] = field(default_factory=dict)
    version: int = STORE_VERSION

    @property
    def n_shards(self) -> int:
        """Number of shards."""
        return self.layout.n_shards(self.n_rows)

    def variables(self) -> tuple[str, ...]:
        """Per-star variables of the store, `star_id` and `cluster` included, in the contract's order."""
        return ordered(("star_id", "cluster", *self.labels))

    def to_json(self) -> bytes:
        """Canonical JSON."""
        return dump(self.stored())

    def stored(self) -> dict[str, Any]:
        """The header as it is stored: JSON-able, under the names that every store has."""
        content = asdict(self)
        return content | {"n_slots": content.pop("n_rows")}

    @classmethod
    def read(cls, folder: Folder) -> StoreHeader:
        """StoreHeader of the store in `folder`.

        Raises
        ------
        StoreError
            No store, or one of another version.
        """
        try:
            raw = json.loads(folder.read(PLAN))
        except FileNotFoundError:
            raise StoreError(f"{folder.root}: not a chemscale store (no {PLAN})", "check the path") from None
        except ValueError as err:
            raise StoreError(
                f"{folder.root}: {PLAN} is damaged ({err})", "restore it or ingest again with --overwrite"
            ) from err
        if raw.get("version") != STORE_VERSION:
            raise StoreError(
                f"{folder.root}: written as store version {raw.get('version')}, this chemscale reads {STORE_VERSION}",
                "use the chemscale that wrote it, or ingest again",
            )
        raw["n_rows"] = raw.pop("n_slots")
        raw["layout"] = Layout(**raw["layout"])
        raw["labels"], raw["elements"] = tuple(raw["labels"]), tuple(raw["elements"])
        return cls(**raw)


def clean_text(value: Any) -> str:
    """`value` as text that any encoder takes: bytes decoded, undecodable parts escaped, no NULs."""
    if type(value) is str and value.isascii() and value.isprintable():
        return value.strip()
    if value is None:
        return ""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    return str(value).encode("utf-8", "backslashreplace").decode("utf-8").replace("\x00", "").strip()


def marker_name(shard: int) -> str:
    """File of a shard's marker."""
    return f"{LEDGER}/shards/{shard:06d}.json"


def columns_name(shard: int) -> str:
    """File of a shard's per-star values."""
    return f"{LEDGER}/parts/{shard:06d}.npz"


def checksum(data: bytes) -> int:
    """CRC32C."""
    return int(google_crc32c.value(data))


#: Offset and length of a chunk that was never written, in the index of a shard.
ABSENT = np.iinfo(np.uint64).max


def seal(data: bytes, n_index: int) -> int:
    """What tells the chunks in a file from those of another file: the CRC32C of the checksums at their ends.

    The CRC32C of a chunk together with its own CRC32C is the same number whatever the chunk holds, so the checksum
    of a whole file of such chunks says nothing of what is in them but their lengths.

    Parameters
    ----------
    data : bytes
        A shard, or a file of one chunk.
    n_index : int
        Entries of the shard's index; 0 for a file of one chunk.
    """
    if n_index == 0:
        return checksum(data[-4:])
    index = np.frombuffer(data[-16 * n_index - 4 : -4], "<u8")
    if index.size != 2 * n_index:
        return -1
    ends = [int(offset) + int(length) for offset, length in index.reshape(-1, 2) if offset != ABSENT]
    return checksum(b"".join(data[end - 4 : end] for end in ends))


def file_entry(name: str, data: bytes, n_index: int = 0) -> dict[str, Any]:
    """What the ledger notes of a file."""
    entry: dict[str, Any] = {"bytes": len(data), "crc32c": checksum(data)}
    if "/c/" in name:
        entry["chunks"] = [n_index, seal(data, n_index)]
    return entry


class ReadBackError(StoreError):
    """What was read back is not what was written."""


def write_verified(folder: Folder, name: str, data: bytes, *, sync: bool = True, n_index: int = 0) -> dict[str, Any]:
    """Write a file, read it back, compare checksums.

    Returns
    -------
    dict
        ``{"bytes", "crc32c"}`` and, of files of chunks, ``"chunks"``: for the marker.

    Raises
    ------
    ReadBackError
        What was read back is not what was written (twice).
    """
    expected = file_entry(name, data, n_index)
    for last in (False, True):
        folder.write(name, data, sync=sync)
        try:
            check_back(folder, name, expected["crc32c"], len(data))
            return expected
        except ReadBackError:
            if last:
                raise
    raise AssertionError("unreachable")


def check_back(folder: Folder, name: str, crc: int, size: int) -> dict[str, Any]:
    """Read a file that was just written and compare; returns its entry in the marker.

    Raises
    ------
    ReadBackError
    """
    if folder.checksum(name) != (crc, size):
        raise ReadBackError(
            f"{folder.where(name)}: what was read back differs from what was written",
            "the file system or memory is failing: check both before running again with --resume",
        )
    return {"bytes": size, "crc32c": crc}


def pack(columns: Mapping[str, np.ndarray]) -> bytes:
    """Columns as NPZ bytes; text travels as JSON, so nothing is pickled or padded."""
    out: dict[str, np.ndarray] = {}
    for name, values in columns.items():
        if values.dtype.kind in "OUT":
            out[f"t:{name}"] = np.frombuffer(json.dumps(list(values)).encode(), np.uint8)
        else:
            out[f"n:{name}"] = values
    buffer = io.BytesIO()
    save: Any = np.savez  # its stub takes no column names
    save(buffer, **out)
    return buffer.getvalue()


def unpack(data: bytes) -> dict[str, np.ndarray]:
    """Inverse of :func:`pack`."""
    out: dict[str, np.ndarray] = {}
    with np.load(io.BytesIO(data), allow_pickle=False) as npz:
        for key in npz.files:
            kind, name = key.split(":", 1)
            value = npz[key]
            out[name] = np.array(json.loads(value.tobytes()), dtype=object) if kind == "t" else value
    return out


def empty_columns(header: StoreHeader, n: int) -> dict[str, np.ndarray]:
    """Per-star columns of `n` empty rows: NaN, '' or 0."""
    columns: dict[str, np.ndarray] = {}
    for name in header.variables():
        spec = VARIABLES[name]
        shape = (n, len(header.elements)) if len(spec.dims) == 2 else (n,)
        columns[name] = np.full(shape, spec.fill, dtype=object if spec.dtype == "str" else spec.dtype)
    return columns


def read_marker(folder: Folder, shard: int) -> dict[str, Any] | None:
    """Marker of a shard, or None when it is not done (or its marker cannot be read)."""
    try:
        marker = json.loads(folder.read(marker_name(shard)))
    except (FileNotFoundError, ValueError):
        return None
    return marker if marker.get("shard") == shard and "files" in marker else None


def done_shards(folder: Folder) -> set[int]:
    """Shards that have a marker."""
    found = set()
    for name in folder.list(f"{LEDGER}/shards"):
        stem = name.removesuffix(".json")
        if name.endswith(".json") and stem.isdigit():
            found.add(int(stem))
    return found


def rejections(markers: Sequence[Mapping[str, Any]]) -> list[Rejection]:
    """Rejections recorded in markers, in the order of the shards."""
    return [Rejection(**r) for m in markers for r in m["rejected"]]
