"""Label catalogues and membership tables completed into the plan of a survey, alike for every source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chemscale.catalogues.labels import Joined, join_labels
from chemscale.catalogues.members import MIN_PROBABILITY, Membership, default_probability, read_members
from chemscale.catalogues.missing import extra_names, spelled_alike
from chemscale.catalogues.opening import open_catalogue
from chemscale.catalogues.star_keys import StarKeys
from chemscale.display import counted
from chemscale.errors import InputError
from chemscale.formats.paths import printable
from chemscale.schema import VARIABLES
from chemscale.suggest import hint
from chemscale.survey.sources.base import Item, SurveyPlan, absent_member
from chemscale.survey.sources.labels import RowLabels, contract_labels


@dataclass(frozen=True)
class Joins:
    """Catalogues a user hands over: labels, and members of clusters."""

    labels: tuple[str, ...] = ()
    label_key: str | None = None
    match_radius: float = 1.0
    members: str | None = None
    member_key: str | None = None
    member_column: str = "cluster"
    probability_column: str | None = None
    min_probability: float | None = None
    extra: tuple[str, ...] = ()


def complete(plan: SurveyPlan, joins: Joins, keys: StarKeys) -> SurveyPlan:
    """`plan` with the labels of catalogues and the clusters of a membership table; both are noted in its attributes.

    A catalogue's value takes the place of the survey's own where it is known; of several catalogues the first counts,
    and later ones fill what it does not know.
    """
    columns: dict[str, np.ndarray] = {}
    elements = plan.elements
    n = len(plan.items)
    notes = []
    unused: dict[str, dict[str, str]] = {}
    found = np.zeros(n, bool)
    for path in joins.labels:
        joined = join_labels(path, keys, n, key=joins.label_key, radius=joins.match_radius, extra=joins.extra)
        elements = _merge(columns, joined, elements, n, bool(plan.elements))
        notes.append(joined.note)
        found |= joined.found
    if notes:
        plan.attrs["label_catalogues"] = notes
        for note in notes:
            _leave(unused, note["file"], note["ignored"])
        plan.attrs["labels_without_spectrum"] = sum(note["without_spectrum"] for note in notes)
        plan.attrs["spectra_without_labels"] = int(n - found.sum())
    membership = read_membership(joins, keys)
    if membership is not None:
        _add_members(plan, columns, membership, joins, keys)
        _leave(unused, printable(str(joins.members)), membership.ignored)
    left = [f"{what} of {file.rsplit('/', 1)[-1]}" for file, names in unused.items() for what in names.values()]
    if left:
        plan.attrs["ignored"] = [*plan.attrs.get("ignored", ()), *left]
    if columns:
        plan.items = _with_columns(plan.items, columns)
        plan.labels = contract_labels([*plan.labels, *columns])
        plan.elements = elements
    stored = extra_names(joins.extra)
    if absent := [name for name, own in stored.items() if own not in plan.labels]:
        known = [what.partition(" of ")[0] for what in plan.attrs.get("ignored", ()) if " of " in what]
        raise InputError(
            f"--extra {absent[0]}: no catalogue has this column",
            hint(absent[0], known, "columns") if known else "name the catalogue: --labels FILE",
        )
    if stored:
        plan.attrs["extra"] = [printable(name) for name in stored.values()]
    return plan


def _merge(
    columns: dict[str, np.ndarray], joined: Joined, elements: tuple[str, ...], n: int, fixed: bool
) -> tuple[str, ...]:
    """Add a catalogue's columns where they are known; its species count where the survey has none of its own."""
    if joined.elements and fixed and joined.elements != elements:
        joined.note["ignored"] += [f"abundances of {len(joined.elements)} species (the survey has its own)"]
        joined.columns = {k: v for k, v in joined.columns.items() if not k.startswith("abundance")}
    elif joined.elements:
        elements = joined.elements
    for name, values in joined.columns.items():
        known = _known_rows(values)
        before = columns.get(name)
        if before is None or before.shape != values.shape:
            columns[name] = values
        else:
            columns[name] = np.where(known & ~_known_rows(before), values, before)
    return elements


def _with_columns(items: list[Item], columns: dict[str, np.ndarray]) -> list[Item]:
    """Items whose labels are those they had, under what `columns` (one row an item) know better."""
    shared = next((i.labels._columns for i in items if isinstance(i.labels, RowLabels)), {})
    rows = np.array([i.labels._row if isinstance(i.labels, RowLabels) else -1 for i in items])
    merged: dict[str, np.ndarray] = {}
    for name, old in shared.items():
        taken = np.array(old[rows])
        taken[rows < 0] = VARIABLES[name].fill
        new = columns.get(name)
        if new is not None and new.shape == taken.shape:
            taken = np.where(_known_rows(new), new, taken)
        merged[name] = taken
    for name, new in columns.items():
        merged.setdefault(name, new)
    out = []
    for i, item in enumerate(items):
        labels = item.labels
        extra = labels._extra if isinstance(labels, RowLabels) else dict(labels)
        if extra.keys() & columns.keys():
            extra = {k: v for k, v in extra.items() if k not in columns or not _known(columns[k][i])}
        out.append(Item(item.star_id, item.path, RowLabels(merged, i, extra)))
    return out


