"""The stars of a run as the metric needs them: coordinates by role, membership, covariates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr

from chemscale.embedding.product import open_embedding
from chemscale.errors import DataError, InputError
from chemscale.rsca.companions import SiblingGroups
from chemscale.rsca.doppelganger import Evaluation
from chemscale.rsca.pairs import PairCovariates
from chemscale.runtime.run import Run

FIT_COMMAND = "chemscale rsca fit STORE --run RUN"
#: Coordinates of field stars are kept in memory up to this size, and read block by block beyond.
IN_MEMORY_BYTES = 1 << 30
#: Prefix of labels that are columns of `abundance`.
ABUNDANCE = "abundance:"
#: Covariates of the pair cuts (section 4.2): variable of the embedding -> name in the evaluation.
CUTS = {"extinction": "extinction", "radial_velocity": "velocity"}


def text(values: Any) -> np.ndarray:
    """Text of any kind (a variable, objects, NumPy's variable-width strings) as fixed-width strings."""
    return np.asarray(getattr(values, "values", values), dtype=object).astype(str)


def read_rows(variable: xr.DataArray, rows: np.ndarray) -> np.ndarray:
    """Values of `rows` of a star-first variable, in their order; each touched chunk is read once, a chunk at a time."""
    if variable.chunks is None:
        return np.asarray(variable.values[rows])
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    parts, start = [], 0
    for size in variable.chunks[0]:
        lo, hi = np.searchsorted(ordered, [start, start + size])
        if hi > lo:
            block = variable.isel(star=slice(start, start + size))
            parts.append(np.asarray(block.values)[ordered[lo:hi] - start])
        start += size
    if not parts:
        return np.empty((0, *variable.shape[1:]), dtype=variable.dtype)
    return np.concatenate(parts)[np.argsort(order, kind="stable")]


def check_rows(survey: xr.Dataset, embedding: xr.Dataset) -> None:
    """Refuse a survey whose rows are no longer those of a run's embedding.

    Raises
    ------
    InputError
        Stars were replaced since the run was fitted; stars that were added at the end do no harm.
    """
    ids = text(embedding["star_id"])
    if not np.array_equal(text(survey["star_id"].isel(star=slice(0, len(ids)))), ids):
        raise InputError(
            f"the stars of {survey.attrs.get('store', 'the survey')} are no longer those of the run",
            "fit the run again: `chemscale rsca fit STORE --run RUN`",
        )


def cleaned_of(run: Run) -> tuple[str, ...]:
    """The variables whose effect was taken off the spectra that a run was fitted on."""
    return tuple(run.manifest.get("stages", {}).get("select", {}).get("facts", {}).get("cleaned", ()))


def pair_covariates(label: Callable[[str], np.ndarray | None], field: Any, members: Any) -> PairCovariates:
    """Covariates of the pair cuts that some of the `field` and some of the `members` rows have.

    `label` gives a covariate of all rows, or None.
    """
    out: dict[str, Any] = {}
    for name, key in CUTS.items():
        values = label(name)
        if values is not None and np.isfinite(values[field]).any() and np.isfinite(values[members]).any():
            out |= {f"field_{key}": values[field], f"member_{key}": values[members]}
    return PairCovariates(**out)


@dataclass
class RunStars:
    """Field stars and members of a run's embedding.

    Attributes
    ----------
    embedding : Dataset
        All stars of the survey, lazy.
    field_rows, member_rows : index arrays into it
    field : array or dask array (n_field, K)
    members : array (n_members, K)
    clusters : array of str (n_members,)
    n_field_total : int
        Field stars of the run, of which `field_rows` may be some.
    sibling_rows : index array
        Stars of groups that are no clusters (``rsca fit --pairs``).
    siblings : SiblingGroups or None
    """

    embedding: xr.Dataset
    field_rows: np.ndarray
    member_rows: np.ndarray
    field: Any
    members: np.ndarray
    clusters: np.ndarray
    n_field_total: int = 0
    store: str = ""
    sibling_rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    siblings: SiblingGroups | None = None
    _labels: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    _abundances_read: bool = False

    @classmethod
    def read(cls, run: Run, name: str = "embedding.zarr", *, max_field: int | None = None) -> RunStars:
        """Read a run's embedding.

        Parameters
        ----------
        run : Run
        name : str
            Which embedding of the run.
        max_field : int, optional
            Keep at most this many field stars, evenly spaced, in memory. Default: all, lazily where they are many.

        Raises
        ------
        StoreError
            The run has no (complete) embedding.
        DataError
            It has no field stars or no cluster members.
        """
        ds = open_embedding(run.need(name, FIT_COMMAND))
        role = text(ds["role"])
        rows, member_rows = np.flatnonzero(role == "field"), np.flatnonzero(role == "member")
        if not len(rows) or not len(member_rows):
            what = "field stars" if not len(rows) else "cluster members"
            raise DataError(f"{run.path} has no {what}", "check the sample cuts and the `cluster` variable")
        total = len(rows)
        if max_field is not None and total > max_field:
            rows = rows[np.linspace(0, len(rows) - 1, max_field).astype(np.int64)]
        coords = ds["coords"].data
        lazy = max_field is None and len(rows) * coords.shape[1] * 4 > IN_MEMORY_BYTES
        values = coords[rows] if lazy else np.asarray(coords[rows].compute(), dtype=np.float64)
        members = np.asarray(coords[member_rows].compute(), dtype=np.float64)
        clusters = text(ds["cluster"])[member_rows]
        store = run.manifest.get("store") or ""
        others = np.flatnonzero(role == "sibling")
        groups = None
        if len(others):
            at = np.asarray(coords[others].compute(), dtype=np.float64)
            groups = SiblingGroups(at, text(ds["group"])[others], np.asarray(ds["group_weight"].values)[others])
        return cls(ds, rows, member_rows, values, members, clusters, total, store, others, groups)

    @property
    def n_components(self) -> int:
        """K."""
        return int(self.embedding.sizes["component"])

    def label(self, name: str) -> np.ndarray | None:
        """A numeric label of all stars of the survey (float64), or None where it is absent or NaN everywhere.

        ``"abundance:Mg"`` is a column of the survey's abundances.
        """
        if name.startswith(ABUNDANCE):
            self._read_abundances()
            return self._labels.get(name)
        if name not in self._labels:
            if name not in self.embedding.variables:
                return None
            self._labels[name] = np.asarray(self.embedding[name].values, dtype=np.float64)
        values = self._labels[name]
        return values if np.isfinite(values).any() else None

    def elements(self) -> list[str]:
        """Labels ``"abundance:X"`` of the species that at least half of the stars in play have."""
        self._read_abundances()
        rows = np.concatenate([self.field_rows, self.member_rows])
        return [n for n, v in self._labels.items() if n.startswith(ABUNDANCE) and np.mean(np.isfinite(v[rows])) >= 0.5]

    def _read_abundances(self) -> None:
        from chemscale.survey.store.open import open_survey

        if self._abundances_read or not self.store:
            return
        self._abundances_read = True
        survey = open_survey(self.store)
        if "abundance" not in survey.variables:
            return
        check_rows(survey, self.embedding)
        values = np.asarray(survey["abundance"].values)[: self.embedding.sizes["star"]]
        for j, element in enumerate(survey["element"].values):
            if np.isfinite(values[:, j]).any():
                self._labels[f"{ABUNDANCE}{element}"] = values[:, j].astype(np.float64)

    @cached_property
    def covariates(self) -> PairCovariates:
        """Covariates of the pair cuts that some field stars and some members have."""
        return pair_covariates(self.label, self.field_rows, self.member_rows)

    @cached_property
    def evaluation(self) -> Evaluation:
        """The engine that rates metrics on these stars."""
        return Evaluation(self.field, self.members, self.clusters, self.covariates, noise=self.noise)

    @property
    def noise(self) -> np.ndarray:
        """Mean measurement covariance (K, K) of the members' coordinates."""
        return np.diag(self.member_variance.mean(axis=0))

    @cached_property
    def member_variance(self) -> np.ndarray:
        """Measurement variance of the members' coordinates, (n_members, K)."""
        return np.asarray(self.embedding["coords_variance"].data[self.member_rows].compute(), dtype=np.float64)

    def evaluate(self, of_field: Any, of_members: np.ndarray) -> Evaluation:
        """An engine for other features of the same stars."""
        return Evaluation(of_field, of_members, self.clusters, self.covariates)

    def correlations(self, features: np.ndarray, rows: np.ndarray, names: tuple[str, ...]) -> dict[str, list[float]]:
        """Pearson correlation of each feature with labels of the stars in `rows`; absent labels are left out."""
        out = {}
        for name in names:
            values = self.label(name)
            if values is None:
                continue
            y = values[rows]
            good = np.isfinite(y)
            if good.sum() < 10 or np.std(y[good]) == 0:
                continue
            x = features[good]
            spread = x.std(axis=0) * y[good].std()
            with np.errstate(invalid="ignore", divide="ignore"):
                r = (x - x.mean(axis=0)).T @ (y[good] - y[good].mean()) / good.sum() / spread
            out[name] = [float(v) for v in r]
        return out
