"""A whole analysis from one file: which stages, in which order, what is done already, what to run again.

A pipeline file has a table a stage; its keys are the options of the stage's verb (see
``chemscale VERB --help``), paths are relative to the file::

    [pipeline]
    store = "survey.zarr"
    run = "run"
    retries = 2

    [cluster]                 # optional; one cluster serves every stage
    kind = "slurm"

    [ingest]
    source = "apogee"
    spectra = ["dr17/spectra"]

    [mask]                    # find = ["extinction"] unless told otherwise
    [fit]
    components = 30

    [evaluate]
    [train]
    [infer]
    [anomalies]
    [report]

(`fit` also embeds every star: one verb, `chemscale rsca fit`.)

Each stage runs as a process of its own, so that its memory goes with it and a crash of one
does not take the pipeline along. ``pipeline.json`` in the run directory records, for every
stage, a fingerprint of its settings, of the stages before it and of the files it names: a
stage that is done with the same fingerprint is not run again. One that was interrupted is
continued (``--resume`` where its verb has it).
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chemscale.config import load_toml
from chemscale.errors import InputError
from chemscale.runtime.jobs import files_in
from chemscale.runtime.jsonio import digest
from chemscale.runtime.settings import ClusterSettings, from_mapping, settings_for

#: Stage -> verb, in the order of the journey. `{source}` is taken from the stage's table.
STAGES: dict[str, tuple[str, ...]] = {
    "simulate": ("simulate",),
    "ingest": ("ingest", "{source}"),
    "mask": ("mask",),
    "fit": ("rsca", "fit"),
    "evaluate": ("rsca", "evaluate"),
    "siblings": ("rsca", "siblings"),
    "train": ("vae", "train"),
    "infer": ("vae", "infer"),
    "anomalies": ("anomalies",),
    "flags": ("flags",),
    "study": ("study",),
    "report": ("report",),
}
#: Stages that make the store; their output is the store, not the run.
MAKES_STORE = ("simulate", "ingest")
STATE = "pipeline.json"


@dataclass(frozen=True)
class Stage:
    """One stage as it will be run."""

    name: str
    verb: tuple[str, ...]
    settings: Mapping[str, Any]
    #: command line after ``chemscale``
    arguments: tuple[str, ...]
    takes_cluster: bool
    can_resume: bool
    can_overwrite: bool
    fingerprint: str


@dataclass
class Pipeline:
    """A pipeline file, checked against the verbs this installation has."""

    file: Path
    store: str
    run: Path
    stages: list[Stage]
    cluster: ClusterSettings | None
    retries: int = 2
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where relative paths start."""
        return self.file.parent

    @property
    def store_path(self) -> str:
        """Full path or URL of the store."""
        return self.store if "://" in self.store else str(self.folder / self.store)

    def done(self, stage: Stage) -> bool:
        """Whether the stage was completed with the settings and inputs it has now."""
        entry = self.state.get(stage.name, {})
        if entry.get("status") != "done" or entry.get("fingerprint") != stage.fingerprint:
            return False
        return stage.name not in MAKES_STORE or "://" in self.store or os.path.exists(self.store_path)

    def begun(self, stage: Stage) -> bool:
        """Whether the stage was started with its present settings and did not end well."""
        entry = self.state.get(stage.name, {})
        return entry.get("fingerprint") == stage.fingerprint and entry.get("status") in ("running", "failed", "stopped")


def load(file: str | os.PathLike[str], commands: Any, *, cluster: str | None = None) -> Pipeline:
    """Read and check a pipeline file.

    Parameters
    ----------
    file : path
        TOML, see the module's docstring.
    commands : click.Group
        The command line, whose verbs the stages are (:func:`chemscale.cli.command`).
    cluster : str, optional
        Wins over the file's ``[cluster]``.

    Raises
    ------
    InputError
        Unknown stage, key or source; the message names the nearest known one.
    """
    path = Path(file).resolve()
    tree = load_toml(path)
    head = dict(tree.pop("pipeline", {}))
    table = tree.pop("cluster", None)
    for required in ("store", "run"):
        if not isinstance(head.get(required), str):
            raise InputError(f"{path}: [pipeline] needs `{required}`", f'{required} = "..."')
    unknown = set(head) - {"store", "run", "retries"}
    if unknown:
        raise InputError(f"{path}: unknown key {sorted(unknown)[0]!r} in [pipeline]", "known: store, run, retries")
    for name in tree:
        if name not in STAGES:
            near = difflib.get_close_matches(name, STAGES, n=1, cutoff=0.0)
            raise InputError(
                f"{path}: unknown stage [{name}]", f"did you mean [{near[0]}]? stages: {', '.join(STAGES)}"
            )
    if not tree:
        raise InputError(f"{path}: no stage", f"add a table for each, of: {', '.join(STAGES)}")
    retries = head.get("retries", 2)
    if not isinstance(retries, int) or isinstance(retries, bool) or retries < 0:
        raise InputError(f"{path}: retries = {retries!r} is not a number of attempts")
    settings = settings_for(cluster) if cluster else None
    if settings is None and table is not None:
        settings = from_mapping(table, source=str(path))
    stages, before = [], ""
    for name in STAGES:
        if name in tree:
            stage = _stage(path, commands, name, tree[name], head["store"], head["run"], before)
            stages.append(stage)
            before = stage.fingerprint
    run = path.parent / head["run"]
    pipeline = Pipeline(path, head["store"], run, stages, settings, retries)
    try:
        pipeline.state = json.loads((run / STATE).read_text(encoding="utf-8"))["stages"]
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        pipeline.state = {}
    return pipeline


