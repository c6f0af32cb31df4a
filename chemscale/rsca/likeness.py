"""Calibrated likeness: how probable it is that two stars are siblings, and whether that holds.

The ratio of eq. (5) is a statement about Gaussians. :func:`calibrate` compares it with what pairs of held-out
clusters and field stars do, and learns the monotone correction they ask for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.spatial.distance import pdist
from scipy.special import expit
from sklearn.isotonic import isotonic_regression

from chemscale.display import counted
from chemscale.errors import InputError
from chemscale.rsca.doppelganger import Evaluation
from chemscale.rsca.metric import RSCA
from chemscale.rsca.pair_model import PairDistances, PairModel, held_out_ratios, resampled

#: Slopes on held-out clusters between which a likeness counts as calibrated, and clusters that it takes to know.
SLOPES, FEW_CLUSTERS = (0.7, 1.3), 12


def sibling_probability(log_ratio: Any, prior: float) -> np.ndarray:
    """Chance that a pair is a sibling pair, from the log probability ratio and the prior chance (Bayes).

    Parameters
    ----------
    log_ratio : array
        ln of eq. (5) (the calibrated form), or of an empirical ratio.
    prior : float
        Chance that a random pair is a sibling pair: for birth clusters of m surveyed stars each among n stars,
        about ``(m - 1) / (n - 1)``.
    """
    if not 0 < prior < 1:
        raise InputError(f"prior is {prior}", "give a probability between 0 and 1")
    odds = np.asarray(log_ratio, dtype=float) + np.log(prior) - np.log1p(-prior)
    return expit(odds)


@dataclass(frozen=True)
class LikenessCalibration:
    """Predicted against observed ratios of sibling to field pairs.

    Attributes
    ----------
    predicted, observed : (n_bins,)
        Mean predicted ln ratio of the bin's pairs, and ln of (share of sibling pairs / share of field pairs) in it.
    n_siblings, n_field : (n_bins,)
        Pairs in the bin, each counting as far as it is trusted.
    slope, intercept : float
        Straight line that takes predicted ln ratios to observed ones (logistic regression of siblings against field
        pairs, both kinds weighing alike): 1 and 0 when calibrated. A summary: a few siblings far apart flatten it.
    knots, values : (n_knots,)
        Rising line of straight pieces from predicted to observed ln ratios: the correction.
    """

    predicted: np.ndarray
    observed: np.ndarray
    n_siblings: np.ndarray
    n_field: np.ndarray
    slope: float
    intercept: float
    knots: np.ndarray
    values: np.ndarray

    def correct(self, log_ratio: Any) -> np.ndarray:
        """Predicted ln ratios put on the observed scale; constant beyond the knots, where no pairs tell."""
        return np.interp(np.asarray(log_ratio, dtype=float), self.knots, self.values)


@dataclass(frozen=True)
class Pairs:
    """Distances of pairs under metrics that have not seen their cluster, and what eq. (5) makes of them.

    Attributes
    ----------
    by_cluster : PairDistances
        Distances of sibling pairs and of (member, field star) pairs, cluster by cluster.
    siblings, field : (n,)
        The same of all clusters together.
    sibling_ratio, field_ratio : (n,)
        Predicted ln ratios, eq. (5).
    """

    by_cluster: PairDistances
    sibling_ratio: np.ndarray
    field_ratio: np.ndarray

    @property
    def siblings(self) -> np.ndarray:
        """Distances of the sibling pairs of all clusters."""
        return np.concatenate(self.by_cluster.siblings)

    @property
    def field(self) -> np.ndarray:
        """Distances of the (member, field star) pairs of all clusters."""
        return np.concatenate(self.by_cluster.field)


def sample_pairs(
    rows: np.ndarray, members: np.ndarray, allowed: np.ndarray | None, max_field: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distances between members, of at most `max_field` allowed pairs of a member and a field star, and their members.

    Parameters
    ----------
    rows, members : (n, d), (m, d)
        Features of field stars and of the members of one cluster.
    allowed : (n, m) bool or None
        Pairs that may be compared; None = all.
    """
    shape = (len(rows), len(members))
    pairs = np.arange(shape[0] * shape[1]) if allowed is None else np.flatnonzero(allowed)
    if len(pairs) > max_field:
        pairs = rng.choice(pairs, max_field, replace=False)
    star, member = np.unravel_index(pairs, shape)
    return pdist(members), np.linalg.norm(rows[star] - members[member], axis=1), member


