"""What must stand in the files of a store, and whether it does: the chain of checksums that every reader follows.

The root record carries its own checksum and that of each group's list of markers; that list carries bytes and
CRC32C of every other file of the group. A reader compares a file with it when the file is first touched in a process,
and again when the file has changed on the disk, so that a file that is missing, exchanged or of another store is
an error and never values.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from chemscale.errors import StoreError
from chemscale.runtime.files import Folder
from chemscale.survey.store.manifest import PLAN, SHARDS, StoreHeader, checksum, seal
from chemscale.survey.store.root import GroupEntry, RootRecord

_REMEDY = "`chemscale verify STORE` names what is broken, `--repair` ingests it again"


@dataclass(frozen=True)
class Ledger:
    """The list of markers of one group of a complete store.

    Attributes
    ----------
    folder : Folder
        Of the group.
    markers : list of dict
        One a shard, in order.
    labels, small : dict
        File name -> ``{"bytes", "crc32c"}`` of the label chunks, and of everything else but shards.
    """

    folder: Folder
    markers: list[dict[str, Any]]
    labels: Mapping[str, Mapping[str, Any]]
    small: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, url: str, crc: int) -> Ledger:
        """The list of the group at `url`, whose checksum the root record says is `crc`; read once in a process.

        Raises
        ------
        StoreError
            It is missing, damaged, or that of another store.
        """
        return _read_ledger(url, crc)

    @classmethod
    def of(cls, top: Folder, record: RootRecord, entry: GroupEntry) -> Ledger:
        """The list of a group of the store in `top`."""
        return cls.read(top.sub(entry.path).root, ledger_crc(record, entry))

    def files(self) -> dict[str, Mapping[str, Any]]:
        """Every file of the group but the list itself and the root record."""
        out = {**self.small, **self.labels}
        for marker in self.markers:
            out |= marker["files"]
        return out

    def content(self, name: str) -> bytes:
        """A small file or label chunk, compared with the list.

        Raises
        ------
        StoreError
        """
        expected = self.small.get(name) or self.labels.get(name)
        if expected is None:
            raise StoreError(f"{self.folder.where(name)}: not in the store's list of files", _REMEDY)
        problem, data = compare(self.folder, name, expected)
        if problem:
            raise StoreError(f"{self.folder.where(name)}: {problem}", _REMEDY)
        return data

    def json(self, name: str) -> Any:
        """A small JSON file, compared with the list."""
        return json.loads(self.content(name))

    def header(self) -> StoreHeader:
        """The group's header, compared with the list."""
        self.content(PLAN)
        return StoreHeader.read(self.folder)


def ledger_crc(record: RootRecord, entry: GroupEntry) -> int:
    """Checksum of a group's list of markers, from the root record."""
    return record.checksums[f"{entry.path}/{SHARDS}".lstrip("/")]


@lru_cache(maxsize=32)
def _read_ledger(url: str, crc: int) -> Ledger:
    folder = Folder(url)
    problem, data = compare(folder, SHARDS, {"crc32c": crc})
    if problem:
        raise StoreError(f"{folder.where(SHARDS)}: {problem}", "restore it from a copy, or ingest again")
    try:
        raw = json.loads(data)
        return Ledger(folder, raw["shards"], raw["labels"], raw["small"])
    except (ValueError, KeyError, TypeError) as err:
        raise StoreError(f"{folder.where(SHARDS)}: damaged ({err})", "restore it from a copy, or ingest again") from err


def compare(folder: Folder, name: str, expected: Mapping[str, Any]) -> tuple[str, bytes]:
    """('' or what is wrong with a file, its content)."""
    try:
        data = folder.read(name)
    except (FileNotFoundError, NotADirectoryError):
        return "missing", b""
    except OSError as err:
        return f"cannot be read: {err.strerror or err}", b""
    if "bytes" in expected and len(data) != expected["bytes"]:
        return f"has {len(data)} bytes, {expected['bytes']} were written", data
    if checksum(data) != expected["crc32c"]:
        return "checksum differs from what was written", data
    if "chunks" in expected and seal(data, expected["chunks"][0]) != expected["chunks"][1]:
        return "holds other chunks than were written here", data
    return "", data


class Touched:
    """Which files of a variable this process has compared with the ledger, and as what it saw them.

    Parameters
    ----------
    expected : mapping
        File name -> ``{"bytes", "crc32c"}``.
    """

    def __init__(self, folder: Folder, expected: Mapping[str, Mapping[str, Any]]):
        self._folder, self._expected = folder, expected
        self._seen: dict[str, tuple[int, ...]] = {}

    def expect(self, name: str) -> Mapping[str, Any]:
        """Bytes and checksum of a file.

        Raises
        ------
        ValueError
            The store does not list it.
        """
        if name not in self._expected:
            raise ValueError(f"{self._folder.where(name)} is not in the store's list of files")
        return self._expected[name]

    def known(self, name: str, stat: os.stat_result) -> bool:
        """Whether a local file is the one that was compared."""
        return self._seen.get(name) == _identity(stat)

    def note(self, name: str, stat: os.stat_result) -> None:
        """A local file was compared, and is what it should be."""
        self._seen[name] = _identity(stat)

    def check(self, name: str, *, digest: bool = True) -> None:
        """Compare a file with the ledger unless that is done; `digest` False: its size only.

        Raises
        ------
        ValueError
            What is wrong with it.
        """
        where = self._folder.where(name)
        identity: tuple[int, ...] = ()
        try:
            if self._folder.remote:
                if name in self._seen:
                    return
                size = self._folder.size(name)
            else:
                stat = os.stat(where)
                if self.known(name, stat):
                    return
                size, identity = stat.st_size, _identity(stat)
            expected = self.expect(name)
            if size != expected["bytes"]:
                raise ValueError(f"{where} has {size} bytes, {expected['bytes']} were written")
            problem = compare(self._folder, name, expected)[0] if digest else ""
        except FileNotFoundError:
            raise ValueError(f"{where} is missing") from None
        if problem:
            raise ValueError(f"{where}: {problem}")
        self._seen[name] = identity


def _identity(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
