"""A better metric, every choice of it made by nested leave-one-cluster-out.

What the paper's recipe leaves on the table, and what is done about it:

* siblings differ in temperature and gravity, non-linearly: coordinates moved to one temperature and gravity
  (:mod:`chemscale.rsca.detrending`) stand beside the plain ones, by the survey's labels or by what plays their part;
* some 160 degrees of freedom for K(K+1)/2 entries of a covariance: the within-cluster covariance is shrunk towards
  what is known of it without clusters, the coordinates' measurement noise or the field's scatter at fixed labels;
* what a continuum left by the normalisation does to the coordinates is known without any star: metrics may ignore it;
* spectra that went wrong are brought back among the field, along what is nuisance (:mod:`chemscale.rsca.outlying`);
* members are weighted by their noise where their scatter is measured, and strangers among them
  (:mod:`chemscale.rsca.belonging`), judged in the form of most labels, hardly count;
* one choice of K, shrinkage and kept dimensions is a lottery: the best choices form a committee, whose distance is
  the root mean square of their distances. It is Euclidean in a space of at most K dimensions a representation;
* where labels of chemistry are known, its leading features are refined by contrast with the field stars that look most
  like siblings.

The rate that is reported is honest: for each cluster the committee is chosen and fitted without it, the choice
itself resting on leave-one-out among the remaining clusters (in folds where there are many).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from chemscale.errors import DataError, InputError
from chemscale.rsca.belonging import DOUBTFUL
from chemscale.rsca.committee import committee_metric
from chemscale.rsca.detrending import LabelDetrending, SelfDetrending, stored_detrending
from chemscale.rsca.likeness import sample_pairs
from chemscale.rsca.moments import check_freedom
from chemscale.rsca.outlying import FieldEdge
from chemscale.rsca.pair_model import PairDistances
from chemscale.rsca.pairs import count_close, median_pair_distance
from chemscale.rsca.rates import DoppelgangerRates
from chemscale.rsca.representation import Candidate, Representation

#: Kept dimensions that are tried (as far as K allows).
KEPT = (3, 4, 5, 6, 8, 10, 12, 16)
#: Weights tried for each target of the shrinkage.
SHRINKAGE = {"noise": (0.3, 0.6, 0.85), "residual": (0.5, 0.8)}
COMMITTEE = 24
#: Folds of clusters in the search; up to as many clusters it is leave-one-cluster-out proper.
MAX_FOLDS = 12
#: Field stars the choice is made on (evenly spaced); the reported rate uses all.
SEARCH_FIELD = 20_000
#: Pairs whose distances the search holds at a time.
BLOCK_PAIRS = 16_384
#: Pairs of a cluster's members and field stars that the likeness rests on, at most.
MAX_LIKENESS_PAIRS = 5_000


@dataclass
class AutoMetric:
    """A committee's metric: a linear map of stacked representations.

    Attributes
    ----------
    names : tuple of str
        Representations, in the order they are stacked.
    k : int
        Coordinates of each representation that are used.
    mean : (n_names, k)
    matrix : (n_names * k, d)
        Maps centred, stacked coordinates to features; squared distances are the committee's mean.
    committee : list of Candidate
    detrendings : dict of str to LabelDetrending or SelfDetrending
        How each representation but "plain" is made of coordinates and labels.
    edge : FieldEdge, optional
        Brings stars in from far outside the field.
    """

    names: tuple[str, ...]
    k: int
    mean: np.ndarray
    matrix: np.ndarray
    committee: list[Candidate] = field(default_factory=list)
    detrendings: dict[str, LabelDetrending | SelfDetrending] = field(default_factory=dict)
    edge: FieldEdge | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of a star that its features depend on."""
        return tuple(dict.fromkeys(n for d in self.detrendings.values() for n in d.names_))

    def features(
        self, coords: np.ndarray, labels: Mapping[str, np.ndarray], n_features: int | None = None
    ) -> np.ndarray:
        """Features (n, d) of coordinates (n, K) and labels; a label that is not given is estimated from coordinates."""
        coords = coords if self.edge is None else self.edge.bring_in(coords)
        forms = {"plain": coords}
        nothing = np.full(len(coords), np.nan)
        for name, detrending in self.detrendings.items():
            forms[name] = detrending.transform(coords, {n: labels.get(n, nothing) for n in detrending.names_})
        return self.transform(forms, n_features)

    def to_dataset(self) -> xr.Dataset:
        """The metric as a Dataset, for :meth:`from_dataset`."""
        ds = xr.Dataset(
            {"mean": (("representation", "component"), self.mean), "matrix": (("stacked", "feature"), self.matrix)}
        )
        ds.attrs = {
            "model": "committee",
            "representations": list(self.names),
            "committee": [c.label() for c in self.committee],
        }
        if self.edge is not None:
            ds = ds.assign(self.edge.variables())
        for number, (name, detrending) in enumerate(self.detrendings.items()):
            state = detrending.to_dict()
            arrays = {k: v for k, v in state.items() if isinstance(v, np.ndarray)}
            ds.attrs[f"detrending_{number}"] = {"name": name, **{k: v for k, v in state.items() if k not in arrays}}
            for k, v in arrays.items():
                ds[f"detrending_{number}_{k}"] = (tuple(f"{number}_{k}_{i}" for i in range(v.ndim)), v)
        return ds

    @classmethod
    def from_dataset(cls, ds: xr.Dataset, committee: Sequence[Candidate] = ()) -> AutoMetric:
        """Metric written by :meth:`to_dataset`, or by release 0.1.

        Raises
        ------
        InputError
            The Dataset holds something else.
        """
        if ds.attrs.get("model") != "committee":
            raise InputError("the dataset does not hold a searched metric", "pass what AutoMetric.to_dataset gave")
        names = tuple(str(v) for v in ds.attrs["representations"])
        detrendings: dict[str, LabelDetrending | SelfDetrending] = {}
        family = "transport" if "transport_0" in ds.attrs else "detrending"  # the former: release 0.1
        for number in range(len(names)):
            prefix = f"{family}_{number}_"
            state = ds.attrs.get(prefix[:-1])
            if state is not None:
                arrays = {str(v)[len(prefix) :]: ds[v].values for v in ds.data_vars if str(v).startswith(prefix)}
                detrendings[str(state["name"])] = stored_detrending({**state, **arrays})
        mean = ds["mean"].values
        edge = FieldEdge.of(ds)
        return cls(names, mean.shape[1], mean, ds["matrix"].values, list(committee), detrendings, edge)

    def transform(self, coords: Mapping[str, Any], n_features: int | None = None) -> np.ndarray:
        """Features (n, d), most telling first, of coordinates by representation, each (n, >= k)."""
        out: Any = 0.0
        for i, name in enumerate(self.names):
            block = self.matrix[i * self.k : (i + 1) * self.k, :n_features]
            out = out + (np.asarray(coords[name])[:, : self.k] - self.mean[i]) @ block
        return out


