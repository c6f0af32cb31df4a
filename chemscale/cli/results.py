"""`chemscale export | compare | schema`: what a run found as a table, two runs side by side, the contract."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from chemscale.cli.options import AsJson


def register(app: typer.Typer) -> None:
    """Add the verbs to the app."""
    app.command("export")(export)
    app.command("compare")(compare)
    app.command("schema")(schema)


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run directory.")],
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="Ends in .fits, .vot, .parquet or .csv.")],
    features: Annotated[
        int | None, typer.Option("--features", min=0, help="RSCA features; by default those that tell clusters apart.")
    ] = None,
    join: Annotated[
        str | None,
        typer.Option("--join", metavar="FILE", help="A catalogue of yours: its columns come along as x_NAME."),
    ] = None,
    key: Annotated[str | None, typer.Option("--key", metavar="COLUMN", help="Its column of identifiers.")] = None,
    json: AsJson = False,
) -> None:
    """Write one row a star of all a run holds: labels, features, latents, abundances, anomalies, flags.

    Units, UCDs and descriptions come along: TOPCAT and astropy show them.

    Examples:

    chemscale export run --out stars.fits
    chemscale export vae --out stars.fits --join mine.csv --key star_id    # latents and abundances beside my columns
    """
    import os

    from rich.markup import escape

    from chemscale.cli import console, echo_json
    from chemscale.results.export import export as write

    table = write(run, out, features=features, join=join, key=key)
    size = os.path.getsize(out)
    for reason in table.left_out:
        console.print(f"[yellow]left out:[/] {escape(reason)}", highlight=False, soft_wrap=True)
    console.print(
        f"{table.n_stars:,} stars, {len(table.columns)} columns in {escape(out)} ({size / 1e6:.1f} MB)", highlight=False
    )
    if json:
        columns = {c.name: {"unit": c.unit, "ucd": c.ucd, "description": c.description} for c in table.columns}
        echo_json({"file": out, "stars": table.n_stars, "bytes": size, "columns": columns, "left_out": table.left_out})


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="Run directory.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another.")],
    out: Annotated[
        str | None, typer.Option("--out", metavar="FILE", help="Write one self-contained HTML page too.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Two runs side by side: settings that differ, rates with paired differences, shared neighbours, latents.

    Example: chemscale compare run better --out compare.html
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from chemscale.cli import echo_json
    from chemscale.results.compare import compare as side_by_side

    if out is not None:
        from chemscale.report.html import ENDINGS
        from chemscale.suggest import known_ending

        known_ending(out, ENDINGS)  # before anything is computed
    found = side_by_side(a, b)
    if out is not None:
        from chemscale.cli import console
        from chemscale.report import build_comparison

        console.print(f"[bold]{escape(str(build_comparison(found, out)))}[/]", highlight=False)
    if json:
        echo_json(found)
        return
    page = Console(width=None if sys.stdout.isatty() else 140)  # the page is what was asked for: stdout
    settings = Table("setting", "A", "B", box=None)
    for key, (one, other) in found["settings"].items():
        settings.add_row(escape(key), escape(str(one)), escape(str(other)))
    page.print(settings if found["settings"] else "no setting differs")
    if "rates" in found:
        rates = Table("rate", "A", "B", "B - A, each cluster counted once", "clusters", box=None)
        for method, r in found["rates"].items():
            error = "" if r["error"] is None else f" +- {r['error']:.4f}"
            change = "" if r["difference"] is None else f"{r['difference']:+.4f}{error}"
            rates.add_row(method, *("" if r[k] is None else f"{r[k]:.4f}" for k in "ab"), change, str(r["clusters"]))
        page.print(rates)
    if "neighbours" in found:
        n = found["neighbours"]
        page.print(
            f"{n['shared']:.0%} of the {n['neighbours']} nearest stars are the same (chance: {n['chance']:.1%}; "
            f"{n['stars']} stars asked), by the recommended metric of each run: {n['metrics'][0]} in A; "
            f"{n['metrics'][1]} in B",
            highlight=False,
            markup=False,
        )
    for name, r in found.get("latents", {}).items():
        page.print(f"latent {escape(name)}: correlation {r:+.3f}", highlight=False)
    for part, reason in found["absent"].items():
        page.print(f"[yellow]{part} not compared:[/] {escape(reason)}", highlight=False)


def schema(json: AsJson = False) -> None:
    """Print the contract of a survey: every variable with its dimensions, type, unit and meaning; the pixel flags.

    Example: chemscale schema
    """
    from rich.console import Console
    from rich.table import Table

    from chemscale.cli import echo_json
    from chemscale.schema import VARIABLES, Flag

    if json:
        described = {
            v.name: {"dims": v.dims, "dtype": v.dtype, "units": v.units, "required": v.required, "meaning": v.doc}
            for v in VARIABLES.values()
        }
        echo_json({"variables": described, "flags": {str(f.name): int(f) for f in Flag}})
        return
    page = Console(width=None if sys.stdout.isatty() else 140)  # the page is what was asked for: stdout
    table = Table("variable", "dimensions", "type", "unit", "meaning", box=None)
    for v in VARIABLES.values():
        name = f"[bold]{v.name}[/]" if v.required else v.name
        table.add_row(name, ", ".join(v.dims), v.dtype, v.units, v.doc.replace("[", "\\["))
    page.print(table)
    page.print("\nBold: required. Missing numbers are NaN, missing text is empty.")
    page.print("Pixel flags: " + ", ".join(f"{f.name} {int(f)}" for f in Flag), highlight=False)
    page.print("A pixel is used where flags == 0, ivar > 0 and the flux is finite.", highlight=False)
