"""New stars for a store, or better spectra of old ones: a revision.

A revision is a group of arrays of its own below ``revisions/``, written and verified like a store.
Nothing that exists is touched. One small root record, replaced atomically at the end, adds
the group and hides the rows it supersedes: readers see all of the revision or none of it,
and whoever has the store open keeps seeing what was there.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import numpy as np

from chemscale.errors import DataError, InputError, StoreError
from chemscale.runtime.files import Folder
from chemscale.runtime.jsonio import digest, dump
from chemscale.survey.ingest.censoring import MAX_ERROR
from chemscale.survey.ingest.finalise import PLANNED_REJECTIONS, finalise_group, read_column
from chemscale.survey.ingest.ingestion import run_shards, still_good
from chemscale.survey.ingest.planning import Job, check_same, plan_ingest
from chemscale.survey.ingest.summary import IngestSummary, summarise
from chemscale.survey.sources.base import Source
from chemscale.survey.store.cleaning import in_words
from chemscale.survey.store.create import create_store, tidy
from chemscale.survey.store.ledger import Ledger
from chemscale.survey.store.locks import writing
from chemscale.survey.store.manifest import INPUTS, LEDGER, PLAN, StoreHeader, done_shards
from chemscale.survey.store.open import open_groups, small_array
from chemscale.survey.store.root import RootRecord, publish, read_hidden

if TYPE_CHECKING:
    from distributed import Client


def append(
    source: Source,
    path: str | os.PathLike[str],
    *,
    replace_existing: bool = False,
    client: Client | None = None,
    max_error: float | None = MAX_ERROR,
    max_bad: float | None = None,
    resume: bool = False,
    progress: bool | None = None,
) -> IngestSummary:
    """Add a source's stars to a complete store, as one transaction.

    Parameters
    ----------
    source : Source
        Must be on the store's wavelength grid, with its elements. Labels the store does not
        have are left out; labels the source does not have are missing for its stars.
    path : str or path
        The store.
    replace_existing : bool
        Stars whose identifier is in the store already: supersede the old row (True), or
        refuse (False). A star whose new file cannot be read keeps its old row.
    client, max_error, max_bad, progress
        As for :func:`chemscale.survey.ingest.ingestion.ingest`.
    resume : bool
        Carry on with an append that was interrupted.

    Returns
    -------
    IngestSummary
        Of the new revision alone.

    Raises
    ------
    InputError
        Another grid or other elements; identifiers that exist (without `replace_existing`).
    StoreError
        No complete store, an interrupted append, or another append came first.
    """
    top = Folder(path)
    with writing(top):
        return _append(source, top, replace_existing, client, max_error, max_bad, resume, progress)


def _tidy(top: Folder, revision: Folder) -> None:
    """Remove what the writing left: in the revision, and beside the root record that names it."""
    tidy(revision)
    top.sub(LEDGER).remove_partials()


def _append(
    source: Source,
    top: Folder,
    replace_existing: bool,
    client: Client | None,
    max_error: float | None,
    max_bad: float | None,
    resume: bool,
    progress: bool | None,
) -> IngestSummary:
    begun = time.monotonic()
    record = RootRecord.read(top)
    ledger = Ledger.of(top, record, record.groups[0])
    first = ledger.header()
    job = _fit(plan_ingest(source, layout=first.layout, max_error=max_error), first, ledger)
    last = top.sub(record.groups[-1].path)
    if resume and record.groups[-1].path and StoreHeader.read(last).fingerprint == job.header.fingerprint:
        _tidy(top, last)  # it was published, and interrupted after that
        return replace(summarise(last, job, begun, kept=job.header.n_shards), path=top.root, complete=True)
    existing = _existing(top, record)
    known = [i.star_id for i in job.items if i.star_id in existing]
    if known and not replace_existing:
        raise InputError(
            f"{len(known)} of {len(job.items)} stars are in {top.root} already, e.g. {', '.join(known[:5])}",
            "pass --replace to supersede them",
        )
    name = f"revisions/{record.revision + 1:04d}"
    folder = top.sub(name)
    _begin(folder, job, resume=resume)
    kept = {s for s in done_shards(folder) if still_good(folder, job, s)}
    run_shards(folder, job, range(job.header.n_shards), kept, client=client, max_bad=max_bad, progress=progress)
    closed = finalise_group(folder, job.header)
    if not closed["n_stars"]:
        reasons = "; ".join(f"{r.path}: {r.reason}" for r in closed["rejected"][:5])
        folder.remove_tree()
        raise DataError(f"none of {len(job.items)} inputs could be read: {reasons}", "nothing was added")
    now = RootRecord.read(top)
    if now.revision != record.revision:
        raise StoreError(
            f"{top.root}: another append was published meanwhile (revision {now.revision})",
            f"remove {folder.root} and append again",
        )
    new_ids = set(np.delete(read_column(folder, "star_id"), closed["hidden"]).tolist())
    groups = _groups(top, record, {i: where for i, where in existing.items() if i in new_ids})
    groups.append((name, job.header.n_rows, closed["hidden"]))
    summary = summarise(folder, job, begun, kept=len(kept))
    fingerprint = digest([record.fingerprint, job.header.fingerprint])
    seen = {"mask": record.mask, "cleaning": record.cleaning}
    publish(top, groups, revision=record.revision + 1, fingerprint=fingerprint, **seen)
    _tidy(top, folder)
    return replace(
        summary,
        path=top.root,
        n_stars=closed["n_stars"],
        rejected=closed["rejected"],
        complete=True,
        n_rejected=len(closed["rejected"]),
        seconds=time.monotonic() - begun,
    )


def _fit(job: Job, first: StoreHeader, ledger: Ledger) -> Job:
    """The job with the store's variables; refuses what cannot stand in one array with the others."""
    top = ledger.folder
    stored = small_array(ledger, "wavelength").values
    if len(stored) != len(job.wavelength) or not np.allclose(stored, job.wavelength, rtol=1e-9, atol=0):
        raise InputError(
            f"the source's wavelength grid ({len(job.wavelength)} pixels) is not that of {top.root} ({len(stored)})",
            "ingest it into a store of its own",
        )
    if job.header.medium != first.medium or job.header.elements != first.elements:
        raise InputError(
            f"{top.root} holds {first.medium} wavelengths and elements {', '.join(first.elements) or 'none'};"
            f" the source has {job.header.medium} and {', '.join(job.header.elements) or 'none'}",
            "ingest it into a store of its own",
        )
    seen, there = (h.attrs.get("cleaned", []) for h in (job.header, first))
    if set(seen) != set(there):
        raise InputError(
            f"the source's spectra are {in_words(seen)} elsewhere, those of {top.root} {in_words(there)}",
            "ingest them into a store of their own",
        )
    lost = [name for name in job.header.labels if name not in first.labels]
    attrs = dict(job.header.attrs)
    if lost:
        attrs["extra"] = [name for name in attrs.get("extra", ()) if name in first.labels]
        attrs["ignored"] = [*attrs.get("ignored", ()), *(f"{n} (the store was made without it)" for n in lost)]
    return replace(job, header=replace(job.header, labels=first.labels, attrs=attrs))


