"""Tables of the report: what the models found, from the JSON products of a run. All of it is text; Jinja escapes it."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chemscale.display import number
from chemscale.report import products
from chemscale.runtime.run import Run

#: Stars listed by name for each class of stars, and rows of a study's table shown on the page.
MOST_STARS, MOST_ROWS = 12, 60


@dataclass
class Table:
    """One table with its heading and a sentence below it."""

    title: str
    head: list[str]
    rows: list[list[str]]
    note: str = ""


@dataclass
class Section:
    """A part of the page made of tables."""

    id: str
    title: str
    note: str = ""
    tables: list[Table] = field(default_factory=list)


def sections(run: Run) -> list[Section]:
    """Every section the run has something for."""
    made = (_basis(run), _flags(run), _vae_quality(run), _metric_choice(run), _nuisance(run))
    return [s for s in made if s is not None and s.tables]


#: What keys of products call by a name, as readers write it.
_SYMBOLS = {"fe_h": "[Fe/H]", "alpha_m": "[α/M]", "alpha_fe": "[α/Fe]", "c_fe": "[C/Fe]"}
_SYMBOLS |= {"teff": "Teff", "logg": "log g", "cemp": "CEMP"}


def words(key: str) -> str:
    """A key of a product as a reader would say it."""
    for name, symbol in _SYMBOLS.items():
        key = re.sub(rf"(?<![a-z]){name}(?![a-z])", symbol, key)
    return key.replace("_", " ")


def _basis(run: Run) -> Section | None:
    """Whether the bases converged, what the data determine of them, and the outliers that were left out."""
    rows = []
    for stage, title in (("ppca", "basis"), ("ppca_auto", "basis of the searched metric")):
        facts = run.manifest.get("stages", {}).get(stage, {}).get("facts", {})
        if not facts.get("verdict"):
            continue
        rows.append([title, str(facts["verdict"])])
        embedded = run.manifest["stages"].get(stage.replace("ppca", "embed"), {}).get("facts", {})
        if embedded.get("on_one_star"):
            rows.append(["hangs on single stars", str(embedded["on_one_star"])])
        if facts.get("outliers"):
            outliers = int(facts["outliers"]), int(facts.get("stars_with_outliers", 0))
            told = (
                f"{number(n)} {what}{'' if n == 1 else 's'}"
                for n, what in zip(outliers, ("pixel", "star"), strict=True)
            )
            rows.append(["outliers left out", " in ".join(told)])
            rows.append(["stars whose whole spectrum does not fit", number(int(facts.get("anomalous_stars", 0)))])
    if not rows:
        return None
    note = "Components beyond the determined ones are noise: another sample of as many stars would give others."
    return Section("basis", "The basis", note, [Table("How the fit ended", ["", ""], rows)])


def _flags(run: Run) -> Section | None:
    found = products.load_json(run, "flags.json")
    if not found.get("counts"):
        return None
    section = Section("flags", "Rich and poor stars", f"Cuts in {'dex' if found.get('units') == 'dex' else 'sigma'}.")
    stars = found.get("stars") or {}
    rows = []
    for name, count in found["counts"].items():
        shown = [f"{s['star_id']} ({s['probability']:.2f})" for s in stars.get(name, [])[:MOST_STARS]]
        rows.append([words(name), number(int(count)), ", ".join(shown)])
    head = ["class", "stars", "most probable members (probability)"]
    section.tables.append(Table("Classes", head, rows, "All of them: flags.json and flags.zarr of the run."))
    outlying = found.get("outlying") or {}
    if outlying:
        rows = [[latent, number(n["enhanced"]), number(n["depleted"])] for latent, n in outlying.items()]
        section.tables.append(Table("Outlying in one latent", ["latent", "enhanced", "depleted"], rows))
    return section


def _vae_quality(run: Run) -> Section | None:
    found = products.load_json(run, "vae_evaluation.json")
    if not found:
        return None
    section = Section("quality", "Latents against labels", f"On {found.get('n_held_out', 0):,} held-out stars.")
    plain = [[words(k), _value(v)] for k, v in found.items() if isinstance(v, float)]
    section.tables.append(Table("Key numbers", ["quantity", "value"], plain))
    for key, title in (("correlations", "Correlation of latents with labels"), ("flags", "Precision and recall")):
        nested = found.get(key) or {}
        columns = list(dict.fromkeys(c for row in nested.values() for c in row))
        rows = [[words(name), *(_value(row.get(c)) for c in columns)] for name, row in nested.items()]
        if rows:
            section.tables.append(Table(title, ["", *map(words, columns)], rows))
    return section


def _metric_choice(run: Run) -> Section | None:
    found = products.load_json(run, "auto.json")
    candidates = [c for c in found.get("candidates") or [] if isinstance(c, Mapping)][:MOST_STARS]
    if not candidates:
        return None
    columns = [k for k, v in candidates[0].items() if isinstance(v, int | float | str | bool)]
    rows = [[_value(c.get(k)) for k in columns] for c in candidates]
    note = f"The {len(rows)} best of {len(found['candidates'])} candidates; the choice itself is nested in the rating."
    return Section("choice", "The better metric", note, [Table("Candidates", [words(c) for c in columns], rows)])


def _nuisance(run: Run) -> Section | None:
    section = Section("nuisance", "What follows a covariate")
    for file in sorted(run.path.glob("nuisance_*.json")):
        report = products.load_json(run, file.name)
        rows = []
        for when in ("before", "after"):
            r = report.get(when) or {}
            worst = max((abs(c) for c in r.get("correlation") or [] if c is not None), default=None)
            rows.append([when, _value(r.get("rsca")), _value(r.get("rsca_top")), _value(worst)])
        title = f"{report.get('removed')} axes that follow {words(str(report.get('covariate')))} removed"
        section.tables.append(Table(title, ["", "rate, RSCA", "rate, top features", "largest correlation"], rows))
    return section


def study_table(file: Path) -> Table | None:
    """The data of a study as a table, where it is short enough to be read."""
    if not file.exists() or file.stat().st_size > 40_000:
        return None
    with file.open(newline="", encoding="utf-8") as f:
        rows = list(csv.reader(f))
    if len(rows) < 2 or len(rows) - 1 > MOST_ROWS or len(rows[0]) > 12:
        return None
    return Table("Numbers", [words(c) for c in rows[0]], [[_value(c) for c in row] for row in rows[1:]])


def _value(value: Any) -> str:
    """A cell: numbers in four digits, whole ones whole, text as it is."""
    if isinstance(value, str):
        try:
            parsed = float(value)
        except ValueError:
            return value
        return value if parsed.is_integer() and "." not in value else f"{parsed:.4g}"
    if value is None:
        return "–"
    return number(value)
