"""Products of a run: written beside, bound to what they were made from, switched in one step.

A Zarr product grows in a folder ``NAME.partial`` beside its final place. When it is whole, its root group gets a
record (every file with its size and checksum, and the identity of every product it was made from), and the folder
takes the product's name in one rename. So a reader finds the old product or the new one; and one that was made from
something else than what now lies in the run (an interrupted fit) is told apart by its record. JSON products carry
the same record under one key. Products of release 8de129b have no record and are read as they are.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c

from chemscale.errors import ResumeError, StoreError
from chemscale.runtime.exchange import exchange
from chemscale.runtime.files import Folder, is_remote, write_file
from chemscale.runtime.jsonio import canonical, dump, plain
from chemscale.runtime.versions import Versions, opened_at

if TYPE_CHECKING:
    import xarray as xr

#: Attribute of a Zarr product's root group, and key of a JSON product, that holds the record.
RECORD = "chemscale_product"
VERSION = 1
#: Bytes of a product up to which every file is read and compared when it is opened; of larger ones existence and size.
CHECKED_BYTES = 256 << 20
PARTIAL = ".partial"
#: Records and logs of a run, which change at any time.
NOT_SEALED = ("manifest.json", "pipeline.json", "logs", "performance")
_PIECE = 1 << 20
#: Files whose way to the disk is waited for at a time.
_SYNCED_AT_ONCE = 16


def switch(new: Path, target: Path) -> None:
    """Give the folder `new` the name `target`; what was there before goes only when `new` is in its place.

    One step where the file system can exchange two names; elsewhere there is a moment without the product. What a
    killed switch left of an older product goes, too.
    """
    if os.path.lexists(target):
        old = target.with_name(f"{target.name}.old-{uuid.uuid4().hex[:12]}")
        if exchange(new, target):
            os.rename(new, old)  # not under the name of something unfinished, should this process die here
        else:
            os.rename(target, old)
            os.rename(new, target)
        shutil.rmtree(old)
    else:
        os.rename(new, target)
    remove_leftovers(target)


def discard(target: Path) -> None:
    """Remove a product: its name goes first, in one step."""
    if target.is_dir() and not target.is_symlink():
        old = target.with_name(f"{target.name}.old-{uuid.uuid4().hex[:12]}")
        os.rename(target, old)
        shutil.rmtree(old)
    else:
        target.unlink(missing_ok=True)


def remove_leftovers(target: Path) -> None:
    """Remove what a killed switch of this product left behind."""
    for left in target.parent.glob(f"{target.name}.old-*"):
        shutil.rmtree(left, ignore_errors=True)


def ledger(folder: Path, *, sync: bool = False) -> dict[str, list[int]]:
    """Every file below `folder` but its root metadata: name -> [bytes, CRC32C]; `sync` puts each on the disk."""
    paths = []
    for where, folders, names in os.walk(folder):
        folders.sort()
        paths += [os.path.join(where, name) for name in sorted(names)]
    root = os.path.join(folder, "zarr.json")
    paths = [path for path in paths if path != root]
    with ThreadPoolExecutor(_SYNCED_AT_ONCE if sync else 1) as pool:  # a disk takes many files in the time of one
        sizes = pool.map(partial(size_and_checksum, sync=sync), paths)
        return {os.path.relpath(path, folder).replace(os.sep, "/"): list(size) for path, size in zip(paths, sizes)}


def size_and_checksum(path: str | Path, *, sync: bool = False) -> tuple[int, int]:
    """Bytes and CRC32C of a file; `sync` puts it on the disk."""
    size = crc = 0
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            size += len(piece)
            crc = google_crc32c.extend(crc, piece)
        if sync:
            os.fsync(file.fileno())
    return size, int(crc)


def _identity(record: Mapping[str, Any], content: Any) -> str:
    """Identity of a product: digest of its record and of what the record does not cover."""
    bare = {k: v for k, v in record.items() if k != "identity"}
    return hashlib.sha256(canonical(plain([bare, content]), compact=True)).hexdigest()


def _attributes(folder: Path) -> dict[str, Any] | None:
    """Attributes of a Zarr group on disk; None where there is none."""
    try:
        return json.loads((folder / "zarr.json").read_bytes()).get("attributes", {})
    except (FileNotFoundError, NotADirectoryError):
        return None


def seal(
    folder: Path,
    made_from: Mapping[str, str | None],
    plan: Mapping[str, Any] | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> str:
    """Write the record (and `attributes`) into the root group of a whole Zarr product; returns its identity."""
    file = folder / "zarr.json"
    metadata = json.loads(file.read_bytes())
    attributes = dict(metadata.get("attributes", {})) | dict(attributes or {})
    attributes.pop(RECORD, None)
    record = {"version": VERSION, "made_from": dict(made_from), "plan": plain(dict(plan or {})), "files": None}
    record["files"] = ledger(folder, sync=True)
    record["identity"] = _identity(record, attributes)
    metadata["attributes"] = attributes | {RECORD: record}
    write_file(file, json.dumps(plain(metadata), allow_nan=False).encode())  # on one line, for thousands of files
    return str(record["identity"])


def record_of(path: Path) -> dict[str, Any] | None:
    """The record of a product; None where there is no product, or one of an earlier release.

    Raises
    ------
    StoreError
        Its metadata cannot be read or were changed.
    """
    try:
        if path.suffix == ".json":
            content = json.loads(path.read_bytes()) if path.is_file() else None
            content = dict(content) if isinstance(content, dict) else None
        else:
            content = _attributes(path)
    except ValueError as err:
        raise StoreError(f"{path}: damaged ({err})") from err
    record = content.pop(RECORD, None) if content else None
    if record is None:
        return None
    if not isinstance(record, dict) or record.get("identity") != _identity(record, content):
        raise StoreError(f"{path}: damaged (its metadata were changed)")
    return record


def identity_of(path: Path) -> str | None:
    """Identity of a product, or the digest of a file without a record; None where there is nothing to tell it by."""
    record = record_of(path)
    if record is not None:
        return str(record["identity"])
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def in_order(ds: xr.Dataset) -> xr.Dataset:
    """The same Dataset with its variables by name: as they are found on disk, their order is that of a race."""
    return ds[sorted(map(str, ds.data_vars))].assign_coords(ds.coords)


def faults(path: Path, *, everything: bool = False) -> list[str]:
    """What is wrong with the files of a product, each named; [] for a whole one or one without a record.

    Parameters
    ----------
    everything : bool
        Compare the checksums of every file. Otherwise of products up to :data:`CHECKED_BYTES`, and sizes of others.
    """
    try:
        record = record_of(path)
    except StoreError as err:
        return [err.message]
    if record is None or "files" not in record:
        return []
    files = record["files"]
    compare = everything or sum(size for size, _ in files.values()) <= CHECKED_BYTES
    found = []
    for name, (size, crc) in files.items():
        file = path / name
        if not _is_inside(name) or file.is_symlink():
            found.append(f"{path}: damaged (the record names {name!r}, which leads out of the product)")
            continue
        try:
            is_now = size_and_checksum(file) if compare else (os.stat(file).st_size, crc)
        except OSError:
            found.append(f"{file}: missing")
            continue
        if is_now != (size, crc):
            found.append(f"{file}: damaged (its content is not what was written)")
    if everything:
        found += [f"{path / name}: does not belong to the product" for name in ledger(path) if name not in files]
    return found


def _is_inside(name: str) -> bool:
    return not name.startswith("/") and ".." not in name.split("/") and name.isprintable()


def write_dataset(path: Path, ds: Any, made_from: Mapping[str, str | None], **options: Any) -> None:
    """Write a Dataset as the Zarr product `path`, whole or not at all."""
    product = ResumableProduct(path, {})
    product.restart(lambda folder: ds.to_zarr(folder, mode="w", zarr_format=3, consolidated=False, **options))
    product.finish(made_from)


def with_record(obj: Mapping[str, Any], made_from: Mapping[str, str | None]) -> dict[str, Any]:
    """A JSON product with its record."""
    content = plain({k: v for k, v in obj.items() if k != RECORD})
    record: dict[str, Any] = {"version": VERSION, "made_from": dict(made_from)}
    record["identity"] = _identity(record, content)
    return content | {RECORD: record}


class ResumableProduct:
    """A Zarr product that is made part by part beside its final place, and can be carried on.

    ``NAME.partial/plan.json`` says what is being made and is written once the empty product is whole;
    ``NAME.partial/done/000012.json`` says that a part is written, and is made after its data: the presence of an
    array says nothing. In an object store, which cannot rename, versions lie side by side and one small object
    switches (:mod:`chemscale.runtime.versions`).

    Parameters
    ----------
    target : str or path
        Where the finished product will be.
    plan : mapping
        Everything a continuation must share with its beginning (JSON-able).
    """

    def __init__(self, target: str | os.PathLike[str], plan: Mapping[str, Any]):
        self.remote = is_remote(target)
        self.target = os.fspath(target).rstrip("/") if self.remote else os.path.abspath(target)
        self.plan = plain(dict(plan))
        self.partial = Folder(self.target + PARTIAL)
        self._versions = Versions(self.target) if self.remote else None

    @property
    def folder(self) -> str:
        """The group that parts are written to."""
        if self._versions is None:
            return self.partial.where("product")
        return self._versions.where(self.partial.read("version").decode())

    def is_finished(self) -> bool:
        """Whether the finished product was made by this very plan, and is whole (in object stores: there)."""
        if self._versions is not None:
            there = self._versions.current()
            return bool(there) and there["plan"] == self.plan and Folder(opened_at(self.target)).exists("zarr.json")
        record = record_of(Path(self.target))
        return record is not None and record.get("plan") == self.plan and not faults(Path(self.target))

    def differing(self) -> list[str]:
        """Keys in which the plan of what was begun here differs from this one; [] where they agree or nothing is."""
        try:
            before = json.loads(self.partial.read("plan.json"))
        except (FileNotFoundError, ValueError):
            return []
        return sorted(k for k in {*before, *self.plan} if before.get(k) != self.plan.get(k))

    def begun(self) -> bool:
        """Whether this very product was begun."""
        return self.partial.exists("plan.json") and not self.differing()

    def restart(self, create: Callable[[str], Any]) -> None:
        """Begin anew: `create` makes the empty product in the folder it is given."""
        if self._versions is not None:
            self.partial.remove_tree()
            self._versions.clear()
            self.partial.write("version", self._versions.new().encode())
        else:
            partial = Path(self.partial.root)
            remove_leftovers(Path(self.target))
            if partial.exists():
                discard(partial)
            remove_leftovers(partial)
            partial.mkdir(parents=True)
        create(self.folder)
        self.partial.write("plan.json", dump(self.plan))

    def carry_on(self) -> set[int]:
        """Numbers of the parts that are done.

        Raises
        ------
        ResumeError
            What was begun is something else, or nothing was.
        """
        if not self.begun():
            different = ", ".join(self.differing()) or "nothing was begun"
            raise ResumeError(
                f"{self.target}: was begun with another model, survey or setting ({different})",
                "pass overwrite to start again",
            )
        return done_parts(self.partial.root)

    def mark(self, part: int, facts: Mapping[str, Any] | None = None) -> None:
        """Part `part` is written."""
        mark_done(self.partial.root, part, facts)

    def finish(self, made_from: Mapping[str, str | None], attributes: Mapping[str, Any] | None = None) -> None:
        """Seal the product with `attributes` and put it in its place."""
        if self._versions is not None:
            import zarr

            zarr.open_group(self.folder, mode="r+").attrs.update(dict(attributes or {}))
            self._versions.publish(self.partial.read("version").decode(), self.plan)
            self.clear()
            return
        for left in Path(self.folder).rglob(f"*{PARTIAL}*"):  # of a process that was killed while it wrote a file
            left.unlink()
        seal(Path(self.folder), made_from, self.plan, attributes)
        switch(Path(self.folder), Path(self.target))
        self.clear()

    def clear(self) -> None:
        """Remove what the making of the finished product needed, also where that was interrupted at its very end."""
        self.partial.remove_tree()
        if self._versions is None:
            remove_leftovers(Path(self.target))


def mark_done(partial: str, part: int, facts: Mapping[str, Any] | None = None) -> None:
    """What :meth:`ResumableProduct.mark` does, for workers that know the folder only."""
    Folder(partial).write(f"done/{part:06d}.json", dump(dict(facts or {})))


def done_parts(partial: str) -> set[int]:
    """Parts of a product that are written."""
    names = (n.removesuffix(".json") for n in Folder(partial).list("done") if n.endswith(".json"))
    return {int(n) for n in names if n.isdigit()}


def check_bound(path: Path, remedy: str, identities: Callable[[str], str | None]) -> None:
    """Refuse a product that is damaged, or was made from something else than what is there now.

    Parameters
    ----------
    identities : callable
        Name of an input -> its identity now.

    Raises
    ------
    StoreError
    """
    wrong = faults(path)
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise StoreError(f"{wrong[0]}{more}", remedy)
    record = record_of(path)
    for name, then in (record or {}).get("made_from", {}).items():
        if then is not None and identities(name) != then:
            raise StoreError(
                f"{path} was made from another {name} than the one that is there: it was replaced since, or the "
                "command that replaces both was interrupted",
                remedy,
            )


def plain_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Files of a run that are neither a Zarr product nor its own records and logs: (name, path)."""
    for where, folders, names in os.walk(folder):
        here = (f for f in folders if ".old-" not in f and f not in NOT_SEALED)
        folders[:] = sorted(f for f in here if not f.endswith((".zarr", PARTIAL)))
        for name in sorted(names):
            if name not in NOT_SEALED and not name.startswith(".") and ".partial-" not in name:
                path = Path(where, name)
                yield path.relative_to(folder).as_posix(), path


def remove_partials(folder: Path) -> None:
    """Remove what killed writers of plain files left in a run; for whoever holds its lock."""
    for left in leftovers(folder):
        if ".partial-" in left.name and left.is_file():
            left.unlink(missing_ok=True)


def leftovers(folder: Path) -> list[Path]:
    """What interrupted commands left in a run directory: partial products and old ones."""
    found = []
    for where, folders, names in os.walk(folder):
        here = [n for n in (*folders, *names) if n.endswith(PARTIAL) or ".old-" in n or ".partial-" in n]
        found += [Path(where, n) for n in sorted(here)]
        folders[:] = [f for f in folders if f not in here and not f.endswith(".zarr")]
    return found
