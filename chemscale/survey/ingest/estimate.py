"""What an ingestion will take, measured on a sample before it starts."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from chemscale.runtime.files import Folder
from chemscale.runtime.jobs import Inputs
from chemscale.schema import VARIABLES
from chemscale.survey.ingest.ingestion import WORKER_BYTES, make_task, shard_memory
from chemscale.survey.ingest.planning import Job
from chemscale.survey.ingest.reading import read_shard
from chemscale.survey.sources.base import Item
from chemscale.survey.store.layout import BYTES_PER_PIXEL, PIXEL_VARIABLES, Layout, encode
from chemscale.survey.store.manifest import checksum

#: Stars read and encoded to time the rest.
SAMPLE = 64


def estimate(job: Job, *, workers: int = 1, sample: int = SAMPLE) -> dict[str, Any]:
    """Files, stars, bytes, shards, memory and time of a planned ingestion.

    Reads `sample` stars spread over the survey, encodes them in memory, writes nothing.

    Returns
    -------
    dict
        JSON-able; `seconds` is the sample's time scaled to all stars and `workers`.
    """
    header = job.header
    chosen = np.unique(np.linspace(0, len(job.items) - 1, min(sample, len(job.items))).astype(int))
    sample_job = _only(job, [job.items[i] for i in chosen])
    begun = time.perf_counter()
    pixels, _, status, rejected = read_shard(make_task(Folder("."), sample_job, 0))
    read = time.perf_counter() - begun
    encoded = 0
    for name in PIXEL_VARIABLES:
        data = encode(name, VARIABLES[name].dtype, pixels[name], sample_job.header.layout)
        checksum(data)
        encoded += len(data)
    whole = time.perf_counter() - begun
    scale = len(job.items) / len(chosen)
    ratio = encoded / max(1, pixels["flux"].size * BYTES_PER_PIXEL)
    return {
        "survey": header.survey,
        "n_files": len(job.inputs),
        "n_stars": len(job.items),
        "n_rejected": len(job.rejected),
        "n_pixels": header.n_pixels,
        "bytes_to_read": job.inputs.total_bytes,
        "bytes_to_write": int(len(job.items) * header.n_pixels * BYTES_PER_PIXEL * ratio),
        "n_shards": header.n_shards,
        "shard_stars": header.layout.shard_stars,
        "chunk_stars": header.layout.chunk_stars,
        "files_to_write": 3 * header.n_shards + 2 * (len(header.variables()) + 12),
        "memory_per_worker": shard_memory(header) + WORKER_BYTES,
        "workers": workers,
        "seconds": whole * scale / max(1, min(workers, header.n_shards)),
        "sample": {"stars": len(chosen), "readable": int(status.sum()), "read_seconds": read, "all_seconds": whole},
        "sample_rejected": [{"path": r.path, "reason": r.reason} for r in rejected[:10]],
    }


def _only(job: Job, items: list[Item]) -> Job:
    """`job` with some items, as one shard."""
    n = len(items)
    inputs = Inputs.of([i.star_id for i in items], [i.path for i in items])
    return replace(job, items=items, inputs=inputs, header=replace(job.header, n_rows=n, layout=Layout(n, n, n)))
