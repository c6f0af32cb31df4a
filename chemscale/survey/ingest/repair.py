"""Mend a store: ingest again what is broken, from the source it came from.

A shard is a function of its inputs and settings, so mending restores the very bytes that
were written; where the software has changed since, the new bytes are recorded instead.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from chemscale.errors import ResumeError, StoreError
from chemscale.runtime.files import Folder
from chemscale.runtime.jsonio import dump
from chemscale.schema import VARIABLES, variable_attrs
from chemscale.survey.ingest.finalise import (
    PLANNED_REJECTIONS,
    USED_PER_PIXEL,
    group_metadata,
    label_metadata,
    npy_bytes,
    read_column,
    statistics,
)
from chemscale.survey.ingest.ingestion import make_task
from chemscale.survey.ingest.planning import Job, plan_ingest, with_labels
from chemscale.survey.ingest.reading import read_shard
from chemscale.survey.sources.base import Rejection
from chemscale.survey.store.faults import VerifyReport
from chemscale.survey.store.layout import chunk_file, encode, index_entries, metadata
from chemscale.survey.store.locks import writing
from chemscale.survey.store.manifest import (
    INPUTS,
    LEDGER,
    PLAN,
    REJECTED,
    SHARDS,
    STATISTICS,
    StoreHeader,
    checksum,
    write_verified,
)
from chemscale.survey.store.verify import verify

if TYPE_CHECKING:
    from distributed import Client


def rebuild_source(header: StoreHeader, where: str) -> Any:
    """The source a store was ingested from.

    Raises
    ------
    StoreError
        The store was written from a Dataset, or its source is not installed.
    """
    from chemscale.survey.sources.base import get_source

    name = header.source.get("name")
    if not name:
        raise StoreError(f"{where}: written from a dataset, not from files, so it cannot be repaired", "write it again")
    options = {k: v for k, v in header.source.get("options", {}).items() if k != "source"}
    try:
        return get_source(name)(**options)
    except (KeyError, TypeError) as err:
        raise StoreError(f"{where}: its source {name!r} cannot be built again: {err}", "ingest again") from err


def repair(
    path: str | os.PathLike[str],
    *,
    deep: bool = True,
    client: Client | None = None,
    progress: bool | None = None,
) -> VerifyReport:
    """Verify a store and mend what is broken: shards and label chunks are ingested again from their source.

    The source's files must be those they were. Parameters and errors are those of
    :func:`~chemscale.survey.store.verify.verify`; what cannot be mended stays in the report.

    Raises
    ------
    StoreError, ResumeError
        The source or its files are not what they were.
    """
    with writing(Folder(path)):
        report = verify(path, deep=deep, client=client, progress=progress)
        if report.faults:
            repair_store(Folder(path), report)
        Folder(path).remove_partials()
    return report


def repair_store(top: Folder, report: VerifyReport) -> None:
    """Mend what can be mended of `report.faults`, moving it to `report.repaired`.

    Raises
    ------
    StoreError, ResumeError
        The source or its files are not what they were.
    """
    from chemscale.survey.store.root import RootRecord

    record = RootRecord.read(top)
    changed = False
    for entry in record.groups:
        folder = top.sub(entry.path)
        mine = [f for f in report.faults if f.group == entry.path]
        if mine:
            mender = _Mender(folder)
            for file in sorted(dict.fromkeys(f.file for f in mine), key=_after_pixels):
                if mender.mend(file):
                    done = [f for f in mine if f.file == file]
                    report.repaired += done
                    report.faults = [f for f in report.faults if f not in done]
            changed |= mender.save()
    _mend_hidden(top, record, report)
    if changed:
        for name in record.checksums:
            if name.endswith(SHARDS):
                record.checksums[name] = checksum(top.read(name))
        record.write(top)


def _mend_hidden(top: Folder, record: Any, report: VerifyReport) -> None:
    """Lists of hidden rows: empty ones, and those whose star stands in a later group.

    Only what has the checksum of the root record is written, so that readers never see other stars.
    """
    later: set[str] = set()
    for entry in reversed(record.groups):
        folder, file = top.sub(entry.path), entry.hidden
        faults = [f for f in report.faults if file and f.file == file]
        if not faults and entry is record.groups[0]:
            return
        ids, empty = read_column(folder, "star_id"), read_column(folder, "status") == 0
        if faults:
            superseded = np.fromiter((star in later for star in ids), bool, len(ids))
            data = npy_bytes(np.flatnonzero(empty | superseded).astype("i8"))
            if checksum(data) == record.checksums[file]:
                top.write(file, data, sync=True)
                report.repaired += faults
                report.faults = [f for f in report.faults if f not in faults]
        later.update(ids[~empty].tolist())


def _after_pixels(file: str) -> bool:
    """The ledger last: some of it are counted from pixels and labels, which must be whole again by then."""
    return file.startswith(LEDGER) or file == "zarr.json"


class _Mender:
    """Mends the files of one group; plans the source once, and only if spectra are needed."""

    def __init__(self, folder: Folder):
        self.folder = folder
        self.header = StoreHeader.read(folder)
        try:
            self.ledger = json.loads(folder.read(SHARDS))
        except (FileNotFoundError, ValueError) as err:
            raise StoreError(
                f"{folder.where(SHARDS)}: the list of markers is damaged ({err}); without it nothing can be told apart",
                "restore it from a copy, or ingest again",
            ) from err
        if checksum(folder.read(PLAN)) != self.ledger["small"].get(PLAN, {}).get("crc32c"):
            raise StoreError(
                f"{folder.where(PLAN)}: damaged; without it the layout is not known",
                "restore it from a copy, or ingest again",
            )
        self.changed = False
        self._job: Job | None = None

    def mend(self, file: str) -> bool:
        """Whether `file` was restored."""
        for marker in self.ledger["shards"]:
            if file in marker["files"]:
                variable = file.split("/")[0]
                pixels, _, _, _ = read_shard(self._task(marker["shard"]))
                data = encode(variable, VARIABLES[variable].dtype, pixels[variable], self.header.layout)
                self._write(file, data, marker["files"], index_entries(self.header.layout))
                return True
        if file in self.ledger["labels"]:
            self._write(file, self._label_chunk(file), self.ledger["labels"])
            return True
        if file in self.ledger["small"]:
            known = self._small(file)
            if known is not None and checksum(known) == self.ledger["small"][file]["crc32c"]:
                self.folder.write(file, known, sync=True)
                return True
        return False

    def _small(self, file: str) -> bytes | None:
        """What a small file held: derived from the rest of the store, or from the source."""
        if file == STATISTICS:
            return self._statistics()
        if file == USED_PER_PIXEL:
            return npy_bytes(self._used_per_pixel())
        if file == INPUTS:
            return self._job_of_source().inputs.pack()
        if file == PLANNED_REJECTIONS:
            return dump([asdict(r) for r in self._job_of_source().rejected])
        if file == REJECTED:
            return dump([asdict(r) for r in self._rejections()])
        if file == "zarr.json":
            return group_metadata(self.header, self.folder)
        if file == chunk_file("wavelength", 0, 1):
            return encode("wavelength", "float64", self._job_of_source().wavelength, self.header.layout)
        if file == chunk_file("element", 0, 1):
            return encode("element", "str", np.array(self.header.elements, dtype=object), self.header.layout)
        return self._metadata(file) if file.endswith("/zarr.json") else None

    def _statistics(self) -> bytes:
        markers = self.ledger["shards"]
        n_empty = self.header.n_rows - sum(m["statistics"]["n_stars"] for m in markers)
        n_rejected = len(json.loads(self.folder.read(REJECTED)))
        return dump(statistics(self.folder, self.header, markers, {}, n_empty, n_rejected))

    def _used_per_pixel(self) -> np.ndarray:
        import zarr

        arrays = self.folder.zarr_store()
        flags, ivar = (zarr.open_array(arrays, path=name, mode="r") for name in ("flags", "ivar"))
        used = np.zeros(self.header.n_pixels, np.int64)
        step = self.header.layout.chunk_stars
        for start in range(0, self.header.n_rows, step):  # empty rows have no weight anywhere
            rows = slice(start, start + step)
            used += ((np.asarray(flags[rows]) == 0) & (np.asarray(ivar[rows]) > 0)).sum(axis=0)
        return used

    def _rejections(self) -> list[Rejection]:
        found = list(self._job_of_source().rejected)
        for shard in range(self.header.n_shards):
            found += read_shard(self._task(shard))[3]
        return found

    def _write(self, file: str, data: bytes, listed: dict[str, Any], n_index: int = 0) -> None:
        written = write_verified(self.folder, file, data, n_index=n_index)
        if written != listed[file]:
            listed[file] = written
            self.changed = True

    def _job_of_source(self) -> Job:
        if self._job is None:
            source = rebuild_source(self.header, self.folder.root)
            layout, settings = self.header.layout, self.header.settings
            job = plan_ingest(source, layout=layout, max_error=settings["max_error"])
            more = set(job.header.labels) > set(self.header.labels)
            self._job = with_labels(job, self.header.labels) if more else job
        return self._job

    def _task(self, shard: int) -> Any:
        job = self._job_of_source()
        marker = self.ledger["shards"][shard]
        if shard >= job.header.n_shards or job.shard_fingerprint(shard) != marker["fingerprint"]:
            from chemscale.survey.ingest.planning import check_same

            try:
                check_same(self.folder, job)
            except ResumeError as err:
                raise ResumeError(
                    f"shard {shard} cannot be repaired, its inputs are not what they were: {err.message}", err.remedy
                ) from err
            raise ResumeError(f"shard {shard}: its inputs are not what they were", "ingest again")
        return make_task(self.folder, job, shard)

    def _label_chunk(self, file: str) -> bytes:
        name, index = file.split("/")[0], int(file.split("/")[2])
        per_chunk = self.header.layout.label_stars // self.header.layout.shard_stars
        values = []
        for shard in range(index * per_chunk, min((index + 1) * per_chunk, self.header.n_shards)):
            _, columns, status, _ = read_shard(self._task(shard))
            values.append(status if name == "status" else columns[name])
        dtype = "uint8" if name == "status" else VARIABLES[name].dtype
        return encode(name, dtype, np.concatenate(values), self.header.layout)

    def _metadata(self, file: str) -> bytes | None:
        name = file.split("/")[0]
        spec, layout = VARIABLES.get(name), self.header.layout
        if name in (*self.header.variables(), "status"):
            return label_metadata(self.header, name)
        if spec is None:
            return None
        sizes = {"star": self.header.n_rows, "wavelength": self.header.n_pixels, "element": len(self.header.elements)}
        shape = tuple(sizes[d] for d in spec.dims)
        extra = {"medium": self.header.medium} if name == "wavelength" else {}
        return metadata(name, spec.dtype, shape, layout, spec.dims, variable_attrs(name) | extra)

    def save(self) -> bool:
        """Write the list of markers where checksums changed."""
        if self.changed:
            self.folder.write(SHARDS, dump(self.ledger), sync=True)
        return self.changed
