"""A better metric, every choice of it made by nested leave-one-cluster-out.

What the paper's recipe leaves on the table, and what is done about it:

* siblings differ in temperature and gravity, non-linearly: coordinates moved to one temperature and gravity
  (:mod:`chemscale.rsca.transport`) stand beside the plain ones;
* some 160 degrees of freedom for K(K+1)/2 entries of a covariance: the within-cluster covariance is shrunk towards
  what is known of it without clusters, the coordinates' measurement noise or the field's scatter at fixed labels;
* one choice of K, shrinkage and kept dimensions is a lottery: the best choices form a committee, whose distance is
  the root mean square of their distances. It is Euclidean in a space of at most K dimensions a representation.

The rate that is reported is honest: for each cluster the committee is chosen and fitted without it, the choice
itself resting on leave-one-out among the remaining clusters (in folds where there are many).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
from scipy.linalg import eigh

from chemscale.errors import DataError
from chemscale.rsca.doppelganger import DoppelgangerRates, Evaluation
from chemscale.rsca.metric import FieldMoments, check_freedom, pooled_sigma

#: Kept dimensions that are tried (as far as K allows).
KEPT = (3, 4, 5, 6, 8, 10, 12, 16)
SHRINKAGE = (0.2, 0.5, 0.7, 0.85)
COMMITTEE = 24
#: Folds of clusters in the search; up to as many clusters it is leave-one-cluster-out proper.
MAX_FOLDS = 25
#: Field stars the choice is made on (evenly spaced); the reported rate uses all.
SEARCH_FIELD = 20_000


@dataclass(frozen=True, order=True)
class Candidate:
    """One way to make a metric: coordinates, how many of them, shrinkage and towards what, dimensions kept.

    `kind` is the target of the shrinkage (a key of :attr:`Representation.targets`), or "mad" for scales from the median
    absolute deviation as in the paper.
    """

    representation: str
    k: int
    shrinkage: float
    kind: str
    n_features: int

    def label(self) -> str:
        """Short text for tables."""
        kind = "MAD" if self.kind == "mad" else f"shrink {self.shrinkage:g} to {self.kind}"
        return f"{self.representation}, K = {self.k}, {kind}, {self.n_features} kept"


def shrunk_metric(
    within: np.ndarray, field_covariance: np.ndarray, target: np.ndarray | None = None, shrinkage: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Axes and scales from a within-cluster covariance.

    Solves ``W a = w C a`` (sphering and rotation in one step), with W shrunk towards a target, and scales
    axis i by ``sqrt((1 - w_i) / w_i)``, which is 1 / sigma_r of eq. (4).

    Parameters
    ----------
    within, field_covariance : (k, k)
    target : (k, k), optional
    shrinkage : float in [0, 1)
        Weight of the target.

    Returns
    -------
    matrix : (k, k)
        Maps centred coordinates to features, most scaled first.
    sigma : (k,)
        Root of the w_i.
    """
    if shrinkage and target is not None:
        within = (1 - shrinkage) * within + shrinkage * target
    w, axes = eigh(within, field_covariance)
    w = np.maximum(w, 1e-12)
    return axes * np.sqrt(np.maximum(1 - w, 0) / w), np.sqrt(w)


