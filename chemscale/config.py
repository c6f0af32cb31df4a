"""Settings: defaults < TOML file < environment < ``--set`` < command line.

The commands themselves are the registry: every option of every verb is a key, its help
text the comment, its default the default. So nothing can be set that does not exist, and
``chemscale config`` can never be out of date.

Layout of the TOML file: one table a verb, dashes as underscores::

    [rsca.fit]
    components = 30

    [cluster]          # read by runtime.cluster; used by every verb with --cluster
    kind = "local"
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from chemscale.errors import InputError

#: Keys that were renamed: old -> new. A file with an old key keeps working and says so. A pattern ``*.old`` stands for
#: the key of every verb.
RENAMED: dict[str, str] = {
    "*.as_json": "*.json",
    "run.first": "run.from",
    "run.last": "run.until",
    "cluster.worker.stagger": "cluster.worker.lifetime_stagger",
}
ENV_PREFIX = "CHEMSCALE"


def load_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML settings file.

    Raises
    ------
    InputError
        Missing file or a syntax error (with its line).
    """
    try:
        with open(path, "rb") as f:
            return tomllib.load(f)
    except FileNotFoundError:
        raise InputError(f"no settings file {path}", "`chemscale config > FILE` writes one to start from") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise InputError(f"{path}: not valid TOML: {err}", "mend that line") from err


def parse_assignment(text: str) -> tuple[str, Any]:
    """``key=value`` of ``--set``; the value is TOML where it can be read as such, else text."""
    key, sep, value = text.partition("=")
    if not sep or not key.strip():
        raise InputError(f"--set {text!r} is not of the form key=value", "for example --set rsca.fit.components=20")
    try:
        parsed = tomllib.loads(f"x = {value}")["x"]
    except tomllib.TOMLDecodeError:
        parsed = value
    return key.strip().replace("-", "_"), parsed


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys, dashes as underscores."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}".replace("-", "_")
        if isinstance(value, Mapping):
            flat |= flatten(value, name + ".")
        else:
            flat[name] = value
    return flat


def default_map(
    settings: Mapping[str, Any], known: Mapping[str, Any], *, source: str = "settings"
) -> tuple[dict[str, Any], list[str]]:
    """Check dotted `settings` against `known` keys and nest them the way Click wants defaults.

    Parameters
    ----------
    settings : mapping
        Dotted key -> value (see :func:`flatten`).
    known : mapping
        Dotted key -> Click parameter, as :func:`known_keys` gives.

    Returns
    -------
    (dict, list of str)
        Nested defaults by verb, and notes about renamed keys.

    Raises
    ------
    InputError
        A key that no command has; the message names the nearest known one.
    """
    nested: dict[str, Any] = {}
    notes = []
    for given, value in settings.items():
        key = given if given in known else renamed(given)
        if key != given:
            notes.append(f"{source}: {given} is now called {key}")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InputError(f"{source}: unknown key {given!r}", f"{hint}`chemscale config` lists every key")
        node = nested
        *verbs, _ = key.split(".")
        for verb in verbs:
            node = node.setdefault(verb.replace("_", "-"), {})
        node[known[key].name] = value
    return nested, notes


def renamed(key: str) -> str:
    """The present name of a key: `key` itself, unless it was renamed."""
    if key in RENAMED:
        return RENAMED[key]
    verb, _, option = key.rpartition(".")
    target = RENAMED.get(f"*.{option}", "")
    return target.replace("*", verb, 1) if target and verb else key


def option_name(param: Any) -> str:
    """Name of an option as a key: ``--max-error`` is ``max_error``, whatever the Python argument is called."""
    long = [o for o in getattr(param, "opts", ()) if o.startswith("--")]
    return long[0].removeprefix("--").replace("-", "_") if long else str(param.name)


def known_keys(command: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> Click parameter, for every option of every verb below `command`."""
    keys: dict[str, Any] = {}
    for name, sub in sorted(getattr(command, "commands", {}).items()):
        path = f"{prefix}{name.replace('-', '_')}."
        if getattr(sub, "commands", None):
            keys |= known_keys(sub, path)
        else:
            for param in sub.params:
                if param.param_type_name == "option" and param.name not in {"help", "version"} and not param.is_eager:
                    keys[path + option_name(param)] = param
    return keys


def _toml_value(value: Any) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, list | tuple):
        parts = [_toml_value(v) for v in value]
        return "[" + ", ".join(p for p in parts if p is not None) + "]"
    return None


def describe(command: Any) -> dict[str, dict[str, Any]]:
    """Every key with its default, meaning and environment variable."""
    return {
        key: {
            "default": None if callable(param.default) or _toml_value(param.default) is None else param.default,
            "help": " ".join((getattr(param, "help", None) or "").split()),
            "environment": f"{ENV_PREFIX}_{key.upper().replace('.', '_')}",
        }
        for key, param in known_keys(command).items()
    }


def default_toml(command: Any) -> str:
    """The commented default settings file of every verb."""
    lines = [
        "# chemscale settings: `chemscale --config THIS_FILE VERB ...`",
        "# Order of precedence: these lines < environment (CHEMSCALE_VERB_OPTION) < --set < command line.",
        "# A key that is commented out shows its default, or has none.",
    ]
    table = None
    for key, param in known_keys(command).items():
        verb, _, option = key.rpartition(".")
        if verb != table:
            table = verb
            lines += ["", f"[{verb}]"]
        help_text = " ".join((getattr(param, "help", None) or "").split())
        value = None if callable(param.default) else _toml_value(param.default)
        entry = f"# {option} =" if value is None else f"# {option} = {value}"
        lines.append(f"{entry}{'  # ' + help_text if help_text else ''}")
    lines += ["", "[cluster]", '# kind = "local"  # local, address, slurm, kubernetes, gpu; see the docs', ""]
    return "\n".join(lines)


def resolve(
    command: Any, config: str | Path | None = None, assignments: Iterable[str] = ()
) -> tuple[dict[str, Any], list[str]]:
    """Defaults for Click from a settings file and ``--set`` assignments.

    Returns the nested default map and notes to show. A ``[cluster]`` table in `config`
    makes `config` the default of every verb's ``--cluster``.
    """
    known = known_keys(command)
    settings: dict[str, Any] = {}
    notes: list[str] = []
    if config is not None:
        tree = load_toml(config)
        if "cluster" in tree:
            tree = {k: v for k, v in tree.items() if k != "cluster"}
            settings |= {key: str(config) for key in known if key.endswith(".cluster")}
        flat = flatten(tree)
        default_map(flat, known, source=str(config))
        settings |= flat
    given = dict(parse_assignment(a) for a in assignments)
    default_map(given, known, source="--set")
    settings |= given
    nested, renamed = default_map(settings, known)
    return nested, notes + renamed
