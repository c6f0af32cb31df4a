"""Membership tables: which star belongs to which cluster, with what probability."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from chemscale.catalogues.missing import cluster_name, measured, no_numbers, numbers, whole_identifiers
from chemscale.catalogues.opening import open_catalogue
from chemscale.errors import InputError
from chemscale.formats.catalogue import Catalogue
from chemscale.formats.paths import printable

#: Columns that hold a membership probability from 0 to 1 (OCCAM, Cantat-Gaudin), whatever their case.
PROBABILITIES = ("cg_prob", "proba", "membership_probability", "cluster_probability")
#: Rows must be above it where the table has such a column and the user says nothing (RSCA paper, section 4.1).
MIN_PROBABILITY = 0.8
_REMEDY = "name the columns with --member-key, --member-column"


@dataclass
class Membership:
    """Star -> (cluster, probability), and what was noticed while reading the table.

    `probability` is NaN where the table gives none. `n_rows`, `n_below` (rows under the
    probability limit) and `n_repeated` (rows of a star already seen) account for every row;
    `disputed` are stars listed in more than one cluster.
    """

    stars: dict[str, tuple[str, float]] = field(default_factory=dict)
    n_rows: int = 0
    n_below: int = 0
    n_repeated: int = 0
    probability_column: str = ""
    min_probability: float | None = None
    disputed: set[str] = field(default_factory=set)
    #: columns that were not needed
    ignored: list[str] = field(default_factory=list)


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
        FITS, CSV, Parquet, VOTable, ECSV or another text table.
    key, column : str
        Columns holding the star's identifier and the cluster's name (case does not matter).
    probability_column : str, optional
        Membership probability; required when `min_probability` is given.
    min_probability : float, optional
        Rows must be *above* it. A sentinel or NaN is not above anything. Sources cut at 0.8 where a table has a
        probability column (RSCA paper, section 4.1).

    Returns
    -------
    Membership
        A star listed more than once (OCCAM repeats 500) keeps its most probable row, or its first.

    Raises
    ------
    InputError
        Unreadable table, a column it does not have (the message lists those it has), identifiers
        whose last digits were lost, or probabilities in per cent.
    """
    table = open_catalogue(path, "give a membership table: FITS, CSV, VOTable, ECSV or Parquet")
    names = [table.need(key, _REMEDY), table.need(column, _REMEDY)]
    chosen = table.need(probability_column, "name it with --probability-column") if probability_column else None
    if chosen is None and min_probability is not None:
        raise InputError(
            f"{printable(path)}: a minimum membership probability needs a probability column",
            "name it with --probability-column, or drop the minimum",
        )
    values = table.read([*dict.fromkeys(names), *([chosen] if chosen else [])])
    for name, column_values in values.items():
        if np.ndim(column_values) > 1 and math.prod(column_values.shape[1:]) != 1:
            raise InputError(f"{printable(path)}: {name} holds several values a row", _REMEDY)
        values[name] = column_values.reshape(len(column_values))
    ids = whole_identifiers(values[names[0]], f"{printable(path)}: {names[0]}")
    clusters = _cluster_names(values[names[1]])
    probability = _probabilities(values[chosen], path, chosen) if chosen else np.full(len(ids), math.nan)
    found = Membership(n_rows=len(ids), probability_column=chosen or "", min_probability=min_probability)
    found.ignored = [c for c in table.columns if c not in values]
    for star, name, p in zip(ids, clusters, probability.tolist()):
        if min_probability is not None and not p > min_probability:
            found.n_below += 1
            continue
        if not star or not name:
            continue
        if star in found.stars:
            found.n_repeated += 1
            before, known = found.stars[star]
            if name != before:
                found.disputed.add(star)
            if not (p > known or (math.isnan(known) and not math.isnan(p))):
                continue
        found.stars[star] = (name, p)
    return found


def default_probability(table: Catalogue) -> str | None:
    """The table's probability column, where it has one of the known names."""
    return next((found for name in PROBABILITIES if (found := table.find(name))), None)


def _cluster_names(values: np.ndarray) -> list[str]:
    hidden = np.ma.getmaskarray(values) if isinstance(values, np.ma.MaskedArray) else np.zeros(len(values), bool)
    plain = np.asarray(np.ma.getdata(values))
    return ["" if h else cluster_name(v) for v, h in zip(plain.tolist(), hidden.tolist())]


def _probabilities(values: np.ndarray, path: str, column: str) -> np.ndarray:
    raw = numbers(values)
    if texts := no_numbers(values):
        raise InputError(
            f"{printable(path)}: {column} holds text that is no number, such as {texts[0]!r}",
            "write probabilities from 0 to 1 with a decimal point",
        )
    sensible = raw[(raw >= 0) & (raw <= 100)]
    if len(sensible) and np.mean(sensible > 1) > 0.1:
        raise InputError(
            f"{printable(path)}: {column} runs to {sensible.max():g}: probabilities in per cent",
            "divide them by 100",
        )
    return measured("cluster_probability", values)
