"""The stars of a run as the studies need them: coordinates, membership, covariates, abundances.

Per-star products are small next to spectra (K numbers a star) but not small at 10^8 stars: where a run has more than
`max_field` field stars, an evenly spaced selection of them stands for the field, and the studies say so.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr

from ..errors import DataError
from ..rsca.doppelganger import Evaluation
from ..runtime.run import Run
from ..schema import STAR_VARIABLES, VARIABLES

#: Field stars a study reads at most.
MAX_FIELD = 500_000
FIT_COMMAND = "chemscale rsca fit STORE --run RUN"


def open_embedding(run: Run) -> xr.Dataset:
    """The embedding product of a run, lazy; an unfinished one is refused."""
    from ..statistics.embedding import open_embedding as open_product

    return open_product(run.need("embedding.zarr", FIT_COMMAND))


def as_text(values: Any) -> np.ndarray:
    """Text of any flavour (objects, fixed width, NumPy's variable-width strings) as a fixed-width array."""
    return np.asarray(values, dtype=object).astype(str)


def read_rows(variable: xr.DataArray, rows: np.ndarray) -> np.ndarray:
    """Values of the sorted `rows` of a star-first variable; reads each touched chunk once, a chunk at a time."""
    if variable.chunks is None:
        return np.asarray(variable.values[rows])
    parts, start = [], 0
    for size in variable.chunks[0]:
        lo, hi = np.searchsorted(rows, [start, start + size])
        if hi > lo:
            block = variable.isel(star=slice(start, start + size))
            # whole block for many rows; for a few, xarray still decodes the chunk once
            parts.append(np.asarray(block.values)[rows[lo:hi] - start])
        start += size
    if not parts:
        return np.empty((0, *variable.shape[1:]), dtype=variable.dtype)
    return np.concatenate(parts)


@dataclass
class Sample:
    """Field stars and cluster members of a run.

    Attributes
    ----------
    coords : array (n, K)
        PPCA coordinates, field stars first, then members.
    n_field : int
        Rows that are field stars.
    n_field_total : int
        Field stars in the run (more than `n_field` where the field was thinned out).
    clusters : array of str (n_members,)
    star_id : array of str (n,)
    labels : dict of str to array (n,)
        Numeric per-star variables, NaN = missing.
    elements : tuple of str
    abundance : array (n, n_elements) or None
        [X/H], dex.
    """

    coords: np.ndarray
    n_field: int
    n_field_total: int
    clusters: np.ndarray
    star_id: np.ndarray
    labels: dict[str, np.ndarray]
    elements: tuple[str, ...] = ()
    abundance: np.ndarray | None = None
    visits: np.ndarray | None = None

    @classmethod
    def read(cls, run: Run, max_field: int = MAX_FIELD) -> Sample:
        """Read a run's embedding (one pass over the per-star products).

        Raises
        ------
        StoreError
            The run has no embedding.
        DataError
            It has no field stars or no members.
        """
        ds = open_embedding(run)
        role = as_text(ds["role"].values)
        valid = np.asarray(ds["valid"].values)
        field, members = np.flatnonzero((role == "field") & valid), np.flatnonzero((role == "member") & valid)
        if not len(field) or not len(members):
            what = "field stars" if not len(field) else "cluster members"
            raise DataError(
                f"{run.path} has no {what}", "check the sample cuts and the `cluster` variable of the survey"
            )
        total = len(field)
        if total > max_field:
            field = field[np.linspace(0, total - 1, max_field).astype(np.int64)]
        rows = np.concatenate([field, members])
        order = np.argsort(rows, kind="stable")
        back = np.argsort(order, kind="stable")

        def take(name: str, source: xr.Dataset = ds) -> np.ndarray:
            return read_rows(source[name], rows[order])[back]

        labels = {
            name: take(name).astype(float)
            for name in STAR_VARIABLES
            if name in ds and VARIABLES[name].dtype.startswith("float") and np.issubdtype(ds[name].dtype, np.number)
        }
        sample = cls(
            coords=take("coords"),
            n_field=len(field),
            n_field_total=total,
            clusters=as_text(take("cluster")[len(field) :]),
            star_id=as_text(take("star_id")),
            labels=labels,
        )
        sample._from_survey(run, ds, rows, order, back)
        return sample._without_lone_members()

    def _without_lone_members(self) -> Sample:
        """Drop clusters that invalid spectra left with one member: they have no pair."""
        names, counts = np.unique(self.clusters, return_counts=True)
        keep = np.concatenate([np.ones(self.n_field, bool), np.isin(self.clusters, names[counts >= 2])])
        if keep.all():
            return self
        self.coords, self.star_id, self.clusters = (
            self.coords[keep],
            self.star_id[keep],
            self.clusters[keep[self.n_field :]],
        )
        self.labels = {k: v[keep] for k, v in self.labels.items()}
        self.abundance = None if self.abundance is None else self.abundance[keep]
        self.visits = None if self.visits is None else self.visits[keep]
        return self

    def _from_survey(self, run: Run, ds: xr.Dataset, rows: np.ndarray, order: np.ndarray, back: np.ndarray) -> None:
        """Abundances and visits, from the embedding or else from the survey (per-star variables only)."""
        source = ds
        if "abundance" not in ds or "visits" not in ds:
            from ..survey.store import open_survey

            survey = open_survey(run.store)
            if survey.sizes["star"] == ds.sizes["star"]:
                source = survey
        for name in ("abundance", "visits"):
            where = ds if name in ds else source
            if name not in where:
                continue
            values = read_rows(where[name], rows[order])[back]
            if name == "abundance":
                self.abundance = values.astype(float)
                self.elements = tuple(str(e) for e in where["element"].values)
            else:
                self.visits = as_text(values)

    @property
    def n_components(self) -> int:
        """K of the run."""
        return self.coords.shape[1]

    def field(self, name: str) -> np.ndarray:
        """A label of the field stars; NaN where the run has no such label."""
        return self.labels.get(name, np.full(len(self.coords), np.nan))[: self.n_field]

    def members(self, name: str) -> np.ndarray:
        """A label of the members."""
        return self.labels.get(name, np.full(len(self.coords), np.nan))[self.n_field :]

    @cached_property
    def cuts(self) -> dict[str, Any]:
        """Covariates of the pair cuts of section 4.2 that this run has for field stars and members alike."""
        out: dict[str, Any] = {}
        for name, key in (("extinction", "extinction"), ("radial_velocity", "velocity")):
            field, members = self.field(name), self.members(name)
            if np.isfinite(field).any() and np.isfinite(members).any():
                out |= {f"field_{key}": field, f"member_{key}": members}
        return out

    @cached_property
    def evaluation(self) -> Evaluation:
        """The engine that rates metrics on the spectra's coordinates."""
        return self.evaluate(self.coords)

    def evaluate(self, values: np.ndarray) -> Evaluation:
        """An engine for any features of the same stars (n, d): abundances, latents.

        Raises
        ------
        DataError
            Members without values, or clusters that keep fewer than two stars with values.
        """
        good = np.isfinite(values).all(axis=1)
        names, counts = np.unique(self.clusters[good[self.n_field :]], return_counts=True)
        keep_member = good[self.n_field :] & np.isin(self.clusters, names[counts >= 2])
        keep_field = good[: self.n_field]
        if not keep_field.any() or not keep_member.any():
            raise DataError("no cluster keeps two members with finite values", "check the survey's labels")
        cuts = {k: v[keep_field if k.startswith("field_") else keep_member] for k, v in self.cuts.items()}
        return Evaluation(
            values[: self.n_field][keep_field],
            values[self.n_field :][keep_member],
            self.clusters[keep_member],
            **cuts,
        )
