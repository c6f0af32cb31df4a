"""What an ingestion did, for the caller."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from chemscale.display import Shown, table
from chemscale.runtime.files import Folder
from chemscale.runtime.jobs import Inputs
from chemscale.survey.ingest.planning import Job
from chemscale.survey.sources.base import Rejection, absence
from chemscale.survey.store.manifest import INPUTS, LEDGER, REJECTED, ROOT, StoreHeader, done_shards, read_marker


@dataclass(repr=False)
class IngestSummary(Shown):
    """What an ingestion did."""

    path: str
    survey: str
    n_stars: int
    n_rejected: int
    rejected: list[Rejection]
    n_files: int
    bytes_read: int
    bytes_written: int
    seconds: float
    n_shards: int
    n_shards_done: int
    #: False after a `partition`: other partitions and `finalise` are to come
    complete: bool
    #: shards that were found done by an earlier, interrupted job
    n_shards_kept: int = 0
    clusters: dict[str, int] = field(default_factory=dict)
    #: columns and extensions of the inputs that are not stored, with the reason where there is one
    ignored: list[str] = field(default_factory=list)
    #: columns stored besides the contract's
    extra: list[str] = field(default_factory=list)
    #: what no input says and is taken for granted
    assumed: list[str] = field(default_factory=list)
    #: the file that lists all rejections, once the store is complete
    rejected_file: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    @property
    def n_members_absent(self) -> int:
        """Rows of a membership table without a spectrum here; `n_rejected` counts them too."""
        return sum(bool(absence(r.reason)) for r in self.rejected)

    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"store": self.path, "survey": self.survey, "stars": self.n_stars}
        facts |= {"quarantined inputs": self.n_rejected - self.n_members_absent, "complete": self.complete}
        if self.n_members_absent:
            facts["listed members without a spectrum here"] = self.n_members_absent
        if self.clusters:
            facts["clusters"] = f"{len(self.clusters)} with {sum(self.clusters.values()):,} members"
        return facts | {"seconds": round(self.seconds, 1)}

    def _details(self) -> str:
        return table([[r.path, r.reason] for r in self.rejected], ("left out", "because")) if self.rejected else ""


def summarise(folder: Folder, job: Job | None, begun: float, *, kept: int) -> IngestSummary:
    """Summary of a store, complete or not."""
    header = StoreHeader.read(folder)
    complete = folder.exists(ROOT)
    inputs = job.inputs if job else (Inputs.unpack(folder.read(INPUTS)) if folder.exists(INPUTS) else None)
    if complete:
        rejected = [Rejection(**r) for r in json.loads(folder.read(REJECTED))]
        statistics = json.loads(folder.read(f"{LEDGER}/statistics.json"))
        n_stars, written, done = statistics["n_stars"], statistics["pixel_bytes"], header.n_shards
        clusters = statistics.get("clusters", {})
    else:
        markers = [m for m in (read_marker(folder, s) for s in sorted(done_shards(folder))) if m]
        rejected = (job.rejected if job else []) + [Rejection(**r) for m in markers for r in m["rejected"]]
        n_stars = sum(m["statistics"]["n_stars"] for m in markers)
        written = sum(f["bytes"] for m in markers for f in m["files"].values())
        done, clusters = len(markers), {}
    return IngestSummary(
        path=folder.root,
        survey=header.survey,
        n_stars=n_stars,
        n_rejected=len(rejected),
        rejected=rejected,
        n_files=len(inputs) if inputs else header.n_rows,
        bytes_read=inputs.total_bytes if inputs else 0,
        bytes_written=written,
        seconds=time.monotonic() - begun,
        n_shards=header.n_shards,
        n_shards_done=done,
        complete=complete,
        n_shards_kept=kept,
        clusters=clusters,
        ignored=list(header.attrs.get("ignored", ())),
        extra=list(header.attrs.get("extra", ())),
        assumed=list(header.attrs.get("assumed", ())),
        rejected_file=folder.where(REJECTED),
    )
