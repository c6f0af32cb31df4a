"""Planning an ingestion: which stars, in which shards, and what the job depends on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from chemscale.errors import DataError, InputError, ResumeError
from chemscale.runtime.files import Folder
from chemscale.runtime.jobs import Inputs, differing_keys, files_in
from chemscale.runtime.jsonio import digest, dump
from chemscale.schema import VARIABLES, known, ordered
from chemscale.survey.ingest.censoring import MAX_ERROR, window_pixels, windows_for
from chemscale.survey.sources.base import Item, Rejection, Source, SurveyPlan
from chemscale.survey.store.layout import Layout, choose_layout
from chemscale.survey.store.manifest import INPUTS, StoreHeader, clean_text


@dataclass
class Job:
    """A planned ingestion: what will be written, and from what."""

    source: Any
    items: list[Item]
    rejected: list[Rejection]
    wavelength: np.ndarray
    inputs: Inputs
    header: StoreHeader

    def shard_items(self, shard: int) -> list[Item]:
        """Items of a shard, one a row."""
        return self.items[slice(*self.header.layout.rows(shard, self.header.n_rows))]

    def shard_fingerprint(self, shard: int) -> str:
        """Digest of a shard's inputs and of the job's settings."""
        rows = self.header.layout.rows(shard, self.header.n_rows)
        shared = {k: v for k, v in self.header.fingerprint.items() if k != "inputs"}
        return digest([self.inputs.digest(*rows), shared])


def plan_ingest(
    source: Source,
    *,
    layout: Layout | None = None,
    max_error: float | None = MAX_ERROR,
    extra_attrs: Mapping[str, Any] | None = None,
) -> Job:
    """List the stars of a source and decide how they will be written. Reads no spectra.

    Stars without identifier and repeated identifiers are rejected here (the first is kept).
    """
    plan = source.plan()
    items, rejected = _unique(plan)
    if not items:
        reasons = "; ".join(f"{r.path}: {r.reason}" for r in rejected[:5])
        raise DataError(
            f"{source.name}: no star to ingest{' (' + reasons + ')' if reasons else ''}",
            "check the paths, and that the files belong to this survey",
        )
    inputs = Inputs.of([i.star_id for i in items], [i.path for i in items])
    wavelength = np.asarray(plan.wavelength, "f8")
    layout = layout or choose_layout(len(items), len(wavelength))
    settings = _settings(plan, wavelength, max_error)
    described = json.loads(dump(source.describe()))
    attrs = json.loads(dump(plan.attrs))
    provenance = {"source": described, "settings": settings, "software": _software()} | attrs.pop("provenance", {})
    attrs = {"survey": plan.survey, "normalisation": ""} | attrs | {"provenance": provenance} | dict(extra_attrs or {})
    header = StoreHeader(
        survey=plan.survey,
        medium=plan.medium,
        n_rows=len(items),
        n_pixels=len(wavelength),
        labels=ordered(set(plan.labels) - {"star_id", "cluster"}),
        elements=tuple(plan.elements),
        layout=layout,
        attrs=attrs,
        fingerprint={
            "source": digest(described),
            "catalogues": digest(files_in(described)),
            "settings": digest(settings),
            "grid": _grid_digest(wavelength, plan.medium, plan.elements, plan.labels),
            "layout": digest(asdict(layout)),
            "inputs": inputs.digest(),
        },
        source={"name": source.name, "options": described, "catalogues": files_in(described)},
        settings=settings,
    )
    _check_plan(plan, header)
    return Job(source, items, rejected, wavelength, inputs, header)


def _grid_digest(wavelength: np.ndarray, medium: str, elements: Sequence[str], labels: Sequence[str]) -> str:
    return digest([wavelength.tolist(), medium, list(elements), list(labels)])


def with_labels(job: Job, labels: tuple[str, ...]) -> Job:
    """The job of a store that holds these labels only: a later release of its reader may know more."""
    h = job.header
    grid = _grid_digest(job.wavelength, h.medium, h.elements, labels)
    return replace(job, header=replace(h, labels=labels, fingerprint=h.fingerprint | {"grid": grid}))


def _unique(plan: SurveyPlan) -> tuple[list[Item], list[Rejection]]:
    rejected = list(plan.rejected)
    items: list[Item] = []
    seen: dict[str, str] = {}
    for item in plan.items:
        star = item.star_id
        if type(star) is not str or not star.isascii() or not star.isprintable():
            star = clean_text(star)
            item = Item(star, item.path, item.labels)
        if not star:
            rejected.append(Rejection(item.path, "no star identifier", stage="plan"))
        elif star in seen:
            reason = f"duplicate star identifier; {seen[star]} was kept"
            rejected.append(Rejection(item.path, reason, star_id=star, stage="plan"))
        else:
            seen[star] = item.path
            items.append(item)
    return items, rejected


def _settings(plan: SurveyPlan, wavelength: np.ndarray, max_error: float | None) -> dict[str, Any]:
    windows = plan.attrs.get("interstellar_windows")
    if windows is None:
        windows = window_pixels(wavelength, windows_for(wavelength, plan.medium))
    return {"max_error": max_error, "windows": [[int(a), int(b)] for a, b in windows]}


def _software() -> dict[str, str]:
    import zarr

    from chemscale._version import __version__

    return {"chemscale": __version__, "zarr": zarr.__version__, "numpy": np.__version__}


def _check_plan(plan: SurveyPlan, header: StoreHeader) -> None:
    unknown = sorted(n for n in set(plan.labels) if not known(n))
    wrong = [n for n in plan.labels if n in VARIABLES and VARIABLES[n].dims[0] != "star"]
    if unknown or wrong:
        raise InputError(
            f"source {plan.survey!r} plans labels that are not per-star variables: {', '.join(unknown + wrong)}",
            "use the names of chemscale.schema.VARIABLES",
        )
    if header.n_pixels < 1 or not np.all(np.diff(plan.wavelength) > 0) or plan.medium not in ("air", "vacuum"):
        raise InputError(
            f"source {plan.survey!r}: the wavelength grid must be increasing, its medium 'air' or 'vacuum'",
            "mend the source's plan()",
        )


def check_same(folder: Folder, job: Job) -> None:
    """Compare a planned job with the one a store was begun with.

    Raises
    ------
    ResumeError
        Says what changed: which setting, which catalogue, which files.
    """
    then, now = StoreHeader.read(folder), job.header
    if then.fingerprint == now.fingerprint:
        return
    said = []
    if then.fingerprint.get("source") != now.fingerprint["source"]:
        said += differing_keys(then.source.get("options", {}), now.source["options"])
    if then.fingerprint.get("catalogues") != now.fingerprint["catalogues"]:
        said += [
            f"file changed: {d.split(':')[0]}"
            for d in differing_keys(dict(then.source.get("catalogues", {})), json.loads(dump(now.source["catalogues"])))
        ]
    if then.fingerprint.get("settings") != now.fingerprint["settings"]:
        said += differing_keys(then.settings, now.settings)
    if then.fingerprint.get("layout") != now.fingerprint["layout"]:
        said += [f"layout.{d}" for d in differing_keys(asdict(then.layout), asdict(now.layout))]
    if then.fingerprint.get("inputs") != now.fingerprint["inputs"]:
        names, paths = [i.star_id for i in job.items], [i.path for i in job.items]
        said += job.inputs.changes(Inputs.unpack(folder.read(INPUTS)), names, paths)
    if then.fingerprint.get("grid") != now.fingerprint["grid"]:
        said.append("wavelength grid, elements or labels differ")
    raise ResumeError(
        f"{folder.root} was begun with another configuration or other inputs:\n  - "
        + "\n  - ".join(said or ["the store was written in another way"]),
        "restore what changed, or start again with --overwrite",
    )
