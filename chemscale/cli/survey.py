"""`chemscale ingest | finalise | info | verify`: from survey files to a store, and what is in it."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import Annotated, Any

import typer

Out = Annotated[str, typer.Option("--out", metavar="STORE", help="Store to write: a path or s3://bucket/prefix.")]
Resume = Annotated[bool, typer.Option("--resume", help="Carry on with an unfinished store (or start it).")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing store.")]
PlanOnly = Annotated[bool, typer.Option("--plan-only", help="Say what would be done (timed sample); write nothing.")]
Partition = Annotated[
    str | None, typer.Option("--partition", metavar="K/N", help="Write only part K of N; then `chemscale finalise`.")
]
MaxBad = Annotated[
    float | None,
    typer.Option("--max-bad", help="Stop when more inputs than this cannot be read (below 1: a fraction)."),
]
MaxError = Annotated[float, typer.Option("--max-error", help="Flag pixels with a larger error; 0 = none.")]
Workers = Annotated[
    int | None, typer.Option("--workers", min=0, help="Worker processes; 0 = none, work in this process.")
]
Cluster = Annotated[
    str | None, typer.Option("--cluster", metavar="SPEC", help="Dask cluster: an address, or a TOML with [cluster].")
]
Append = Annotated[bool, typer.Option("--append", help="Add the stars to the existing store --out, as one revision.")]
Replace = Annotated[bool, typer.Option("--replace", help="With --append: supersede stars that are there already.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as JSON on stdout.")]
Members = Annotated[str | None, typer.Option("--members", metavar="FILE", help="Membership table, FITS or CSV.")]
MinProbability = Annotated[
    float | None, typer.Option("--min-probability", help="Smallest membership probability that counts.")
]
ProbabilityColumn = Annotated[str | None, typer.Option("--probability-column", help="Column with it.")]
StoreArg = Annotated[str, typer.Argument(metavar="STORE", help="A survey store.")]

#: Sources with options of their own below; any other registered one gets the generic verb.
_OWN = {"apogee", "lamost", "table"}
#: From this many stars on, work is spread over processes unless `--workers` says otherwise.
_MANY = 2000


def register(app: typer.Typer) -> None:
    """Add the verbs to the app."""
    verbs = typer.Typer(help="Survey files -> store.", no_args_is_help=True)
    app.add_typer(verbs, name="ingest")
    verbs.command("apogee")(apogee)
    verbs.command("lamost")(lamost)
    verbs.command("table")(table)
    for name in _third_parties():
        example = f"Example: chemscale ingest {name} --option KEY=VALUE --out survey.zarr"
        verbs.command(name, help=f"Ingest with the source {name!r} (arguments of its class by --option).\n\n{example}")(
            _generic(name)
        )
    app.command("finalise")(finalise)
    app.command("info")(info)
    app.command("verify")(verify)


def _third_parties() -> list[str]:
    from importlib.metadata import entry_points

    return sorted({e.name for e in entry_points(group="chemscale.surveys")} - _OWN)


def apogee(
    spectra: Annotated[
        list[str],
        typer.Option("--spectra", metavar="DIR", help="Folder of aspcapStar files, searched below; repeatable."),
    ],
    out: Out,
    allstar: Annotated[str | None, typer.Option("--allstar", metavar="FILE", help="The release's allStar.")] = None,
    members: Members = None,
    member_key: Annotated[str, typer.Option("--member-key", help="Identifier column of --members.")] = "APOGEE_ID",
    member_column: Annotated[str, typer.Option("--member-column", help="Cluster column of --members.")] = "CLUSTER",
    probability_column: ProbabilityColumn = None,
    min_probability: MinProbability = None,
    product: Annotated[str, typer.Option("--product", help="aspcapStar or apStar.")] = "aspcapStar",
    append: Append = False,
    replace: Replace = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    plan_only: PlanOnly = False,
    partition: Partition = None,
    max_bad: MaxBad = None,
    max_error: MaxError = 0.05,
    workers: Workers = None,
    cluster: Cluster = None,
    as_json: AsJson = False,
) -> None:
    """Ingest APOGEE spectra (DR13 to DR17 layouts).

    Example: chemscale ingest apogee --spectra dr17/ --allstar allStar.fits --members occam.fits --out apogee.zarr
    """
    from chemscale.survey.sources.apogee import ApogeeSource

    source = ApogeeSource(
        [str(_full(s)) for s in spectra],
        _full(allstar),
        _full(members),
        member_key=member_key,
        member_column=member_column,
        probability_column=probability_column,
        min_probability=min_probability,
        product=product,
    )
    _run(source, **_common(locals()))


def lamost(
    spectra: Annotated[list[str], typer.Option("--spectra", metavar="DIR", help="Folder of spectra; repeatable.")],
    out: Out,
    labels: Annotated[list[str] | None, typer.Option("--labels", metavar="CSV", help="Labels; repeatable.")] = None,
    members: Members = None,
    member_key: Annotated[str, typer.Option("--member-key", help="Identifier column of --members.")] = "file",
    member_column: Annotated[str, typer.Option("--member-column", help="Group column of --members.")] = "group",
    probability_column: ProbabilityColumn = None,
    min_probability: MinProbability = None,
    wavelength_min: Annotated[float, typer.Option("--wavelength-min", help="First wavelength, Angstrom.")] = 4000.0,
    wavelength_max: Annotated[float, typer.Option("--wavelength-max", help="Last wavelength, Angstrom.")] = 8900.0,
    continuum: Annotated[str, typer.Option("--continuum", help="running-quantile or survey.")] = "running-quantile",
    append: Append = False,
    replace: Replace = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    plan_only: PlanOnly = False,
    partition: Partition = None,
    max_bad: MaxBad = None,
    max_error: MaxError = 0.05,
    workers: Workers = None,
    cluster: Cluster = None,
    as_json: AsJson = False,
) -> None:
    """Ingest LAMOST low-resolution spectra (DR1 to DR10 layouts).

    Example: chemscale ingest lamost --spectra dr10/ --labels labels.csv --out lamost.zarr
    """
    from chemscale.survey.sources.lamost import LamostSource

    source = LamostSource(
        [str(_full(s)) for s in spectra],
        [str(_full(t)) for t in labels or []],
        _full(members),
        member_key=member_key,
        member_column=member_column,
        probability_column=probability_column,
        min_probability=min_probability,
        wavelength_range=(wavelength_min, wavelength_max),
        continuum=continuum,
    )
    _run(source, **_common(locals()))


def table(
    file: Annotated[str, typer.Argument(metavar="FILE", help="NPZ, HDF5, FITS table or Zarr.")],
    out: Out,
    mapping: Annotated[
        str | None, typer.Option("--mapping", "--columns", metavar="TOML", help="Which column is what.")
    ] = None,
    medium: Annotated[str | None, typer.Option("--medium", help="vacuum or air, where the file does not say.")] = None,
    append: Append = False,
    replace: Replace = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    plan_only: PlanOnly = False,
    partition: Partition = None,
    max_bad: MaxBad = None,
    max_error: MaxError = 0.05,
    workers: Workers = None,
    cluster: Cluster = None,
    as_json: AsJson = False,
) -> None:
    """Ingest a table of spectra: flux, error (or ivar) and wavelength, columns mapped by a small TOML.

    Example: chemscale ingest table spectra.npz --out survey.zarr
    """
    from chemscale.survey.sources.table import TableSource

    source = TableSource(str(_full(file)), _full(mapping), medium=medium)
    _run(source, **_common(locals()))


def _generic(name: str) -> Any:
    def generic(
        out: Out,
        option: Annotated[
            list[str] | None,
            typer.Option("--option", metavar="KEY=VALUE", help="Argument of the source; repeatable (TOML values)."),
        ] = None,
        append: Append = False,
        replace: Replace = False,
        resume: Resume = False,
        overwrite: Overwrite = False,
        plan_only: PlanOnly = False,
        partition: Partition = None,
        max_bad: MaxBad = None,
        max_error: MaxError = 0.05,
        workers: Workers = None,
        cluster: Cluster = None,
        as_json: AsJson = False,
    ) -> None:
        from chemscale.config import parse_assignment
        from chemscale.errors import InputError
        from chemscale.survey.sources.base import get_source

        options = dict(parse_assignment(text) for text in option or [])
        try:
            source = get_source(name)(**options)
        except TypeError as err:
            raise InputError(f"source {name!r}: {err}", "name its arguments by --option key=value") from err
        _run(source, **_common(locals()))

    return generic


def _common(values: dict[str, Any]) -> dict[str, Any]:
    names = ["append", "replace", "out", "resume", "overwrite", "plan_only", "partition", "max_bad"]
    names += ["max_error", "workers", "cluster", "as_json"]
    return {n: values[n] for n in names}


def _full(path: str | None) -> str | None:
    """Absolute, so that the store can be resumed and repaired from any directory."""
    return path if path is None or "://" in path else os.path.abspath(os.path.expanduser(path))


def _run(
    source: Any,
    *,
    out: str,
    append: bool,
    replace: bool,
    resume: bool,
    overwrite: bool,
    plan_only: bool,
    partition: str | None,
    max_bad: float | None,
    max_error: float,
    workers: int | None,
    cluster: str | None,
    as_json: bool,
) -> None:
    from chemscale.errors import InputError
    from chemscale.survey.ingest import ingest
    from chemscale.survey.planning import plan_ingest

    if (append or replace) and (overwrite or partition):
        raise InputError("--append goes with neither --overwrite nor --partition", "leave one of them out")
    limit = max_error if max_error > 0 else None
    if plan_only:
        from chemscale.survey.estimate import estimate

        planned = plan_ingest(source, max_error=limit)
        _show_plan(estimate(planned, workers=_n_workers(workers, len(planned.items))), as_json)
        return
    job = plan_ingest(source, max_error=limit) if workers is None and cluster is None else None
    if job is not None:
        workers = _n_workers(None, len(job.items))
    with _client(workers, cluster) as client:
        if append or replace:
            from chemscale.survey.append import append as add

            summary = add(
                source,
                out,
                replace_existing=replace,
                client=client,
                max_error=limit,
                max_bad=max_bad,
                resume=resume,
            )
            _show_summary(summary, as_json)
            return
        summary = ingest(
            source,
            out,
            client=client,
            max_error=limit,
            max_bad=max_bad,
            overwrite=overwrite,
            resume=resume,
            partition=partition,
            job=job,
        )
    _show_summary(summary, as_json)


def _n_workers(workers: int | None, n_stars: int) -> int:
    if workers is not None:
        return workers
    return (os.cpu_count() or 1) if n_stars >= _MANY else 0


@contextmanager
def _client(workers: int | None, cluster: str | None) -> Any:
    """A Dask client for --cluster or --workers; None to work in this process."""
    if cluster is None and not workers:
        yield None
        return
    from chemscale.runtime.cluster import connect

    # two shards in hand a process: one is read or compressed while the other waits for the disk
    overrides: dict[str, Any] = {} if cluster else {"threads": 2}
    with connect(cluster or "local", workers=workers, **overrides) as client:
        yield client


def _show_plan(plan: dict[str, Any], as_json: bool) -> None:
    from rich.markup import escape
    from rich.table import Table

    from chemscale.cli import console, echo_json
    from chemscale.runtime.observe import human_bytes, human_seconds

    if as_json:
        echo_json(plan)
        return
    shown = Table.grid(padding=(0, 2))
    for key, value in (
        ("survey", plan["survey"]),
        ("files to read", f"{plan['n_files']:,} ({human_bytes(plan['bytes_to_read'])})"),
        (
            "stars",
            f"{plan['n_stars']:,} of {plan['n_pixels']:,} pixels; {plan['n_rejected']:,} rejected while planning",
        ),
        ("to write", f"{human_bytes(plan['bytes_to_write'])} in about {plan['files_to_write']:,} files"),
        ("shards", f"{plan['n_shards']} of {plan['shard_stars']} stars (chunks of {plan['chunk_stars']})"),
        ("memory", f"{human_bytes(plan['memory_per_worker'])} a worker"),
        ("time", f"about {human_seconds(plan['seconds'])} with {max(1, plan['workers'])} worker(s)"),
        ("sample", f"{plan['sample']['readable']} of {plan['sample']['stars']} files of a sample could be read"),
    ):
        shown.add_row(f"[bold]{key}[/]", escape(str(value)))
    console.print(shown)
    for r in plan["sample_rejected"]:
        console.print(f"  [yellow]{escape(r['path'])}[/]: {escape(r['reason'])}", highlight=False, soft_wrap=True)


def _show_summary(summary: Any, as_json: bool) -> None:
    from rich.markup import escape

    from chemscale.cli import console, echo_json
    from chemscale.runtime.observe import human_bytes, human_seconds

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
    rate, absent = summary.n_stars / max(summary.seconds, 1e-9), summary.n_members_absent
    console.print(
        f"{summary.n_stars:,} stars, {summary.n_rejected - absent:,} inputs quarantined"
        f"{f', {absent:,} listed members without a spectrum here' if absent else ''};"
        f" read {human_bytes(summary.bytes_read)},"
        f" wrote {human_bytes(summary.bytes_written)} in {human_seconds(summary.seconds)} ({rate:,.0f} stars/s)",
        highlight=False,
    )
    if summary.n_shards_kept and summary.n_shards_kept < summary.n_shards:
        console.print(f"{summary.n_shards_kept} shards were already done", highlight=False)
    if summary.ignored:
        names = escape(", ".join(summary.ignored))
        console.print(f"[yellow]not stored[/], no variable of the contract: {names}", highlight=False)
    if summary.clusters:
        console.print(f"{len(summary.clusters)} clusters, {sum(summary.clusters.values()):,} members", highlight=False)
    _show_rejected(summary)


def _show_rejected(summary: Any, most: int = 15) -> None:
    """Unreadable files by name, what planning left out by reason."""
    from rich.markup import escape

    from chemscale.cli import console
    from chemscale.survey.info import by_reason

    read = [r for r in summary.rejected if r.stage == "read"]
    for r in read[:most]:
        console.print(f"  [yellow]{escape(r.path)}[/]: {escape(r.reason)}", highlight=False, soft_wrap=True)
    rest = read[most:] + [r for r in summary.rejected if r.stage != "read"]
    for reason, n in by_reason([r.reason for r in rest]).items():
        console.print(f"  [yellow]{n:,}[/] x {escape(reason)}", highlight=False, soft_wrap=True)
    if rest:
        where = f"{summary.path}/_chemscale/rejected.json"
        console.print(f"  all of them: {escape(where)}", highlight=False, soft_wrap=True)


def finalise(out: StoreArg, as_json: AsJson = False) -> None:
    """Close a store whose --partition jobs have all run; names what is missing.

    Example: chemscale finalise apogee.zarr
    """
    from chemscale.survey.ingest import finalise as close

    _show_summary(close(out), as_json)


def info(store: StoreArg, as_json: AsJson = False) -> None:
    """What is in a store: survey, stars, pixels, coverage, censoring, labels, provenance, size.

    Example: chemscale info apogee.zarr
    """
    from rich.console import Console

    from chemscale.cli import echo_json
    from chemscale.survey.info import render, store_info

    facts = store_info(store)
    if as_json:
        echo_json(facts)
    else:
        render(facts, Console())  # the page is what was asked for: stdout


def verify(
    store: StoreArg,
    repair: Annotated[bool, typer.Option("--repair", help="Ingest what is broken again, from its source.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Checksums only; do not decode the pixels.")] = False,
    workers: Workers = None,
    cluster: Cluster = None,
    as_json: AsJson = False,
) -> None:
    """Check every file of a store; exit status 3 when something is wrong (and was not repaired).

    Example: chemscale verify apogee.zarr --repair
    """
    from rich.markup import escape

    from chemscale.cli import console, echo_json
    from chemscale.runtime.observe import human_bytes
    from chemscale.survey.verify import verify as check

    with _client(workers, cluster) as client:
        report = check(store, deep=not quick, repair=repair, client=client)
    if as_json:
        echo_json(report.to_dict())
    else:
        console.print(
            f"{report.n_stars:,} stars: {report.n_files:,} files, {human_bytes(report.n_bytes)} checked",
            highlight=False,
        )
        for fault in report.repaired:
            console.print(f"  [green]repaired[/] {escape(str(fault))}", highlight=False, soft_wrap=True)
        for fault in report.faults:
            console.print(f"  [red]broken[/] {escape(str(fault))}", highlight=False, soft_wrap=True)
        console.print("[green]the store is whole[/]" if report.ok else "[bold red]the store is damaged[/]")
    if not report.ok:
        raise typer.Exit(3)