@dataclass
class AutoResult:
    """What :func:`choose_metric` found.

    Attributes
    ----------
    rates : DoppelgangerRates
        Nested leave-one-cluster-out: nothing about a cluster entered the metric it is rated with.
    metric : AutoMetric
        For use: chosen and fitted on all clusters.
    table : list of dict
        Every candidate's leave-one-out rate (the search's field), best first.
    pairs : PairDistances
        Distances of pairs under the metrics of the rates; those of doubtful members count for nothing.
    maps : dict of str to (n_names * k, d)
        These metrics, by the cluster that each does not know: maps of centred, stacked coordinates.
    belonging : (n_members,)
        How far each listed member counted as one (:mod:`chemscale.rsca.belonging`), between 0 and 1.
    doubtful : list of dict
        ``star_id``, ``cluster`` and ``belonging`` of those that hardly did, where the stars have names.
    belonging_of : dict of str to (int, float)
        Of each cluster the listed members, and for how many these counted.
    """

    rates: DoppelgangerRates
    metric: AutoMetric
    table: list[dict[str, Any]]
    pairs: PairDistances
    maps: dict[str, np.ndarray]
    belonging: np.ndarray
    doubtful: list[dict[str, Any]] = field(default_factory=list)
    belonging_of: dict[str, tuple[int, float]] = field(default_factory=dict)


def choices(form: Representation) -> list[tuple[float, str, bool]]:
    """Ways to estimate a form's within-cluster covariance: (shrinkage, towards what, continuum ignored)."""
    ignoring = (False, True) if form.continuum is not None else (False,)
    out = [(0.0, "mad", False)]
    for target in form.targets:
        out += [(s, target, c) for s in SHRINKAGE.get(target, (0.5,)) for c in ignoring]
    return out if form.targets else [(0.0, "none", False), *out]


