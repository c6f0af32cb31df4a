"""Joining label catalogues and membership tables to the stars of a survey, alike for every source.

A catalogue's rows find their stars by an identifier (file, obsid, source_id, sdss_id, ...), by what a file name is
made of, or by position on the sky. The catalogue streams by; only rows of stars that are there are kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from chemscale.errors import InputError
from chemscale.schema import VARIABLES
from chemscale.survey.sources.base import Item, SurveyPlan, absent_member
from chemscale.survey.sources.catalogues import Catalogue, open_catalogue
from chemscale.survey.sources.formats.paths import printable
from chemscale.survey.sources.labels import RowLabels, contract_labels
from chemscale.survey.sources.members import MIN_PROBABILITY, Membership, default_probability, read_members
from chemscale.survey.sources.missing import identifiers, measured, numbers, words
from chemscale.survey.sources.species import SpeciesColumn, abundances, species_columns
from chemscale.survey.sources.units import converter

SPEED_OF_LIGHT = 299_792.458  # km/s
#: What asks for a match by position.
POSITION = "coordinates"
#: column of a catalogue (lower case) -> name of the contract; the contract's own names need no entry
LABEL_COLUMNS = {
    "feh": "fe_h",
    "fe/h": "fe_h",
    "[fe/h]": "fe_h",
    "m_h_atm": "fe_h",
    "afe": "alpha_m",
    "alpha_fe": "alpha_m",
    "alpha_m_atm": "alpha_m",
    "cfe": "c_fe",
    "e_teff": "teff_error",
    "teff_err": "teff_error",
    "e_logg": "logg_error",
    "logg_err": "logg_error",
    "snrg": "snr",
    "snr_c2_iraf": "snr",
    "sn_median_all": "snr",
    "rv": "radial_velocity",
    "v_rad": "radial_velocity",
    "vrad": "radial_velocity",
    "rv_galah": "radial_velocity",
    "rv_comp_1": "radial_velocity",
    "vhelio_avg": "radial_velocity",
    "vscatter": "velocity_scatter",
    "subclass": "spectral_class",
    "ebv": "reddening",
    "sfd_ebv": "reddening",
    "a_k": "extinction",
    "ak_targ": "extinction",
    "v_micro": "vmicro",
    "vmic": "vmicro",
    "nvisits": "n_visits",
    "raj2000": "ra",
    "dej2000": "dec",
    "decj2000": "dec",
    "target_ra": "ra",
    "target_dec": "dec",
}
_NOT_LABELS = {"star_id", "cluster", "cluster_probability", "source_file", "visits"}
_EXPONENT = re.compile(r"^\d(\.\d+)?[eE]\+?(1[5-9]|2\d)$")


@dataclass
class StarKeys:
    """What the stars of a survey are called in catalogues.

    Attributes
    ----------
    names : mapping of str to callable
        Key (lower case) -> identifiers of all stars, in order; the order is that in which a catalogue is tried.
    spelled : mapping
        Key -> function that brings a catalogue's text into the form of `names`.
    composed : mapping
        Columns (lower case) that together make up a key -> (key, function of their texts).
    position : callable, optional
        (ra, dec) in degrees of all stars, NaN where unknown.
    catalogued : collection of str, optional
        Stars known to the survey's own catalogue: absent members that are not even there are told apart.
    redshift : str
        Column that holds a redshift, '' where the survey has none.
    """

    names: Mapping[str, Callable[[], Sequence[str]]]
    spelled: Mapping[str, Callable[[str], str]] = field(default_factory=dict)
    composed: Mapping[tuple[str, ...], tuple[str, Callable[..., str]]] = field(default_factory=dict)
    position: Callable[[], tuple[np.ndarray, np.ndarray]] | None = None
    catalogued: Any = ()
    redshift: str = ""


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


@dataclass
class Joined:
    """Labels of `n` stars out of one catalogue: columns (n,) or (n, n_species), who was found, how the match went."""

    columns: dict[str, np.ndarray]
    elements: tuple[str, ...]
    found: np.ndarray
    note: dict[str, Any]


def complete(plan: SurveyPlan, joins: Joins, keys: StarKeys) -> SurveyPlan:
    """`plan` with the labels of catalogues and the clusters of a membership table; both are noted in its attributes.

    A catalogue's value takes the place of the survey's own where it is known; of several catalogues the first counts,
    and later ones fill what it does not know.
    """
    columns: dict[str, np.ndarray] = {}
    elements = plan.elements
    n = len(plan.items)
    notes = []
    found = np.zeros(n, bool)
    for path in joins.labels:
        joined = join_labels(path, keys, n, key=joins.label_key, radius=joins.match_radius)
        elements = _merge(columns, joined, elements, n, bool(plan.elements))
        notes.append(joined.note)
        found |= joined.found
    if notes:
        plan.attrs["label_catalogues"] = notes
        plan.attrs["labels_without_spectrum"] = sum(note["without_spectrum"] for note in notes)
        plan.attrs["spectra_without_labels"] = int(n - found.sum())
    membership = read_membership(joins, keys)
    if membership is not None:
        _add_members(plan, columns, membership, joins, keys)
    if columns:
        plan.items = _with_columns(plan.items, columns)
        plan.labels = contract_labels([*plan.labels, *columns])
        plan.elements = elements
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
            known = new != "" if new.dtype.kind == "U" else new == new
            taken = np.where(known, new, taken)
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
    return values != "" if values.dtype.kind == "U" else values == values


def _known(value: Any) -> bool:
    if isinstance(value, str):
        return value != ""
    return bool(np.any(value == value))


# ---------------------------------------------------------------- labels


def join_labels(path: str, keys: StarKeys, n: int, *, key: str | None = None, radius: float = 1.0) -> Joined:
    """Labels of `n` stars out of one catalogue.

    Parameters
    ----------
    path : str
        Any table of :func:`~chemscale.survey.sources.catalogues.open_catalogue`.
    keys : StarKeys
    n : int
        Number of stars.
    key : str, optional
        Column with the identifier; "coordinates" matches by position. By default the first of the survey's keys
        that the catalogue has.
    radius : float
        Largest distance of a match by position, arc seconds.

    Raises
    ------
    InputError
        No usable key, identifiers that lost digits, or not a single match.

    Notes
    -----
    One pass over the catalogue. A star that is listed more than once keeps its first row (by position: the nearest).
    """
    table = open_catalogue(path)
    wanted, species = label_columns(table, keys.redshift)
    finder = _finder(table, keys, n, key, radius)
    columns = list(dict.fromkeys([*finder.columns, *wanted.values(), *_columns_of(species)]))
    row_of = np.full(n, -1, np.int64)
    kept: list[dict[str, np.ndarray]] = []
    total = n_kept = repeated = 0
    for block in table.blocks(columns):
        stars, rows = finder.match(block)
        total += len(block[columns[0]])
        fresh = row_of[stars] < 0
        first = np.zeros(len(stars), bool)
        first[np.unique(stars, return_index=True)[1]] = True
        better = finder.better(stars, rows)
        repeated += int(np.sum(~(fresh & first)))
        use = first & (fresh | better)
        stars, rows = stars[use], rows[use]
        row_of[stars] = n_kept + np.arange(len(stars))
        n_kept += len(stars)
        kept.append({c: block[c][rows] for c in columns})
    if not n_kept and total and n:
        raise InputError(
            f"{printable(path)}: none of its {total:,} rows is a star of this survey ({finder.example()})",
            f"name the column of identifiers with --label-key, or --label-key {POSITION}",
        )
    found = row_of >= 0
    picked = {c: _pick([k[c] for k in kept], row_of, found) for c in columns} if n_kept else {}
    out = _as_labels(table, wanted, species, picked, found, n) if picked else {}
    used = {*wanted.values(), *_columns_of(species), *finder.columns}
    note = {
        "file": printable(path),
        "key": finder.what,
        "rows": total,
        "matched": int(found.sum()),
        "repeated": repeated,
        "without_spectrum": total - int(found.sum()) - repeated,
        "stars_without_labels": int(n - found.sum()),
        "used": wanted | {s.species: s.column for s in species},
        "ignored": [c for c in table.columns if c not in used] + [f"{c} ({why})" for c, why in table.left_out.items()],
    }
    return Joined(out, tuple(s.species for s in species) if picked else (), found, note)


def _columns_of(species: Iterable[SpeciesColumn]) -> list[str]:
    return [c for s in species for c in (s.column, s.error) if c]


def label_columns(table: Catalogue, redshift: str = "") -> tuple[dict[str, str], list[SpeciesColumn]]:
    """Contract name -> column of a catalogue, and its species."""
    found: dict[str, str] = {}
    for column in table.columns:
        lower = column.lower()
        name = lower if lower in VARIABLES else LABEL_COLUMNS.get(lower, "")
        if redshift and lower == redshift:
            name = "radial_velocity"
        spec = VARIABLES.get(name)
        if spec is None or spec.dims != ("star",) or name in _NOT_LABELS:
            continue
        if name not in found or (lower in VARIABLES and found[name].lower() not in VARIABLES):
            found[name] = column
    return found, species_columns(table.columns)


def _pick(blocks: list[np.ndarray], row_of: np.ndarray, found: np.ndarray) -> np.ndarray:
    """The kept row of every star that has one, in the order of the stars."""
    masked = any(isinstance(b, np.ma.MaskedArray) for b in blocks)
    return (np.ma.concatenate if masked else np.concatenate)(blocks)[row_of[found]]


def _as_labels(
    table: Catalogue,
    wanted: Mapping[str, str],
    species: list[SpeciesColumn],
    picked: Mapping[str, np.ndarray],
    found: np.ndarray,
    n: int,
) -> dict[str, np.ndarray]:
    out: dict[str, np.ndarray] = {}
    for name, column in wanted.items():
        spec = VARIABLES[name]
        if spec.dtype == "str":
            text = np.array(words(picked[column]), str)
            out[name] = np.zeros(n, text.dtype)
            out[name][found] = text
        elif spec.dtype.startswith("float"):
            if name == "radial_velocity" and column.lower() == "z":
                redshift = numbers(picked[column])
                values = measured(name, np.where(redshift > -9.0, redshift, np.nan) * SPEED_OF_LIGHT)
            else:
                unit = converter(name, table.units.get(column, ""), printable(table.path))
                values = measured(name, picked[column], unit)
            out[name] = np.full(n, np.nan, np.float64 if name in ("ra", "dec") else np.float32)
            out[name][found] = values
    if species:
        for name, values in abundances(species, picked, int(found.sum())).items():
            out[name] = np.full((n, len(species)), np.nan, np.float32)
            out[name][found] = values
    return out


class _ByName:
    """Rows to stars by an identifier."""

    def __init__(self, columns: list[str], ids: Sequence[str], text_of: Callable[[Mapping[str, Any]], list[str]]):
        self.columns, self.what = columns, " + ".join(columns)
        self._text_of, self._ids = text_of, ids
        self._star = {s: i for i, s in enumerate(ids) if s}
        self._folded: dict[str, int] | None = None
        self._seen = ""

    def match(self, block: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        texts = self._text_of(block)
        self._seen = self._seen or next((t for t in texts if t), "")
        star = self._star
        found = np.array([star.get(t, -1) for t in texts], np.int64)
        if not (found >= 0).any():
            if self._folded is None:
                self._folded = {s.casefold(): i for s, i in star.items()}
            found = np.array([self._folded.get(t.casefold(), -1) for t in texts], np.int64)
        rows = np.flatnonzero(found >= 0)
        return found[rows], rows

    def better(self, stars: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return np.zeros(len(stars), bool)

    def example(self) -> str:
        ours = next((s for s in self._ids if s), "nothing")
        return f"{self.what} says {self._seen!r}, here stars are called {ours!r}"


class _BySky:
    """Rows to stars by position: the nearest row within the radius."""

    def __init__(self, columns: list[str], ra: np.ndarray, dec: np.ndarray, radius: float):
        from scipy.spatial import cKDTree

        self.columns, self.what, self.radius = columns, f"position within {radius:g} arc seconds", radius
        self._known = np.flatnonzero(np.isfinite(ra) & np.isfinite(dec))
        self._tree = cKDTree(unit_vectors(ra[self._known], dec[self._known])) if len(self._known) else None
        self._nearest = np.full(len(ra), np.inf)
        self._distance = np.zeros(0)

    def match(self, block: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        ra, dec = measured("ra", block[self.columns[0]]), measured("dec", block[self.columns[1]])
        rows = np.flatnonzero(np.isfinite(ra) & np.isfinite(dec))
        if self._tree is None or not len(rows):
            self._distance = np.zeros(0)
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        limit = 2 * np.sin(np.radians(self.radius / 3600) / 2)
        distance, at = self._tree.query(unit_vectors(ra[rows], dec[rows]), distance_upper_bound=limit)
        near = np.isfinite(distance)
        order = np.argsort(distance[near], kind="stable")  # the nearest row of a star comes first
        self._distance = distance[near][order]
        return self._known[at[near]][order], rows[near][order]

    def better(self, stars: np.ndarray, rows: np.ndarray) -> np.ndarray:
        better = self._distance < self._nearest[stars]
        np.minimum.at(self._nearest, stars, self._distance)
        return better

    def example(self) -> str:
        return f"{len(self._known):,} stars have a position"


def unit_vectors(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """Directions (n, 3) of positions in degrees."""
    a, d = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], axis=1)


def _finder(table: Catalogue, keys: StarKeys, n: int, key: str | None, radius: float) -> _ByName | _BySky:
    if key is not None and key.lower() in (POSITION, "ra,dec", "position"):
        return _sky_finder(table, keys, radius)
    if key is not None:
        column = table.need(key, "name the column of identifiers with --label-key")
        name = key.lower() if key.lower() in keys.names else next(iter(keys.names))
        return _name_finder(table, keys, column, name)
    names = list(keys.names)
    for columns, (kind, compose) in keys.composed.items():
        held = [c for c in map(table.find, columns) if c]
        if len(held) == len(columns) and not table.find(names[0]):
            texts = partial(_composed_texts, held, compose)
            return _ByName(held, keys.names[kind](), texts)
    for candidate in names:
        if found := table.find(candidate):
            return _name_finder(table, keys, found, candidate)
    by_position = " or coordinates" if keys.position else ""
    raise InputError(
        f"{printable(table.path)}: no column names the stars; looked for {', '.join(keys.names)}"
        f"; it has {', '.join(table.columns[:40])}",
        f"say which one does: --label-key COLUMN{by_position}",
    )


def _composed_texts(columns: list[str], compose: Callable[..., str], block: Mapping[str, Any]) -> list[str]:
    return [compose(*parts) for parts in zip(*(words(block[c]) for c in columns))]


def _sky_finder(table: Catalogue, keys: StarKeys, radius: float) -> _BySky:
    if keys.position is None:
        raise InputError(f"{printable(table.path)}: the stars of this survey have no positions", "match by identifier")
    pairs = [("ra", "dec"), ("raj2000", "dej2000"), ("ra_icrs", "de_icrs"), ("target_ra", "target_dec")]
    for pair in pairs:
        held = [c for c in map(table.find, pair) if c]
        if len(held) == 2:
            return _BySky(held, *keys.position(), radius)
    raise InputError(f"{printable(table.path)}: no columns ra and dec", "name them so, in degrees")


def _name_finder(table: Catalogue, keys: StarKeys, column: str, name: str) -> _ByName:
    spell = keys.spelled.get(name)

    def texts(block: Mapping[str, Any]) -> list[str]:
        found = identifiers(block[column])
        if found is None or (found and _EXPONENT.match(found[0])):
            raise InputError(
                f"{printable(table.path)}: identifiers in {column} went through floating point: their last digits"
                " are lost",
                "write them as 64-bit integers or as text",
            )
        return [spell(t) for t in found] if spell else found

    return _ByName([column], keys.names[name](), texts)


# ---------------------------------------------------------------- members


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
    field_star = ("", float("nan"))
    given = [stars.get(i, field_star) for i in ids]
    columns["cluster"] = np.array([g[0] for g in given], str) if given else np.zeros(0, str)
    if membership.probability_column:
        columns["cluster_probability"] = np.array([g[1] for g in given], np.float32)
    table, held = printable(str(joins.members)), set(ids)
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
    if membership.ignored:
        plan.attrs["membership"]["ignored"] = membership.ignored
