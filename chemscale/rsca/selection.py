"""Sample cuts and the split into field stars and cluster members.

The default cuts for APOGEE-like giants are those of the RSCA paper, section 4.1; other
surveys have none. Only per-star variables are read, never pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import xarray as xr

from chemscale.display import counted
from chemscale.errors import DataError, InputError
from chemscale.schema import PAPER_ELEMENTS, VARIABLES
from chemscale.suggest import hint

#: Bit of ASPCAPFLAG that says no ASPCAP result can be trusted.
STAR_BAD = 1 << 23
#: Left out by hand in the paper: the cluster member for its anomalous metallicity
#: (section 4.1), the field stars by the authors' published code.
EXCLUDED_MEMBERS = ("2M19203303+3755558",)
EXCLUDED_FIELD = ("2M02123870+4942289", "2M18051909-3214413", "2M06134865+5518282")

Range = tuple[float, float]
#: Labels with a cut of their own in the settings.
RANGES = ("teff", "logg", "fe_h", "snr")


@dataclass(frozen=True)
class SelectionSettings:
    """Which stars take part.

    Ranges are open intervals, as in the paper. None (or empty) means no such cut.

    Attributes
    ----------
    teff, logg, fe_h, snr : (low, high) or None
        Kelvin, dex, dex, per pixel.
    limits : mapping of str to (low, high)
        The same for any other numeric label of the survey; -inf and inf leave a side open.
    bad_quality : int
        Bits of `quality` that exclude a star.
    elements : tuple of str
        All these abundances must be defined.
    min_probability : float or None
        Members at or below it are neither members nor field. A member without a
        probability passes.
    min_members : int
        Clusters with fewer members after all cuts take no part.
    excluded_members, excluded_field : tuple of str
        Identifiers left out by hand.
    """

    teff: Range | None = None
    logg: Range | None = None
    fe_h: Range | None = None
    snr: Range | None = None
    limits: Mapping[str, Range] = field(default_factory=dict)
    bad_quality: int = 0
    elements: tuple[str, ...] = ()
    min_probability: float | None = None
    min_members: int = 2
    excluded_members: tuple[str, ...] = ()
    excluded_field: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, limits in self.ranges().items():
            if limits is not None and not (len(limits) == 2 and limits[0] < limits[1]):
                raise InputError(f"selection: {name} is {limits}", "give (low, high) with low < high")
        if self.min_members < 2:
            raise InputError(f"selection: min_members is {self.min_members}", "a cluster needs two members for a pair")

    def ranges(self) -> dict[str, Range | None]:
        """Every cut on a range, in the order in which they are applied."""
        return {name: getattr(self, name) for name in RANGES} | dict(self.limits)

    def within(self, limits: Mapping[str, Range]) -> SelectionSettings:
        """These settings with ranges of labels in the place of, or beside, their own."""
        own = {name: limits[name] for name in RANGES if name in limits}
        others = {name: value for name, value in limits.items() if name not in RANGES}
        changes: dict[str, Any] = own
        return replace(self, limits={**self.limits, **others}, **changes)


#: Section 4.1 of the RSCA paper.
PAPER_SELECTION = SelectionSettings(
    teff=(4000.0, 5000.0),
    logg=(1.5, 3.0),
    bad_quality=STAR_BAD,
    elements=PAPER_ELEMENTS,
    excluded_members=EXCLUDED_MEMBERS,
    excluded_field=EXCLUDED_FIELD,
)


def default_settings(ds: xr.Dataset) -> SelectionSettings:
    """Cuts for a survey: the paper's for APOGEE or where attribute `selection` is "paper", else none."""
    named = str(ds.attrs.get("selection", "")).lower()
    if named not in {"", "paper", "none"}:
        raise InputError(f"store attribute `selection` is {named!r}", "use 'paper' or 'none'")
    apogee = "apogee" in str(ds.attrs.get("survey", "")).lower()
    return PAPER_SELECTION if named == "paper" or (apogee and named != "none") else SelectionSettings()