@dataclass
class Representation:
    """Coordinates of the same stars in one form.

    Attributes
    ----------
    evaluation : Evaluation
        Holds field and members of this form, and the pair cuts.
    targets : dict of str to (K, K)
        Covariances the within-cluster covariance may be shrunk towards; none of them knows clusters. "noise": mean
        measurement covariance of the members' coordinates. "residual": field scatter at fixed labels.
    """

    evaluation: Evaluation
    targets: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        e = self.evaluation
        self.centred = e.members - e.moments.mean
        self.scatter = []
        for group in e.groups:
            x = self.centred[group] - self.centred[group].mean(axis=0)
            self.scatter.append(x.T @ x)
        self.total = np.sum(self.scatter, axis=0)
        self.sizes = np.array([len(g) for g in e.groups])

    def metric(self, c: Candidate, left_out: Sequence[int] = ()) -> np.ndarray:
        """Map (k, n_features) fitted without the clusters `left_out`."""
        return self.full_metric(c.k, c.shrinkage, c.kind, left_out)[:, : c.n_features]

    def full_metric(self, k: int, shrinkage: float, kind: str, left_out: Sequence[int] = ()) -> np.ndarray:
        """Map (k, k), most scaled feature first."""
        out = sorted(set(left_out))
        freedom = self.sizes.sum() - len(self.sizes) - sum(self.sizes[j] - 1 for j in out)
        within = (self.total - sum((self.scatter[j] for j in out), np.zeros_like(self.total)))[:k, :k] / freedom
        moments: FieldMoments = self.evaluation.moments.leading(k)
        target = self.targets[kind][:k, :k] if shrinkage else None
        matrix, sigma = shrunk_metric(within, moments.covariance, target, shrinkage)
        if kind != "mad":
            return matrix
        use = ~np.isin(self.evaluation.clusters, [self.evaluation.names[j] for j in out])
        axes = matrix / np.maximum(np.sqrt(np.maximum(1 - sigma**2, 0)) / sigma, 1e-12)
        with np.errstate(divide="ignore"):
            mad = np.maximum(pooled_sigma(self.centred[use][:, :k] @ axes, self.evaluation.clusters[use]), 1e-6)
            scale = np.sqrt(np.maximum(1 - mad**2, 0)) / mad
        order = np.argsort(-scale, kind="stable")
        return (axes * scale)[:, order]


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
    """

    names: tuple[str, ...]
    k: int
    mean: np.ndarray
    matrix: np.ndarray
    committee: list[Candidate] = field(default_factory=list)

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
    """

    rates: DoppelgangerRates
    metric: AutoMetric
    table: list[dict[str, Any]]


class Search:
    """Rates of every candidate on a thinned field, with two folds of clusters left out of the fit.

    A fold is one cluster, or several where there are more than :data:`MAX_FOLDS` clusters (the cost grows with the
    square of the folds). ``rates[candidate, fold left out too, rated cluster]``; the rated cluster's own fold is
    always left out.
    """

    def __init__(self, forms: Mapping[str, Representation], ks: Sequence[int], shrinkage: Sequence[float] = SHRINKAGE):
        first = next(iter(forms.values()))
        self.sizes = first.sizes
        self.fold = folds_of(len(self.sizes))
        n_folds = int(self.fold.max()) + 1
        inside = [np.flatnonzero(self.fold == f).tolist() for f in range(n_folds)]
        self.candidates: list[Candidate] = []
        tables = []
        for name, form in forms.items():
            choices = [(0.0, "none"), (0.0, "mad"), *((s, t) for t in form.targets for s in shrinkage if s > 0)]
            for k, (s, kind) in product(ks, choices):
                kept = sorted({min(f, k) for f in (*KEPT, k)})
                self.candidates += [Candidate(name, k, s, kind, f) for f in kept]
                table = np.full((len(kept), n_folds, len(self.sizes)), np.nan)
                for a in range(n_folds):
                    for b in range(a, n_folds):
                        matrix = form.full_metric(k, s, kind, (*inside[a], *inside[b]))
                        for left, own in {(a, b), (b, a)}:
                            for j in inside[own]:
                                table[:, left, j] = _rates_by_kept(form.evaluation, j, matrix, kept)
                tables.append(table)
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


def folds_of(n_clusters: int) -> np.ndarray:
    """Fold of each cluster: one a cluster, at most :data:`MAX_FOLDS`."""
    return np.arange(n_clusters) % min(n_clusters, MAX_FOLDS)


def _rates_by_kept(evaluation: Evaluation, j: int, matrix: np.ndarray, kept: Sequence[int]) -> np.ndarray:
    """Rates of cluster `j` under the first ``kept[0]``, ``kept[1]``... features; NaN where no pair passes the cuts."""
    rows, allowed = evaluation.candidates_of(j)
    k = len(matrix)
    x = rows[:, :k] @ matrix[:, : kept[-1]]
    y = (evaluation.members[evaluation.groups[j]] - evaluation.moments.mean)[:, :k] @ matrix[:, : kept[-1]]
    n_pairs = allowed.sum() if allowed is not None else x.shape[0] * y.shape[0]
    if not n_pairs:
        return np.full(len(kept), np.nan)
    i, m = np.triu_indices(len(y), 1)
    far, near = np.zeros((len(x), len(y))), np.zeros(len(i))
    out, done = np.empty(len(kept)), 0
    for p, f in enumerate(kept):
        u, v = x[:, done:f], y[:, done:f]
        far += np.einsum("ij,ij->i", u, u)[:, None] + np.einsum("ij,ij->i", v, v) - 2 * u @ v.T
        near += np.sum((v[i] - v[m]) ** 2, axis=1)
        close = far <= np.median(np.sqrt(near)) ** 2
        out[p] = np.sum(close if allowed is None else close & allowed) / n_pairs
        done = f
    return out


