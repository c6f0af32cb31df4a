"""What an ingestion will do, and what it did, for people and as JSON."""

from __future__ import annotations

from typing import Any


def show_plan(plan: dict[str, Any], as_json: bool) -> None:
    """Print what :func:`chemscale.survey.ingest.estimate.estimate` found."""
    from rich.filesize import decimal
    from rich.markup import escape
    from rich.table import Table

    from chemscale.cli import console, echo_json
    from chemscale.runtime.observe import human_seconds

    if as_json:
        echo_json(plan)
        return
    shown = Table.grid(padding=(0, 2))
    for key, value in (
        ("survey", plan["survey"]),
        ("files to read", f"{plan['n_files']:,} ({decimal(plan['bytes_to_read'])})"),
        (
            "stars",
            f"{plan['n_stars']:,} of {plan['n_pixels']:,} pixels; {plan['n_rejected']:,} rejected while planning",
        ),
        ("to write", f"{decimal(plan['bytes_to_write'])} in about {plan['files_to_write']:,} files"),
        ("shards", f"{plan['n_shards']} of {plan['shard_stars']} stars (chunks of {plan['chunk_stars']})"),
        ("memory", f"{decimal(plan['memory_per_worker'])} a worker"),
        ("time", f"about {human_seconds(plan['seconds'])} with {max(1, plan['workers'])} worker(s)"),
        ("sample", f"{plan['sample']['readable']} of {plan['sample']['stars']} files of a sample could be read"),
    ):
        shown.add_row(f"[bold]{key}[/]", escape(str(value)))
    console.print(shown)
    for r in plan["sample_rejected"]:
        console.print(f"  [yellow]{escape(r['path'])}[/]: {escape(r['reason'])}", highlight=False, soft_wrap=True)


def show_summary(summary: Any, as_json: bool) -> None:
    """Print an :class:`~chemscale.survey.ingest.ingestion.IngestSummary`."""
    from rich.filesize import decimal
    from rich.markup import escape

    from chemscale.cli import console, echo_json
    from chemscale.display import counted
    from chemscale.results.verdict import ingest_verdict
    from chemscale.runtime.observe import human_seconds

    if as_json:
        echo_json(summary.to_dict())
        return
    if summary.complete:
        console.print(f"[green]store complete:[/] {escape(summary.path)}", highlight=False)
    else:
        console.print(
            f"[yellow]{summary.n_shards_done} of {summary.n_shards} shards are written[/]; when all are,"
            f" close the store with: chemscale finalise {escape(summary.path)}",
            highlight=False,
        )
    absent = summary.n_members_absent
    # shards that were there already took no time of ours
    rate = "" if summary.n_shards_kept else f" ({summary.n_stars / max(summary.seconds, 1e-9):,.0f} stars/s)"
    console.print(
        f"{summary.n_stars:,} stars, {summary.n_rejected - absent:,} inputs quarantined"
        f"{f', {absent:,} listed members without a spectrum here' if absent else ''};"
        f" read {decimal(summary.bytes_read)},"
        f" wrote {decimal(summary.bytes_written)} in {human_seconds(summary.seconds)}{rate}",
        highlight=False,
    )
    if summary.n_shards_kept and summary.n_shards_kept < summary.n_shards:
        console.print(f"{summary.n_shards_kept} shards were already done", highlight=False)
    if summary.extra:
        names = escape(", ".join(summary.extra))
        console.print(f"stored besides the contract: {names}; exports, plots and the report have them", highlight=False)
    if summary.ignored:
        names = escape(", ".join(summary.ignored))
        console.print(f"[yellow]not stored[/], no variable of the contract: {names}", highlight=False)
    for what in summary.assumed:
        console.print(f"[yellow]assumed[/]: {escape(what)}", highlight=False, soft_wrap=True)
    if summary.clusters:
        counts = (len(summary.clusters), "cluster"), (sum(summary.clusters.values()), "member")
        console.print(", ".join(counted(n, noun) for n, noun in counts), highlight=False)
    _show_rejected(summary)
    if summary.complete:
        console.print(escape(ingest_verdict(summary)), highlight=False, soft_wrap=True)


def _show_rejected(summary: Any, most: int = 15) -> None:
    """Unreadable files by name, what planning left out by reason."""
    from rich.markup import escape

    from chemscale.cli import console
    from chemscale.survey.sources.base import absence, by_reason

    read = [r for r in summary.rejected if r.stage == "read"]
    for r in read[:most]:
        console.print(f"  [yellow]{escape(r.path)}[/]: {escape(r.reason)}", highlight=False, soft_wrap=True)
    rest = read[most:] + [r for r in summary.rejected if r.stage != "read"]
    told = [f"in the membership table, but {lacks}" if (lacks := absence(r.reason)) else r.reason for r in rest]
    for reason, n in by_reason(told).items():
        console.print(f"  [yellow]{n:,}[/] x {escape(reason)}", highlight=False, soft_wrap=True)
    if rest and summary.complete:
        console.print(f"  all of them: {escape(summary.rejected_file)}", highlight=False, soft_wrap=True)