def held_out_pairs(
    evaluation: Evaluation,
    *,
    n_features: int | None = None,
    max_field: int = 20_000,
    seed: int = 0,
    belonging: np.ndarray | None = None,
) -> Pairs:
    """Sibling pairs, and (member, field) pairs within the pair cuts, at most `max_field` of these a cluster.

    `belonging` (n_members,): how far each listed member counts as one (:mod:`chemscale.rsca.belonging`); in full by
    default.
    """
    rng = np.random.default_rng(seed)
    trust = np.ones(len(evaluation.members)) if belonging is None else belonging
    found = []
    ratios: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for j, name in enumerate(evaluation.names):
        metric: RSCA = evaluation.fit("rsca", train=evaluation.clusters != name)
        matrix = metric.matrix(n_features)
        x = (evaluation.members[evaluation.groups[j]] - evaluation.moments.mean) @ matrix
        rows, allowed = evaluation.candidates_of(j)
        found.append(sample_pairs(rows @ matrix, x, allowed, max_field, rng))
        for kind, d in enumerate(found[-1][:2]):
            ratios[kind].append(metric.probability_ratio(d, n_features=n_features, log=True))
    distances = PairDistances.believing(found, [trust[group] for group in evaluation.groups])
    return Pairs(distances, *(np.concatenate(r) for r in ratios))


