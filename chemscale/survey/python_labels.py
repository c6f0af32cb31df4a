"""Labels that are handed over in Python: tables of astropy and pandas, with units, masks, bytes and gaps."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from chemscale.catalogues.missing import (
    cluster_name,
    gaia_id,
    measured,
    no_numbers,
    numbers,
    whole_identifiers,
    words,
)
from chemscale.errors import InputError
from chemscale.formats.catalogue import plain_values
from chemscale.schema import VARIABLES, variable_attrs


def as_columns(labels: Any) -> dict[str, Any]:
    """The columns of a table, DataFrame or mapping by name; none for None."""
    if labels is None:
        return {}
    names = labels.colnames if hasattr(labels, "colnames") else list(labels)
    return {str(n): labels[n] for n in names}


def identifiers_of(values: Any) -> list[str]:
    """Identifiers as text, '' where there is none.

    Raises
    ------
    InputError
        Their last digits were lost in floating point.
    """
    column = values if hasattr(values, "dtype") else np.array(list(values), dtype=object)
    return whole_identifiers(column, "star_id")


def contract_variables(table: Mapping[str, Any], columns: Mapping[str, str], ids: np.ndarray) -> dict[str, Any]:
    """Contract variables out of a table, matched by identifier where it has one."""
    absent = [c for c in columns if c not in table]
    if absent:
        raise InputError(f"labels have no column {absent[0]!r}", f"columns: {', '.join(table)}")
    order = np.arange(len(ids))
    if "star_id" in table:
        row = {s: i for i, s in enumerate(identifiers_of(table["star_id"]))}
        lost = [s for s in ids if s not in row]
        if lost:
            raise InputError(f"{len(lost)} star(s) have no row in labels, e.g. {lost[0]!r}", "add them, as NaN")
        order = np.array([row[s] for s in ids])
    out, left_out = {}, []
    for name, values in table.items():
        target = columns.get(name, name)
        spec = VARIABLES.get(target)
        if target == "star_id":
            continue
        if spec is None or spec.dims != ("star",):
            left_out.append(name)
            continue
        if len(values) < len(ids) or ("star_id" not in table and len(values) != len(ids)):
            raise InputError(f"labels: column {name!r} has {len(values)} rows for {len(ids)} spectra", "one a star")
        out[target] = ("star", _label(name, target, spec, values)[order], variable_attrs(target))
    if left_out:
        warnings.warn(
            f"labels not of the survey contract were left out: {', '.join(left_out)} (map them with columns=)",
            stacklevel=3,
        )
    return out


def _label(name: str, target: str, spec: Any, values: Any) -> np.ndarray:
    """A column of the contract's kind and unit; masked, undefined and sentinel values are missing, as of files."""
    import astropy.units as u

    plain = plain_values(values)
    if spec.dtype == "str":
        text = words(plain)
        return np.array([cluster_name(t) for t in text] if target == "cluster" else text, dtype=object)
    if target == "gaia_source_id":
        return np.array([gaia_id(text) for text in whole_identifiers(plain, f"labels: {name}")], np.int64)
    if not spec.dtype.startswith("float"):
        known = numbers(plain)
        return np.where(np.isfinite(known), known, 0).astype(spec.dtype)
    if texts := no_numbers(plain):
        raise InputError(f"labels: column {name!r} holds {texts[0]!r}, no number", "give numbers, NaN where missing")
    unit = getattr(values, "unit", None)
    convert = None if unit is None else lambda raw: u.Quantity(raw, unit).to_value(u.Unit(spec.units or ""))
    try:
        return measured(target, plain, convert).astype(spec.dtype)
    except u.UnitConversionError as err:
        raise InputError(f"labels: column {name!r}: {err}", f"{target} is in {spec.units}") from err