def _begin(folder: Folder, job: Job, *, resume: bool) -> None:
    if folder.exists(PLAN):
        if not resume:
            raise StoreError(
                f"{folder.root}: an earlier append was interrupted here",
                "carry on with --resume, or remove that folder",
            )
        check_same(folder, job)
        return
    folder.write(INPUTS, job.inputs.pack())
    folder.write(PLANNED_REJECTIONS, dump([asdict(r) for r in job.rejected]))
    create_store(folder, job.header, job.wavelength)


def _existing(top: Folder, record: RootRecord) -> dict[str, tuple[int, int]]:
    """Identifier -> (group, row) of every visible star. Holds the identifiers in memory."""
    where = {}
    for index, group in enumerate(open_groups(top, record)):
        ids = group.read("star_id", 0, group.n_stars)
        rows = np.delete(np.arange(group.n_rows), group.hidden)
        where.update({star: (index, int(row)) for star, row in zip(ids, rows, strict=True)})
    return where


def _groups(
    top: Folder, record: RootRecord, superseded: dict[str, tuple[int, int]]
) -> list[tuple[str, int, np.ndarray]]:
    """The present groups with the superseded rows hidden."""
    out = []
    for index, entry in enumerate(record.groups):
        more = np.array([row for group, row in superseded.values() if group == index], "i8")
        hidden = np.union1d(read_hidden(top, record, entry), more).astype("i8")
        out.append((entry.path, entry.n_rows, hidden))
    return out
