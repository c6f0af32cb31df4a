"""Check every file of a run directory against what was recorded when it was written."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from chemscale.errors import StoreError
from chemscale.runtime.contents import MADE_FROM
from chemscale.runtime.jsonio import digest, read_json
from chemscale.runtime.product import faults, leftovers, plain_files, record_of, size_and_checksum
from chemscale.runtime.run import MANIFEST, Run

#: Product -> the stage that makes it.
MADE_IN = {"ppca.zarr": "ppca", "embedding.zarr": "embed", "rsca.zarr": "metric", "latents.zarr": "vae.infer"}


@dataclass
class RunReport:
    """What was found in a run: faults, and notes that need no mending."""

    run: str
    n_files: int = 0
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return vars(self) | {"ok": self.ok}


def verify_run(path: str | Path) -> RunReport:
    """Check a run: every product's files, what each was made from, plain files, weights, the manifest.

    Reads every file once. Products and files of release 8de129b have nothing to be compared with: a note says so.

    Raises
    ------
    StoreError
        Not a run.
    """
    run = Run.open(path)
    report = RunReport(str(run.path))
    content = {k: v for k, v in run.manifest.items() if k != "checksum"}
    if "checksum" in run.manifest and run.manifest["checksum"] != digest(content):
        report.faults.append(f"{run.path / MANIFEST}: was changed since it was written")
    _products(run, report)
    _files(run, report)
    for name, entry in run.manifest["stages"].items():
        if entry.get("status") != "done":
            report.notes.append(f"stage {name} did not end well ({entry.get('status')}): its command carries on")
    report.notes += [f"{left}: left by an interrupted command" for left in leftovers(run.path)]
    return report


def _products(run: Run, report: RunReport) -> None:
    there = sorted(p.relative_to(run.path).as_posix() for p in run.path.rglob("*.zarr") if ".partial" not in str(p))
    for name in sorted({*there, *(n for n in MADE_FROM if n.endswith(".json") and run.has(n))}):
        path = run.path / name
        report.n_files += sum(1 for f in path.rglob("*") if f.is_file())
        found = faults(path, everything=True)
        report.faults += found
        try:
            if not found and record_of(path) is None:
                report.notes.append(f"{path}: has no record (an earlier release wrote it), so only its stage is known")
            elif not found:
                run.check(name)
        except StoreError as err:
            report.faults.append(f"{err.message} ({err.remedy})")
    for name, stage in MADE_IN.items():
        if run.manifest["stages"].get(stage, {}).get("status") == "done" and name not in there:
            report.faults.append(f"{run.path / name}: missing, although its stage is done")


def _files(run: Run, report: RunReport) -> None:
    unfinished = [
        datetime.fromisoformat(e["started"]).timestamp()
        for e in run.manifest["stages"].values()
        if e.get("status") != "done" and "started" in e
    ]
    since = min(unfinished, default=float("inf"))
    known = run.manifest.get("files", {})
    there = dict(plain_files(run.path))
    report.n_files += len(there) + 1
    for name, (size, crc) in known.items():
        file = there.get(name)
        if file is None:
            report.faults.append(f"{run.path / name}: missing")
        elif file.stat().st_mtime < since and size_and_checksum(file) != (size, crc):
            report.faults.append(f"{file}: damaged (its content is not what was written)")
    for name in set(there) - set(known) - set(MADE_FROM):
        report.notes.append(f"{there[name]}: nothing is recorded about it")
    for file in there.values():
        if file.suffix == ".safetensors" and file.with_suffix(".json") in there.values():
            _weights(file, report)


def _weights(file: Path, report: RunReport) -> None:
    try:
        expected = read_json(file.with_suffix(".json")).get("sha256")
    except StoreError as err:
        report.faults.append(err.message)
        return
    if expected is not None and hashlib.sha256(file.read_bytes()).hexdigest() != expected:
        report.faults.append(f"{file}: does not belong to its .json")
