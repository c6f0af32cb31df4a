"""`chemscale study`: figures and tables of the papers, from a run."""

from __future__ import annotations

import typer

from chemscale.cli.options import AsJson, RunDir

#: Run directory of `vae_table1 --catalogues` without --run.
TABLE_RUN = "vae-table1"


def register(app: typer.Typer) -> None:
    """Add the verb to the app."""

    @app.command("study")
    def study(
        names: list[str] = typer.Argument(
            None, metavar="NAME...", help="Studies to run; `all` for every one; none lists them."
        ),
        run: RunDir = "",
        option: list[str] = typer.Option(
            [], "--option", metavar="NAME.KEY=VALUE", help="A study's own setting, e.g. dataset_size.repeats=20."
        ),
        catalogues: int = typer.Option(
            0, "--catalogues", min=0, help="vae_table1: catalogues to simulate and train on; without --run the paper's."
        ),
        json: AsJson = False,
    ) -> None:
        """Run studies: each writes figure.pdf, figure.png, data.csv and summary.json below RUN/studies/NAME.

        Examples:

        chemscale study                          # what there is
        chemscale study ablation --run run       # Figure 4 of de Mijolla & Ness (2021)
        chemscale study all --run run            # every study this run can answer
        chemscale study vae_table1 --catalogues 5    # Table 1 of Signor et al. (2025), from five simulated catalogues
        """
        from rich.markup import escape
        from rich.table import Table

        from chemscale.cli import console, echo_json
        from chemscale.errors import DataError, InputError
        from chemscale.results.verdict import record, study_verdict
        from chemscale.runtime.run import Run
        from chemscale.studies import registry

        if not names:
            studies = [registry.get(n) for n in registry.names()]
            if json:
                echo_json({s.name: {"title": s.title, "source": s.source, "settings": s.defaults} for s in studies})
                return
            table = Table("study", "what", "source", "settings", box=None)
            for s in studies:
                table.add_row(s.name, s.title, s.source, ", ".join(f"{k}={v}" for k, v in s.defaults.items()))
            console.print(table)
            return
        if catalogues and names == ["vae_table1"]:
            option = [*option, f"vae_table1.catalogues={catalogues}"]
            if not run:
                run = str(Run.create(TABLE_RUN).path)
        elif catalogues:
            raise InputError("--catalogues is of the study vae_table1 alone", "run it by itself")
        if not run:
            raise InputError(
                "no run directory was given", "pass --run RUN, made by `chemscale rsca fit STORE --run RUN`"
            )
        wanted = registry.names() if "all" in names else list(dict.fromkeys(names))
        for name in wanted:
            registry.get(name)  # refuse a typo before minutes of work

        def started(name: str) -> None:
            console.print(f"[dim]study {escape(name)} ({wanted.index(name) + 1} of {len(wanted)})[/]", highlight=False)

        summaries, skipped = registry.run_studies(run, wanted, _settings(option, wanted), on_start=started)
        for name, summary in summaries.items():
            numbers = ", ".join(f"{k} {_short(v)}" for k, v in summary["numbers"].items())
            console.print(f"[bold]{escape(name)}[/] ({summary['seconds']:.1f} s) {escape(numbers)}", highlight=False)
        for basis in dict.fromkeys(s["basis"] for s in summaries.values() if s["basis"]):
            same = ", ".join(name for name, s in summaries.items() if s["basis"] == basis)
            console.print(f"[dim]basis of {escape(same)}: {escape(basis)}[/]", highlight=False)
        for reason in dict.fromkeys(skipped.values()):
            same = ", ".join(name for name, why in skipped.items() if why == reason)
            console.print(f"[yellow]{escape(same)} left out:[/] {escape(reason)}", highlight=False)
        if summaries:
            told = study_verdict(summaries, skipped, run)
            opened = Run.open(run)
            for name in summaries:
                record(opened, f"study.{name}", f"made in {summaries[name]['seconds']:.1f} s")
            console.print(escape(told), highlight=False)
        if json:
            echo_json({"studies": summaries, "left_out": skipped})
        if not summaries:
            raise DataError("none of these studies could be made from this run", "the reasons are listed above")


def _settings(options: list[str], wanted: list[str]) -> dict[str, dict[str, object]]:
    """``name.key=value`` as settings by study."""
    from chemscale.config import parse_assignment
    from chemscale.errors import InputError

    settings: dict[str, dict[str, object]] = {}
    for text in options:
        key, value = parse_assignment(text)
        study, dot, setting = key.partition(".")
        if not dot or study not in wanted:
            raise InputError(f"--option {text!r}: not of the form NAME.KEY=VALUE for a study that is run", "see --help")
        settings.setdefault(study, {})[setting] = value
    return settings


def _short(value: object) -> str:
    if isinstance(value, float):  # NaN: nothing to measure, such as a class without a star
        return f"{value:.4g}" if value == value else "–"
    return str(value)
