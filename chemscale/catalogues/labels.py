"""Labels of stars out of a catalogue that a user hands over: one pass over its rows, only those of stars are kept."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chemscale.catalogues.missing import (
    extra_names,
    extra_numbers,
    gaia_ids,
    measured,
    no_numbers,
    numbers,
    words,
)
from chemscale.catalogues.opening import open_catalogue
from chemscale.catalogues.species import SpeciesColumn, abundances, species_columns
from chemscale.catalogues.star_keys import POSITION, StarKeys, finder
from chemscale.catalogues.units import SPEED_OF_LIGHT, converter
from chemscale.errors import InputError
from chemscale.formats.catalogue import Catalogue
from chemscale.formats.paths import printable
from chemscale.formats.values import concatenate
from chemscale.schema import EXTRA, VARIABLES

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
    **dict.fromkeys(("source_id", "gaiaedr3_source_id", "gaiadr3_source_id", "gaia_dr3_source_id"), "gaia_source_id"),
}
_NOT_LABELS = {"star_id", "cluster", "cluster_probability", "source_file", "visits", "quality"}


@dataclass
class Joined:
    """Labels of `n` stars out of one catalogue: columns (n,) or (n, n_species), who was found, how the match went."""

    columns: dict[str, np.ndarray]
    elements: tuple[str, ...]
    found: np.ndarray
    note: dict[str, Any]


def join_labels(
    path: str, keys: StarKeys, n: int, *, key: str | None = None, radius: float = 1.0, extra: Sequence[str] = ()
) -> Joined:
    """Labels of `n` stars out of one catalogue.

    Parameters
    ----------
    path : str
        Any table of :func:`~chemscale.catalogues.opening.open_catalogue`.
    keys : StarKeys
    n : int
        Number of stars.
    key : str, optional
        Column with the identifier; "coordinates" matches by position. By default the first of the survey's keys
        that the catalogue has.
    radius : float
        Largest distance of a match by position, arc seconds.
    extra : sequence of str
        Columns that the contract does not know and that are kept all the same, where the catalogue has them.

    Raises
    ------
    InputError
        An extra column that holds no numbers; no usable key, identifiers that lost digits, or not a single match.

    Notes
    -----
    One pass over the catalogue. A star that is listed more than once keeps its first row (by position: the nearest).
    """
    table = open_catalogue(path)
    wanted, species = label_columns(table, keys.redshift)
    wanted |= {own: column for name, own in extra_names(extra).items() if (column := table.find(name))}
    by = finder(table, keys, n, key, radius)
    columns = list(dict.fromkeys([*by.columns, *wanted.values(), *_columns_of(species)]))
    row_of = np.full(n, -1, np.int64)
    kept: list[dict[str, np.ndarray]] = []
    total = n_kept = repeated = 0
    for block in table.blocks(columns):
        stars, rows = by.match(block)
        total += len(block[columns[0]])
        fresh = row_of[stars] < 0
        first = np.zeros(len(stars), bool)
        first[np.unique(stars, return_index=True)[1]] = True
        better = by.better(stars, rows)
        repeated += int(np.sum(~(fresh & first)))
        use = first & (fresh | better)
        stars, rows = stars[use], rows[use]
        row_of[stars] = n_kept + np.arange(len(stars))
        n_kept += len(stars)
        kept.append({c: block[c][rows] for c in columns})
    if not n_kept and total and n:
        raise InputError(
            f"{printable(path)}: none of its {total:,} rows is a star of this survey ({by.example()})",
            f"name the column of identifiers with --label-key, or --label-key {POSITION}",
        )
    found = row_of >= 0
    picked = {c: _pick([k[c] for k in kept], row_of, found) for c in columns} if n_kept else {}
    wide = [c for c, values in picked.items() if math.prod(values.shape[1:]) != 1]
    picked = {c: values.reshape(len(values)) for c, values in picked.items() if c not in wide}
    wanted = {name: c for name, c in wanted.items() if c not in wide}
    species = [s for s in species if s.column not in wide and s.error not in wide]
    gaia, lost = wanted.get("gaia_source_id", ""), []
    if gaia in picked and gaia_ids(picked[gaia]) is None:
        lost = [f"{wanted.pop('gaia_source_id')} (its last digits are lost in floating point)"]
    out = _as_labels(table, wanted, species, picked, found, n) if picked else {}
    used = {*wanted.values(), *_columns_of(species), *by.columns, *([gaia] if lost else ())}
    measures = [c for name, c in wanted.items() if VARIABLES[name].dtype.startswith("float")]
    note = {
        "file": printable(path),
        "key": by.what,
        "rows": total,
        "matched": int(found.sum()),
        "repeated": repeated,
        "without_spectrum": total - int(found.sum()) - repeated,
        "stars_without_labels": int(n - found.sum()),
        "used": wanted | {s.species: s.column for s in species},
        "ignored": [f"{c} (several values a row)" if c in wide else c for c in table.columns if c not in used]
        + [f"{c} ({why})" for c, why in table.left_out.items()]
        + lost
        + _unreadable(picked, measures + _columns_of(species)),
    }
    return Joined(out, tuple(s.species for s in species) if picked else (), found, note)


def _unreadable(picked: Mapping[str, np.ndarray], columns: Iterable[str]) -> list[str]:
    """What of columns of numbers is text that is none, in words."""
    told = []
    for column in columns:
        if column in picked and (texts := no_numbers(picked[column])):
            told.append(f"{column} ({len(texts)} of {len(picked[column])} values are no numbers, such as {texts[0]!r})")
    return told


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
    return concatenate(blocks)[row_of[found]]


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
        elif name == "gaia_source_id":
            out[name] = np.zeros(n, np.int64)
            out[name][found] = gaia_ids(picked[column])
        elif name.startswith(EXTRA):
            out[name] = np.full(n, np.nan)
            out[name][found] = extra_numbers(column, picked[column], printable(table.path))
        else:
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
