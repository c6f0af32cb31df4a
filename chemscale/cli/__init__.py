"""The command line: one verb a stage. Heavy imports stay inside the commands."""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

import typer
from rich.console import Console

from .._version import __version__
from ..errors import ChemscaleError

#: Modules with a `register(app)`, in the order their verbs are listed by `--help`.
AREAS = ("demo", "simulate", "survey", "mask", "rsca", "vae", "study", "report", "runtime", "config")

#: Everything for people goes to stderr; stdout is kept for `--json`.
console = Console(stderr=True)


def echo_json(obj: Any) -> None:
    """Print one JSON document on stdout (NaN becomes null)."""
    from ..runtime.run import jsonable

    sys.stdout.write(json.dumps(jsonable(obj), indent=2, allow_nan=False) + "\n")


def _version(value: bool) -> None:
    if value:
        sys.stdout.write(f"chemscale {__version__}\n")
        raise typer.Exit


app = typer.Typer(
    name="chemscale",
    help="""Which stars were born together? Chemical likeness and data-driven abundances
for whole spectroscopic surveys.

Start with `chemscale demo`. With your own survey: ingest, rsca fit, rsca evaluate, report.

Every option can also be set in a file (see `chemscale config`), by --set, or by an
environment variable: `rsca fit --components` is CHEMSCALE_RSCA_FIT_COMPONENTS.

Exit status: 0 done; 1 failed; 2 bad input or usage; 3 store missing or damaged;
4 the data cannot answer the question; 5 a resume that does not match; 6 no cluster.""",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "CHEMSCALE"},
)


@app.callback()
def _root(
    ctx: typer.Context,
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
    config: str | None = typer.Option(None, "--config", metavar="FILE", help="Settings file (see `chemscale config`)."),
    assign: list[str] = typer.Option([], "--set", metavar="KEY=VALUE", help="Override one setting; may be repeated."),
) -> None:
    if config is not None or assign:
        from ..config import resolve

        ctx.default_map, notes = resolve(ctx.command, config, assign)
        for note in notes:
            console.print(f"[yellow]note:[/] {_plain(note)}", highlight=False)


def build() -> typer.Typer:
    """The app with every area's verbs registered."""
    if not app.registered_commands and not app.registered_groups:
        for area in AREAS:
            importlib.import_module(f"{__name__}.{area}").register(app)
    return app


def command() -> Any:
    """The Click command; the environment variable every option has is documented once, not at each."""
    from typer.main import get_command

    root = get_command(build())
    pending = [root]
    while pending:
        node = pending.pop()
        for param in node.params:
            if hasattr(param, "show_envvar"):
                param.show_envvar = False
        pending += getattr(node, "commands", {}).values()
    return root


def main() -> None:
    """Entry point of the `chemscale` command."""
    try:
        command()()
    except ChemscaleError as err:
        console.print(f"[bold red]error:[/] {_plain(err.message)}", highlight=False, soft_wrap=True)
        if err.remedy:
            console.print(f"[bold]remedy:[/] {_plain(err.remedy)}", highlight=False, soft_wrap=True)
        sys.exit(err.exit_code)
    except KeyboardInterrupt:
        console.print("[yellow]interrupted[/]: what was finished is kept; the same command with --resume carries on")
        sys.exit(130)


def _plain(text: str) -> str:
    """Text from files shown as it is, never as markup."""
    from rich.markup import escape

    return escape(text)
