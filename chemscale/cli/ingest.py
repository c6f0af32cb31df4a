"""`chemscale ingest ...`: one verb a source; the options every ingestion has stand in :func:`_run` alone."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Annotated, Any

import typer

from chemscale.cli.options import AsJson, Cluster, Workers, client_for
from chemscale.cli.summary import show_plan, show_summary

Spectra = Annotated[
    list[str], typer.Option("--spectra", metavar="DIR", help="Folder of spectra, searched below; repeatable.")
]
Members = Annotated[str | None, typer.Option("--members", metavar="FILE", help="Membership table, FITS or CSV.")]
MinProbability = Annotated[
    float | None, typer.Option("--min-probability", help="Smallest membership probability that counts.")
]
ProbabilityColumn = Annotated[str | None, typer.Option("--probability-column", help="Column with it.")]

#: A process's: one is read, one compressed, one written or read back.
SHARDS_IN_HAND = 3
#: From this many stars on, work is spread over processes unless `--workers` says otherwise.
_MANY = 2000


def register(app: typer.Typer) -> None:
    """Add the verbs to the app."""
    verbs = typer.Typer(help="Survey files -> store.", no_args_is_help=True)
    app.add_typer(verbs, name="ingest")
    for name, source in _OWN.items():
        verbs.command(name)(_verb(source))
    for name in _third_parties():
        example = f"Example: chemscale ingest {name} --option KEY=VALUE --out survey.zarr"
        verbs.command(name, help=f"Ingest with the source {name!r} (arguments of its class by --option).\n\n{example}")(
            _verb(_generic(name))
        )


def _third_parties() -> list[str]:
    from importlib.metadata import entry_points

    return sorted({e.name for e in entry_points(group="chemscale.surveys")} - set(_OWN))


def _verb(make_source: Callable[..., Any]) -> Callable[..., None]:
    """The verb of a source: the options of `make_source`, which builds it, and those of every ingestion."""
    own = inspect.signature(make_source, eval_str=True).parameters
    shared = {n: p for n, p in inspect.signature(_run, eval_str=True).parameters.items() if n != "source"}

    def verb(**values: Any) -> None:
        _run(make_source(**{n: values[n] for n in own}), **{n: values[n] for n in shared})

    parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in (*own.values(), *shared.values())]
    verb.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    verb.__annotations__ = {p.name: p.annotation for p in parameters}
    verb.__doc__ = make_source.__doc__
    return verb


def _apogee(
    spectra: Spectra,
    allstar: Annotated[str | None, typer.Option("--allstar", metavar="FILE", help="The release's allStar.")] = None,
    members: Members = None,
    member_key: Annotated[str, typer.Option("--member-key", help="Identifier column of --members.")] = "APOGEE_ID",
    member_column: Annotated[str, typer.Option("--member-column", help="Cluster column of --members.")] = "CLUSTER",
    probability_column: ProbabilityColumn = None,
    min_probability: MinProbability = None,
    product: Annotated[str, typer.Option("--product", help="aspcapStar or apStar.")] = "aspcapStar",
) -> Any:
    """Ingest APOGEE spectra (DR13 to DR17 layouts).

    Example: chemscale ingest apogee --spectra dr17/ --allstar allStar.fits --members occam.fits --out apogee.zarr
    """
    from chemscale.survey.sources.apogee import ApogeeSource

    return ApogeeSource(
        [str(full_path(s)) for s in spectra],
        full_path(allstar),
        full_path(members),
        member_key=member_key,
        member_column=member_column,
        probability_column=probability_column,
        min_probability=min_probability,
        product=product,
    )


def _lamost(
    spectra: Spectra,
    labels: Annotated[list[str] | None, typer.Option("--labels", metavar="CSV", help="Labels; repeatable.")] = None,
    members: Members = None,
    member_key: Annotated[str, typer.Option("--member-key", help="Identifier column of --members.")] = "file",
    member_column: Annotated[str, typer.Option("--member-column", help="Group column of --members.")] = "group",
    probability_column: ProbabilityColumn = None,
    min_probability: MinProbability = None,
    wavelength_min: Annotated[float, typer.Option("--wavelength-min", help="First wavelength, Angstrom.")] = 4000.0,
    wavelength_max: Annotated[float, typer.Option("--wavelength-max", help="Last wavelength, Angstrom.")] = 8900.0,
    continuum: Annotated[str, typer.Option("--continuum", help="running-quantile or survey.")] = "running-quantile",
) -> Any:
    """Ingest LAMOST low-resolution spectra (DR1 to DR10 layouts).

    Example: chemscale ingest lamost --spectra dr10/ --labels labels.csv --out lamost.zarr
    """
    from chemscale.survey.sources.lamost import LamostSource

    return LamostSource(
        [str(full_path(s)) for s in spectra],
        [str(full_path(t)) for t in labels or []],
        full_path(members),
        member_key=member_key,
        member_column=member_column,
        probability_column=probability_column,
        min_probability=min_probability,
        wavelength_range=(wavelength_min, wavelength_max),
        continuum=continuum,
    )


def _table(
    file: Annotated[str, typer.Argument(metavar="FILE", help="NPZ, HDF5, FITS table or Zarr.")],
    mapping: Annotated[
        str | None, typer.Option("--mapping", "--columns", metavar="TOML", help="Which column is what.")
    ] = None,
    medium: Annotated[str | None, typer.Option("--medium", help="vacuum or air, where the file does not say.")] = None,
) -> Any:
    """Ingest a table of spectra: flux, error (or ivar) and wavelength, columns mapped by a small TOML.

    Example: chemscale ingest table spectra.npz --out survey.zarr
    """
    from chemscale.survey.sources.table import TableSource

    return TableSource(str(full_path(file)), full_path(mapping), medium=medium)


def _generic(name: str) -> Callable[..., Any]:
    def generic(
        option: Annotated[
            list[str] | None,
            typer.Option("--option", metavar="KEY=VALUE", help="Argument of the source; repeatable (TOML values)."),
        ] = None,
    ) -> Any:
        from chemscale.config import parse_assignment
        from chemscale.errors import InputError
        from chemscale.survey.sources.base import get_source

        options = dict(parse_assignment(text) for text in option or [])
        try:
            return get_source(name)(**options)
        except TypeError as err:
            raise InputError(f"source {name!r}: {err}", "name its arguments by --option key=value") from err

    return generic


#: Sources with options of their own; any other registered one gets the generic verb.
_OWN: dict[str, Callable[..., Any]] = {"apogee": _apogee, "lamost": _lamost, "table": _table}


def full_path(path: str | None) -> str | None:
    """Absolute, so that the store can be resumed and repaired from any directory."""
    return path if path is None or "://" in path else os.path.abspath(os.path.expanduser(path))


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
        typer.Option("--max-bad", help="Stop when more inputs than this cannot be read (below 1: a fraction)."),
    ] = None,
    max_error: Annotated[float, typer.Option("--max-error", help="Flag pixels with a larger error; 0 = none.")] = 0.05,
    workers: Workers = None,
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
