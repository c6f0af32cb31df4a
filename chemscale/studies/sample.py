"""What the studies share: one run's stars in memory with all their labels, abundances and visits.

Per-star products are small next to spectra (K numbers a star) but not small at 10^8 stars: where a run has more than
`max_field` field stars, an evenly spaced selection of them stands for the field, and the studies say so.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from chemscale.errors import DataError
from chemscale.rsca.doppelganger import Evaluation
from chemscale.rsca.pairs import PairCovariates
from chemscale.rsca.stars import RunStars, check_rows, pair_covariates, read_rows, text
from chemscale.runtime.run import Run
from chemscale.schema import STAR_VARIABLES, VARIABLES

#: Field stars a study reads at most.
MAX_FIELD = 500_000


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
    noise : array (K, K) or None
        Mean measurement covariance of the members' coordinates.
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
    noise: np.ndarray | None = None

    @classmethod
    def read(cls, run: Run, max_field: int = MAX_FIELD) -> Sample:
        """Read a run's embedding (one pass over the per-star products).

        Raises
        ------
        StoreError
            The run has no embedding.
        DataError
            It has no field stars or no members.
        InputError
            Stars of the store were replaced since the fit.
        """
        from chemscale.survey.store.open import open_survey

        stars = RunStars.read(run, max_field=max_field)
        ds, rows = stars.embedding, np.concatenate([stars.field_rows, stars.member_rows])
        labels = {
            name: read_rows(ds[name], rows).astype(float)
            for name in STAR_VARIABLES
            if name in ds and VARIABLES[name].dtype.startswith("float") and np.issubdtype(ds[name].dtype, np.number)
        }
        sample = cls(
            coords=np.concatenate([stars.field, stars.members]),
            n_field=len(stars.field_rows),
            n_field_total=stars.n_field_total,
            clusters=stars.clusters,
            star_id=text(read_rows(ds["star_id"], rows)),
            labels=labels,
            noise=stars.noise,
        )
        survey = open_survey(run.store)
        check_rows(survey, ds)
        if "abundance" in survey:
            sample.abundance = read_rows(survey["abundance"], rows).astype(float)
            sample.elements = tuple(str(e) for e in survey["element"].values)
        if "visits" in survey:
            sample.visits = text(read_rows(survey["visits"], rows))
        return sample

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
    def covariates(self) -> PairCovariates:
        """Covariates of the pair cuts of section 4.2 that this run has for field stars and members alike."""
        return pair_covariates(self.labels.get, slice(0, self.n_field), slice(self.n_field, None))

    @cached_property
    def evaluation(self) -> Evaluation:
        """The engine that rates metrics on the spectra's coordinates."""
        return self.evaluate(self.coords, self.noise)

    def evaluate(self, values: np.ndarray, noise: np.ndarray | None = None) -> Evaluation:
        """An engine for any features of the same stars (n, d), such as abundances or latents, with noise (d, d).

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
        return Evaluation(
            values[: self.n_field][keep_field],
            values[self.n_field :][keep_member],
            self.clusters[keep_member],
            self.covariates.at(keep_field, keep_member),
            noise=noise,
        )
