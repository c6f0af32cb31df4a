"""`chemscale report`: one self-contained HTML page from a run."""

from __future__ import annotations

from typing import Annotated

import typer

from chemscale.cli.options import AsJson


def register(app: typer.Typer) -> None:
    """Add the verb to the app."""

    @app.command("report")
    def report(
        run: Annotated[
            list[str], typer.Option("--run", metavar="RUN", help="Run directory; given twice, the two are compared.")
        ],
        out: str = typer.Option("", "--out", metavar="FILE", help="Where to write; RUN/report.html by default."),
        studies: bool = typer.Option(False, "--studies", help="Run every study the run can answer first."),
        stars: int = typer.Option(6000, "--stars", min=100, help="Field stars in the interactive figures."),
        spectra: int = typer.Option(300, "--spectra", min=0, help="Spectra embedded in the page."),
        json: AsJson = False,
    ) -> None:
        """Write one HTML page with everything the run holds; it needs no network and can be mailed.

        With two runs the page sets them side by side (as `chemscale compare A B --out FILE`).

        Examples:

        chemscale report --run run --studies
        chemscale report --run run --run better --out compare.html
        """
        import os

        from rich.markup import escape

        from chemscale.cli import console, echo_json
        from chemscale.cli.results import compare
        from chemscale.errors import InputError
        from chemscale.report import build_report

        if len(run) > 2:
            raise InputError(f"{len(run)} runs were given", "a report is of one run, or compares two")
        if len(run) == 2:
            if studies:
                raise InputError("--studies goes with one run", "leave it out, or report each run by itself")
            compare(run[0], run[1], out=out or os.path.join(run[0], "compare.html"), json=json)
            return
        left_out: dict[str, str] = {}
        if studies:
            from chemscale.studies.registry import run_studies

            _, left_out = run_studies(run[0])
        path = build_report(run[0], out or None, n_stars=stars, n_spectra=spectra)
        for name, reason in left_out.items():
            console.print(f"[yellow]study {escape(name)} left out:[/] {escape(reason)}", highlight=False)
        size = os.path.getsize(path) / 1e6
        console.print(f"[bold]{escape(str(path))}[/] ({size:.1f} MB)", highlight=False)
        if json:
            echo_json({"report": str(path), "megabytes": size, "studies_left_out": left_out})
