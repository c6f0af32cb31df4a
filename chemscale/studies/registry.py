"""The studies chemscale knows, and how one is run.

A study is one module with a constant ``STUDY``::

    from chemscale.studies.registry import Study, StudyContext, StudyResult

    def compute(context: StudyContext) -> StudyResult: ...

    STUDY = Study("dimensionality", "Rate against PCA dimensionality", "de Mijolla & Ness, Figure 2", compute)

and one line in :data:`MODULES` (or, in another package, an entry point in the group ``chemscale.studies`` that names
the ``STUDY`` object). Running it writes ``RUN/studies/NAME/`` with ``figure.pdf``, ``figure.png``, ``data.csv`` and
``summary.json``, made beside and switched whole; the report shows whatever is there.
"""

from __future__ import annotations

import base64
import difflib
import html
import importlib
import io
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import entry_points
from typing import Any

from threadpoolctl import threadpool_limits

from chemscale.display import Shown, table
from chemscale.errors import ChemscaleError, InputError
from chemscale.runtime.jsonio import write_json
from chemscale.runtime.product import PARTIAL, switch
from chemscale.runtime.run import Run, versions

#: Modules of this package, each named like the study that it defines, in the order of the papers.
MODULES = [
    "dimensionality",
    "features",
    "linear_map",
    "ablation",
    "abundances",
    "kept_dimensions",
    "dataset_size",
    "interstellar",
    "velocity",
    "together",
    "per_cluster",
    "likeness",
    "controls",
    "vae_population",
    "vae_latents",
    "vae_table1",
    "vae_spectra",
    "vae_independence",
    "vae_flags",
    "vae_snr",
    "vae_corruption",
    "vae_gradient_flow",
    "vae_cannon",
    "vae_training_size",
    "vae_worst",
    "vae_outliers",
]
ENTRY_POINT_GROUP = "chemscale.studies"


