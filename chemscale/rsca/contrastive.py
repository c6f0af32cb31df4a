"""A metric refined by contrast: siblings against the field stars that look most like them.

Covariances know scatter; what a doppelganger rate counts is which strangers lie closer than siblings do. A linear map
of the leading features, started at the identity, minimises the loss of neighbourhood component analysis (Goldberger et
al. 2005) over the members: the share of a star's neighbourhood that is not its siblings. It has few parameters and is
pulled to the identity; several, each from half of the clusters, are stacked, so that distances are the root mean square
of theirs. The result is linear, so it takes the place of the metric it started from.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize
from scipy.spatial.distance import cdist

from chemscale.rsca.doppelganger import evenly

#: Leading features that are refined; the others, which hardly count, are dropped.
FEATURES = 8
#: Field stars a member is contrasted with, its nearest, and field stars these are taken from, at most.
NEGATIVES, FIELD = 200, 20_000
#: Members that are learned from, at most (evenly spaced).
MEMBERS = 1_000
#: Pulls to the identity, and draws of half of the clusters for each.
PENALTIES, DRAWS = (0.1, 1.0), 4
#: Members a draw needs; with fewer all clusters are taken.
LEAST = 20


def refine(
    field: np.ndarray, members: np.ndarray, clusters: np.ndarray, belonging: np.ndarray | None = None, seed: int = 0
) -> np.ndarray:
    """A map (d, <= 8) from features to better ones.

    Parameters
    ----------
    field : (n_field, d)
        Features of field stars, on the scale on which siblings differ by about one in each.
    members : (n, d)
    clusters : (n,)
        Their clusters: none with one member.
    belonging : (n,), optional
        How far each counts as a member of its cluster (:mod:`chemscale.rsca.belonging`); in full by default.
    seed : int
        Of the draws of clusters.
    """
    values, axes = np.linalg.eigh(np.cov(field.T))
    turn = axes[:, ::-1][:, :FEATURES]
    rows = evenly(len(members), min(len(members), MEMBERS))
    x, names = members[rows] @ turn, clusters[rows]
    trust = np.ones(len(rows)) if belonging is None else belonging[rows]
    strangers = field[evenly(len(field), min(len(field), FIELD))] @ turn
    n_near = min(NEGATIVES, len(strangers))
    near = np.stack([np.argpartition(cdist(m[None], strangers)[0], n_near - 1)[:n_near] for m in x])
    rng, groups, stacked = np.random.default_rng(seed), np.unique(names), []
    for draw in range(DRAWS):
        if draw % 2 == 0:
            order = rng.permutation(groups)  # two draws are the halves of one order: every cluster counts alike
        kept = np.isin(names, order[draw % 2 :: 2])
        if kept.sum() < LEAST:
            kept = np.ones(len(names), bool)
        stacked += [
            _contrast(x[kept], names[kept], trust[kept], strangers, near[kept], penalty) for penalty in PENALTIES
        ]
    wide = np.concatenate(stacked, axis=1) / np.sqrt(len(stacked))
    values, axes = np.linalg.eigh(wide @ wide.T)  # all that distances see
    return turn @ (axes * np.sqrt(np.maximum(values, 0)))[:, ::-1]


def _contrast(
    x: np.ndarray, clusters: np.ndarray, trust: np.ndarray, strangers: np.ndarray, near: np.ndarray, penalty: float
) -> np.ndarray:
    """The map (d, d) of one draw: `near` (n, k) are rows of `strangers`, `trust` (n,) weighs members."""
    n, d = x.shape
    one, two = np.nonzero((clusters[:, None] == clusters) & ~np.eye(n, dtype=bool))
    owner = np.concatenate([one, np.repeat(np.arange(n), near.shape[1])])
    order = np.argsort(owner, kind="stable")
    sibling = (order < len(one)).astype(float)
    share = np.concatenate([trust[two], np.ones(near.size)])[order]
    gaps = np.concatenate([x[one] - x[two], (x[:, None] - strangers[near]).reshape(-1, d)])[order]
    bounds = np.flatnonzero(np.diff(owner[order], prepend=-1))
    size = np.diff([*bounds, len(owner)])
    each = np.repeat(trust, size)

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        change = flat.reshape(d, d)
        mapped = gaps @ (np.eye(d) + change)
        logits = -0.25 * np.einsum("ij,ij->i", mapped, mapped)
        weight = share * np.exp(logits - np.repeat(np.maximum.reduceat(logits, bounds), size))
        among = np.add.reduceat(weight, bounds)
        alike = np.add.reduceat(weight * sibling, bounds) + 1e-12 * among
        pull = each * weight * (1 / np.repeat(among, size) - sibling / np.repeat(alike, size))
        gradient = -0.5 * gaps.T @ (pull[:, None] * mapped) + 2 * penalty * n * change
        return float(np.sum(trust * np.log(among / alike)) + penalty * n * np.sum(change**2)), gradient.ravel()

    found = minimize(loss, np.zeros(d * d), jac=True, method="L-BFGS-B", options={"maxiter": 60}).x
    return np.eye(d) + found.reshape(d, d)
