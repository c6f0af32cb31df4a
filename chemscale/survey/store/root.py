"""The root record of a store: which revision readers see.

A store may hold later revisions as groups of their own below ``revisions/``; this one small file, replaced
atomically, says which of them a reader sees. No byte that a reader may be reading is ever changed.
"""

from __future__ import annotations

import io
import json
import os
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from chemscale.errors import StoreError
from chemscale.runtime.files import Folder
from chemscale.runtime.jsonio import digest, dump
from chemscale.schema import STORE_VERSION
from chemscale.survey.store.locks import writing
from chemscale.survey.store.manifest import LEDGER, PLAN, ROOT, SHARDS, StoreHeader, checksum, done_shards
from chemscale.survey.store.replace import under_way

#: Names in the stored record of what is called otherwise here; they stay, so that every store opens.
_STORED_RECORD = {"groups": "segments"}
_STORED_GROUP = {"n_rows": "slots"}


@dataclass(frozen=True)
class GroupEntry:
    """One group of arrays of a store: the first revision's (path '') or that of a later one."""

    path: str
    n_rows: int
    #: file that lists the rows no reader sees (quarantined or superseded), None where there are none
    hidden: str | None
    n_hidden: int


@dataclass(frozen=True)
class RootRecord:
    """The root record: which revision readers see."""

    n_stars: int
    groups: list[GroupEntry]
    revision: int = 0
    fingerprint: str = ""
    #: CRC32C of each group's list of markers, of every list of hidden rows and of a cleaning: name -> checksum
    checksums: dict[str, int] = field(default_factory=dict)
    #: pixels that readers see flagged beside those that are (:class:`chemscale.survey.store.rows.Mask`)
    mask: dict[str, Any] = field(default_factory=dict)
    #: what is taken off the flux that readers see: ``file``, and words on how it was found
    #: (:class:`chemscale.survey.store.cleaning.Cleaning`)
    cleaning: dict[str, Any] = field(default_factory=dict)
    format: str = "chemscale-survey"
    version: int = STORE_VERSION

    @classmethod
    def read(cls, folder: Folder) -> RootRecord:
        """Root record of a complete store.

        Raises
        ------
        StoreError
            No store, an unfinished store, or one of another version.
        """
        try:
            raw = json.loads(folder.read(ROOT))
        except FileNotFoundError:
            raise why_not(folder) from None
        except (ValueError, NotADirectoryError) as err:
            raise _damaged(folder, err) from err
        if not isinstance(raw, dict):
            raise _damaged(folder, f"it holds a {type(raw).__name__}")
        if raw.get("format") != "chemscale-survey" or raw.get("version") != STORE_VERSION:
            raise StoreError(
                f"{folder.root}: store format {raw.get('format')!r} version {raw.get('version')!r}, "
                f"this chemscale reads version {STORE_VERSION}",
                "use the chemscale that wrote it, or ingest again",
            )
        expected = raw.pop("checksum", None)
        if expected != checksum(dump(raw)):
            raise _damaged(folder, "checksum")
        try:
            groups = [GroupEntry(**_renamed(entry, _STORED_GROUP)) for entry in raw.pop("segments")]
            return cls(groups=groups, **raw)
        except (TypeError, KeyError, AttributeError) as err:
            raise _damaged(folder, err) from err

    def write(self, folder: Folder) -> None:
        """Publish: from here on readers see this record."""
        content = _content(self)
        folder.write(ROOT, dump(content | {"checksum": checksum(dump(content))}), sync=True)


def _content(record: RootRecord) -> dict[str, Any]:
    """The record as it is stored: without what it lacks of a mask and a cleaning, as before there were any."""
    present = {k: v for k, v in asdict(record).items() if k not in ("mask", "cleaning") or v}
    content = {_STORED_RECORD.get(k, k): v for k, v in present.items()}
    content["segments"] = [{_STORED_GROUP.get(k, k): v for k, v in entry.items()} for entry in content["segments"]]
    return content


