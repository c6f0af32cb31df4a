"""Distances of sibling and of field pairs as heavy-tailed laws, whose ratio is the likeness of a pair.

Eq. (5) of the paper divides two Gaussians in all kept dimensions. Real pairs are not so: clusters differ in how well
their members agree, stars in their noise, and a few siblings lie far apart, so the Gaussian ratio is far too sure.
A difference vector of d dimensions with a multivariate t law has a squared distance that follows a scaled F law
(beta prime); as its degrees of freedom grow it is the Gaussian again. Both kinds of pairs get one, with the number of
dimensions in common; the five numbers are fitted to pairs whose clusters the metric has not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from scipy.optimize import minimize
from scipy.special import betaln

from chemscale.errors import DataError

#: Pairs of either kind that a fit reads at most.
MAX_PAIRS = 20_000
#: Refits on clusters drawn with replacement that give the interval.
DRAWS = 40

#: Trust in sibling and in field pairs, one array of each a cluster.
Trust = tuple[list[np.ndarray], list[np.ndarray]]


@dataclass(frozen=True)
class PairDistances:
    """Distances of pairs, each under a metric that has not seen the pair's cluster.

    Attributes
    ----------
    siblings, field : list of (n_pairs,) arrays, one of each a cluster
        Between members, and between members and comparable field stars.
    trust : pair of lists of (n_pairs,) arrays, optional
        How far each of these pairs is what it is listed as, between 0 and 1 (:mod:`chemscale.rsca.belonging`): one
        with a stranger among the members tells nothing of siblings. In full by default.
    """

    siblings: list[np.ndarray]
    field: list[np.ndarray]
    trust: Trust | None = None

    @classmethod
    def believing(cls, pairs: Sequence[tuple[np.ndarray, ...]], belonging: Sequence[np.ndarray]) -> Self:
        """Pairs that count as far as the members in them belong to their cluster.

        Parameters
        ----------
        pairs : sequence of three arrays, one a cluster
            Distances (m (m - 1) / 2,) of its m members as ``scipy.spatial.distance.pdist`` orders them, (n,) of
            members and field stars, and (n,) the number of the member in each of the latter.
        belonging : sequence of (m,) arrays
        """
        near, far, member = (list(kind) for kind in zip(*pairs, strict=True))
        return cls(near, far, trust_of(belonging, member))

    @property
    def freedom(self) -> np.ndarray:
        """Independent differences within each cluster: members less one. Pairs of a cluster are more, but no news."""
        n_pairs = np.array([v.sum() for v in self.trusted()[0]], float)
        return (np.sqrt(1 + 8 * n_pairs) - 1) / 2

    def trusted(self) -> Trust:
        """How far each sibling and each field pair counts, cluster by cluster."""
        if self.trust is not None:
            return self.trust
        return [np.ones(len(v)) for v in self.siblings], [np.ones(len(v)) for v in self.field]

    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Weights of the sibling and of the field pairs of all clusters, in order; each kind sums to the freedom."""
        near, far = self.trusted()
        return self._shared(near), self._shared(far)

    def _shared(self, trust: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([f * t / max(t.sum(), 1e-9) for t, f in zip(trust, self.freedom, strict=True)])

    def without(self, j: int) -> PairDistances:
        """Those of all clusters but number `j`."""
        return self.of([i for i in range(len(self.siblings)) if i != j])

    def of(self, clusters: Any) -> PairDistances:
        """Those of the clusters number `clusters`, in that order, repeats included."""
        kinds = [self.siblings, self.field, *(self.trust or ())]
        near, far, *trust = [[kind[i] for i in clusters] for kind in kinds]
        return PairDistances(near, far, (trust[0], trust[1]) if trust else None)

    def as_listed(self) -> PairDistances:
        """The same pairs, every one counting in full."""
        return PairDistances(self.siblings, self.field)


def trust_of(belonging: Sequence[np.ndarray], member: Sequence[np.ndarray]) -> Trust:
    """Trust in the sibling pairs and in the field pairs of each cluster: in both members, and in the one.

    Parameters
    ----------
    belonging : sequence of (m,) arrays, one a cluster
    member : sequence of (n,) int arrays
        The number of the member in each field pair.
    """
    near = [b[i] * b[j] for b in belonging for i, j in [np.triu_indices(len(b), 1)]]
    return near, [b[m] for b, m in zip(belonging, member, strict=True)]


@dataclass(frozen=True)
class PairModel:
    """ln ratio of the densities of a distance among sibling and among field pairs.

    Attributes
    ----------
    shape : float
        Half the effective number of dimensions.
    scale, tail : (2,)
        Squared scale and half the degrees of freedom of siblings and of field pairs.
    """

    shape: float
    scale: tuple[float, float]
    tail: tuple[float, float]

    @classmethod
    def fit(cls, pairs: PairDistances) -> Self:
        """Maximum likelihood; a cluster weighs as its members less one, and siblings together as much as field pairs.

        Raises
        ------
        DataError
            Fewer than ten pairs of a kind.
        """
        thinned = [[_thinned(d, len(v)) for d in v] for v in (pairs.siblings, pairs.field)]
        kinds = [np.concatenate(v) ** 2 for v in thinned]
        if min(map(len, kinds)) < 10:
            raise DataError(f"{len(kinds[0])} sibling and {len(kinds[1])} field pairs", "a likeness needs ten of each")
        typical = [float(np.median(v)) for v in kinds]
        if min(typical) <= 0:
            raise DataError("half of the pairs have no distance at all", "remove duplicated stars")
        values = [np.maximum(v, 1e-9 * t) for v, t in zip(kinds, typical, strict=True)]
        trusted = [[_thinned(d, len(v)) for d in v] for v in pairs.trusted()]
        weights = [w / max(w.sum(), 1e-9) for w in map(pairs._shared, trusted)]
        certainty = np.sqrt(pairs.freedom.sum())

        def loss(theta: np.ndarray) -> float:
            a = np.exp(theta[0])
            total = 0.0
            for i, v in enumerate(values):
                total -= float(weights[i] @ _log_density(v, a, np.exp(theta[1 + i]), np.exp(theta[3 + i])))
            # a weak pull towards moderate tails: with few clusters the tail is hardly known
            return total + 0.5 * float(np.sum((theta[3:] - np.log(5.0)) ** 2)) / certainty

        start = np.array([0.5, *(np.log(2 * t) for t in typical), np.log(5.0), np.log(10.0)])
        bounds = [(-1.5, 4.0), *((np.log(t) - 7, np.log(t) + 12) for t in typical), (-1.0, 8.0), (-1.0, 8.0)]
        best = minimize(loss, start, method="L-BFGS-B", bounds=bounds).x
        found = np.exp(best)
        return cls(float(found[0]), (float(found[1]), float(found[2])), (float(found[3]), float(found[4])))

    def log_ratio(self, distance: Any) -> np.ndarray:
        """ln of (density among siblings / density among field pairs); never rises with distance."""
        v = np.square(np.asarray(distance, dtype=float))
        raw = self._raw(v)
        turn = self._lowest()
        return np.where(v < turn, raw, self._raw(np.minimum(v, turn)))

    def _raw(self, v: np.ndarray) -> np.ndarray:
        parts = [_log_density(np.maximum(v, 1e-300), self.shape, s, b) for s, b in zip(self.scale, self.tail)]
        return parts[0] - parts[1]

    def _lowest(self) -> float:
        """Squared distance beyond which the ratio would rise again (heavier tails among siblings)."""
        (s, f), (b, g) = self.scale, self.tail
        a = self.shape
        # derivative: -(a + b) / (s + v) + (a + g) / (f + v) = 0
        if g <= b:
            return np.inf
        turn = ((a + g) * s - (a + b) * f) / (b - g)
        return float(turn) if turn > 0 else np.inf

    def to_list(self) -> list[float]:
        """Its five numbers, for JSON."""
        return [self.shape, *self.scale, *self.tail]

    @classmethod
    def from_list(cls, values: Any) -> Self:
        """Inverse of :meth:`to_list`."""
        a, s, f, b, g = (float(v) for v in values)
        return cls(a, (s, f), (b, g))


def held_out_ratios(pairs: PairDistances) -> tuple[np.ndarray, np.ndarray]:
    """Predicted ln ratios of the sibling and field pairs of each cluster, by a model of the other clusters' pairs."""
    found: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for j in range(len(pairs.siblings)):
        model = PairModel.fit(pairs.without(j))
        found[0].append(model.log_ratio(pairs.siblings[j]))
        found[1].append(model.log_ratio(pairs.field[j]))
    return np.concatenate(found[0]), np.concatenate(found[1])


def resampled(pairs: PairDistances, draws: int = DRAWS, seed: int = 0) -> list[PairModel]:
    """Models of clusters drawn with replacement: the spread of their ratios is how far clusters determine it."""
    rng = np.random.default_rng(seed)
    n = len(pairs.siblings)
    return [PairModel.fit(pairs.of(rng.integers(0, n, n))) for _ in range(draws)]


def _thinned(values: np.ndarray, n_clusters: int) -> np.ndarray:
    most = max(1, MAX_PAIRS // n_clusters)
    return values[np.linspace(0, len(values) - 1, most).astype(int)] if len(values) > most else values


def _log_density(v: np.ndarray, a: float, scale: float, b: float) -> np.ndarray:
    """Log density of a squared distance: beta prime of shapes `a` and `b`, scaled."""
    x = v / scale
    return (a - 1) * np.log(x) - (a + b) * np.log1p(x) - betaln(a, b) - np.log(scale)
