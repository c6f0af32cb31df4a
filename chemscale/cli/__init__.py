"""The command line: one verb a stage. Heavy imports stay inside the commands."""

from __future__ import annotations

import importlib
import sys
import warnings
from typing import Any, NoReturn

import typer
from rich.console import Console

from chemscale._version import __version__
from chemscale.config import ENV_PREFIX
from chemscale.errors import ChemscaleError, of_the_machine

#: Modules with a `register(app)`, and the verbs that each registers.
AREAS = {
    "demo": ("demo",),
    "simulate": ("simulate",),
    "survey": ("ingest", "finalise", "info", "export-spectra", "verify"),
    "mask": ("mask",),
    "clean": ("clean",),
    "rsca": ("rsca",),
    "vae": ("vae", "anomalies", "flags"),
    "study": ("study",),
    "report": ("report",),
    "results": ("export", "compare", "schema"),
    "plot": ("plot",),
    "runtime": ("run", "cluster", "bench", "doctor"),
    "slurm": ("slurm",),
    "config": ("config",),
}

#: Everything for people goes to stderr; stdout is kept for `--json`.
console = Console(stderr=True)


def echo_json(obj: Any) -> None:
    """Print one JSON document on stdout (NaN becomes null)."""
    from chemscale.runtime.jsonio import text

    sys.stdout.write(text(obj))


def _version(value: bool) -> None:
    if value:
        sys.stdout.write(f"chemscale {__version__}\n")
        raise typer.Exit


#: One line a paragraph: the terminal wraps them.
HELP = "\n\n".join(
    (
        "Which stars were born together? Chemical likeness and data-driven abundances for whole spectroscopic surveys.",
        "[bold]Start[/] with `chemscale demo`, or with files of your own:",
        "\b\n"
        "chemscale ingest apogee --spectra DIR --allstar FILE --out survey.zarr\n"
        "chemscale rsca fit survey.zarr --run run\n"
        "chemscale rsca evaluate --run run\n"
        "chemscale rsca siblings STAR_ID --run run\n"
        "chemscale vae train survey.zarr --run vae\n"
        "chemscale vae infer survey.zarr --run vae\n"
        "chemscale anomalies --run vae\n"
        "chemscale flags --run vae\n"
        "chemscale report --run run --studies",
        "[bold]Settings[/]: every option is also a key of a file (`chemscale config` prints them all), of --set, and "
        "an environment variable: `rsca fit --components` is rsca.fit.components and CHEMSCALE_RSCA_FIT_COMPONENTS.",
        "[bold]Output[/]: messages go to stderr; --json prints one document on stdout.",
        "[bold]Exit status[/]: 0 done; 1 failed; 2 bad input or usage; 3 store or run missing or damaged; 4 the data "
        "cannot answer the question; 5 a resume that does not match; 6 no cluster; 7 out of memory; 130 interrupted.",
    )
)

app = typer.Typer(
    name="chemscale",
    help=HELP,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": ENV_PREFIX},
)

#: Panels of `chemscale --help`, in the order of a journey; verbs by name.
PANELS = {
    "Start": ("demo", "doctor", "config", "schema"),
    "Survey": ("simulate", "ingest", "finalise", "info", "verify", "mask", "clean", "export-spectra"),
    "Models": ("rsca", "vae"),
    "Results": ("study", "anomalies", "flags", "export", "plot", "compare", "report"),
    "Many machines": ("run", "slurm", "cluster", "bench"),
}


#: Areas that `app` holds by now.
_REGISTERED: set[str] = set()


@app.callback()
def _root(
    ctx: typer.Context,
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
    config: str | None = typer.Option(None, "--config", metavar="FILE", help="Settings file (see `chemscale config`)."),
    assign: list[str] = typer.Option([], "--set", metavar="KEY=VALUE", help="Override one setting; may be repeated."),
) -> None:
    if config is not None or assign:
        from chemscale.config import resolve

        ctx.default_map, notes = resolve(ctx.command, config, assign)
        for note in notes:
            console.print(f"[yellow]note:[/] {_plain(note)}", highlight=False)


def build(verb: str | None = None) -> typer.Typer:
    """The app with every verb registered, or at least `verb`."""
    for area, verbs in AREAS.items():
        if area not in _REGISTERED and (verb is None or verb in verbs):
            importlib.import_module(f"{__name__}.{area}").register(app)
            _REGISTERED.add(area)
    return app


