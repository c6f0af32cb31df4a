"""Doppelganger rates (section 4.2): how often a field star looks as alike as a stellar sibling.

A cluster's rate is the fraction of (member, field star) pairs whose distance is at most the median distance of
the cluster's member pairs, over pairs of similar extinction and radial velocity.

:class:`Evaluation` holds what does not change between metrics (which pairs may be compared), so that a study
can rate thousands of metrics; :func:`doppelganger_rates` is the one-call form.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask import compute, delayed

from chemscale.errors import DataError, InputError
from chemscale.labelled import groups, plain
from chemscale.rsca.linear import LinearMetric
from chemscale.rsca.moments import FieldMoments, check_members, field_blocks, field_moments
from chemscale.rsca.pairs import Candidates, PairCovariates, PairCuts, count_close, median_pair_distance
from chemscale.rsca.rates import DoppelgangerRates
from chemscale.rsca.registry import make


class Evaluation:
    """Rates any number of metrics on the same field, members and pair cuts.

    Parameters
    ----------
    field : array or dask array, shape (n_field, K)
        Coordinates (or any features); a dask array is read block by block on each call of :meth:`rates`.
    members : array, shape (n_members, K)
    clusters : sequence of str
    covariates : PairCovariates
        What pairs are matched on; none by default.
    cuts : PairCuts
        Strict limits (paper: 0.05 mag in A_K, 5 km/s).
    noise : (K, K), optional
        Mean measurement covariance of the members' coordinates, for metrics that look at it.

    Raises
    ------
    InputError, DataError
        As :meth:`chemscale.rsca.metric.RSCA.fit`; a covariate given on one side only or of another length.
    """

    def __init__(
        self,
        field: Any,
        members: Any,
        clusters: Sequence[str] | np.ndarray,
        covariates: PairCovariates | None = None,
        cuts: PairCuts | None = None,
        noise: np.ndarray | None = None,
    ):
        field, members, clusters = plain(field), plain(members), plain(clusters)
        self.field = field if isinstance(field, da.Array) else np.asarray(field)
        self.moments = replace(field_moments(self.field), noise=noise)
        self.members, self.clusters = check_members(members, clusters)
        if self.members.shape[1] != self.field.shape[1]:
            raise InputError(
                f"members have {self.members.shape[1]} components, field stars {self.field.shape[1]}",
                "transform both with the same basis",
            )
        self.names = [str(c) for c in np.unique(self.clusters)]
        self.groups = [np.flatnonzero(self.clusters == c) for c in self.names]
        self.cuts = cuts or PairCuts()
        self.covariates = (covariates or PairCovariates()).checked(self.field.shape[0], len(self.members))
        self._blocks = field_blocks(self.field)
        sizes = self.field.chunks[0] if isinstance(self.field, da.Array) else [len(b) for b in self._blocks]
        edges = np.cumsum([0, *sizes])
        self._spans = list(pairwise(edges))
        self._leading: dict[int, FieldMoments] = {}
        self._cache: tuple[Candidates, list[np.ndarray]] | None = None

    def _candidates(self, start: int, stop: int) -> Candidates:
        return Candidates(stop - start, self.covariates.at(slice(start, stop)), self.groups, self.cuts)

    def fit(self, method: str | Callable[[], LinearMetric] = "rsca", *, k: int | None = None, train: Any = None) -> Any:
        """A metric fitted on the first `k` components and the members selected by the boolean `train`."""
        k = self.members.shape[1] if k is None else k
        use = np.ones(len(self.members), bool) if train is None else np.asarray(train, bool)
        moments = self._leading.setdefault(k, self.moments.leading(k))
        return make(method).fit(moments, self.members[use, :k], self.clusters[use])

    def rates(
        self,
        method: str | Callable[[], LinearMetric] = "rsca",
        *,
        n_features: int | None = None,
        k: int | None = None,
        leave_one_out: bool = True,
        matrices: Mapping[str, np.ndarray] | None = None,
    ) -> DoppelgangerRates:
        """Doppelganger rates of one metric.

        Parameters
        ----------
        method : str or callable
            Name in :data:`chemscale.rsca.registry.METRICS`, or a callable that makes an unfitted metric.
        n_features : int, optional
            Keep the most scaled features only.
        k : int, optional
            Use the first `k` components only.
        leave_one_out : bool
            Fit the metric for a cluster without that cluster (the sphering on the field stays as it is).
        matrices : dict of str to (k, d) array, optional
            Linear maps to rate instead of fitting `method`, one a cluster; clusters without one are skipped.
        """
        k = self.members.shape[1] if k is None else k
        if matrices is None:
            matrices = self.matrices(method, n_features=n_features, k=k, leave_one_out=leave_one_out)
        members = self.members[:, :k] - self.moments.mean[:k]
        wanted, maps, features, thresholds = [], [], [], []
        for j, name in enumerate(self.names):
            if name in matrices:
                x = members[self.groups[j]] @ matrices[name]
                wanted.append(j)
                maps.append(matrices[name])
                features.append(x)
                thresholds.append(median_pair_distance(x))
        counts = self._count(wanted, maps, features, thresholds)
        label = method if isinstance(method, str) else getattr(method, "__name__", "custom")
        return self.summary(wanted, counts, thresholds, label, n_features, leave_one_out)

    def matrices(
        self,
        method: str | Callable[[], LinearMetric] = "rsca",
        *,
        n_features: int | None = None,
        k: int | None = None,
        leave_one_out: bool = True,
    ) -> dict[str, np.ndarray]:
        """The linear map (k, n_features) used for each cluster."""
        if not leave_one_out:
            matrix = self.fit(method, k=k).matrix(n_features)
            return dict.fromkeys(self.names, matrix)
        if len(self.names) < 2:
            raise DataError(
                "leave-one-cluster-out needs two clusters, there is one",
                "add clusters; in Python, leave_one_out=False gives the rate of clusters that the metric has seen",
            )
        return {c: self.fit(method, k=k, train=self.clusters != c).matrix(n_features) for c in self.names}

    def _count(
        self,
        wanted: list[int],
        maps: list[np.ndarray],
        features: list[np.ndarray],
        thresholds: list[float],
    ) -> np.ndarray:
        if isinstance(self.field, da.Array):
            parts = [
                delayed(_count_block)(
                    b, self.moments.mean, delayed(self._candidates)(i, j), wanted, maps, features, thresholds
                )
                for b, (i, j) in zip(self._blocks, self._spans, strict=True)
            ]
            return np.sum(compute(*parts), axis=0)
        if not self.covariates.names:
            total = np.zeros((len(wanted), 2), dtype=np.int64)
            for block, (i, j) in zip(self._blocks, self._spans, strict=True):
                total += _count_block(
                    block, self.moments.mean, self._candidates(i, j), wanted, maps, features, thresholds
                )
            return total
        counts = []
        for j, a, x, t in zip(wanted, maps, features, thresholds, strict=True):
            rows, allowed = self.candidates_of(j)
            counts.append(count_close(rows[:, : len(a)] @ a, x, t, allowed))
        return np.array(counts, dtype=np.int64).reshape(-1, 2)

    def candidates_of(self, j: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Centred coordinates of the field stars cluster number `j` may be compared with, and the pairs allowed.

        Gathered once and kept; for a field in memory only.

        Returns
        -------
        rows : (n, K) float64
        allowed : (n, n_members of the cluster) bool, or None for all pairs
        """
        if self._cache is None:
            candidates = self._candidates(0, len(self.field))
            if candidates.allowed and candidates.allowed[0] is None:  # no cuts: one array serves all clusters
                shared = self.field.astype(np.float64) - self.moments.mean
                self._cache = (candidates, [shared] * len(self.groups))
            else:
                rows = [self.field[r].astype(np.float64) - self.moments.mean for r in candidates.rows]
                self._cache = (candidates, rows)
        candidates, gathered = self._cache
        return gathered[j], candidates.allowed[j]

    def candidate_rows(self, j: int) -> np.ndarray | slice:
        """Rows of the field that :meth:`candidates_of` gathers."""
        self.candidates_of(j)
        assert self._cache is not None
        return self._cache[0].rows[j]

    def thinned(self, n: int) -> Evaluation:
        """The same members with at most `n` evenly spaced field stars (field in memory)."""
        total = self.field.shape[0]
        if total <= n:
            return self
        rows = evenly(total, n)
        noise = self.moments.noise
        return Evaluation(self.field[rows], self.members, self.clusters, self.covariates.at(rows), self.cuts, noise)

    def summary(
        self,
        wanted: list[int],
        counts: np.ndarray,
        thresholds: list[float],
        method: str,
        n_features: int | None,
        leave_one_out: bool,
    ) -> DoppelgangerRates:
        """Rates from counts (close, compared), shape (n_wanted, 2), of the clusters number `wanted`."""
        names = [self.names[j] for j in wanted]
        sizes = np.array([len(self.groups[j]) for j in wanted])
        with np.errstate(invalid="ignore", divide="ignore"):
            rates = np.where(counts[:, 1] > 0, counts[:, 0] / counts[:, 1], np.nan)
        rated = np.isfinite(rates)
        if not rated.any():
            raise DataError(
                "no pair of a member and a field star passes the extinction and velocity cuts",
                "check the covariates `extinction` and `radial_velocity`, or widen or drop the cuts",
            )
        if not rated.all():
            lost = ", ".join(n for n, ok in zip(names, rated, strict=True) if not ok)
            warnings.warn(f"no field star passes the pair cuts for: {lost}; left out of the average", stacklevel=3)
        return DoppelgangerRates(
            overall=float(np.average(rates[rated], weights=sizes[rated])),
            per_cluster=dict(zip(names, rates.tolist(), strict=True)),
            n_members=dict(zip(names, sizes.tolist(), strict=True)),
            n_pairs=dict(zip(names, counts[:, 1].tolist(), strict=True)),
            median_distance=dict(zip(names, thresholds, strict=True)),
            method=method,
            n_features=n_features,
            leave_one_out=leave_one_out,
        )


