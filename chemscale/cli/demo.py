"""`chemscale demo`: the whole journey on a simulated survey."""

from __future__ import annotations

import typer

from chemscale.cli.options import AsJson


def register(app: typer.Typer) -> None:
    """Add the verb to the app."""

    @app.command("demo")
    def demo(
        out: str = typer.Option("demo", "--out", metavar="DIR", help="Folder for everything the demo makes."),
        tiny: bool = typer.Option(False, "--tiny", help="A quick check of the installation: fewer stars, same steps."),
        seed: int = typer.Option(1, "--seed", min=0, help="Seed of the simulated survey."),
        json: AsJson = False,
    ) -> None:
        """Simulate a survey, ingest it, find out which stars are alike, write a report. No download.

        Example: chemscale demo --out demo
        """
        from pathlib import Path

        from rich.markup import escape
        from rich.table import Table

        from chemscale.cli import command, console, echo_json
        from chemscale.demo import FULL, TINY, run_demo

        def invoke(words: list[str]) -> None:
            # in this process: the commands themselves, without starting Python for each
            command().main(words, prog_name="chemscale", standalone_mode=False)

        def say(text: str) -> None:
            console.print(f"[bold cyan]{escape(text)}[/]", highlight=False, soft_wrap=True)

        done = run_demo(Path(out), invoke, size=TINY if tiny else FULL, seed=seed, say=say)
        table = Table(
            title=f"{done.n_stars:,} stars, {done.n_clusters} clusters: share of strangers that look as siblings"
        )
        table.add_column("doppelganger rate of")
        table.add_column("rate", justify="right")
        for name, rate in done.rates.items():
            table.add_row(name, f"{rate:.4f}")
        console.print()
        console.print(table)
        console.print(f"[green]report:[/] {escape(str(done.report))}   ({done.seconds:.0f} s)", highlight=False)
        run, store = escape(str(done.report.parent)), escape(str(Path(out) / "survey.zarr"))
        console.print("try next:", highlight=False)
        for line in (
            f"chemscale export {run} --out stars.fits    (one row a star: features, labels, errors)",
            f"chemscale study --help    (then: chemscale study together --run {run})",
            f"chemscale info {store}",
        ):
            console.print(f"  {line}", highlight=False, soft_wrap=True)
        if json:
            echo_json(
                {"report": str(done.report), "rates": done.rates, "seconds": done.seconds, "n_stars": done.n_stars}
            )