def _command(commands: Any, verb: Iterable[str]) -> Any:
    """The Click command of a verb, or None."""
    node = commands
    for part in verb:
        node = getattr(node, "commands", {}).get(part)
        if node is None:
            return None
    return node


def _stage(path: Path, commands: Any, name: str, table: Any, store: str, run: str, before: str) -> Stage:
    """Check a stage's table against the options of its verb and write its command line."""
    if not isinstance(table, Mapping):
        raise InputError(f"{path}: `{name}` is not a table", f"write it as [{name}]")
    settings = {k.replace("-", "_"): v for k, v in table.items()}
    source = settings.pop("source", None)
    verb = tuple(part.format(source=source) for part in STAGES[name])
    if "None" in verb:
        raise InputError(f"{path}: [{name}] needs `source`", 'source = "apogee" (or lamost, table, simulated)')
    command = _command(commands, verb)
    if command is None:
        raise InputError(f"{path}: [{name}] is `chemscale {' '.join(verb)}`, which is not installed here")
    options = {p.opts[-1].lstrip("-").replace("-", "_"): p for p in command.params if p.param_type_name == "option"}
    positional = {p.name: p for p in command.params if p.param_type_name == "argument"}
    arguments: list[str] = [*verb]
    given = dict(settings)
    if "store" in positional:
        given.setdefault("store", store)
    if "run" in options:
        given.setdefault("run", run)
    if name in MAKES_STORE and "out" in options:
        given.setdefault("out", store)
    for key, value in given.items():
        if key in positional:
            arguments += [str(v) for v in (value if isinstance(value, list) else [value])]
        elif key in options:
            arguments += _option(path, name, key, options[key], value)
        else:
            known = [*options, *positional]
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            raise InputError(f"{path}: unknown key {key!r} in [{name}]", f"did you mean {near[0]!r}?")
    here = path.parent
    named = files_in([os.path.join(here, v) if isinstance(v, str) else v for v in _flat(settings)])
    found = {"verb": verb, "settings": settings, "before": before, "files": named, "store": store}
    key = digest(found, compact=True)
    flags = {o: o in options for o in ("cluster", "resume", "overwrite")}
    takes = flags["cluster"] and not {"cluster", "workers"} & set(settings)
    return Stage(name, verb, settings, tuple(arguments), takes, flags["resume"], flags["overwrite"], key)


def _flat(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [x for v in value.values() for x in _flat(v)]
    if isinstance(value, list):
        return [x for v in value for x in _flat(v)]
    return [value]


def _option(path: Path, stage: str, key: str, param: Any, value: Any) -> list[str]:
    flag = param.opts[-1]
    if getattr(param, "is_flag", False):
        if not isinstance(value, bool):
            raise InputError(f"{path}: {key} in [{stage}] must be true or false")
        if value:
            return [flag]
        return [param.secondary_opts[0]] if param.secondary_opts else []
    values = value if isinstance(value, list) else [value]
    if len(values) > 1 and not getattr(param, "multiple", False):
        raise InputError(f"{path}: {key} in [{stage}] takes one value")
    return [part for v in values for part in (flag, str(v))]


def select(pipeline: Pipeline, first: str | None = None, last: str | None = None) -> list[Stage]:
    """Stages from `first` to `last`, both included.

    Raises
    ------
    InputError
        A name that is not a stage of this pipeline, or an empty range.
    """
    names = [s.name for s in pipeline.stages]
    for name in (first, last):
        if name is not None and name not in names:
            raise InputError(f"{pipeline.file} has no stage {name!r}", f"its stages: {', '.join(names)}")
    low = names.index(first) if first else 0
    high = names.index(last) if last else len(names) - 1
    if low > high:
        raise InputError(f"--from {first} comes after --until {last}", f"the order: {', '.join(names)}")
    return pipeline.stages[low : high + 1]
