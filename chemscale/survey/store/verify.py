"""Is a store what was written? Find what is broken and name it; :mod:`chemscale.survey.ingest.repair` mends it.

Every file of a store has its checksum in the list of markers, that list has its own in the
root record, and the root record carries one of itself: a single flipped byte anywhere is found.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from chemscale.runtime.files import PARTIAL, Folder
from chemscale.schema import ALL_FLAGS, VARIABLES, check
from chemscale.survey.store.faults import Fault, VerifyReport
from chemscale.survey.store.layout import decoder
from chemscale.survey.store.ledger import Ledger, compare
from chemscale.survey.store.manifest import LEDGER, PLAN, ROOT, SHARDS, StoreHeader
from chemscale.survey.store.open import open_survey
from chemscale.survey.store.replace import REPLACING
from chemscale.survey.store.root import GroupEntry, RootRecord

if TYPE_CHECKING:
    from distributed import Client


@dataclass(frozen=True)
class _Check:
    folder: Folder
    header: StoreHeader
    group: str
    shard: int
    rows: tuple[int, int]
    files: Mapping[str, Mapping[str, int]]
    deep: bool


def verify(
    path: str | os.PathLike[str],
    *,
    deep: bool = True,
    client: Client | None = None,
    progress: bool | None = None,
) -> VerifyReport:
    """Check every file of a store.

    Parameters
    ----------
    path : str or path
        The store.
    deep : bool
        Also decode every pixel: values finite, `ivar` not negative, flags known. One pass.
    client : distributed.Client, optional
        Shards are checked by its workers.

    Returns
    -------
    VerifyReport

    Raises
    ------
    StoreError
        There is no complete store at `path` (then there is nothing to verify).
    """
    top = Folder(path)
    report = VerifyReport(top.root)
    record = RootRecord.read(top)
    report.n_stars = record.n_stars
    for name, expected in record.checksums.items():
        problem = _check_file(top, name, {"crc32c": expected}, report, "")
        if problem and name == record.cleaning.get("file"):
            of = " --of ".join(record.cleaning["facts"]["covariates"])
            again = f"`chemscale clean {top.root} --of {of}` finds it again, --clear drops it"
            report.faults[-1] = Fault(name, f"{problem}; {again}")
    listed: set[str] = set()
    for entry in record.groups:
        found = _verify_group(top, record, entry, report, deep=deep, client=client, progress=progress)
        listed.update(f"{entry.path}/{name}".lstrip("/") for name in found)
    if not any(f.file.endswith(SHARDS) for f in report.faults):
        report.faults += _strays(top, record, listed)
    if not report.faults:
        _check_contract(top, report)
    return report


def _check_file(folder: Folder, name: str, expected: Mapping[str, int], report: VerifyReport, group: str) -> str:
    problem, data = compare(folder, name, expected)
    report.n_bytes += len(data)
    report.n_files += 1
    if problem:
        report.faults.append(Fault(name, problem, group=group))
    return problem


def _verify_group(
    top: Folder,
    record: RootRecord,
    entry: GroupEntry,
    report: VerifyReport,
    *,
    deep: bool,
    client: Client | None,
    progress: bool | None,
) -> set[str]:
    """Check a group's files; returns the names of those it lists."""
    from chemscale.runtime.shards import map_shards

    folder, group = top.sub(entry.path), entry.path
    if any(f.file == f"{group}/{SHARDS}".lstrip("/") for f in report.faults):
        return set()  # without the list nothing can be told apart
    ledger = Ledger.of(top, record, entry)
    shards = ledger.markers
    for name, expected in ledger.small.items():
        _check_file(folder, name, expected, report, group)
    if any(f.file == PLAN and f.group == group for f in report.faults):
        report.faults += _without_header(ledger, report, group)
        return {SHARDS, *ledger.files()}
    header = StoreHeader.read(folder)
    _check_markers(header, entry, shards, report, group)
    for name, expected in ledger.labels.items():
        problem, _ = compare(folder, name, expected)
        report.n_files += 1
        report.n_bytes += expected["bytes"]
        if problem:
            index = int(name.split("/")[2])
            rows = (index * header.layout.label_stars, min((index + 1) * header.layout.label_stars, header.n_rows))
            report.faults.append(Fault(name, problem, rows, index, group=group))
    tasks = {m["shard"]: _Check(folder, header, group, m["shard"], tuple(m["rows"]), m["files"], deep) for m in shards}

    def on_result(shard: int, found: list[Fault]) -> None:
        report.faults += found
        report.n_files += len(tasks[shard].files)
        report.n_bytes += sum(f["bytes"] for f in tasks[shard].files.values())

    map_shards(
        check_shard, tasks, client, on_result=on_result, description="verify", unit="shards", show=progress
    ).raise_for_failures("shard")
    return {SHARDS, *ledger.files()}


def _without_header(ledger: Ledger, report: VerifyReport, group: str) -> list[Fault]:
    """Faults of shards and label chunks of a group whose header is damaged: their layout is not known."""
    faults = []
    for name, expected in ledger.files().items():
        if name not in ledger.small:
            problem, _ = compare(ledger.folder, name, expected)
            report.n_files += 1
            report.n_bytes += expected["bytes"]
            if problem:
                faults.append(Fault(name, problem, group=group))
    return faults