def evenly(total: int, n: int) -> np.ndarray:
    """`n` evenly spaced rows of `total` (all, if they are fewer)."""
    return np.linspace(0, total - 1, n).astype(np.int64) if total > n else np.arange(total)


def _count_block(
    block: np.ndarray,
    mean: np.ndarray,
    candidates: Candidates,
    wanted: list[int],
    maps: list[np.ndarray],
    features: list[np.ndarray],
    thresholds: list[float],
) -> np.ndarray:
    """Counts (close, compared) of each wanted cluster over one block of field rows, shape (n_wanted, 2)."""
    out = np.zeros((len(wanted), 2), dtype=np.int64)
    centred = np.asarray(block, dtype=np.float64) - mean
    shared: tuple[np.ndarray, np.ndarray] | None = None
    for i, j in enumerate(wanted):
        rows = candidates.rows[j]
        if isinstance(rows, slice):  # no cuts: all clusters see the block; reuse its features if the map is the same
            if shared is None or shared[0] is not maps[i]:
                shared = (maps[i], centred[:, : len(maps[i])] @ maps[i])
            x = shared[1]
        else:
            x = centred[rows][:, : len(maps[i])] @ maps[i]
        out[i] = count_close(x, features[i], thresholds[i], candidates.allowed[j])
    return out