@dataclass(repr=False)
class StudyResult(Shown):
    """What a study hands back.

    Attributes
    ----------
    figure : matplotlib.figure.Figure
        Made by :func:`chemscale.studies.style.figure`.
    table : mapping of str to array
        Columns of equal length: the numbers the figure shows, with their uncertainty.
    columns : mapping of str to str
        Meaning and unit of every column.
    numbers : mapping
        The few numbers a reader wants first.
    caption : str
        One to three plain sentences below the figure.
    basis : str
        How the fit of the basis behind it ended, in words. Default: that of the run, where the study read its stars.
    """

    figure: Any
    table: Mapping[str, Any]
    columns: Mapping[str, str]
    numbers: Mapping[str, Any] = field(default_factory=dict)
    caption: str = ""
    basis: str = ""

    def _facts(self) -> Mapping[str, Any]:
        return self.numbers

    def _repr_html_(self) -> str:
        """Figure, caption and numbers for a notebook."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=150)
        image = base64.b64encode(buffer.getvalue()).decode("ascii")
        return (
            f'<figure><img style="max-width:44rem;background:#fff" src="data:image/png;base64,{image}">'
            f"<figcaption>{html.escape(self.caption)}</figcaption>{table(self.numbers.items())}</figure>"
        )


@dataclass(frozen=True)
class Study:
    """One figure or table.

    Attributes
    ----------
    name : str
        What the user types.
    title : str
        Heading in the report.
    source : str
        The figure or table of the paper it reproduces.
    compute : callable
        ``compute(context) -> StudyResult``; raises :class:`~chemscale.errors.DataError` where the run cannot
        answer the question.
    defaults : mapping
        Settings the study reads, with their defaults; any other setting is refused.
    """

    name: str
    title: str
    source: str
    compute: Callable[[StudyContext], StudyResult]
    defaults: Mapping[str, Any] = field(default_factory=dict)


class StudyContext:
    """A run as a study sees it: products opened once and shared between studies.

    Parameters
    ----------
    run : Run
    settings : mapping
        The study's settings (its defaults, overridden by the caller's).
    cache : dict, optional
        Shared between the contexts of one session, so ten studies read the embedding once.
    """

    def __init__(self, run: Run, settings: Mapping[str, Any] | None = None, cache: dict[str, Any] | None = None):
        self.run = run
        self.settings = dict(settings or {})
        self.cache: dict[str, Any] = {} if cache is None else cache

    def shared(self, key: str, make: Callable[[], Any]) -> Any:
        """The value of `make()`, computed once a session."""
        if key not in self.cache:
            self.cache[key] = make()
        return self.cache[key]

    @cached_property
    def sample(self) -> Any:
        """Coordinates, membership and covariates of the run: a :class:`chemscale.studies.sample.Sample`."""
        from chemscale.studies.sample import Sample

        return self.shared("sample", lambda: Sample.read(self.run))

    @property
    def basis(self) -> str:
        """How the fit of the run's basis ended, in words; empty for a study that has not read the run's stars."""
        if "sample" not in self.__dict__:
            return ""
        stages = self.run.manifest.get("stages", {})
        ended = stages.get("ppca", {}).get("facts", {}).get("verdict", "")
        chosen = "choose" in stages.get("ppca", {}).get("settings", {})
        return f"{ended}; {stages['components']['facts']['verdict']}" if chosen else str(ended)

    @cached_property
    def survey(self) -> Any:
        """The survey Dataset (lazy)."""
        from chemscale.survey.store.open import open_survey

        return self.shared("survey", lambda: open_survey(self.run.store))


def names() -> list[str]:
    """Names of every study, those of other packages last."""
    return [*MODULES, *sorted(e.name for e in entry_points(group=ENTRY_POINT_GROUP) if e.name not in MODULES)]


def get(name: str) -> Study:
    """The study called `name`.

    Raises
    ------
    InputError
        No such study; the message names the nearest one.
    """
    if name in MODULES:
        return importlib.import_module(f"{__package__}.{name}").STUDY
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        if entry.name == name:
            return entry.load()
    known = names()
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise InputError(f"there is no study called {name!r}", f"{hint}studies: {', '.join(known)}")


def run_study(
    name: str,
    run: Run | str,
    settings: Mapping[str, Any] | None = None,
    *,
    cache: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Run one study and write its products; returns the summary (``summary.json``).

    Parameters
    ----------
    name : str
        One of :func:`names`.
    run : Run or path-like
        A run directory with the products of `chemscale rsca fit`.
    settings : mapping, optional
        Overrides of the study's defaults.
    cache : dict, optional
        Shared between calls to read products once.

    Raises
    ------
    InputError
        Unknown study or setting.
    DataError
        The run lacks what the study needs (no visits, no abundances, too few stars at high extinction, ...).
    """
    from chemscale.studies import style

    study = get(name)
    given = dict(settings or {})
    for key in given:
        if key not in study.defaults:
            known = ", ".join(study.defaults) or "none"
            raise InputError(f"study {name} has no setting {key!r}", f"its settings: {known}")
    run = run if isinstance(run, Run) else Run.open(run)
    chosen = {**study.defaults, **given}
    with run.stage(f"study.{name}", settings=chosen) as stage:
        start = time.perf_counter()
        with (
            style.context(),
            threadpool_limits(1, "blas"),
        ):  # threads cost thousands of small matrices more than they bring
            context = StudyContext(run, chosen, cache)
            result = study.compute(context)
            missing = set(result.table) - set(result.columns)
            if missing:
                raise ValueError(f"study {name}: columns without a meaning: {sorted(missing)}")
            folder = run.path / "studies" / f"{name}{PARTIAL}"
            shutil.rmtree(folder, ignore_errors=True)
            style.save(result.figure, folder)
        style.write_csv(folder / "data.csv", result.table)
        summary = {
            "name": name,
            "title": study.title,
            "source": study.source,
            "caption": result.caption,
            "basis": result.basis or context.basis,
            "numbers": dict(result.numbers),
            "columns": dict(result.columns),
            "settings": chosen,
            "seconds": round(time.perf_counter() - start, 2),
            "versions": versions(),
        }
        write_json(folder / "summary.json", summary)
        switch(folder, run.path / "studies" / name)
        stage.note(**result.numbers)
    return summary


def run_studies(
    run: Run | str,
    wanted: Iterable[str] | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    on_start: Callable[[str], None] | None = None,
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Run several studies (all by default), reading the run's products once.

    `on_start` is told the name of each before it is made.

    Returns
    -------
    (dict, dict)
        Summaries by name, and for each study that this run cannot answer the reason.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    cache: dict[str, Any] = {}
    summaries, skipped = {}, {}
    for name in names() if wanted is None else [get(n).name for n in wanted]:
        if on_start:
            on_start(name)
        try:
            summaries[name] = run_study(name, run, (settings or {}).get(name), cache=cache)
        except ChemscaleError as err:
            skipped[name] = f"{err.message}. {err.remedy}" if err.remedy else err.message
    return summaries, skipped