class Search:
    """Rates of every candidate on a thinned field, with two folds of clusters left out of the fit.

    A fold is one cluster, or several where there are more than :data:`MAX_FOLDS` clusters (the cost grows with the
    square of the folds). ``rates[candidate, fold left out too, rated cluster]``; the rated cluster's own fold is
    always left out.
    """

    def __init__(self, forms: Mapping[str, Representation], ks: Sequence[int]):
        first = next(iter(forms.values()))
        self.sizes = first.sizes
        freedom = training_freedom(self.sizes)
        self.fold = folds_of(len(self.sizes))
        n_folds = int(self.fold.max()) + 1
        inside = [np.flatnonzero(self.fold == f).tolist() for f in range(n_folds)]
        self.candidates: list[Candidate] = []
        tables: list[np.ndarray] = []
        for name, form in forms.items():
            plans = [(k, *choice) for k in ks for choice in choices(form) if choice[0] or k <= freedom]
            kept = {k: sorted({min(f, k) for f in KEPT}) for k in ks}
            mine = [np.full((len(kept[k]), n_folds, len(self.sizes)), np.nan) for k, *_ in plans]
            for a in range(n_folds):
                for b in range(a, n_folds):
                    out = (*inside[a], *inside[b])
                    view = form.view(out)
                    pairs = {j: _pairs_of(view, j) for j in set(out)}
                    for (k, s, kind, ignore), table in zip(plans, mine, strict=True):
                        matrix = view.full_metric(k, s, kind, ignore, out)
                        for left, own in {(a, b), (b, a)}:
                            for j in inside[own]:
                                table[:, left, j] = _rates_by_kept(view, j, pairs[j], matrix, kept[k])
            tables += mine
            self.candidates += [Candidate(name, k, s, kind, f, c) for k, s, kind, c in plans for f in kept[k]]
        self.rates = np.concatenate(tables)

    def order(self, without: int | None = None) -> np.ndarray:
        """Candidates from best to worst, judged on the clusters outside the fold of cluster `without`."""
        return np.argsort(self.scores(without), kind="stable")

    def scores(self, without: int | None = None) -> np.ndarray:
        """Mean rate of each candidate, weighted by members; neither the fits nor the mean know `without`'s fold."""
        out = -1 if without is None else self.fold[without]
        rated = np.flatnonzero(self.fold != out)
        left = self.fold[rated] if without is None else np.full(len(rated), out)
        values = self.rates[:, left, rated]
        good = np.isfinite(values).all(axis=0)
        if not good.any():
            raise DataError("no cluster has field stars within its pair cuts", "widen or drop the cuts")
        return values[:, good] @ (self.sizes[rated][good] / self.sizes[rated][good].sum())


def training_freedom(sizes: np.ndarray) -> int:
    """Degrees of freedom (members less clusters) of the fewest training clusters: all but two folds of `sizes`."""
    of_fold = np.sort(np.bincount(folds_of(len(sizes)), weights=sizes - 1.0))
    return int(of_fold[:-2].sum())


def folds_of(n_clusters: int) -> np.ndarray:
    """Fold of each cluster: one a cluster, at most :data:`MAX_FOLDS`."""
    return np.arange(n_clusters) % min(n_clusters, MAX_FOLDS)


