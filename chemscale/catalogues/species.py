"""Abundance columns of a catalogue by species: ``mg_h``, ``e_mg_h``, ``Mg_fe``, ``c_1_h`` (C I), ``ti_2_h`` (Ti II)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from chemscale.catalogues.missing import measured

_ELEMENTS = (
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr Nb Mo"
    " Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg"
    " Tl Pb Bi Th U"
)
SYMBOLS = frozenset(_ELEMENTS.split(" "))
_STAGES = {"1": "I", "2": "II", "3": "III", "i": "I", "ii": "II"}
#: what catalogues call [Fe/H], the first present counts
_IRON = ("fe_h", "feh", "fe/h", "[fe/h]")
_COLUMN = re.compile(r"^([a-z]{1,2})_?(1|2|3|i{1,2})?_(h|fe)$")


@dataclass(frozen=True)
class SpeciesColumn:
    """Where a species stands in a catalogue. `over_iron`: the column holds [X/Fe], not [X/H]."""

    species: str
    column: str
    error: str = ""
    over_iron: bool = False


def species_columns(names: Iterable[str]) -> list[SpeciesColumn]:
    """The species a catalogue has columns for, in its order; of [X/H] and [X/Fe] of one species [X/H] counts."""
    names = list(names)
    lower = {n.lower(): n for n in reversed(names)}
    iron = next((c for c in _IRON if c in lower), "")
    found: dict[str, SpeciesColumn] = {}
    for name in names:
        key = name.lower()
        match = _COLUMN.match("fe_h" if key == iron else key)
        if not match or match[1].capitalize() not in SYMBOLS or key == "h_h":
            continue
        species = match[1].capitalize() + (_STAGES[match[2]] if match[2] else "")
        over_iron = match[3] == "fe"
        if (over_iron and (species == "Fe" or not iron)) or (species in found and over_iron):
            continue
        error = next((lower[e] for e in (f"e_{key}", f"{key}_err", f"{key}_error", f"err_{key}") if e in lower), "")
        found[species] = SpeciesColumn(species, name, error, over_iron)
    only_iron = list(found) == ["Fe"]
    return [] if only_iron else list(found.values())


def abundances(columns: list[SpeciesColumn], table: Mapping[str, Any], n: int) -> dict[str, np.ndarray]:
    """`abundance` and `abundance_error` (n, n_species) float32 out of columns of a table; NaN where unknown.

    [X/Fe] becomes [X/H] with the same row's [Fe/H]; its error is kept as it is given.
    """
    iron = next((c for c in columns if c.species == "Fe"), None)
    fe_h = measured("abundance", table[iron.column]) if iron else np.full(n, np.nan)
    values, errors = [], []
    for c in columns:
        x = measured("abundance", table[c.column])
        values.append(x + fe_h if c.over_iron else x)
        errors.append(measured("abundance_error", table[c.error]) if c.error else np.full(n, np.nan))
    return {
        "abundance": np.stack(values, axis=1).astype(np.float32),
        "abundance_error": np.stack(errors, axis=1).astype(np.float32),
    }
