"""`chemscale plot ...`: figures to publish, with their points and the Python that makes them beside."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from chemscale.cli.options import AsJson

Run = Annotated[str, typer.Argument(metavar="RUN", help="Run directory.")]
Out = Annotated[str, typer.Option("--out", metavar="FILE", help="Ends in .pdf, .png or .svg.")]
Join = Annotated[
    str | None, typer.Option("--join", metavar="FILE", help="A catalogue of yours: its columns are then x_NAME.")
]
Width = Annotated[str, typer.Option("--width", help="Journal width: column (3.4 in), page (7 in), or inches.")]


def register(app: typer.Typer) -> None:
    """Add the verbs to the app."""
    plot = typer.Typer(
        help="Figures at journal width, as PDF, PNG or SVG; beside each its points (.csv) and the Python (.py).",
        no_args_is_help=True,
    )
    plot.command("spectra")(spectra)
    plot.command("columns")(columns)
    plot.command("features")(features)
    app.add_typer(plot, name="plot")


def spectra(
    run: Run,
    stars: Annotated[list[str] | None, typer.Argument(metavar="STAR_ID...", help="Stars to draw.")] = None,
    out: Out = "spectra.pdf",
    anomalies: Annotated[
        int, typer.Option("--anomalies", min=0, help="The so many strangest stars (after `chemscale anomalies`).")
    ] = 0,
    low: Annotated[float | None, typer.Option("--low", help="From this wavelength on, Angstrom.")] = None,
    high: Annotated[float | None, typer.Option("--high", help="Up to this wavelength, Angstrom.")] = None,
    lines: Annotated[
        str, typer.Option("--lines", help="Lines to mark: strongest, none, elements (Mg,Al) or a CSV.")
    ] = "strongest",
    width: Width = "page",
    json: AsJson = False,
) -> None:
    """Spectra of stars with the model's reconstruction, the residual and marked lines; a PDF has several pages.

    Examples:

    chemscale plot spectra run 2M19203303+3755558 --low 15700 --high 15800 --out star.pdf
    chemscale plot spectra vae --anomalies 20 --out outliers.pdf
    """
    from chemscale.results import spectra as draw

    mark = None if lines == "none" else () if lines == "strongest" else lines.split(",")
    _write(
        draw.stars(run, stars or (), anomalies=anomalies, low=low, high=high, mark=mark, width=_inches(width)),
        out,
        json,
    )


def columns(
    run: Run,
    x: Annotated[str | None, typer.Argument(metavar="X", help="Horizontal axis; none lists the columns.")] = None,
    y: Annotated[str | None, typer.Argument(metavar="Y", help="Vertical axis.")] = None,
    out: Out = "",
    colour: Annotated[str | None, typer.Option("--colour", metavar="COLUMN", help="Colour of the points.")] = None,
    join: Join = None,
    width: Width = "column",
    json: AsJson = False,
) -> None:
    """Any column of a run against any other: labels, features, latents, abundances, scores.

    Examples:

    chemscale plot columns run                                # what there is to draw
    chemscale plot columns run teff logg --out kiel.pdf
    chemscale plot columns run fe_h rsca_1 --colour teff --out feature.png
    """
    from chemscale.errors import InputError
    from chemscale.results import plots

    if x is None:
        _list(plots.names(run, join), json)
        return
    if y is None:
        raise InputError(f"one column, {x!r}, makes no figure", f"chemscale plot columns {run} {x} COLUMN")
    _write(plots.columns(run, x, y, colour=colour, width=_inches(width), join=join), out or f"{x}-{y}.pdf", json)


def features(
    run: Run,
    labels: Annotated[
        str, typer.Option("--labels", metavar="NAMES", help="Columns to compare with, separated by commas.")
    ] = "fe_h,alpha_m,teff,radial_velocity",
    n_features: Annotated[int, typer.Option("--n-features", min=1, help="Features (or latents), from the first.")] = 3,
    out: Out = "features.pdf",
    join: Join = None,
    width: Width = "page",
    json: AsJson = False,
) -> None:
    """What the features (or latents) measure: each against labels of your own, as Figure 3 of the RSCA paper.

    Example: chemscale plot features run --labels fe_h,c_fe,snr --out figure3.pdf
    """
    from chemscale.results import plots

    names = [n.strip() for n in labels.split(",") if n.strip()]
    _write(plots.features(run, names, n_features=n_features, width=_inches(width), join=join), out, json)


def _inches(width: str) -> str | float:
    from chemscale.errors import InputError

    if width in ("column", "page"):
        return width
    try:
        inches = float(width)
    except ValueError:
        inches = 0.0
    if not 1 <= inches <= 40:
        raise InputError(f"--width {width!r}", "column, page, or a width in inches")
    return inches


def _write(plot: Any, out: str, json: bool) -> None:
    from rich.markup import escape

    from chemscale.cli import console, echo_json
    from chemscale.results.plots import save

    files = save(plot, out)
    console.print(f"{plot.note}; written: {escape(', '.join(map(str, files)))}", highlight=False, soft_wrap=True)
    if json:
        echo_json({"files": [str(f) for f in files], "numbers": plot.numbers, "shown": plot.note})


def _list(columns: Any, json: bool) -> None:
    import sys

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from chemscale.cli import echo_json

    if json:
        echo_json({c.name: {"unit": c.unit, "meaning": c.description} for c in columns})
        return
    table = Table("column", "unit", "meaning", box=None)
    for c in columns:
        table.add_row(c.name, c.unit, escape(c.description))
    Console(width=None if sys.stdout.isatty() else 140).print(table)  # what was asked for: stdout