def _renamed(stored: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """`stored` under the names used here."""
    here = {old: new for new, old in names.items()}
    return {here.get(k, k): v for k, v in stored.items()}


def _damaged(folder: Folder, what: object) -> StoreError:
    return StoreError(f"{folder.root}: {ROOT} is damaged ({what})", "restore it or ingest again")


def why_not(folder: Folder) -> StoreError:
    """Why there is no complete store in `folder`, and what to do about it."""
    if under_way(folder):
        return StoreError(
            f"{folder.root}: was being overwritten, which was interrupted",
            "carry on with the same command and --resume (`chemscale finalise` after --partition jobs), "
            "or start again with --overwrite",
        )
    if not folder.exists():
        return StoreError(f"no survey store at {folder.root}", "check the path; `chemscale ingest` makes one")
    if folder.exists(PLAN):
        header = StoreHeader.read(folder)
        done = len(done_shards(folder))
        return StoreError(
            f"{folder.root}: unfinished store, {done} of {header.n_shards} shards are written",
            "repeat the `chemscale ingest` command with --resume (or `chemscale finalise` after --partition jobs)",
        )
    return StoreError(
        f"{folder.root}: not a chemscale store (no {ROOT})",
        "give a store made by `chemscale ingest` or `chemscale simulate --out`",
    )


def publish_first(folder: Folder, header: StoreHeader, hidden: np.ndarray) -> None:
    """Write the root record of a store's first revision."""
    publish(folder, [("", header.n_rows, hidden)], revision=0, fingerprint=digest(header.fingerprint))


def publish(
    folder: Folder,
    groups: list[tuple[str, int, np.ndarray]],
    *,
    revision: int,
    fingerprint: str,
    mask: dict[str, Any] | None = None,
    cleaning: dict[str, Any] | None = None,
) -> None:
    """Write the root record: (path, rows, hidden rows) of every group. Until then readers see the one before."""
    entries = [group_entry(folder, path, n_rows, hidden, revision=revision) for path, n_rows, hidden in groups]
    names = [f"{path}/{SHARDS}".lstrip("/") for path, _, _ in groups] + [e.hidden for e in entries if e.hidden]
    names += [cleaning["file"]] if cleaning else []
    RootRecord(
        n_stars=sum(n_rows - len(hidden) for _, n_rows, hidden in groups),
        groups=entries,
        revision=revision,
        fingerprint=fingerprint,
        checksums={name: checksum(folder.read(name)) for name in names},
        mask=mask or {},
        cleaning=cleaning or {},
    ).write(folder)


def publish_mask(folder: Folder, mask: dict[str, Any]) -> int:
    """Replace the store's mask (``windows``, ``max_error``) by a revision of the root record; no pixel is rewritten.

    Returns
    -------
    int
        The revision readers see now: the same one where the mask was there already.
    """
    with writing(folder):
        record = RootRecord.read(folder)
        if record.mask != mask:
            record = replace(record, mask=mask, revision=record.revision + 1)
            record.write(folder)
        folder.sub(LEDGER).remove_partials()
    return record.revision


def publish_cleaning(folder: Folder, data: bytes | None, facts: dict[str, Any]) -> int:
    """Replace what is taken off the store's flux by a revision of the root record; no pixel is rewritten.

    Parameters
    ----------
    folder : Folder
    data : bytes or None
        An :class:`~chemscale.survey.store.cleaning.Effects`; None: readers see the stored flux again.
    facts : dict
        How it was found, in words and numbers.

    Returns
    -------
    int
        The revision readers see now: the same one where nothing changed.
    """
    with writing(folder):
        record = RootRecord.read(folder)
        crc, file = None if data is None else checksum(data), record.cleaning.get("file", "")
        same = crc == record.checksums.get(file) and facts == record.cleaning.get("facts", {})
        whole = not file or (folder.exists(file) and checksum(folder.read(file)) == record.checksums[file])
        if not (same and whole):
            others = {n: c for n, c in record.checksums.items() if n != file}
            cleaning: dict[str, Any] = {}
            if data is not None and crc is not None:
                cleaning = {"file": f"{LEDGER}/cleaning-{record.revision + 1:04d}.npz", "facts": facts}
                folder.write(cleaning["file"], data, sync=True)
                others[cleaning["file"]] = crc
            record = replace(record, cleaning=cleaning, checksums=others, revision=record.revision + 1)
            record.write(folder)
        folder.sub(LEDGER).remove_partials()
    return record.revision


def group_entry(folder: Folder, path: str, n_rows: int, hidden: np.ndarray, *, revision: int) -> GroupEntry:
    """Entry of a group in the root record; its hidden rows go to a file of their own."""
    name = None
    if len(hidden):
        name = f"{LEDGER}/hidden-{revision:04d}-{path.rsplit('/', 1)[-1] or 'first'}.npy"
        buffer = io.BytesIO()
        np.save(buffer, np.asarray(hidden, "i8"), allow_pickle=False)
        folder.write(name, buffer.getvalue(), sync=True)
    return GroupEntry(path, n_rows, name, len(hidden))


def read_hidden(folder: Folder, record: RootRecord, entry: GroupEntry) -> np.ndarray:
    """Hidden rows of a group, sorted.

    Raises
    ------
    StoreError
        The list is missing, or not the one that the root record names.
    """
    if not entry.hidden:
        return np.empty(0, "i8")
    try:
        data = folder.read(entry.hidden)
    except FileNotFoundError:
        data = b""
    if checksum(data) != record.checksums.get(entry.hidden):
        raise StoreError(
            f"{folder.where(entry.hidden)}: missing or damaged", "`chemscale verify STORE --repair` writes it again"
        )
    return np.load(io.BytesIO(data), allow_pickle=False)


def store_token(store: str) -> str:
    """A text that changes whenever a store's contents do: made anew, appended to, or masked otherwise."""
    folder = Folder(store)
    return token_of(folder, RootRecord.read(folder))


def token_of(folder: Folder, record: RootRecord) -> str:
    """A digest that changes whenever the store's content may have changed."""
    return digest([record.fingerprint, record.revision, record.n_stars, _modified(folder)])


def _modified(folder: Folder) -> float:
    return 0.0 if folder.remote else os.stat(folder.where(ROOT)).st_mtime
