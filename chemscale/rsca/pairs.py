"""Which pairs of a cluster member and a field star may be compared, and how many of them are close (section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial.distance import pdist

from chemscale.errors import InputError
from chemscale.labelled import plain

#: Rows of the field compared with a cluster at a time: bounds memory at rows x (members + features) doubles.
BLOCK_ROWS = 16384
#: Covariates pairs may be matched on (section 4.2) and their units.
COVARIATE_UNITS = {"velocity": "km/s", "extinction": "mag"}


@dataclass(frozen=True)
class PairCuts:
    """Which pairs of stars may be compared. A pair with a missing (NaN) covariate does not pass a cut on it."""

    max_delta_extinction: float = 0.05
    max_delta_velocity: float = 5.0


@dataclass(frozen=True)
class PairCovariates:
    """What pairs are matched on: covariates of field stars and of members. A side left out = no cut on it.

    Attributes
    ----------
    field_velocity, member_velocity : (n_field,), (n_members,), km/s
    field_extinction, member_extinction : (n_field,), (n_members,), mag
        NaN never passes a cut.
    """

    field_velocity: Any = None
    member_velocity: Any = None
    field_extinction: Any = None
    member_extinction: Any = None

    @property
    def names(self) -> list[str]:
        """Covariates in use."""
        return [n for n in COVARIATE_UNITS if getattr(self, f"field_{n}") is not None]

    def at(self, field: Any = slice(None), members: Any = slice(None)) -> PairCovariates:
        """The same of some field stars and some members (rows, slices or boolean masks)."""

        def cut(values: Any, rows: Any) -> Any:
            return None if values is None else values[rows]

        return PairCovariates(
            cut(self.field_velocity, field),
            cut(self.member_velocity, members),
            cut(self.field_extinction, field),
            cut(self.member_extinction, members),
        )

    def checked(self, n_field: int, n_members: int) -> PairCovariates:
        """The same as float64 arrays in km/s and mag.

        Raises
        ------
        InputError
            A covariate of one side only, or of another length.
        """
        values: dict[str, Any] = {}
        for name in COVARIATE_UNITS:
            pair = covariate_pair(name, getattr(self, f"field_{name}"), getattr(self, f"member_{name}"))
            shapes = [None if v is None else v.shape for v in pair]
            if pair[0] is not None and shapes != [(n_field,), (n_members,)]:
                raise InputError(
                    f"{name}: shapes {shapes[0]} and {shapes[1]} for {n_field} field stars and {n_members} members",
                    "pass one value per star",
                )
            values |= {f"field_{name}": pair[0], f"member_{name}": pair[1]}
        return PairCovariates(**values)


class Candidates:
    """The field stars of one block that each cluster may be compared with.

    Parameters
    ----------
    n : int
        Field stars of the block.
    covariates : PairCovariates
        Of the field stars of the block, and of all members.
    groups : list of index arrays
        Rows of the members of each cluster.
    cuts : PairCuts
    """

    def __init__(self, n: int, covariates: PairCovariates, groups: Sequence[np.ndarray], cuts: PairCuts):
        self.rows: list[np.ndarray | slice] = []
        self.allowed: list[np.ndarray | None] = []
        limits = [
            (np.asarray(f, dtype=float), np.asarray(m, dtype=float), limit)
            for f, m, limit in (
                (covariates.field_velocity, covariates.member_velocity, cuts.max_delta_velocity),
                (covariates.field_extinction, covariates.member_extinction, cuts.max_delta_extinction),
            )
            if f is not None and m is not None
        ]
        if not limits:
            self.rows = [slice(None)] * len(groups)
            self.allowed = [None] * len(groups)
            return
        order = np.argsort(limits[0][0], kind="stable")  # NaN last, never inside a window
        ordered = limits[0][0][order]
        for group in groups:
            member = limits[0][1][group]
            member = member[np.isfinite(member)]
            if not len(member):
                lo = hi = 0
            else:
                lo = np.searchsorted(ordered, member.min() - limits[0][2], side="left")
                hi = np.searchsorted(ordered, member.max() + limits[0][2], side="right")
            rows = np.sort(order[lo:hi])
            allowed = np.ones((len(rows), len(group)), dtype=bool)
            for values, members, limit in limits:
                allowed &= np.abs(values[rows][:, None] - members[group][None, :]) < limit
            keep = allowed.any(axis=1)
            self.rows.append(rows[keep])
            self.allowed.append(allowed[keep])


def count_close(
    field_rows: np.ndarray, members: np.ndarray, threshold: float, allowed: np.ndarray | None
) -> tuple[int, int]:
    """Pairs at or under `threshold`, and pairs compared.

    Distances come from one matrix product; the pairs for which its rounding could matter are recomputed from
    differences, so the counts are those of exact arithmetic on the features.

    Parameters
    ----------
    field_rows : (n, d) float64 features of field stars
    members : (m, d) float64 features of members
    threshold : float
    allowed : (n, m) bool or None
    """
    n_close = n_pairs = 0
    centre = members.mean(axis=0) if len(members) else 0.0
    members = members - centre
    size_m = np.einsum("ij,ij->i", members, members)
    limit = threshold**2
    for start in range(0, len(field_rows), BLOCK_ROWS):
        x = field_rows[start : start + BLOCK_ROWS] - centre
        ok = None if allowed is None else allowed[start : start + BLOCK_ROWS]
        size = np.einsum("ij,ij->i", x, x)[:, None] + size_m
        gap = size - 2.0 * (x @ members.T) - limit
        close = gap <= 0
        unsure = np.abs(gap) <= 1e-11 * (size + limit)
        if unsure.any():
            i, j = np.nonzero(unsure)
            close[i, j] = np.sqrt(np.sum((x[i] - members[j]) ** 2, axis=1)) <= threshold
        if ok is None:
            n_close += int(close.sum())
            n_pairs += close.size
        else:
            n_close += int(np.sum(close & ok))
            n_pairs += int(ok.sum())
    return n_close, n_pairs


def median_pair_distance(features: np.ndarray) -> float:
    """Median Euclidean distance over the pairs of rows."""
    return float(np.median(pdist(features)))


def covariate_pair(name: str, of_field: Any, of_members: Any) -> tuple[Any, Any]:
    """Both sides of a covariate as float64, or (None, None) where neither is given."""
    if of_field is None and of_members is None:
        return None, None
    if of_field is None or of_members is None:
        side, other = ("member", "field") if of_field is None else ("field", "member")
        raise InputError(f"{side}_{name} is given without {other}_{name}", "pass both, or neither for no cut")
    unit = COVARIATE_UNITS[name]
    f = np.asarray(plain(of_field, unit, f"field_{name}"), dtype=np.float64)
    return f, np.asarray(plain(of_members, unit, f"member_{name}"), dtype=np.float64)