def _pairs_of(view: Representation, j: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Field coordinates that cluster `j` may be compared with, and the pairs allowed: rows of these and of members."""
    rows, allowed = view.rows(j)
    shape = (len(rows), len(view.groups[j]))
    star, member = np.nonzero(np.ones(shape, bool) if allowed is None else allowed)
    return rows, star, member


def _rates_by_kept(
    view: Representation,
    j: int,
    pairs: tuple[np.ndarray, np.ndarray, np.ndarray],
    matrix: np.ndarray,
    kept: Sequence[int],
) -> np.ndarray:
    """Rates of cluster `j` under the first ``kept[0]``, ``kept[1]``... features; NaN where no pair passes the cuts."""
    rows, star, member = pairs
    if not len(star):
        return np.full(len(kept), np.nan)
    matrix = matrix[:, : kept[-1]]
    x, y = rows[:, : len(matrix)] @ matrix, view.centred[view.groups[j]][:, : len(matrix)] @ matrix
    last = np.array(kept) - 1
    i, m = np.triu_indices(len(y), 1)
    limit = np.square(np.median(np.sqrt(np.cumsum((y[i] - y[m]) ** 2, axis=1)[:, last]), axis=0))
    close = np.zeros(len(kept))
    for start in range(0, len(star), BLOCK_PAIRS):
        some = slice(start, start + BLOCK_PAIRS)
        gap = x[star[some]]
        gap -= y[member[some]]
        np.square(gap, out=gap)
        close += np.sum(np.cumsum(gap, axis=1)[:, last] <= limit, axis=0)
    return close / len(star)


def _rate_without(
    forms: Mapping[str, Representation], committee: Sequence[Candidate], j: int, k_max: int, contrast: bool
) -> tuple[tuple[int, int], float, tuple[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    """Close and compared pairs of cluster `j`, threshold, distances and map under a committee that does not know it."""
    views = {name: form.view((j,)) for name, form in forms.items()}
    matrix = committee_metric(views, committee, (j,), k_max, contrast)[0]
    rows = [view.rows(j) for view in views.values()]
    group = next(iter(views.values())).groups[j]
    members = np.concatenate([view.centred[group] for view in views.values()], axis=1) @ matrix
    threshold = median_pair_distance(members)
    far = np.concatenate([r[0] for r in rows], axis=1) @ matrix
    counts = count_close(far, members, threshold, rows[0][1])
    pairs = sample_pairs(far, members, rows[0][1], MAX_LIKENESS_PAIRS, np.random.default_rng(j))
    return counts, threshold, pairs, matrix


def choose_metric(
    forms: Mapping[str, Representation],
    *,
    ks: Sequence[int] | None = None,
    committee: int = COMMITTEE,
    search_forms: Mapping[str, Representation] | None = None,
    contrast: bool = True,
) -> AutoResult:
    """Choose a committee and rate it by nested leave-one-cluster-out.

    Parameters
    ----------
    forms : mapping of str to Representation
        The same stars in every form; coordinates in memory.
    ks : sequence of int, optional
        Numbers of components to try; by default :func:`default_ks`.
    committee : int
        Members of the committee.
    search_forms : mapping, optional
        The forms on a thinned field, for the search; `forms` by default.
    contrast : bool
        Refine the committee's metric (:mod:`chemscale.rsca.contrastive`) where some form knows the field's scatter at
        fixed chemistry; elsewhere that brought nothing.

    Raises
    ------
    DataError
        Fewer than four clusters, or fewer degrees of freedom than the smallest K.
    """
    first = next(iter(forms.values()))
    evaluation = first.evaluation
    names = evaluation.names
    check_clusters(len(names))
    k_max = evaluation.members.shape[1]
    freedom = training_freedom(first.sizes)
    shrunk = freedom > 0 and any(form.targets for form in forms.values())
    ks = [k for k in (ks or default_ks(k_max)) if k <= (k_max if shrunk else min(k_max, freedom))]
    if not ks:
        check_freedom(evaluation.clusters, k_max)
        raise DataError(
            f"nested cross-validation leaves {freedom} degrees of freedom, too few for a metric", "add cluster members"
        )
    search = Search(search_forms or forms, ks)
    contrast = contrast and any("residual" in form.targets for form in forms.values())
    found = []
    for j in range(len(names)):
        chosen = [search.candidates[i] for i in search.order(without=j)[:committee]]
        found.append(_rate_without(forms, chosen, j, k_max, contrast))
    rates = evaluation.summary(
        list(range(len(names))),
        np.array([counts for counts, *_ in found], dtype=np.int64),
        [threshold for _, threshold, *_ in found],
        method="auto",
        n_features=None,
        leave_one_out=True,
    )
    scores = search.scores()
    order = np.argsort(scores, kind="stable")
    chosen = [search.candidates[i] for i in order[:committee]]
    views = {name: form.view(()) for name, form in forms.items()}
    matrix, stacked, mean = committee_metric(views, chosen, (), k_max, contrast)
    features = (stacked - mean) @ matrix
    axes = np.linalg.eigh(features.T @ features)[1]
    metric = AutoMetric(
        names=tuple(forms),
        k=k_max,
        mean=mean.reshape(len(forms), k_max),
        matrix=matrix @ axes[:, ::-1],  # uncorrelated in the field, largest spread (most telling) first
        committee=chosen,
    )
    table = [{"candidate": search.candidates[i].label(), "leave_one_out": float(scores[i])} for i in order]
    maps = {name: m for name, (*_, m) in zip(names, found, strict=True)}
    belonging = np.mean([view.belonging() for view in views.values()], axis=0)
    believed = np.where(belonging < DOUBTFUL, 0.0, 1.0)  # a stranger's pairs, far apart, outweigh many however little
    pairs = PairDistances.believing([d for _, _, d, _ in found], [believed[group] for group in first.groups])
    counted = {c: (len(g), float(belonging[g].sum())) for c, g in zip(names, first.groups, strict=True)}
    return AutoResult(rates, metric, table, pairs, maps, belonging, belonging_of=counted)


def check_clusters(n: int) -> None:
    """Refuse fewer clusters than nested cross-validation can do with."""
    if n < 4:
        raise DataError(
            f"nested cross-validation needs four clusters, there are {n}", "use --metric paper, or add some"
        )


def default_ks(k_max: int) -> list[int]:
    """Numbers of components to try: four, evenly spaced from half of all to all."""
    return sorted({int(v) for v in np.linspace(max(1, k_max / 2), k_max, 4).round()})
