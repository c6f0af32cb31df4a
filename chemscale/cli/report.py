"""`chemscale report`: one self-contained HTML page from a run."""

from __future__ import annotations

import typer

from chemscale.cli.options import AsJson, RunDir


def register(app: typer.Typer) -> None:
    """Add the verb to the app."""

    @app.command("report")
    def report(
        run: RunDir,
        out: str = typer.Option("", "--out", metavar="FILE", help="Where to write; RUN/report.html by default."),
        studies: bool = typer.Option(False, "--studies", help="Run every study the run can answer first."),
        stars: int = typer.Option(6000, "--stars", min=100, help="Field stars in the interactive figures."),
        spectra: int = typer.Option(300, "--spectra", min=0, help="Spectra embedded in the page."),
        json: AsJson = False,
    ) -> None:
        """Write one HTML page with everything the run holds; it needs no network and can be mailed.

        Example: chemscale report --run run --studies
        """
        import os

        from rich.markup import escape

        from chemscale.cli import console, echo_json
        from chemscale.report import build_report

        left_out: dict[str, str] = {}
        if studies:
            from chemscale.studies.registry import run_studies

            _, left_out = run_studies(run)
        path = build_report(run, out or None, n_stars=stars, n_spectra=spectra)
        for name, reason in left_out.items():
            console.print(f"[yellow]study {escape(name)} left out:[/] {escape(reason)}", highlight=False)
        size = os.path.getsize(path) / 1e6
        console.print(f"[bold]{escape(str(path))}[/] ({size:.1f} MB)", highlight=False)
        if json:
            echo_json({"report": str(path), "megabytes": size, "studies_left_out": left_out})
