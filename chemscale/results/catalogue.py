"""Columns of a catalogue of one's own beside those of a run, matched by star."""

from __future__ import annotations

import math
import os
import re

import numpy as np

from chemscale.catalogues.missing import no_numbers, numbers, whole_identifiers, words
from chemscale.catalogues.opening import open_catalogue
from chemscale.errors import InputError
from chemscale.results.columns import Column, RunTable
from chemscale.suggest import hint

#: Names under which catalogues keep the identifier, whatever their case, tried in this order.
KEYS = ("star_id", "apogee_id", "obsid", "id")
_WHOLE = re.compile(r"[+-]?\d{1,19}")


def add(table: RunTable, path: str | os.PathLike[str], *, key: str | None = None) -> int:
    """Append the columns of a catalogue to a run's table, as ``x_NAME``; stars it lacks, and gaps of its, are empty.

    Parameters
    ----------
    table : RunTable
        Changed in place.
    path : path
        Any table that `--labels` of an ingestion takes: FITS, CSV, Parquet, VOTable, ECSV.
    key : str, optional
        Its column of identifiers; by default the first of :data:`KEYS` that it has.

    Returns
    -------
    int
        Stars of the run that the catalogue has.

    Raises
    ------
    InputError
        The catalogue cannot be read, has no such key or one whose digits were lost, names a star twice, or shares no
        star with the run.
    """
    catalogue = open_catalogue(str(path))
    names = [key] if key is not None else KEYS
    of_stars = next((c for name in names if (c := catalogue.find(name))), None)
    if of_stars is None:
        raise InputError(
            f"{path} has no column {key or 'of identifiers'}",
            f"name it with --key; {hint(key or 'star_id', catalogue.columns, 'columns')}",
        )
    values = catalogue.read(catalogue.columns)
    theirs = whole_identifiers(values[of_stars], f"{path}: {of_stars}")
    row = {star: i for i, star in enumerate(theirs)}
    if len(row) < len(theirs):
        twice = next(star for i, star in enumerate(theirs) if row[star] != i)
        raise InputError(f"{path} names {twice!r} more than once", "keep one row a star")
    ids = table.columns[0].read(0, table.n_stars)
    match = np.array([row.get(str(s), -1) for s in ids], dtype=np.int64)
    if not (match >= 0).any():
        raise InputError(
            f"no star of the run is in {path}", f"the run has {str(ids[0])!r}, the catalogue {next(iter(theirs), '')!r}"
        )
    taken = {c.name: i for i, c in enumerate(table.columns)}
    for name, column_values in values.items():
        if name == of_stars or math.prod(column_values.shape[1:]) != 1:
            continue
        told = catalogue.descriptions.get(name) or f"{name} of the catalogue that was joined"
        unit = catalogue.units.get(name, "")
        flat = column_values.reshape(-1)
        is_text = flat.dtype.kind not in "fiub" and (catalogue.typed or bool(no_numbers(flat)))
        column = _column(f"x_{name.removeprefix('x_')}", flat, match, unit, told, is_text)
        if column.name in taken:  # an extra column of the survey: what is joined now is what is wanted
            table.columns[taken[column.name]] = column
        else:
            table.columns.append(column)
    return int((match >= 0).sum())


def _column(name: str, values: np.ndarray, match: np.ndarray, unit: str, told: str, is_text: bool) -> Column:
    there, plain = match >= 0, np.ma.getdata(values)
    if is_text:
        text = np.array(words(values) or [""], str)
        picked = np.where(there, text[match], "")
        return Column(name, lambda a, b: picked[a:b], "text", told, width=max(picked.dtype.itemsize // 4, 1))
    whole = plain.dtype.kind in "iu" or (plain.dtype.kind in "OUS" and all(map(_WHOLE.fullmatch, words(values))))
    hidden = np.ma.getmaskarray(values)
    if whole and ((there.all() and not hidden.any()) or np.abs(numbers(values)).max(initial=0) > 2**53):
        integers = [int(v) for v in np.ma.filled(values, 0)]
        if max(map(abs, integers)) >= 2**63:
            return _column(name, values, match, unit, told, True)
        kept = np.where(there, np.array(integers, np.int64)[match], 0)  # identifiers such as Gaia's: every digit counts
        return Column(name, lambda a, b: kept[a:b], "int64", told, unit)
    floats = np.where(there, numbers(values)[match], np.nan)
    return Column(name, lambda a, b: floats[a:b], "float64", told, unit)
