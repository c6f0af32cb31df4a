"""Membership tables: which star belongs to which cluster, with what probability."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from chemscale.errors import InputError
from chemscale.survey.sources.formats.fits_header import FitsError
from chemscale.survey.sources.formats.fits_tables import read_table, table_columns
from chemscale.survey.sources.missing import cluster_name


@dataclass
class Membership:
    """Star -> (cluster, probability), and what was noticed while reading the table.

    `probability` is NaN where the table gives none. `n_rows`, `n_below` (rows under the
    probability limit) and `n_repeated` (rows of a star already seen) account for every row.
    """

    stars: dict[str, tuple[str, float]] = field(default_factory=dict)
    n_rows: int = 0
    n_below: int = 0
    n_repeated: int = 0
    probability_column: str = ""

    def labels(self, star: str) -> dict[str, Any]:
        """Contract labels `cluster` and `cluster_probability` of `star` ('' for the field)."""
        cluster, probability = self.stars.get(star, ("", math.nan))
        return {"cluster": cluster, "cluster_probability": probability}


def read_csv_columns(path: str, columns: Iterable[str] | None = None) -> dict[str, list[str]]:
    """Columns of a CSV file as text, names matched without case; all of them for None.

    Raises
    ------
    InputError
        Unreadable, not UTF-8, without a header line, or a row with fewer fields.
    """
    import fsspec

    try:
        with fsspec.open(path, "rt", encoding="utf-8-sig", newline="", compression="infer") as stream:
            reader = csv.reader(line for line in stream if not line.startswith("#"))
            header = [name.strip() for name in next(reader, [])]
            if not header:
                raise InputError(f"{path}: empty table", "give a CSV file with a header line")
            lookup = {name.lower(): i for i, name in enumerate(header)}
            names = header if columns is None else list(columns)
            at = {name: lookup[name.lower()] for name in names if name.lower() in lookup}
            out: dict[str, list[str]] = {name: [] for name in at}
            for row in reader:
                if not row:
                    continue
                if len(row) < len(header):
                    raise InputError(
                        f"{path}, line {reader.line_num}: {len(row)} fields, the header has {len(header)}",
                        "repair or remove the line",
                    )
                for name, i in at.items():
                    out[name].append(row[i].strip())
            return out
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as CSV: {error}", "give a readable CSV file in UTF-8") from error


def read_columns(path: str, columns: list[str] | None = None) -> dict[str, Any]:
    """Columns of a FITS table (HDU 1) or, by its suffix, of a CSV file."""
    if path.lower().endswith((".csv", ".csv.gz", ".txt")):
        return read_csv_columns(path, columns)
    try:
        return read_table(path, columns)
    except FitsError as error:
        raise InputError(f"{path}: {error}", "give a FITS table (HDU 1) or a .csv file") from error


def _known_columns(path: str) -> tuple[str, ...]:
    if path.lower().endswith((".csv", ".csv.gz", ".txt")):
        return tuple(read_csv_columns(path))
    return table_columns(path)


def read_members(
    path: str,
    *,
    key: str,
    column: str,
    probability_column: str | None = None,
    min_probability: float | None = None,
) -> Membership:
    """Read a membership table.

    Parameters
    ----------
    path : str
        FITS table or CSV.
    key, column : str
        Columns holding the star's identifier and the cluster's name (case does not matter).
    probability_column : str, optional
        Membership probability; required when `min_probability` is given.
    min_probability : float, optional
        Rows must be *above* it (the RSCA paper, section 4.1: ``CG_PROB > 0.8``). A sentinel
        or NaN is not above anything.

    Returns
    -------
    Membership
        A star listed more than once (OCCAM repeats 500) keeps its most probable row.

    Raises
    ------
    InputError
        Unreadable table, or a column it does not have (the message lists those it has).
    """
    wanted = [key, column] + ([probability_column] if probability_column else [])
    table = read_columns(path, wanted)
    for name in wanted:
        if name not in table:
            raise InputError(
                f"{path}: no column {name!r}; it has {', '.join(_known_columns(path))}",
                "name the columns with --member-key, --member-column",
            )
    if min_probability is not None and not probability_column:
        raise InputError("a minimum membership probability needs a probability column", "name it, or drop the minimum")
    ids, names = [str(s).strip() for s in table[key]], [cluster_name(c) for c in table[column]]
    if probability_column:
        probability = np.array([_probability(p) for p in table[probability_column]])
    else:
        probability = np.full(len(ids), math.nan)
    found = Membership(n_rows=len(ids), probability_column=probability_column or "")
    for star, name, p in zip(ids, names, probability.tolist()):
        if min_probability is not None and not p > min_probability:
            found.n_below += 1
            continue
        if not star or not name:
            continue
        if star in found.stars:
            found.n_repeated += 1
            known = found.stars[star][1]
            if not (p > known or math.isnan(known)):
                continue
        found.stars[star] = (name, p)
    return found


def _probability(value: Any) -> float:
    try:
        p = float(value)
    except (TypeError, ValueError):
        return math.nan
    return p if 0.0 <= p <= 1.0 else math.nan


def count_by_cluster(members: Mapping[str, tuple[str, float]]) -> dict[str, int]:
    """Number of stars a cluster, most populous first."""
    counts: dict[str, int] = {}
    for cluster, _ in members.values():
        counts[cluster] = counts.get(cluster, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