def _strays(top: Folder, record: RootRecord, listed: set[str]) -> list[Fault]:
    """Files that nothing lists. Revisions that are being appended, and what `finalise` tidies away, are none."""
    faults = []
    groups = {e.path for e in record.groups}
    for name, _ in top.walk():
        head, _, file = name.rpartition("/")
        revision = re.match(r"revisions/\d+(?=/)", name)
        unpublished = revision is not None and revision[0] not in groups
        making = re.search(rf"(^|/){LEDGER}/(parts|shards|partitions)(/|$)", head) or PARTIAL in file
        older = re.fullmatch(rf"{LEDGER}/(?:hidden-(\d+)-\w+\.npy|cleaning-(\d+)\.npz)", name)
        superseded = older is not None and int(older[1] or older[2]) <= record.revision
        if name not in listed | {ROOT, REPLACING, *record.checksums} and not (unpublished or making or superseded):
            faults.append(Fault(name, "is not part of the store: nothing lists it"))
    return faults


def _check_markers(header: StoreHeader, entry: GroupEntry, shards: list[Any], report: VerifyReport, group: str) -> None:
    numbers = [m["shard"] for m in shards]
    if numbers != list(range(header.n_shards)):
        report.faults.append(Fault(SHARDS, f"lists shards {numbers[:5]}..., expected 0 to {header.n_shards - 1}"))
    n_stars = sum(m["statistics"]["n_stars"] for m in shards)
    if entry.n_rows != header.n_rows or n_stars < entry.n_rows - entry.n_hidden:
        report.faults.append(
            Fault(
                SHARDS,
                f"holds {n_stars} stars in {header.n_rows} rows, the root record says {entry}",
                group=group,
            )
        )
    for m in shards:
        ranges = m["statistics"]["flux_range"]
        if ranges is not None and not np.all(np.isfinite(ranges)):
            report.faults.append(Fault(SHARDS, f"shard {m['shard']}: flux range {ranges} is not finite"))


def check_shard(task: _Check) -> list[Fault]:
    """Faults of one shard's files; runs on a worker. Each file is read once and decoded in memory."""
    faults: list[Fault] = []
    for name, expected in task.files.items():
        problem, data = compare(task.folder, name, expected)
        if problem or task.deep:
            faults += _check_chunks(task, name, problem, data)
    return faults


def _check_chunks(task: _Check, name: str, problem: str, data: bytes) -> list[Fault]:
    """Decode a shard chunk by chunk; a file known to be bad is narrowed down to its chunks."""
    variable = name.split("/")[0]
    start, stop = task.rows
    faults: list[Fault] = []
    array = decoder(variable, VARIABLES[variable].dtype, (stop - start, task.header.n_pixels), data, task.header.layout)
    step = task.header.layout.chunk_stars
    chunks = range(start, stop, step)
    for index, first in enumerate(chunks):
        rows = (first, min(first + step, stop))
        try:
            values = np.asarray(array[rows[0] - start : rows[1] - start])
        except Exception as err:
            what = problem or f"cannot be decoded ({type(err).__name__}: {err})"
        else:
            what = _strange_values(variable, values)
        if what:
            ids = _ids(task.folder, rows)
            faults.append(Fault(name, what, rows, index, ids, task.group, task.shard))
    whole = len(faults) == len(chunks) and len(chunks) > 1 and problem
    if problem and (not faults or whole):  # in no chunk's bytes, or in all: the shard's index, or the file is gone
        what = problem
        if not problem.startswith(("missing", "has", "cannot", "holds")):
            what += " (in the shard's index)" if whole else " (another shard's chunks, or older ones)"
        ids = _ids(task.folder, task.rows)
        return [Fault(name, what, task.rows, None, ids, task.group, task.shard)]
    return faults


def _strange_values(variable: str, values: np.ndarray) -> str:
    if variable == "flags":
        unknown = int(np.bitwise_or.reduce(values, axis=None)) & ~ALL_FLAGS if values.size else 0
        return f"holds unknown flag bits {unknown}" if unknown else ""
    if not np.isfinite(values).all():
        return f"{int((~np.isfinite(values)).sum())} values are not finite"
    if variable == "ivar" and (values < 0).any():
        return f"{int((values < 0).sum())} values are negative"
    return ""


def _ids(folder: Folder, rows: tuple[int, int]) -> tuple[str, str] | None:
    import zarr

    try:
        array: Any = zarr.open_array(folder.zarr_store(), path="star_id", mode="r")
        return str(array[rows[0]]), str(array[rows[1] - 1])
    except Exception:
        return None  # the identifiers may be what is broken; the row numbers name the stars as well


def _check_contract(top: Folder, report: VerifyReport) -> None:
    ds = open_survey(top.root)
    report.faults += [Fault(ROOT, problem) for problem in check(ds)]
    for name in ds.variables:
        spec = VARIABLES.get(str(name))
        if spec and spec.dtype.startswith("float") and spec.dims[0] == "star" and "wavelength" not in spec.dims:
            bad = int(np.isinf(ds[name].values).sum())
            if bad:
                report.faults.append(Fault(str(name), f"{bad} values are infinite"))