@dataclass
class StarSelection:
    """Result of :func:`select_stars`; arrays have one entry a star of the dataset.

    Attributes
    ----------
    field, members : ndarray of bool
        Disjoint. A star with a cluster name is never a field star, whatever became of it.
    cluster : ndarray of str
        The cluster of each member, '' for everybody else.
    dropped : dict of str to int
        Stars left out, by the first cut that excluded them.
    warnings : list of str
        Cuts that could not be applied.
    settings : SelectionSettings
    """

    field: np.ndarray
    members: np.ndarray
    cluster: np.ndarray
    dropped: dict[str, int]
    warnings: list[str]
    settings: SelectionSettings

    @property
    def keep(self) -> np.ndarray:
        """Stars that take part, (n,) bool."""
        return self.field | self.members

    @property
    def clusters(self) -> dict[str, int]:
        """Cluster -> number of members, by name."""
        names, counts = np.unique(self.cluster[self.members], return_counts=True)
        return dict(zip(names.tolist(), counts.tolist()))

    def report(self) -> dict[str, Any]:
        """JSON-able account: every star of the survey is in exactly one of the counts."""
        return {
            "n_stars": len(self.field),
            "n_field": int(self.field.sum()),
            "n_members": int(self.members.sum()),
            "n_clusters": len(self.clusters),
            "clusters": self.clusters,
            "dropped": dict(self.dropped),
            "warnings": list(self.warnings),
            "settings": {k: v for k, v in vars(self.settings).items() if v is not None},
        }

    def account(self) -> list[str]:
        """What each cut removed, one line a cut, for people."""
        lines = [f"{n:>10,} stars left out: {reason}" for reason, n in self.dropped.items()]
        lines.append(f"{int(self.field.sum()):>10,} field stars take part")
        return [*lines, f"{int(self.members.sum()):>10,} members of {counted(len(self.clusters), 'cluster')} take part"]


@dataclass
class _Cuts:
    """Applies cuts one after another and counts what each removes."""

    keep: np.ndarray
    dropped: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def drop(self, out: np.ndarray, reason: str) -> None:
        gone = self.keep & out
        if gone.any():
            self.dropped[reason] = self.dropped.get(reason, 0) + int(gone.sum())
            self.keep = self.keep & ~gone

    def skip(self, message: str) -> None:
        self.warnings.append(message)


def select_stars(ds: xr.Dataset, settings: SelectionSettings | None = None, **changes: Any) -> StarSelection:
    """Apply the cuts and split the stars into field and cluster members.

    Parameters
    ----------
    ds : xarray.Dataset
        A survey. Reads `star_id`, `cluster`, the labels of the cuts asked for and, for
        `elements`, `abundance`; one pass over each.
    settings : SelectionSettings, optional
        Default: :func:`default_settings` of the survey.
    **changes
        Fields of the settings to replace, e.g. ``min_members=3, teff=None``.

    Returns
    -------
    StarSelection

    Raises
    ------
    InputError
        An unknown field in `changes`, or impossible limits.
    DataError
        No star is left.

    Notes
    -----
    A label that no star has cannot be cut on: that cut is skipped and recorded in
    `warnings` (and issued as a :class:`UserWarning`).
    """
    chosen = default_settings(ds) if settings is None else settings
    unknown = changes.keys() - vars(chosen).keys()
    if unknown:
        raise InputError(f"selection: no setting {', '.join(sorted(unknown))}", f"known: {', '.join(vars(chosen))}")
    if changes:
        chosen = replace(chosen, **changes)
    ids = np.asarray(ds["star_id"].values).astype(str)
    cluster = np.asarray(ds["cluster"].values).astype(str) if "cluster" in ds else np.full(len(ids), "")
    cuts = _Cuts(np.ones(len(ids), bool))
    for name, limits in chosen.ranges().items():
        if name in chosen.limits and name not in ds.variables:
            known = [str(v) for v in ds.data_vars if v in VARIABLES and VARIABLES[str(v)].dtype.startswith("float")]
            raise InputError(f"selection: the survey has no {name!r}", hint(name, known, "labels"))
        _cut_range(cuts, ds, name, limits)
    _cut_quality(cuts, ds, chosen.bad_quality)
    _cut_elements(cuts, ds, chosen.elements)
    listed = cluster != ""
    cuts.drop(listed & np.isin(ids, chosen.excluded_members), "member left out by hand")
    cuts.drop(~listed & np.isin(ids, chosen.excluded_field), "field star left out by hand")
    if chosen.min_probability is not None:
        _cut_probability(cuts, ds, listed, chosen.min_probability)
    names, counts = np.unique(cluster[cuts.keep & listed], return_counts=True)
    small = names[counts < chosen.min_members]
    cuts.drop(listed & np.isin(cluster, small), f"cluster has fewer than {chosen.min_members} members left")
    for message in cuts.warnings:
        warnings.warn(message, stacklevel=2)
    if not cuts.keep.any():
        account = ", ".join(f"{reason} ({n})" for reason, n in cuts.dropped.items())
        raise DataError(f"no star passes the cuts: {account or 'the survey is empty'}", "loosen the selection")
    members = cuts.keep & listed
    return StarSelection(
        field=cuts.keep & ~listed,
        members=members,
        cluster=np.where(members, cluster, ""),
        dropped=cuts.dropped,
        warnings=cuts.warnings,
        settings=chosen,
    )


