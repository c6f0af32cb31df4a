"""Siblings that are no cluster: wide binaries, repeats of one star, groups of any kind, from a table.

They add to the scatter within clusters that the searched metric learns from, each kind with its own weight, and are
neither rated nor field stars: a rate stays that of the clusters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from chemscale.catalogues.missing import identifiers
from chemscale.catalogues.opening import open_catalogue
from chemscale.errors import DataError, InputError
from chemscale.formats.paths import printable

#: Weight of a kind where the user says nothing; 1 for any other. Repeats differ in noise and instrument alone, never in
#: temperature: counted in full they would say that siblings do not differ in it.
KIND_WEIGHTS = {"repeat": 0.3}
#: Kind of a group whose row names none.
DEFAULT_KIND = "pair"
_REMEDY = "name the columns star_1, star_2 (a pair a row) or star_id, group (a star a row); kind is optional"


@dataclass(frozen=True)
class SiblingGroups:
    """Stars known to be siblings.

    Attributes
    ----------
    coords : (n, K)
    groups : (n,) of str
    weights : (n,)
        Of each star's squared distance from the centre of its group, in the scatter.
    """

    coords: np.ndarray
    groups: np.ndarray
    weights: np.ndarray

    def at(self, coords: np.ndarray) -> SiblingGroups:
        """The same stars at other coordinates."""
        return SiblingGroups(coords, self.groups, self.weights)


@dataclass(frozen=True)
class PairTable:
    """Groups of a table, for the stars of a survey.

    Attributes
    ----------
    group : (n_stars,) of str
        ``kind/number``, '' for a star of no group.
    kinds : dict of str to int
        Groups with two stars of the survey or more, by kind.
    unknown : int
        Entries of the table that are no stars of the survey.
    """

    group: np.ndarray
    kinds: dict[str, int]
    unknown: int


def read_pairs(path: str, star_id: np.ndarray) -> PairTable:
    """Read a table of pairs or groups.

    Parameters
    ----------
    path : str
        FITS, CSV, Parquet, VOTable or ECSV with the columns ``star_1``, ``star_2`` (a pair a row; pairs that share a
        star are one group) or ``star_id``, ``group`` (a star a row), and perhaps ``kind``.
    star_id : (n_stars,) of str
        Of the survey.

    Raises
    ------
    InputError
        Unreadable table, other columns, no group with two stars of the survey, a group of two kinds.
    """
    table = open_catalogue(path, _REMEDY)
    paired = table.find("star_1") is not None
    names = [table.need(n, _REMEDY) for n in (("star_1", "star_2") if paired else ("star_id", "group"))]
    kind_column = table.find("kind")
    values = table.read([*names, *([kind_column] if kind_column else [])])
    first_column, second_column = (identifiers(values[n]) for n in names)
    if first_column is None or second_column is None:
        raise InputError(f"{printable(path)}: identifiers went through floating point", "write them as text")
    named = identifiers(values[kind_column]) if kind_column else None
    kinds = [k or DEFAULT_KIND for k in named or [""] * len(first_column)]
    row = {str(s): i for i, s in enumerate(star_id)}
    stars = {s for s in (*first_column, *(second_column if paired else ())) if s}
    known = {s for s in stars if s in row}
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        while parent.setdefault(node, node) != node:
            parent[node] = node = parent[parent[node]]
        return node

    kind_of: dict[str, str] = {}
    for a, b, kind in zip(first_column, second_column, kinds, strict=True):
        first, second = f"star {a}", f"star {b}" if paired else f"group {b}"
        if not a or not b or a not in known or (paired and b not in known):
            continue
        before = {kind_of[r] for r in (root(first), root(second)) if r in kind_of} | {kind}
        if len(before) > 1:
            raise InputError(
                f"{printable(path)}: the group of {a} is of two kinds: {', '.join(sorted(before))}", "split it"
            )
        parent[root(first)] = root(second)
        kind_of[root(second)] = kind
    groups: dict[str, list[str]] = {}
    for star in sorted(known):
        groups.setdefault(root(f"star {star}"), []).append(star)
    out, counts = np.full(len(star_id), "", dtype=object), dict[str, int]()
    for name, inside in groups.items():
        if len(inside) < 2:
            continue
        kind = kind_of[name]
        counts[kind] = counts.get(kind, 0) + 1
        for star in inside:
            out[row[star]] = f"{kind}/{counts[kind]:05d}"
    if not counts:
        raise InputError(f"{printable(path)}: no group has two stars of this survey", "give the survey's star_id")
    return PairTable(out.astype(str), counts, len(stars) - len(known))


def group_weights(group: np.ndarray, weights: Mapping[str, float] | None = None) -> np.ndarray:
    """Weight of each star, from its group's kind; 0 for a star of no group.

    Raises
    ------
    InputError
        A negative weight, or one for a kind that is not there.
    """
    kinds = np.array([g.split("/", 1)[0] for g in group.tolist()])
    present = set(kinds[group != ""].tolist())
    given = dict(weights or {})
    for kind, value in given.items():
        if kind not in present:
            raise InputError(f"--pair-weight {kind}: no group is of that kind", f"kinds: {', '.join(sorted(present))}")
        if not (math.isfinite(value) and value >= 0):
            raise InputError(f"--pair-weight {kind}={value}", "give a weight of 0 or more")
    chosen = KIND_WEIGHTS | given
    return np.array([chosen.get(k, 1.0) if g else 0.0 for k, g in zip(kinds.tolist(), group.tolist(), strict=True)])


def parse_weights(texts: Any) -> dict[str, float]:
    """Weights from ``KIND=WEIGHT``."""
    out = {}
    for text in texts:
        kind, _, value = str(text).partition("=")
        try:
            out[kind.strip()] = float(value)
        except ValueError:
            raise InputError(f"--pair-weight {text!r}", "write KIND=WEIGHT, e.g. repeat=0.3") from None
    return out


@dataclass(frozen=True)
class Companions:
    """A table of siblings that are no clusters, and what its kinds weigh."""

    path: str
    weights: Mapping[str, float]

    def columns(self, star_id: np.ndarray, free: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """``group`` and ``group_weight`` of every star, and an account.

        Parameters
        ----------
        star_id : (n_stars,) of str
        free : (n_stars,) bool
            Stars that may be in a group: field stars that pass the cuts. Members stay with their cluster.

        Raises
        ------
        DataError
            No group has two such stars.
        """
        table = read_pairs(self.path, star_id)
        group = np.where(free, table.group, "")
        names, counts = np.unique(group, return_counts=True)
        group = np.where(np.isin(group, names[counts >= 2]), group, "")
        if not (group != "").any():
            message = f"{printable(self.path)}: no group has two stars that pass the cuts and are in no cluster"
            raise DataError(message, "loosen the cuts, or leave out --pairs")
        facts = {"groups": table.kinds, "stars": int((group != "").sum()), "not in the survey": table.unknown}
        return {"group": group, "group_weight": group_weights(group, self.weights).astype(np.float32)}, facts
