"""Columns of a catalogue of one's own beside those of a run, matched by star."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from chemscale.errors import InputError
from chemscale.results.columns import Column, RunTable
from chemscale.suggest import hint

#: Names under which catalogues keep the identifier, tried in this order.
KEYS = ("star_id", "STAR_ID", "APOGEE_ID", "apogee_id", "obsid", "id", "ID")


def add(table: RunTable, path: str | os.PathLike[str], *, key: str | None = None) -> int:
    """Append the columns of a catalogue to a run's table, as ``x_NAME``; stars it lacks have empty values.

    Parameters
    ----------
    table : RunTable
        Changed in place.
    path : path
        Any table that astropy reads: FITS, VOTable, CSV, ECSV, Parquet.
    key : str, optional
        Its column of identifiers; by default the first of :data:`KEYS` that it has.

    Returns
    -------
    int
        Stars of the run that the catalogue has.

    Raises
    ------
    InputError
        The catalogue cannot be read, has no such key, names a star twice, or shares no star with the run.
    """
    catalogue = _read(path)
    names = [key] if key is not None else [k for k in KEYS if k in catalogue.colnames]
    if not names or names[0] not in catalogue.colnames:
        raise InputError(
            f"{path} has no column {key or 'of identifiers'}",
            f"name it with --key; {hint(key or 'star_id', catalogue.colnames, 'columns')}",
        )
    theirs = np.array([v.decode() if isinstance(v, bytes) else str(v) for v in catalogue[names[0]]])
    theirs = np.char.strip(theirs)
    row = {star: i for i, star in enumerate(theirs)}
    if len(row) < len(theirs):
        values, counts = np.unique(theirs, return_counts=True)
        raise InputError(f"{path} names {values[counts > 1][0]!r} more than once", "keep one row a star")
    ids = table.columns[0].read(0, table.n_stars)
    match = np.array([row.get(str(s), -1) for s in ids], dtype=np.int64)
    if not (match >= 0).any():
        raise InputError(
            f"no star of the run is in {path}", f"the run has {str(ids[0])!r}, the catalogue {str(theirs[0])!r}"
        )
    taken = {c.name: i for i, c in enumerate(table.columns)}
    for name in catalogue.colnames:
        if name == names[0] or catalogue[name].ndim > 1:
            continue
        column = _column(f"x_{name.removeprefix('x_')}", catalogue[name], match)
        if column.name in taken:  # an extra column of the survey: what is joined now is what is wanted
            table.columns[taken[column.name]] = column
        else:
            table.columns.append(column)
    return int((match >= 0).sum())


def _read(path: str | os.PathLike[str]) -> Any:
    from astropy.table import Table

    try:
        return Table.read(path)
    except Exception as err:  # astropy's readers raise errors of many kinds
        raise InputError(f"{path} cannot be read as a table: {err}", "FITS, VOTable, CSV, ECSV or Parquet") from err


def _column(name: str, values: Any, match: np.ndarray) -> Column:
    told = str(values.description or "") or f"{name.removeprefix('x_')} of the catalogue that was joined"
    unit, there = str(values.unit or ""), match >= 0
    plain = np.asarray(np.ma.filled(values, np.nan if values.dtype.kind == "f" else values.dtype.type()))
    if plain.dtype.kind in "SUOT":
        words = np.array([v.decode() if isinstance(v, bytes) else str(v) for v in plain])
        picked = np.where(there, words[match], "")
        return Column(name, lambda a, b: picked[a:b], "text", told, width=max(picked.dtype.itemsize // 4, 1))
    if plain.dtype.kind == "i" and (there.all() or np.abs(plain).max(initial=0) > 2**53):
        whole = np.where(there, plain[match], 0).astype(np.int64)  # identifiers such as Gaia's: every digit counts
        return Column(name, lambda a, b: whole[a:b], "int64", told, unit)
    numbers = np.where(there, plain.astype(np.float64)[match], np.nan)
    return Column(name, lambda a, b: numbers[a:b], "float64", told, unit)