def _cut_range(cuts: _Cuts, ds: xr.Dataset, name: str, limits: Range | None) -> None:
    if limits is None:
        return
    values = np.asarray(ds[name].values) if name in ds else np.full(len(cuts.keep), np.nan)
    if not np.isfinite(values).any():
        cuts.skip(f"no star has {name}: the cut {limits[0]:g} < {name} < {limits[1]:g} is skipped")
        return
    with np.errstate(invalid="ignore"):
        # in the label's own precision: 0.8 as float32 is above 0.8 as float64
        low, high = (values.dtype.type(limit) for limit in limits)
        outside = ~((values > low) & (values < high))
    cuts.drop(~np.isfinite(values), f"{name} missing")
    cuts.drop(outside, f"{name} outside {limits[0]:g} to {limits[1]:g}")


def _cut_quality(cuts: _Cuts, ds: xr.Dataset, bits: int) -> None:
    if not bits:
        return
    if "quality" not in ds:
        cuts.skip("the survey has no star-level quality flags: that cut is skipped")
        return
    cuts.drop((np.asarray(ds["quality"].values).astype(np.int64) & bits) != 0, "flagged bad by the survey")


def _cut_elements(cuts: _Cuts, ds: xr.Dataset, wanted: Iterable[str]) -> None:
    wanted = tuple(wanted)
    if not wanted:
        return
    if "abundance" not in ds or "element" not in ds.variables:
        cuts.skip("the survey has no abundances: the cut on defined abundances is skipped")
        return
    known = np.asarray(ds["element"].values).astype(str).tolist()
    defined = np.isfinite(np.asarray(ds["abundance"].values))
    if not defined.any():
        cuts.skip("no star has abundances: the cut on defined abundances is skipped")
        return
    absent = [e for e in wanted if e not in known or not defined[:, known.index(e)].any()]
    if absent:
        cuts.skip(f"no star has {', '.join(absent)}: the cut on defined abundances leaves them out")
    columns = [known.index(e) for e in wanted if e not in absent]
    cuts.drop(~defined[:, columns].all(axis=1), "an abundance is not defined")


def _cut_probability(cuts: _Cuts, ds: xr.Dataset, listed: np.ndarray, minimum: float) -> None:
    values = (
        np.asarray(ds["cluster_probability"].values) if "cluster_probability" in ds else np.full(len(cuts.keep), np.nan)
    )
    if not np.isfinite(values[listed]).any():
        cuts.skip(f"no member has a probability: the cut cluster_probability > {minimum:g} is skipped")
        return
    with np.errstate(invalid="ignore"):
        cuts.drop(listed & (values <= values.dtype.type(minimum)), f"membership probability at or below {minimum:g}")