@dataclass(frozen=True)
class Likeness:
    """What a distance says of a pair: the chance that they are siblings, with an interval.

    Attributes
    ----------
    model : PairModel
        Of all clusters.
    draws : list of PairModel
        Of clusters drawn with replacement.
    correction : LikenessCalibration
        What pairs of held-out clusters ask for still; the slope before it is `correction.slope`.
    n_features : int
        Dimensions of the distance.
    n_clusters : int
        Clusters it rests on; 0 where a file of an earlier release does not say.
    listed_slope : float
        The slope where every listed member counts as one, strangers among them too; NaN where a file does not say.
    """

    model: PairModel
    draws: list[PairModel]
    correction: LikenessCalibration
    n_features: int
    n_clusters: int = 0
    listed_slope: float = np.nan

    @classmethod
    def fit(cls, pairs: PairDistances, n_features: int) -> Likeness:
        """Fit to held-out pairs; the correction rests on models that have not seen the pair's cluster either."""
        ratios = held_out_ratios(pairs)
        near, far = (np.concatenate(v) for v in pairs.trusted())
        correction = calibrate(*ratios, weights=pairs.weights(), trust=(near, far))
        listed = _line(*ratios, pairs.as_listed().weights())[0]
        return cls(PairModel.fit(pairs), resampled(pairs), correction, n_features, len(pairs.siblings), listed)

    @property
    def caution(self) -> str:
        """Why its chances are not to be taken at their word; '' where nothing is known against them."""
        slope, why = self.correction.slope, []
        if not SLOPES[0] <= slope <= SLOPES[1]:
            why.append(f"held-out clusters ask for {slope:.2f} of the logarithm of its ratios")
        if 0 < self.n_clusters < FEW_CLUSTERS:
            why.append(f"it rests on {counted(self.n_clusters, 'cluster')}")
        return "the likeness is not calibrated: " + " and ".join(why) if why else ""

    def highest(self, prior: float) -> float:
        """The largest chance at a prior: pairs closer than all that were counted have no larger one."""
        return float(sibling_probability(self.correction.values.max(), prior))

    def log_ratio(self, distance: Any) -> np.ndarray:
        """ln of the ratio of siblings to field pairs at a distance, corrected."""
        return self.correction.correct(self.model.log_ratio(distance))

    def probability(self, distance: Any, prior: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Chance to be siblings, and the 16th and 84th percentile of it over draws of the clusters."""
        d = np.asarray(distance, dtype=float)
        centre = self.log_ratio(d)
        shifts = np.stack([m.log_ratio(d) for m in self.draws]) - self.model.log_ratio(d)
        low, high = np.quantile(shifts, [0.16, 0.84], axis=0)
        bounds = centre + np.minimum(low, 0), centre, centre + np.maximum(high, 0)
        below, chance, above = (sibling_probability(v, prior) for v in bounds)
        return chance, below, above

    def to_json(self) -> dict[str, Any]:
        """Plain values, for ``evaluation.json``."""
        return {
            **vars(self.correction),
            "n_features": self.n_features,
            "n_clusters": self.n_clusters,
            "listed_slope": self.listed_slope,
            "model": self.model.to_list(),
            "draws": [m.to_list() for m in self.draws],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Likeness:
        """Inverse of :meth:`to_json`."""
        fields: dict[str, Any] = {
            n: v if isinstance(v := values[n], int | float) else np.asarray(v, float)
            for n in LikenessCalibration.__dataclass_fields__
        }
        correction = LikenessCalibration(**fields)
        draws = [PairModel.from_list(v) for v in values["draws"]]
        counts = int(values["n_features"]), int(values.get("n_clusters", 0))
        listed = float(values.get("listed_slope", np.nan))
        return cls(PairModel.from_list(values["model"]), draws, correction, *counts, listed)


def _line(siblings: np.ndarray, field: np.ndarray, weights: tuple[np.ndarray, np.ndarray]) -> tuple[float, float]:
    """Slope (positive) and intercept of ln odds on the predicted ln ratio, by maximum likelihood.

    A weak pull towards (1, 0), worth one sibling, decides where siblings and field do not overlap. `weights` of either
    kind; field pairs together weigh as much as the siblings.
    """
    x = np.clip(np.concatenate([siblings, field]), -40, 40)
    y = np.r_[np.ones(len(siblings)), np.zeros(len(field))]
    weight = np.r_[weights[0], weights[1] * weights[0].sum() / weights[1].sum()]

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        odds = theta[0] * x + theta[1]
        value = np.sum(weight * (np.logaddexp(0, odds) - y * odds)) + 0.5 * ((theta[0] - 1) ** 2 + theta[1] ** 2)
        residual = weight * (expit(odds) - y)
        return float(value), np.array([residual @ x + theta[0] - 1, residual.sum() + theta[1]])

    fit = minimize(loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=[(0.02, 50.0), (-50.0, 50.0)])
    return float(fit.x[0]), float(fit.x[1])


def _rising(
    siblings: np.ndarray, field: np.ndarray, trust: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Knots of the correction: observed ln ratios in bins of predicted ones, made to rise (isotonic regression).

    Bins follow the quantiles of the trusted sibling pairs, finer at both ends, and one holds the field pairs that are
    farther apart than any siblings. Half a pair of each kind is added to a bin, so that an empty one stays finite.
    """
    believed = siblings[_believed(trust[0])]
    shares = np.array([0.02, 0.05, *np.arange(0.1, 0.95, 0.1), 0.95, 0.98])
    shares = shares[np.minimum(shares, 1 - shares) * len(believed) >= 3]
    inner = np.unique(np.r_[believed.min() - 1e-9, np.quantile(believed, shares)])
    near, far = np.searchsorted(inner, siblings), np.searchsorted(inner, field)
    n = len(inner) + 1
    n_near, n_far = (np.bincount(b, t, n) for b, t in zip((near, far), trust, strict=True))
    bins = [siblings[near == b] if n_near[b] else field[far == b] for b in range(n)]
    knots = np.array([np.median(v) if len(v) else np.nan for v in bins])
    observed = np.log((n_near + 0.5) / (n_near.sum() + 0.5)) - np.log((n_far + 0.5) / (n_far.sum() + 0.5))
    good = np.isfinite(knots)
    rising = isotonic_regression(observed[good], sample_weight=(n_near + 0.5)[good])
    return knots[good], np.asarray(rising)


def _believed(trust: np.ndarray) -> np.ndarray:
    """Pairs (n,) bool that are more probably what they are listed as than not; all, where none is."""
    return trust > 0.5 if np.any(trust > 0.5) else np.ones(len(trust), bool)


def calibrate(
    siblings: np.ndarray,
    field: np.ndarray,
    n_bins: int = 8,
    weights: tuple[np.ndarray, np.ndarray] | None = None,
    trust: tuple[np.ndarray, np.ndarray] | None = None,
) -> LikenessCalibration:
    """Compare predicted ln ratios of sibling and field pairs with their observed frequencies.

    Bins hold equal numbers of trusted sibling pairs; those without field pairs are merged into their neighbour.
    `weights` of sibling and field pairs (:meth:`~chemscale.rsca.pair_model.PairDistances.weights`) enter the straight
    line; by default pairs of a kind weigh alike. `trust` (:attr:`~chemscale.rsca.pair_model.PairDistances.trust`) is
    what a pair counts for in the bins.

    Raises
    ------
    InputError
        Fewer than two trusted sibling pairs a bin.
    """
    siblings, field = np.asarray(siblings, dtype=float), np.asarray(field, dtype=float)
    trust = trust or (np.ones(len(siblings)), np.ones(len(field)))
    believed = siblings[_believed(trust[0])]
    if len(believed) < 2 * n_bins or not len(field):
        raise InputError(f"{len(believed)} sibling pairs for {n_bins} bins", "use fewer bins")
    edges = np.quantile(believed, np.linspace(0, 1, n_bins + 1))
    both = np.concatenate([siblings, field])
    edges[0], edges[-1] = min(edges[0], both.min()) - 1e-9, max(edges[-1], both.max()) + 1e-9
    counts = np.histogram(field, edges, weights=trust[1])[0]
    while len(edges) > 2 and counts.min() == 0:  # the most alike end may hold no field pair at all
        empty = int(np.argmin(counts))
        edges = np.delete(edges, empty if empty else 1)
        counts = np.histogram(field, edges, weights=trust[1])[0]
    near = np.histogram(siblings, edges, weights=trust[0])[0]
    # a bin's prediction is its mean ratio over field pairs, whose logarithm is comparable with the observed one
    which = np.digitize(field, edges) - 1
    top = both.max()
    shares = [np.average(np.exp(field[which == b] - top), weights=trust[1][which == b]) for b in range(len(counts))]
    predicted = np.log(shares) + top
    observed = np.log(near / near.sum()) - np.log(counts / counts.sum())
    if weights is None:
        n = min(len(siblings), len(field))
        weights = np.full(len(siblings), n / len(siblings)), np.full(len(field), n / len(field))
    slope, intercept = _line(siblings, field, weights)
    return LikenessCalibration(predicted, observed, near, counts, slope, intercept, *_rising(siblings, field, trust))