def doppelganger_rates(
    field: Any,
    members: Any = None,
    clusters: Sequence[str] | np.ndarray | None = None,
    *,
    method: str | Callable[[], LinearMetric] = "rsca",
    n_features: int | None = None,
    leave_one_out: bool = True,
    field_extinction: Any = None,
    member_extinction: Any = None,
    field_velocity: Any = None,
    member_velocity: Any = None,
    max_delta_extinction: Any = 0.05,
    max_delta_velocity: Any = 5.0,
) -> DoppelgangerRates:
    """Doppelganger rates of a metric on field stars and clusters (section 4.2).

    Members x field is never formed: the field goes through in blocks, of which a cluster meets only the stars
    inside its extinction and velocity windows. A dask field is read twice (moments, counts) and stays out of core.

    Parameters
    ----------
    field : array, dask array or DataArray, shape (n_field, K); or an embedding Dataset
        An embedding (:func:`chemscale.open_embedding`) brings members, clusters, velocities and extinctions.
    members : array, shape (n_members, K)
    clusters : sequence of str, length n_members
    method : {"rsca", "scaled", "raw"} or callable
        The paper's metric, step 4 alone on the coordinates, or plain Euclidean distance; a callable makes a metric
        with ``fit`` and ``matrix``.
    n_features : int, optional
        Keep the most scaled features only (for "raw": the first coordinates).
    leave_one_out : bool
        Fit steps 3 and 4 without the cluster being rated; basis and sphering stay as they are.
    field_extinction, member_extinction, field_velocity, member_velocity : array, optional
        Left out in pairs = no cut. A NaN never passes a cut: such pairs are not compared. Numbers are mag and km/s,
        quantities are converted.
    max_delta_extinction, max_delta_velocity : float or Quantity
        Pairs must differ by less (mag, km/s).

    Returns
    -------
    DoppelgangerRates
        ``overall`` (weighted by members) and ``per_cluster``.

    Raises
    ------
    InputError, DataError
        Shapes that do not match, no field stars, clusters with one member, more components than the data allow,
        a single cluster with `leave_one_out`, or cuts that no pair passes.

    Examples
    --------
    >>> import numpy as np
    >>> from chemscale import doppelganger_rates
    >>> rng = np.random.default_rng(0)
    >>> field = rng.normal(size=(1000, 6))
    >>> clusters = np.repeat(["M67", "NGC 188", "NGC 6819"], 8)
    >>> members = rng.normal(size=(24, 6))
    >>> members[:, 0] = np.repeat([-1.0, 0.2, 0.9], 8) + 0.05 * rng.normal(size=24)
    >>> raw = doppelganger_rates(field, members, clusters, method="raw")
    >>> rsca = doppelganger_rates(field, members, clusters, n_features=1)
    >>> rsca.overall < raw.overall / 5
    True
    >>> sorted(rsca.per_cluster)
    ['M67', 'NGC 188', 'NGC 6819']
    """
    given = {
        "field_extinction": field_extinction,
        "member_extinction": member_extinction,
        "field_velocity": field_velocity,
        "member_velocity": member_velocity,
    }
    if isinstance(field, xr.Dataset):
        field, members, clusters, found = groups(field)
        given = {name: found.get(name) if values is None else values for name, values in given.items()}
    if members is None or clusters is None:
        raise InputError("there are no members or cluster names", "pass both, or an embedding alone")
    cuts = PairCuts(
        float(plain(max_delta_extinction, "mag", "max_delta_extinction")),
        float(plain(max_delta_velocity, "km/s", "max_delta_velocity")),
    )
    evaluation = Evaluation(field, members, clusters, PairCovariates(**given), cuts)
    return evaluation.rates(method, n_features=n_features, leave_one_out=leave_one_out)
