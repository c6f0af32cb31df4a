"""What a survey source must provide, and the plain objects it exchanges with ingestion.

A source is found by name through the entry-point group ``chemscale.surveys``. It lists
its stars once (:meth:`Source.plan`, on the client) and reads any of them on any worker
(:meth:`Source.read`). A file it cannot read becomes a :class:`Rejection`, never an exception.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Protocol, runtime_checkable

import numpy as np


@dataclass(frozen=True)
class Item:
    """One star to read: where it is and what catalogues say of it.

    `labels` maps names of the contract's per-star variables to scalars (or, for
    `abundance`/`abundance_error`, to a list with one value an element).
    """

    star_id: str
    path: str
    labels: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rejection:
    """A star or file that was left out, and why. `stage` is 'plan' or 'read'."""

    path: str
    reason: str
    star_id: str = ""
    stage: str = "read"


_ABSENT = " in the membership table, but "


def absence(reason: str) -> str:
    """What the survey lacks, where `reason` is that of an :func:`absent_member`; else empty."""
    return reason.partition(_ABSENT)[2] if reason.startswith("member of ") else ""


def absent_member(table: str, star: str, cluster: str, lacks: str = "without a spectrum") -> Rejection:
    """A star that the membership `table` puts into `cluster`, and the survey lacks."""
    return Rejection(table, f"member of {cluster}{_ABSENT}{lacks}", star_id=star, stage="plan")


@dataclass
class SurveyPlan:
    """Everything known about a survey before its spectra are read."""

    survey: str
    wavelength: np.ndarray
    medium: str
    items: list[Item]
    elements: tuple[str, ...] = ()
    #: per-star variables of the contract the store will hold (besides star_id and cluster)
    labels: tuple[str, ...] = ()
    #: JSON-able provenance written to the store's attributes
    attrs: dict[str, Any] = field(default_factory=dict)
    rejected: list[Rejection] = field(default_factory=list)


@dataclass
class StarBlock:
    """Some stars, read. Row order is the order of the items that could be read.

    Shapes: `flux`, `ivar` (n, P) float32; `flags` (n, P) uint8 with the bits that only the
    reader can know (SURVEY_BAD; quality.pixels adds the rest); `labels[name]` (n,) or
    (n, n_elements); a label missing for every star may be left out.
    """

    star_id: list[str]
    flux: np.ndarray
    ivar: np.ndarray
    flags: np.ndarray
    labels: dict[str, np.ndarray] = field(default_factory=dict)
    rejected: list[Rejection] = field(default_factory=list)


@runtime_checkable
class Source(Protocol):
    """Protocol of a survey source. Instances are small and travel to workers."""

    name: str

    def plan(self) -> SurveyPlan:
        """List the stars. May read catalogues and file headers, never all spectra."""
        ...

    def read(self, items: Sequence[Item], wavelength: np.ndarray, elements: Sequence[str]) -> StarBlock:
        """Read `items` onto `wavelength`. Files that cannot be read end in `rejected`."""
        ...

    def describe(self) -> dict[str, Any]:
        """JSON-able settings: part of the fingerprint that makes a resume safe."""
        ...


def by_reason(reasons: list[str], most: int = 12) -> dict[str, int]:
    """Counts by reason; digits are levelled so that "has 3751 values" and "has 3820 values" count together."""
    counts: dict[str, int] = {}
    example: dict[str, str] = {}
    for reason in reasons:
        kind = re.sub(r"'[^']*'|\d+", "#", reason)[:160]
        example.setdefault(kind, reason)
        counts[kind] = counts.get(kind, 0) + 1
    ranked = sorted(counts, key=lambda k: -counts[k])
    out = {example[k]: counts[k] for k in ranked[:most]}
    if len(ranked) > most:
        out["other reasons"] = sum(counts[k] for k in ranked[most:])
    return out


def available_sources() -> dict[str, Any]:
    """Registered survey sources: name -> entry point (not yet imported)."""
    return {e.name: e for e in entry_points(group="chemscale.surveys")}


def get_source(name: str) -> Any:
    """Class of the source registered as `name`.

    Raises
    ------
    KeyError
        Unknown name; the message lists the known ones.
    """
    known = available_sources()
    if name not in known:
        raise KeyError(f"no survey source {name!r}; installed sources: {', '.join(sorted(known)) or 'none'}")
    return known[name].load()