def _committee_maps(
    forms: Mapping[str, Representation], committee: Sequence[Candidate], left_out: Sequence[int], k_max: int
) -> np.ndarray:
    """Stacked map (n_forms * k_max, d) whose Euclidean distance is the committee's root mean square distance."""
    names = list(forms)
    stacked = []
    for c in committee:
        block = np.zeros((len(names) * k_max, c.n_features))
        start = names.index(c.representation) * k_max
        block[start : start + c.k] = forms[c.representation].metric(c, left_out)
        stacked.append(block / np.sqrt(len(committee)))
    wide = np.concatenate(stacked, axis=1)
    # wide @ wide.T is all that distances see; its factor has few columns
    values, axes = np.linalg.eigh(wide @ wide.T)
    keep = values > 1e-12 * values[-1]
    return (axes[:, keep] * np.sqrt(values[keep]))[:, ::-1]


def choose_metric(
    forms: Mapping[str, Representation],
    *,
    ks: Sequence[int] | None = None,
    committee: int = COMMITTEE,
    search_forms: Mapping[str, Representation] | None = None,
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

    Raises
    ------
    DataError
        Fewer than four clusters, or fewer degrees of freedom than the smallest K.
    """
    first = next(iter(forms.values()))
    names = first.evaluation.names
    if len(names) < 4:
        raise DataError(
            f"nested cross-validation needs four clusters, there are {len(names)}",
            "use --metric paper, or add clusters",
        )
    k_max = first.evaluation.members.shape[1]
    of_fold = np.sort(np.bincount(folds_of(len(names)), weights=first.sizes - 1.0))
    freedom = int(of_fold[:-2].sum())
    ks = [k for k in (ks or default_ks(k_max)) if k <= min(k_max, freedom)]
    if not ks:
        check_freedom(first.evaluation.clusters, k_max)
        raise DataError(
            f"nested cross-validation leaves {freedom} degrees of freedom, too few for a metric", "add cluster members"
        )
    search = Search(search_forms or forms, ks)
    joint = _joint(forms)
    matrices = {}
    for j, name in enumerate(names):
        chosen = [search.candidates[i] for i in search.order(without=j)[:committee]]
        matrices[name] = _committee_maps(forms, chosen, (j,), k_max)
    rates = joint.rates("auto", matrices=matrices)
    scores = search.scores()
    order = np.argsort(scores, kind="stable")
    chosen = [search.candidates[i] for i in order[:committee]]
    matrix = _committee_maps(forms, chosen, (), k_max)
    axes = np.linalg.eigh(matrix.T @ joint.moments.covariance @ matrix)[1]
    metric = AutoMetric(
        names=tuple(forms),
        k=k_max,
        mean=joint.moments.mean.reshape(len(forms), k_max),
        matrix=matrix @ axes[:, ::-1],  # uncorrelated in the field, largest spread (most telling) first
        committee=chosen,
    )
    table = [{"candidate": search.candidates[i].label(), "leave_one_out": float(scores[i])} for i in order]
    return AutoResult(rates, metric, table)


def default_ks(k_max: int) -> list[int]:
    """Numbers of components to try: five, evenly spaced from a third of all to all."""
    return sorted({int(v) for v in np.linspace(max(1, k_max / 3), k_max, 5).round()})


def _joint(forms: Mapping[str, Representation]) -> Evaluation:
    """An evaluation of the stacked coordinates, with the pair cuts of the first form."""
    evaluations = [f.evaluation for f in forms.values()]
    if len(evaluations) == 1:
        return evaluations[0]
    return evaluations[0].with_features(
        np.concatenate([e.field for e in evaluations], axis=1),
        np.concatenate([e.members for e in evaluations], axis=1),
    )
