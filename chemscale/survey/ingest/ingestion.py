"""Survey files to a store: plan -> write shards -> finalise.

The plan lists every star (one row each) and fingerprints configuration and inputs. Each
shard is one task: read its stars, censor pixels, write, read back, compare checksums, leave
a marker. Finalising gathers the per-star values and publishes the store. Whatever kills the
job in between, ``resume=True`` carries on and the result is the same to the last bit.

Passes: every input file is read once. Memory of a worker: one chunk (about 40 MiB of
pixels and its encoded form), whatever the number of files.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from chemscale.errors import ChemscaleError, DataError, StoreError
from chemscale.runtime.files import Folder
from chemscale.runtime.jobs import parse_partition
from chemscale.runtime.jsonio import dump
from chemscale.runtime.memory import keep_freed_memory
from chemscale.survey.ingest.censoring import MAX_ERROR
from chemscale.survey.ingest.finalise import PLANNED_REJECTIONS, finalise_store, note_partition
from chemscale.survey.ingest.planning import Job, check_same, plan_ingest
from chemscale.survey.ingest.reading import RowReader, ShardTask, empty_pixels, plain_rejection
from chemscale.survey.ingest.summary import IngestSummary, summarise
from chemscale.survey.ingest.writing import ShardWriter
from chemscale.survey.sources.base import Source
from chemscale.survey.sources.file_names import of_another_survey
from chemscale.survey.store.create import check_path, create_store, is_begun, prepare_path
from chemscale.survey.store.layout import BYTES_PER_PIXEL, Layout
from chemscale.survey.store.locks import writing
from chemscale.survey.store.manifest import (
    INPUTS,
    PLAN,
    ROOT,
    ReadBackError,
    StoreHeader,
    columns_name,
    done_shards,
    read_marker,
)
from chemscale.survey.store.replace import beside, put_in_place, under_way

if TYPE_CHECKING:
    from distributed import Client

#: Memory of a writer, in units of a chunk's pixels (pixels, a variable's encoded form, a block being read).
CHUNK_COPIES = 2.5
#: Memory of a worker before it has read anything: Python, Dask, NumPy, Zarr.
WORKER_BYTES = 250 << 20


def ingest(
    source: Source,
    out: str | os.PathLike[str],
    *,
    layout: Layout | None = None,
    client: Client | None = None,
    max_error: float | None = MAX_ERROR,
    max_bad: float | None = None,
    overwrite: bool = False,
    resume: bool = False,
    partition: tuple[int, int] | str | None = None,
    progress: bool | None = None,
    job: Job | None = None,
) -> IngestSummary:
    """Write a source's survey as a store.

    Parameters
    ----------
    source : Source
        What to read (:mod:`chemscale.survey.sources`).
    out : str or path
        Path or URL of the store; an existing one is refused.
    layout : Layout, optional
        Chunks and shards; chosen from a memory target when left out.
    client : distributed.Client, optional
        Shards are written by its workers; without one here, one after the other.
    max_error : float or None
        Pixels with a larger error are flagged LARGE_ERROR.
    max_bad : float, optional
        Stop when more inputs than this cannot be read: a number of files, or below 1 a
        fraction of them. The store stays unfinished and can be resumed with another limit.
    overwrite, resume : bool
        Replace a store, which stays as it is until the new one is whole; or carry on with an unfinished one (start
        it where there is none).
    partition : (k, n) or "k/n", optional
        Write only the k-th (from 1) of n partitions; :func:`finalise` closes the store.
    progress : bool, optional
        Show a bar; by default where stderr is a terminal.
    job : Job, optional
        The plan of this source, when :func:`plan_ingest` has already been called.

    Returns
    -------
    IngestSummary

    Raises
    ------
    StoreError
        `out` exists, cannot be written, or reads back differently.
    ResumeError
        Configuration or inputs differ from those the store was begun with.
    DataError
        Nothing could be read, or `max_bad` was passed.

    Examples
    --------
    >>> import chemscale
    >>> from chemscale.survey.sources.simulated import SimulatedSource
    >>> summary = chemscale.ingest(SimulatedSource(40, 2, seed=1, grid="lowres"), "ingested.zarr")
    >>> summary.complete, chemscale.open_survey("ingested.zarr").sizes["star"] >= 40
    (True, True)
    """

    begun = time.monotonic()
    if isinstance(partition, str):
        partition = parse_partition(partition)
    folder, several = Folder(out), partition is not None and partition[1] > 1
    resume = resume or partition is not None
    with writing(folder, partition="{}-of-{}".format(*partition) if partition and several else ""):
        if not resume or overwrite:
            check_path(folder, overwrite=overwrite)
        job = job or plan_ingest(source, layout=layout, max_error=max_error)
        work = _open_path(folder, overwrite=overwrite, resume=resume, join=several)
        if work.exists(PLAN):
            check_same(work, job)
        else:
            work.write(INPUTS, job.inputs.pack())
            work.write(PLANNED_REJECTIONS, dump([asdict(r) for r in job.rejected]))
            create_store(work, job.header, job.wavelength)
        if work.exists(ROOT):
            return _closed(folder, work, job, begun, kept=job.header.n_shards)
        kept = {s for s in done_shards(work) if still_good(work, job, s)}
        wanted = range(job.header.n_shards)
        if partition is not None:
            wanted = range(partition[0] - 1, job.header.n_shards, partition[1])
            note_partition(work, partition[1])
        run_shards(work, job, wanted, kept, client=client, max_bad=max_bad, progress=progress)
        if several:
            return replace(summarise(work, job, begun, kept=len(kept)), path=folder.root)
        _refuse_empty(work, job)
        return _closed(folder, work, job, begun, kept=len(kept))


def _closed(folder: Folder, work: Folder, job: Job | None, begun: float, *, kept: int) -> IngestSummary:
    """Publish the store made in `work`, which may be beside the one it replaces."""
    finalise_store(work)
    put_in_place(folder)
    return summarise(folder, job, begun, kept=kept)


def finalise(out: str | os.PathLike[str]) -> IngestSummary:
    """Close a store whose partitions have all been written.

    Raises
    ------
    StoreError
        Shards are missing: the message lists them and the partitions that write them.
    """
    begun = time.monotonic()
    folder = Folder(out)
    with writing(folder):
        work = beside(folder) if under_way(folder) else folder
        return _closed(folder, work, None, begun, kept=StoreHeader.read(work).n_shards)


def _open_path(folder: Folder, *, overwrite: bool, resume: bool, join: bool) -> Folder:
    """Where the store is written; `join`: other partitions may have begun to overwrite it."""
    if (resume and not overwrite) or (join and under_way(folder)):
        if under_way(folder):
            return beside(folder)
        if folder.exists(PLAN) or not folder.exists() or is_begun(folder):
            return folder
        raise StoreError(f"{folder.root}: exists and is not a chemscale store", "choose another path")
    return prepare_path(folder, overwrite=overwrite)


def still_good(folder: Folder, job: Job, shard: int) -> bool:
    """A marked shard counts as done when its marker fits the job and its files have the right size."""
    marker = read_marker(folder, shard)
    if marker is None or marker["fingerprint"] != job.shard_fingerprint(shard):
        return False
    try:
        sizes = {**marker["files"], columns_name(shard): marker["part"]}
        return all(folder.size(name) == f["bytes"] for name, f in sizes.items())
    except FileNotFoundError:
        return False


def run_shards(
    folder: Folder,
    job: Job,
    wanted: Sequence[int],
    kept: set[int],
    *,
    client: Client | None,
    max_bad: float | None = None,
    progress: bool | None = None,
) -> None:
    """Write the `wanted` shards that are not in `kept`."""
    from chemscale.runtime.observe import Estimate, check_worker_memory
    from chemscale.runtime.shards import map_shards

    limit = None if max_bad is None else (max_bad * len(job.items) if 0 < max_bad < 1 else max_bad)
    bad: list[dict[str, Any]] = []

    def on_result(shard: int, result: dict[str, Any]) -> None:
        if "error" in result:
            raise result["error"]
        bad.extend(result["rejected"])
        if limit is not None and len(bad) > limit:
            some = "; ".join(f"{r['path']}: {r['reason']}" for r in bad[:5])
            raise DataError(
                f"{len(bad)} inputs could not be read, more than --max-bad {max_bad:g} allows: {some}",
                "look at these files; with a higher --max-bad and --resume the job carries on",
            )

    for shard in sorted(kept & set(wanted)):
        on_result(shard, read_marker(folder, shard) or {"rejected": []})
    if client is not None:
        check_worker_memory(
            client, Estimate(shard_memory(job.header, remote=folder.remote), _threads(client), WORKER_BYTES)
        )
    rows = job.header.layout.rows
    report = map_shards(
        write_shard_task,
        {s: make_task(folder, job, s) for s in wanted if s not in kept},
        client,
        on_result=on_result,
        policy="finish",
        description=f"ingest {job.header.survey}",
        unit="stars",
        weight=lambda s: float(np.diff(rows(s, job.header.n_rows))[0]),
        show=progress,
    )
    report.raise_for_failures("shard")


def _threads(client: Client) -> int:
    """Shards a worker may write at once."""
    return max((w["nthreads"] for w in client.scheduler_info(n_workers=-1)["workers"].values()), default=1)


def make_task(folder: Folder, job: Job, shard: int) -> ShardTask:
    """The task that writes `shard`."""
    items = job.shard_items(shard)
    return ShardTask(folder, job.header, shard, job.source, items, job.wavelength, job.shard_fingerprint(shard))


def write_shard_task(task: ShardTask) -> dict[str, Any]:
    """Read, censor, write and verify one shard; runs on a worker.

    Returns
    -------
    dict
        ``{"shard", "n_stars", "rejected"}``, or ``{"error": ChemscaleError}`` when the store
        cannot be written: that stops the job, where a bad input would only be quarantined.
    """
    try:
        with keep_freed_memory():
            try:
                marker = _write_once(task)
            except ReadBackError:  # once more, from the files; a second time is the machine's fault
                marker = _write_once(task)
    except ChemscaleError as err:
        return {"error": err}
    return {"shard": task.shard, "n_stars": marker["statistics"]["n_stars"], "rejected": marker["rejected"]}


def _write_once(task: ShardTask) -> dict[str, Any]:
    reader, header = RowReader(task), task.header
    step = header.layout.chunk_stars
    pixels = empty_pixels(min(step, len(task.items)), header.n_pixels)
    with ShardWriter(task.folder, header, task.shard) as writer:
        for start in range(0, len(task.items), step):
            stop = min(start + step, len(task.items))
            reader.fill(pixels, start, stop, writer.counts)
            writer.add(pixels, stop - start)
        rejected = [plain_rejection(r) for r in reader.rejected]
        return writer.close(reader.columns, reader.status, rejected=rejected, fingerprint=task.fingerprint)


def _refuse_empty(folder: Folder, job: Job) -> None:
    """Refuse a survey none of whose inputs could be read, or none of whose pixels can be used; nothing stays."""
    markers = [m for s in range(job.header.n_shards) if (m := read_marker(folder, s))]
    n_stars = sum(m["statistics"]["n_stars"] for m in markers)
    if n_stars and any(m["statistics"]["n_used"] for m in markers):
        return
    folder.remove(PLAN)
    folder.remove_tree()
    if n_stars:
        spans = [m["statistics"]["flux_range"] for m in markers if m["statistics"]["flux_range"]]
        low, high = min(r[0] for r in spans), max(r[1] for r in spans)
        noisy = sum(m["statistics"]["flagged"].get("large_error", 0) for m in markers)
        share = noisy / (n_stars * job.header.n_pixels)
        limit = job.header.settings["max_error"]
        raise DataError(
            f"no pixel of the {n_stars:,} stars can be used: {share:.0%} have an error above {limit}, and flux runs"
            f" from {low:.3g} to {high:.3g}, where a continuum is 1",
            "nothing was written; "
            + (
                "these spectra are divided by their continuum, and noisy: --max-error 0.3 keeps errors up to 0.3 of it,"
                " --max-error 0 all of them"
                if str(job.header.attrs.get("normalisation", "")).startswith("running quantile")
                else "flux that is not continuum-normalised has to be divided by its continuum first"
                " (--continuum running-quantile where the survey has it); of normalised flux, raise --max-error"
            ),
        )
    some = [r for m in markers for r in m["rejected"][:5]][:5]
    reasons = [f"{r['path']}: {r['reason']}" for r in some]
    raise DataError(
        f"none of {job.header.n_rows} inputs could be read: " + "; ".join(reasons),
        "nothing was written; check that these files belong to this survey"
        + of_another_survey([r["path"] for r in some], job.header.survey),
    )


def shard_memory(header: StoreHeader, *, remote: bool = False) -> int:
    """Bytes a worker needs to write one shard, imports aside; an object store takes a shard's files whole."""
    chunk, shard = (
        n * header.n_pixels * BYTES_PER_PIXEL for n in (header.layout.chunk_stars, header.layout.shard_stars)
    )
    return int(CHUNK_COPIES * chunk + (2 * shard if remote else 0))