def _known_rows(values: np.ndarray) -> np.ndarray:
    """Where a column says something."""
    if values.dtype.kind in "Ui":  # the only whole number of a catalogue is Gaia's, 0 = none
        return values != values.dtype.type()
    return values == values


def _known(value: Any) -> bool:
    return bool(np.any(_known_rows(np.asarray(value))))


def read_membership(joins: Joins, keys: StarKeys) -> Membership | None:
    """The membership table, its identifiers spelled as the survey spells them.

    Only members above 0.8 count where the table has a probability column and the user names no minimum.
    """
    if not joins.members:
        return None
    key = joins.member_key or _member_key(joins.members, keys)
    probability = joins.probability_column or default_probability(open_catalogue(joins.members))
    minimum = MIN_PROBABILITY if joins.min_probability is None and probability else joins.min_probability
    found = read_members(
        joins.members,
        key=key,
        column=joins.member_column,
        probability_column=probability,
        min_probability=minimum,
    )
    spell = keys.spelled.get(key.lower())
    if spell:
        found.stars = {spell(star): value for star, value in found.stars.items()}
        found.disputed = {spell(star) for star in found.disputed}
    return found


def _member_key(path: str, keys: StarKeys) -> str:
    table = open_catalogue(path)
    found = next((c for name in keys.names if (c := table.find(name))), None)
    return found or next(iter(keys.names))


def _add_members(
    plan: SurveyPlan, columns: dict[str, np.ndarray], membership: Membership, joins: Joins, keys: StarKeys
) -> None:
    key = (joins.member_key or _member_key(str(joins.members), keys)).lower()
    ids = list(keys.names[key if key in keys.names else next(iter(keys.names))]())
    stars = membership.stars
    if stars and not any(i in stars for i in ids):  # perhaps only written otherwise: 2m... for 2M...
        folded = {i.casefold(): i for i in ids}
        stars = {folded.get(s.casefold(), s): value for s, value in stars.items()}
        membership.disputed = {folded.get(s.casefold(), s) for s in membership.disputed}
    field_star = ("", float("nan"))
    given = [stars.get(i, field_star) for i in ids]
    columns["cluster"] = np.array([g[0] for g in given], str) if given else np.zeros(0, str)
    if membership.probability_column:
        columns["cluster_probability"] = np.array([g[1] for g in given], np.float32)
    table, held = printable(str(joins.members)), set(ids)
    own = 0 if stars.keys() & held else sum(bool(item.labels.get("cluster")) for item in plan.items)
    told = [*spelled_alike(columns["cluster"]), *_judged(membership, stars, ids, joins, key, own)]
    plan.attrs["assumed"] = [*plan.attrs.get("assumed", ()), *told]
    for star, (cluster, _) in stars.items():
        if star not in held:
            lacks = "not in allStar" if keys.catalogued and star not in keys.catalogued else "without a spectrum"
            plan.rejected.append(absent_member(table, printable(star), cluster, lacks))
    plan.attrs["membership"] = {
        "rows": membership.n_rows,
        "below_minimum": membership.n_below,
        "min_probability": membership.min_probability,
        "repeated": membership.n_repeated,
        "probability_column": membership.probability_column,
    }


def _judged(
    membership: Membership, stars: dict[str, tuple[str, float]], ids: list[str], joins: Joins, key: str, own: int
) -> list[str]:
    """What was decided about rows of the membership table that no one asked for, a sentence each.

    `own`: stars that the survey itself puts into clusters, counted where the table has none of its stars.
    """
    told = []
    if membership.n_below and joins.min_probability is None:
        told.append(
            f"members have {membership.probability_column} above {membership.min_probability:g}: "
            f"{membership.n_below:,} of {membership.n_rows:,} rows do not (--min-probability)"
        )
    if disputed := sorted(membership.disputed.intersection(ids)):
        kept = f"{printable(disputed[0])} is of {stars[disputed[0]][0]}"
        which = "the row of highest probability" if membership.probability_column else "the first row"
        told.append(f"{which} counts of stars listed in several clusters: {len(disputed):,}, e.g. {kept}")
    if stars and ids and not stars.keys() & set(ids):
        told.append(
            f"the membership table is of other stars: none of its {len(stars):,} members has a spectrum here (column "
            f"{key} holds identifiers like {printable(next(iter(stars)))}, here they are like {printable(ids[0])}; "
            "--member-key names another)"
        )
        if own:
            told.append(f"clusters are the survey's own, of {counted(own, 'star')}, as the membership table names none")
    return told


def _leave(unused: dict[str, dict[str, str]], file: str, names: Sequence[str]) -> None:
    """Note columns of `file` that are not stored, with their reasons; of one that is read twice, what neither uses."""
    said = {name.partition(" (")[0]: name for name in names}
    before = unused.get(file, said)
    unused[file] = {name: max(before[name], said[name], key=len) for name in said if name in before}
