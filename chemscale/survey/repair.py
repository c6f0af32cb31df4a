"""Mend a store: ingest again what is broken, from the source it came from.

A shard is a function of its inputs and settings, so mending restores the very bytes that
were written; where the software has changed since, the new bytes are recorded instead.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from chemscale.errors import ResumeError, StoreError
from chemscale.runtime.files import Folder
from chemscale.schema import VARIABLES, variable_attrs
from chemscale.survey.finalise import label_metadata
from chemscale.survey.ingest import make_task
from chemscale.survey.layout import PIXEL_VARIABLES, encode, metadata
from chemscale.survey.planning import Job, plan_ingest
from chemscale.survey.reading import read_shard
from chemscale.survey.shards import SHARDS, Header, checksum, dump, write_verified
from chemscale.survey.verify import VerifyReport


def rebuild_source(header: Header, where: str) -> Any:
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


def repair_store(top: Folder, report: VerifyReport) -> None:
    """Mend what can be mended of `report.faults`, moving it to `report.repaired`.

    Raises
    ------
    StoreError, ResumeError
        The source or its files are not what they were.
    """
    from chemscale.survey.store import RootRecord

    record = RootRecord.read(top)
    changed = False
    for entry in record.segments:
        folder = top.sub(entry["path"])
        mine = [f for f in report.faults if f.segment == entry["path"]]
        if mine:
            mender = _Mender(folder)
            for file in dict.fromkeys(f.file for f in mine):
                if mender.mend(file):
                    done = [f for f in mine if f.file == file]
                    report.repaired += done
                    report.faults = [f for f in report.faults if f not in done]
            changed |= mender.save()
    if changed:
        for name in record.checksums:
            if name.endswith(SHARDS):
                record.checksums[name] = checksum(top.read(name))
        record.write(top)


class _Mender:
    """Mends the files of one segment; plans the source once, and only if spectra are needed."""

    def __init__(self, folder: Folder):
        self.folder = folder
        self.header = Header.read(folder)
        try:
            self.book = json.loads(folder.read(SHARDS))
        except (FileNotFoundError, ValueError) as err:
            raise StoreError(
                f"{folder.where(SHARDS)}: the list of markers is damaged ({err}); without it nothing can be told apart",
                "restore it from a copy, or ingest again",
            ) from err
        self.changed = False
        self._job: Job | None = None

    def mend(self, file: str) -> bool:
        """Whether `file` was restored."""
        for marker in self.book["shards"]:
            if file in marker["files"]:
                variable = file.split("/")[0]
                pixels, _, _, _ = read_shard(self._task(marker["shard"]))
                data = encode(variable, VARIABLES[variable].dtype, pixels[variable], self.header.layout)
                self._write(file, data, marker["files"])
                return True
        if file in self.book["labels"]:
            self._write(file, self._label_chunk(file), self.book["labels"])
            return True
        if file.endswith("/zarr.json"):
            return self._metadata(file)
        return False

    def _write(self, file: str, data: bytes, listed: dict[str, Any]) -> None:
        written = write_verified(self.folder, file, data)
        if written != listed[file]:
            listed[file] = written
            self.changed = True

    def _job_of_source(self) -> Job:
        if self._job is None:
            source = rebuild_source(self.header, self.folder.root)
            layout, settings = self.header.layout, self.header.settings
            self._job = plan_ingest(source, layout=layout, max_error=settings["max_error"])
        return self._job

    def _task(self, shard: int) -> Any:
        job = self._job_of_source()
        marker = self.book["shards"][shard]
        if shard >= job.header.n_shards or job.shard_fingerprint(shard) != marker["fingerprint"]:
            from chemscale.survey.planning import check_same

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

    def _metadata(self, file: str) -> bool:
        name = file.split("/")[0]
        if name in PIXEL_VARIABLES:
            shape = (self.header.n_slots, self.header.n_pixels)
            spec = VARIABLES[name]
            data = metadata(name, spec.dtype, shape, self.header.layout, spec.dims, variable_attrs(name))
        elif name in (*self.header.variables(), "status"):
            data = label_metadata(self.header, name)
        else:
            return False
        if checksum(data) != self.book["small"][file]["crc32c"]:
            return False
        self.folder.write(file, data)
        return True

    def save(self) -> bool:
        """Write the list of markers where checksums changed."""
        if self.changed:
            self.folder.write(SHARDS, dump(self.book), sync=True)
        return self.changed
