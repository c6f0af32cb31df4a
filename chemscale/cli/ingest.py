"""`chemscale ingest ...`: one verb a source; the options every ingestion has stand in :func:`_run` alone."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Annotated, Any

import typer

from chemscale.cli import surveys
from chemscale.cli.options import AsJson, Cluster, ReadWorkers, client_for
from chemscale.cli.summary import show_plan, show_summary

#: A process's: one is read, one compressed, one written or read back.
SHARDS_IN_HAND = 3
#: From this many stars on, work is spread over processes unless `--workers` says otherwise.
_MANY = 2000


def register(app: typer.Typer) -> None:
    """Add the verbs to the app."""
    verbs = typer.Typer(help="Survey files -> store.", no_args_is_help=True)
    app.add_typer(verbs, name="ingest")
    for name in sorted(installed(), key=lambda n: (n not in _FIRST, _FIRST.index(n) if n in _FIRST else 0, n)):
        verbs.command(name)(_verb(name))


def installed() -> list[str]:
    """Names of the registered sources, without importing any."""
    from importlib.metadata import entry_points

    return sorted({e.name for e in entry_points(group="chemscale.surveys")})


#: Order of the verbs; others follow by name.
_FIRST = ("apogee", "sdss-v", "lamost", "lamost-mrs", "boss", "desi", "galah", "gaia-xp", "table")


def _verb(name: str) -> Callable[..., None]:
    """The verb of a source: its own options, those of catalogues, and those of every ingestion."""
    own = getattr(surveys, name.replace("-", "_"), None)
    functions = [own, surveys.joins, _options] if own is not None else [_options]
    parts = [(f, inspect.signature(f, eval_str=True).parameters) for f in functions]
    shared = {n: p for n, p in inspect.signature(_run, eval_str=True).parameters.items() if n != "source"}

    def verb(**values: Any) -> None:
        arguments: dict[str, Any] = {}
        for function, parameters in parts:
            arguments |= function(**{n: values[n] for n in parameters})
        _run(make_source(name, arguments), **{n: values[n] for n in shared})

    every = [p for _, parameters in parts for p in parameters.values()] + list(shared.values())
    parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in every]
    verb.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    verb.__annotations__ = {p.name: p.annotation for p in parameters}
    verb.__doc__ = (
        own.__doc__
        if own is not None
        else (
            f"Ingest with the source {name!r} (arguments of its class by --option).\n\n"
            f"Example: chemscale ingest {name} --option KEY=VALUE --out survey.zarr"
        )
    )
    return verb


def make_source(name: str, arguments: dict[str, Any]) -> Any:
    """The source registered as `name`, built from those of `arguments` that are given.

    Raises
    ------
    InputError
        An argument is missing or not known.
    """
    from chemscale.errors import InputError
    from chemscale.survey.sources.base import get_source

    given = {key: value for key, value in arguments.items() if value is not None}
    make = get_source(name)
    try:
        inspect.signature(make).bind(**given)
        return make(**given)
    except TypeError as err:
        raise InputError(f"source {name!r}: {err}", "give its options, or arguments by --option key=value") from err


def _options(
    option: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="KEY=VALUE", help="Any argument of the source; repeatable (TOML values)."),
    ] = None,
) -> dict[str, Any]:
    from chemscale.config import parse_assignment

    return dict(parse_assignment(text) for text in option or [])


def _run(
    source: Any,
    *,
    out: Annotated[str, typer.Option("--out", metavar="STORE", help="Store to write: a path or s3://bucket/prefix.")],
    append: Annotated[
        bool, typer.Option("--append", help="Add the stars to the existing store --out, as one revision.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="With --append: supersede stars that are there already.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Carry on with an unfinished store (or start it).")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing store.")] = False,
    plan_only: Annotated[
        bool, typer.Option("--plan-only", help="Say what would be done (timed sample); write nothing.")
    ] = False,
    partition: Annotated[
        str | None,
        typer.Option("--partition", metavar="K/N", help="Write only part K of N; then `chemscale finalise`."),
    ] = None,
    max_bad: Annotated[
        float | None,
        typer.Option(
            "--max-bad", help="Stop when more inputs than this cannot be read (below 1: a fraction); by default never."
        ),
    ] = None,
    max_error: Annotated[float, typer.Option("--max-error", help="Flag pixels with a larger error; 0 = none.")] = 0.05,
    workers: ReadWorkers = None,
    cluster: Cluster = None,
    as_json: AsJson = False,
) -> None:
    from chemscale.errors import InputError
    from chemscale.survey.ingest.ingestion import ingest
    from chemscale.survey.ingest.planning import plan_ingest

    if (append or replace) and (overwrite or partition):
        raise InputError("--append goes with neither --overwrite nor --partition", "leave one of them out")
    limit = max_error if max_error > 0 else None
    if plan_only:
        from chemscale.survey.ingest.estimate import estimate

        planned = plan_ingest(source, max_error=limit)
        show_plan(estimate(planned, workers=n_workers(workers, len(planned.items))), as_json)
        return
    job = plan_ingest(source, max_error=limit) if workers is None and cluster is None else None
    if job is not None:
        workers = n_workers(None, len(job.items))
    with client_for(workers, cluster, threads=SHARDS_IN_HAND) as client:
        if append or replace:
            from chemscale.survey.ingest.append import append as add

            summary = add(
                source,
                out,
                replace_existing=replace,
                client=client,
                max_error=limit,
                max_bad=max_bad,
                resume=resume,
            )
        else:
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
    show_summary(summary, as_json)


def n_workers(workers: int | None, n_stars: int) -> int:
    """Worker processes: as asked for, else one a core for a large survey and none for a small one."""
    if workers is not None:
        return workers
    return (os.cpu_count() or 1) if n_stars >= _MANY else 0
