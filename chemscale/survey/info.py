"""A page about a store: from what ingestion recorded, and on request from one pass over the pixels."""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np

from chemscale.runtime.files import Folder
from chemscale.survey.ingest.finalise import USED_PER_PIXEL
from chemscale.survey.sources.base import absence, by_reason
from chemscale.survey.store.ledger import Ledger
from chemscale.survey.store.manifest import REJECTED, STATISTICS
from chemscale.survey.store.open import open_survey, small_array
from chemscale.survey.store.root import RootRecord

#: Bins of the coverage over wavelength.
WAVELENGTH_BINS = 40


def store_info(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Facts about a complete store, JSON-able.

    Raises
    ------
    StoreError
        No complete store at `path`.
    """
    top = Folder(path)
    record = RootRecord.read(top)
    ledgers = [Ledger.of(top, record, entry) for entry in record.groups]
    header = ledgers[0].header()
    per_group = [ledger.json(STATISTICS) for ledger in ledgers]
    total = per_group[0]
    for other in per_group[1:]:
        total = _add(total, other)
    rejected: list[dict[str, str]] = []
    used = np.zeros(header.n_pixels, np.int64)
    absent: dict[str, int] = {}
    for ledger in ledgers:
        rejected += ledger.json(REJECTED)
        used += np.load(io.BytesIO(ledger.content(USED_PER_PIXEL)), allow_pickle=False)
    sizes = [size for _, size in top.walk()]
    wave = small_array(ledgers[0], "wavelength").values
    n_values = max(1, total["n_stars"] * header.n_pixels)
    by_wavelength = [
        float(b.mean()) / max(1, total["n_stars"]) for b in np.array_split(used, WAVELENGTH_BINS) if b.size
    ]
    superseded = sum(e.n_hidden for e in record.groups) - sum(s["n_slots"] - s["n_stars"] for s in per_group)
    for row in rejected:
        if lacks := absence(row["reason"]):
            absent[lacks] = absent.get(lacks, 0) + 1
    quarantined = [row["reason"] for row in rejected if not absence(row["reason"])]
    return {
        "path": top.root,
        "survey": header.attrs.get("survey", header.survey),
        "normalisation": header.attrs.get("normalisation", ""),
        "revision": record.revision,
        "n_stars": record.n_stars,
        "n_rows": sum(e.n_rows for e in record.groups),
        "n_superseded": superseded,
        "n_rejected": len(quarantined),
        "rejected_by_reason": by_reason(quarantined),
        "members_absent": absent,
        "rejected": rejected,
        "n_pixels": header.n_pixels,
        "wavelength": {"first": float(wave[0]), "last": float(wave[-1]), "medium": header.medium, "unit": "Angstrom"},
        "used_fraction": total["n_used"] / n_values,
        "mask": record.mask,
        "cleaning": record.cleaning.get("facts", {}),
        "censored_fraction": {k: v / n_values for k, v in total["flagged"].items()},
        "coverage_histogram": total["coverage"],
        "coverage_by_wavelength": by_wavelength,
        "flux_range": total["flux_range"],
        "labels": total["labels"],
        "elements": list(header.elements),
        "clusters": total.get("clusters", {}),
        "layout": {
            "chunk_stars": header.layout.chunk_stars,
            "shard_stars": header.layout.shard_stars,
            "n_shards": header.n_shards,
        },
        "size_bytes": sum(sizes),
        "n_files": len(sizes),
        "uncompressed_bytes": 9 * n_values,
        "attrs": {k: v for k, v in header.attrs.items() if k not in ("survey", "normalisation", "provenance")},
        "provenance": header.attrs.get("provenance", {}),
    }


def pixel_statistics(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Mean, scatter and used share of every pixel over the stars, as masks stand now: one pass, computes.

    Returns
    -------
    dict, JSON-able
        ``wavelength`` (Angstrom), ``mean`` and ``scatter`` (standard deviation; None where no star has the pixel) and
        ``used_share``, lists of one entry a pixel.
    """
    from dask import compute

    # imported here: the summary of an ingest needs neither, and half a second of start-up is theirs
    from chemscale.statistics.masked import MomentsResult, masked_moments

    survey = open_survey(path)
    flux, ivar, flags = (survey[name].data for name in ("flux", "ivar", "flags"))
    found = MomentsResult(*compute(*masked_moments(flux, (flags != 0) | ~(ivar > 0))))
    scatter = np.sqrt(found.variance)
    return {
        "wavelength": survey["wavelength"].values.tolist(),
        "mean": _finite(found.mean),
        "scatter": _finite(scatter),
        "used_share": (found.count / max(1, survey.sizes["star"])).tolist(),
    }


def _finite(values: np.ndarray) -> list[float | None]:
    return [float(v) if np.isfinite(v) else None for v in values]


def _add(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    out = dict(a)
    for key in ("n_stars", "n_slots", "n_rejected", "n_used", "pixel_bytes"):
        out[key] = a[key] + b[key]
    out["flagged"] = {k: a["flagged"].get(k, 0) + b["flagged"].get(k, 0) for k in a["flagged"] | b["flagged"]}
    out["coverage"] = [x + y for x, y in zip(a["coverage"], b["coverage"])]
    ranges = [r for r in (a["flux_range"], b["flux_range"]) if r]
    out["flux_range"] = [min(r[0] for r in ranges), max(r[1] for r in ranges)] if ranges else None
    out["labels"] = {k: _add_label(a["labels"].get(k), b["labels"].get(k)) for k in a["labels"] | b["labels"]}
    clusters = dict(a.get("clusters", {}))
    for name, n in b.get("clusters", {}).items():
        clusters[name] = clusters.get(name, 0) + n
    out["clusters"] = clusters
    return out


def _add_label(a: dict[str, Any] | None, b: dict[str, Any] | None) -> dict[str, Any]:
    """Extremes of two groups; percentiles only where one of them holds all values."""
    if not a or not a.get("present"):
        return b or a or {}
    if not b or not b.get("present"):
        return a
    out: dict[str, Any] = {"present": a["present"] + b["present"]}
    for key, pick in (("min", min), ("max", max), ("columns", max), ("distinct", max)):
        if key in a and key in b:
            out[key] = pick(a[key], b[key])
    if "units" in a:
        out["units"] = a["units"]
    return out


def _binned(values: list[float | None]) -> list[float | None]:
    """Means over :data:`WAVELENGTH_BINS` runs of pixels, of those that have a value."""
    parts = np.array_split(np.array(values, dtype=float), WAVELENGTH_BINS)
    return [float(np.nanmean(p)) if np.isfinite(p).any() else None for p in parts if p.size]


_BARS = " ▁▂▃▄▅▆▇█"


def bars(values: list[float] | np.ndarray) -> str:
    """A line of block characters, scaled to the largest value."""
    top = max([float(v) for v in values] + [1e-300])
    return "".join(_BARS[min(8, int(np.ceil(8 * float(v) / top)))] for v in values)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def render(info: dict[str, Any], console: Any) -> None:
    """Print :func:`store_info` for a person."""
    from rich import box
    from rich.filesize import decimal
    from rich.markup import escape
    from rich.panel import Panel
    from rich.table import Table

    wave = info["wavelength"]
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold")
    facts.add_column()
    rows = [
        ("survey", f"{info['survey']} (revision {info['revision']})"),
        ("stars", f"{info['n_stars']:,}   quarantined inputs {info['n_rejected']:,}"),
        ("pixels", f"{info['n_pixels']:,}, {wave['first']:.1f} to {wave['last']:.1f} Angstrom, {wave['medium']}"),
        ("flux", info["normalisation"] or "as the survey gives it"),
        ("usable", f"{100 * info['used_fraction']:.1f} % of all pixels"),
        (
            "on disk",
            f"{decimal(info['size_bytes'])} in {info['n_files']:,} files"
            f" ({100 * info['size_bytes'] / max(1, info['uncompressed_bytes']):.0f} % of its size in memory)",
        ),
        (
            "layout",
            f"{info['layout']['n_shards']} shards of {info['layout']['shard_stars']} stars,"
            f" chunks of {info['layout']['chunk_stars']}",
        ),
    ]
    if info["cleaning"]:
        of = ", ".join(info["cleaning"]["covariates"])
        rows.insert(4, ("cleaned", f"of {of}; `chemscale clean {info['path']} --clear` takes it off"))
    if already := info["attrs"].get("cleaned"):
        rows.insert(4, ("cleaned", f"of {', '.join(already)}, before the spectra were ingested"))
    if info["members_absent"]:
        lacking = ", ".join(f"{n:,} {lacks}" for lacks, n in info["members_absent"].items())
        absent_rows = sum(info["members_absent"].values())
        rows.append(("not here", f"{absent_rows:,} rows of the membership table: {lacking}"))
    if info["n_superseded"]:
        rows.append(("superseded", f"{info['n_superseded']:,} stars replaced by later revisions"))
    if info["clusters"]:
        members = sum(info["clusters"].values())
        rows.append(("clusters", f"{len(info['clusters'])} with {members:,} members"))
    for key, value in rows:
        facts.add_row(key, escape(str(value)))
    console.print(Panel(facts, title=escape(str(info["path"])), expand=False))

    fractions = {k: v for k, v in info["censored_fraction"].items() if v}
    console.print(
        "[italic]pixels censored, by cause (a pixel may have several)[/]" if fractions else "no pixel is censored"
    )
    causes = Table()
    causes.add_column("cause")
    causes.add_column("fraction", justify="right")
    causes.add_column("")
    for name, fraction in sorted(fractions.items(), key=lambda kv: -kv[1]):
        causes.add_row(name.replace("_", " "), f"{100 * fraction:.2f} %", "█" * max(1, round(40 * fraction)))
    if fractions:
        console.print(causes)

    console.print(f"[bold]usable share over wavelength[/]   {bars(info['coverage_by_wavelength'])}")
    console.print(f"[bold]stars by usable share, 0 to 1[/]  {bars(np.sqrt(info['coverage_histogram']))}  (square root)")
    if "pixels" in info:
        for name, title in (
            ("mean", "mean flux"),
            ("scatter", "scatter of the flux"),
            ("used_share", "used share now"),
        ):
            binned = _binned(info["pixels"][name])
            seen = [v for v in binned if v is not None]
            ends = f"{min(seen):.4g} to {max(seen):.4g}" if seen else "no star has any pixel"
            console.print(f"[bold]{title} over wavelength[/]   {bars([v or 0.0 for v in binned])}  ({ends})")

    labels = Table(title="labels", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("", "present", "min", "5 %", "median", "95 %", "max"):
        labels.add_column(column, justify="left" if not column else "right", no_wrap=True)
    texts = []
    for name, entry in info["labels"].items():
        if not entry.get("present"):
            continue
        if "distinct" in entry:
            texts.append(f"{name} ({entry['distinct']:,} distinct in {entry['present']:,})")
        elif "columns" in entry:
            texts.append(f"{name} ({entry['columns']} columns, {entry['present']:,} values)")
        else:
            numbers = [_number(entry.get(k)) for k in ("min", "p5", "median", "p95", "max")]
            unit = escape(f" [{entry['units']}]") if entry.get("units") else ""
            labels.add_row(name + unit, f"{entry['present']:,}", *numbers)
    console.print(labels)
    if texts:
        console.print(f"also: {escape(', '.join(texts))}", highlight=False)
    absent = [n for n, e in info["labels"].items() if not e.get("present")]
    if absent:
        console.print(f"[dim]without any value: {', '.join(absent)}[/]")

    for title, key in (("read of a file", "read"), ("not stored", "ignored"), ("assumed", "assumed")):
        if listed := info["attrs"].get(key):
            console.print(f"[bold]{title}[/]: {escape(', '.join(map(str, listed)))}", highlight=False)
    if info["rejected_by_reason"]:
        quarantined = Table(title="quarantined inputs", title_justify="left")
        quarantined.add_column("n", justify="right")
        quarantined.add_column("reason", overflow="fold")
        for reason, n in info["rejected_by_reason"].items():
            quarantined.add_row(f"{n:,}", escape(reason))
        console.print(quarantined)
    source = info["provenance"].get("source") if isinstance(info["provenance"], dict) else None
    if source:
        console.print("[bold]provenance[/]")
        for key, value in source.items():
            if value not in (None, "", [], {}):
                console.print(f"  {escape(str(key))}: {escape(str(value))}", highlight=False)
        software = info["provenance"].get("software", {})
        console.print("  " + ", ".join(f"{k} {v}" for k, v in software.items()), highlight=False)
