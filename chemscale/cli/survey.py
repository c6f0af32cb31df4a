"""`chemscale ingest | finalise | info | verify`: from survey files to a store, and what is in it."""

from __future__ import annotations

from typing import Annotated

import typer

from chemscale.cli import ingest
from chemscale.cli.options import AsJson, Cluster, Workers, client_for
from chemscale.cli.summary import show_summary
from chemscale.errors import InputError

StoreArg = Annotated[str, typer.Argument(metavar="STORE", help="A survey store.")]


def register(app: typer.Typer) -> None:
    """Add the verbs to the app."""
    ingest.register(app)
    app.command("finalise")(finalise)
    app.command("info")(info)
    app.command("export-spectra")(export_spectra)
    app.command("verify")(verify)


def finalise(out: StoreArg, as_json: AsJson = False) -> None:
    """Close a store whose --partition jobs have all run; names what is missing.

    Example: chemscale finalise apogee.zarr
    """
    from chemscale.survey.ingest.ingestion import finalise as close

    show_summary(close(out), as_json)


def info(
    store: StoreArg,
    pixels: Annotated[
        bool, typer.Option("--pixels", help="Also mean, scatter and used share of every pixel: reads all spectra once.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """What is in a store: survey, stars, pixels, coverage, censoring, labels, provenance, size.

    Example: chemscale info apogee.zarr --pixels
    """
    from rich.console import Console

    from chemscale.cli import echo_json
    from chemscale.survey.info import pixel_statistics, render, store_info

    facts = store_info(store)
    if pixels:
        facts["pixels"] = pixel_statistics(store)
    if as_json:
        echo_json(facts)
    else:
        render(facts, Console())  # the page is what was asked for: stdout


def export_spectra(
    store: StoreArg,
    out: Annotated[str, typer.Option("--out", metavar="FILE.fits", help="FITS file to write.")],
    star: Annotated[list[str] | None, typer.Option("--star", metavar="ID", help="Only this star; repeatable.")] = None,
    stars: Annotated[
        str | None, typer.Option("--stars", metavar="FILE", help="Only the stars of this list, an identifier a line.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Spectra and labels of stars as one FITS file, which `chemscale ingest table` takes back unchanged.

    Example: chemscale export-spectra apogee.zarr --star 2M00000002+7417074 --out two.fits
    """
    from pathlib import Path

    from chemscale import export_spectra as write
    from chemscale import open_survey
    from chemscale.cli import console, echo_json

    wanted = list(star or [])
    if stars is not None:
        try:
            wanted += [line.strip() for line in Path(stars).read_text().splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{stars}: cannot be read: {error}", "give a text file, an identifier a line") from error
    with open_survey(store) as survey:
        n = len(wanted) if star or stars else survey.sizes["star"]
        path = write(survey, out, wanted if star or stars else None, overwrite=overwrite)
    console.print(f"{n:,} spectra written: {path}", highlight=False, soft_wrap=True)
    if as_json:
        echo_json({"file": str(path), "n_spectra": n})


def verify(
    store: Annotated[str | None, typer.Argument(metavar="STORE", help="A survey store.")] = None,
    run: Annotated[str | None, typer.Option("--run", metavar="DIR", help="Check this run directory.")] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Ingest what is broken again, from its source.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Checksums only; do not decode the pixels.")] = False,
    workers: Workers = None,
    cluster: Cluster = None,
    as_json: AsJson = False,
) -> None:
    """Check every file of a store, or of a run; exit status 3 when something is wrong (and was not repaired).

    Example: chemscale verify apogee.zarr --repair
    """
    if (store is None) == (run is None):
        raise InputError("verify takes a STORE, or a run directory with --run", "chemscale verify --run RUN")
    if run is not None:
        _verify_run(run, as_json)
        return
    assert store is not None
    from rich.filesize import decimal
    from rich.markup import escape

    from chemscale.cli import console, echo_json
    from chemscale.survey.ingest.repair import repair as mend
    from chemscale.survey.store.verify import verify as check

    with client_for(workers, cluster) as client:
        report = (mend if repair else check)(store, deep=not quick, client=client)
    if as_json:
        echo_json(report.to_dict())
    else:
        console.print(
            f"{report.n_stars:,} stars: {report.n_files:,} files, {decimal(report.n_bytes)} checked",
            highlight=False,
        )
        for fault in report.repaired:
            console.print(f"  [green]repaired[/] {escape(str(fault))}", highlight=False, soft_wrap=True)
        for fault in report.faults:
            console.print(f"  [red]broken[/] {escape(str(fault))}", highlight=False, soft_wrap=True)
        console.print("[green]the store is whole[/]" if report.ok else "[bold red]the store is damaged[/]")
    if not report.ok:
        raise typer.Exit(3)


def _verify_run(run: str, as_json: bool) -> None:
    from rich.markup import escape

    from chemscale.cli import console, echo_json
    from chemscale.runtime.verify_run import verify_run

    report = verify_run(run)
    if as_json:
        echo_json(report.to_dict())
    else:
        console.print(f"{report.n_files:,} files checked", highlight=False)
        for note in report.notes:
            console.print(f"  [yellow]note[/] {escape(note)}", highlight=False, soft_wrap=True)
        for fault in report.faults:
            console.print(f"  [red]broken[/] {escape(fault)}", highlight=False, soft_wrap=True)
        console.print("[green]the run is whole[/]" if report.ok else "[bold red]the run is damaged[/]")
    if not report.ok:
        raise typer.Exit(3)