def command(verb: str | None = None) -> Any:
    """The Click command: verbs in the order of a journey, names of keys and variables taken from the options.

    With `verb`, a tree that need hold no other: building all of it takes a fifth of a start.
    """
    from typer.main import get_command

    root: Any = get_command(build(verb))
    order = [name for names in PANELS.values() for name in names]
    root.commands = {name: root.commands[name] for name in sorted(root.commands, key=_place(order))}
    for panel, names in PANELS.items():
        for name in set(names) & set(root.commands):
            root.commands[name].rich_help_panel = panel
    _finish(root, ())
    return root


def _place(order: list[str]) -> Any:
    return lambda name: order.index(name) if name in order else len(order)


def _finish(node: Any, path: tuple[str, ...]) -> None:
    """Walk the tree of verbs: what Typer and Click do not do by themselves."""
    from chemscale.config import option_name

    for param in node.params:
        if hasattr(param, "show_envvar"):
            param.show_envvar = False  # said once, at the top
        if getattr(param, "help", None):
            param.help = _plain(param.help)  # "[cluster]" is a table of a TOML file, not markup
        if path and param.param_type_name == "option" and not param.is_eager:
            # named after the option, not after the Python argument behind it
            param.envvar = "_".join((ENV_PREFIX, *path, option_name(param))).upper().replace("-", "_")
    subcommands = getattr(node, "commands", None)
    for name, sub in (subcommands or {}).items():
        _finish(sub, (*path, name))
    if subcommands is None:
        node.invoke = _recording(node.invoke)


def _recording(invoke: Any) -> Any:
    """Tell the run directory which settings are in force, and where each came from."""
    sources = {"DEFAULT_MAP": "file or --set", "ENVIRONMENT": "environment", "COMMANDLINE": "command line"}

    def recorded(ctx: Any) -> Any:
        from chemscale.config import option_name
        from chemscale.runtime.run import SETTINGS

        found = {}
        for param in ctx.command.params:
            source = getattr(ctx.get_parameter_source(param.name), "name", None)
            if source in sources:
                value = ctx.params.get(param.name)
                found[option_name(param)] = {"value": value, "from": sources[source]}
        token = SETTINGS.set(found)
        try:
            return invoke(ctx)
        except KeyboardInterrupt:  # Typer would end without a word
            _interrupted()
        finally:
            SETTINGS.reset(token)

    return recorded


def main() -> None:
    """Entry point of the `chemscale` command."""
    warnings.showwarning = _show_warning
    try:
        first = sys.argv[1] if len(sys.argv) > 1 else ""
        known = any(first in verbs for verbs in AREAS.values())
        command(first if known else None)(prog_name="chemscale")
    except ChemscaleError as err:
        _fail(err.message, err.remedy, err.exit_code)
    except KeyboardInterrupt:
        _interrupted()
    except Exception as err:
        met = of_the_machine(err)
        if met is None:
            raise
        _fail(met.message, met.remedy, met.exit_code)


def _interrupted() -> NoReturn:
    console.print(f"[yellow]interrupted[/]: {_plain(kept(sys.argv[1:]))}", highlight=False, soft_wrap=True)
    sys.exit(130)


def kept(words: list[str]) -> str:
    """What an interrupted command leaves behind, and the command that carries on."""
    import shlex

    from chemscale.runtime.run import Run

    again = ["chemscale", *words]
    if words[:2] == ["vae", "train"] or words[:1] == ["ingest"]:
        again += [] if "--resume" in words else ["--resume"]
    told = f"carry on with: {shlex.join(again)}"
    if "--run" in words[:-1]:
        run = words[words.index("--run") + 1]
        try:
            stages = Run.open(run).manifest["stages"]
        except ChemscaleError:
            return told
        done = [name for name, entry in stages.items() if entry.get("status") == "done"]
        return f"{run} keeps {', '.join(done) or 'no finished stage'}; {told}"
    return f"what was finished is kept; {told}"


#: Warnings that were shown: one that several steps of a command give is said once.
_WARNED: set[str] = set()


def _show_warning(message: Warning | str, category: type[Warning], *where: object, **more: object) -> None:
    """A warning in its own words, once, without the line of source it comes from."""
    if str(message) in _WARNED:
        return
    _WARNED.add(str(message))
    console.print(f"[yellow]warning:[/] {_plain(str(message))}", highlight=False, soft_wrap=True)


def _fail(message: str, remedy: str, code: int) -> None:
    console.print(f"[bold red]error:[/] {_plain(message)}", highlight=False, soft_wrap=True)
    if remedy:
        console.print(f"[bold]remedy:[/] {_plain(remedy)}", highlight=False, soft_wrap=True)
    sys.exit(code)


def _plain(text: str) -> str:
    """Text from files shown as it is, never as markup."""
    from rich.markup import escape

    return escape(text)
