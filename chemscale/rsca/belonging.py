"""Listed members that are no siblings: how far each counts, and the scatter of a cluster's members without them.

A tenth of the stars listed as members of open clusters may be of the field. One of them, squared, outweighs many
members where members scatter least, which is what a metric lives on. Here a member counts by its distance from the
centre of its cluster, in units of the scatter within all clusters, which is found with these weights in turn (an
M-estimator of location and scatter; Maronna 1976, Ann. Stat. 4, 51). The distance is measured along the directions in
which members scatter least beside the field: along the many others a stranger is as near as any sibling.

Members are doubted only where the list shows strangers: where a mixture of siblings, with heavy tails, and field stars
explains these distances better than siblings alone, by more than the share of strangers costs as a parameter (half the
logarithm of the number of members; Schwarz 1978, Ann. Stat. 6, 461). Elsewhere the outermost members are what tells
how far members scatter, and with few clusters no metric can do without them.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import eigh
from scipy.sparse import csr_array
from scipy.special import gammaln

#: Directions that distances are measured along.
LEADING = 8
#: Members count in full up to so many standard deviations beyond the squared distance that is expected of them: where
#: the survey's abundances say what members scatter by, and where siblings differ in what no label tells.
SLACK, SLACK_UNKNOWN = 3.0, 10.0
#: How their weight falls beyond, as a power of the squared distance.
POWER = 2.0
#: Share of the prior covariance in the scatter that distances are measured in.
SHRINKAGE = 0.5
STEPS = 12
#: Degrees of freedom of the t law that siblings have in the mixture, and shares of strangers that are tried.
TAIL, SHARES = 8.0, np.geomspace(1e-3, 0.5, 40)
#: Below this a member counts as doubtful.
DOUBTFUL = 0.5
#: Below this share of members that belong a cluster's list as a whole does.
DOUBTFUL_CLUSTER = 2 / 3


def robust_scatter(
    x: np.ndarray,
    group: np.ndarray,
    weights: np.ndarray,
    field: np.ndarray,
    prior: np.ndarray | None,
    slack: float = SLACK,
) -> tuple[np.ndarray, np.ndarray]:
    """Covariance within groups (K, K), and how far each star belongs to its own (n,), between 0 and 1.

    Parameters
    ----------
    x : (n, K)
        Coordinates of members.
    group : (n,) int
        Number of each star's group, from 0; every number has two stars or more.
    weights : (n,)
        What a star counts for if it belongs.
    field : (K, K)
        Covariance of field stars.
    prior : (K, K), optional
        What the covariance is known to be like; without it every star belongs in full, as where nothing tells of
        strangers.
    slack : float
        Standard deviations beyond the expected squared distance up to which a star counts in full.
    """
    inside = csr_array((np.ones(len(x)), (group, np.arange(len(x)))))
    belonging = np.ones(len(x))
    leading = min(LEADING, x.shape[1])
    typical = leading * (1 - 2 / (9 * leading)) ** 3  # median of chi-squared
    limit = leading + slack * np.sqrt(2 * leading)
    centre = inside @ x / np.bincount(group)[:, None]
    if prior is not None:  # half of a small cluster may be strangers
        for number in np.flatnonzero(np.bincount(group) > 2):
            centre[number] = np.median(x[group == number], axis=0)
    for step in range(STEPS + 1):
        w = weights * belonging
        total = np.maximum(inside @ w, 1e-300)
        if step or prior is None:
            centre = inside @ (w[:, None] * x) / total[:, None]
        gap = x - centre[group]
        scatter = (gap.T * w) @ gap / np.sum(total - inside @ w**2 / total)
        if prior is None or step == STEPS:
            break
        spread, axes = eigh((1 - SHRINKAGE) * scatter + SHRINKAGE * prior, field, subset_by_index=(0, leading - 1))
        along = (gap @ axes) ** 2
        squared = np.sum(along / spread, axis=1)
        squared /= 1 - 0.999 * w / total[group]  # a centre follows the few stars it is of
        squared /= max(1.0, np.median(squared) / typical)  # the prior may be smaller than what members scatter by
        belonging = (limit / np.maximum(squared, limit)) ** POWER
    if prior is not None and evidence(squared, along.sum(axis=1), spread) <= np.log(len(x)) / 2:
        return robust_scatter(x, group, weights, field, None)
    return scatter, belonging


def evidence(squared: np.ndarray, apart: np.ndarray, spread: np.ndarray) -> float:
    """Logarithm of the likelihood of members and strangers over that of members alone, at the likeliest share.

    Parameters
    ----------
    squared, apart : (n,)
        Squared distances of stars from the centre of their cluster, in units of the scatter of members and of the
        field.
    spread : (m,)
        Variances of members along the directions that these are measured along, in units of the field's.
    """
    m = len(spread)
    sibling = gammaln((TAIL + m) / 2) - gammaln(TAIL / 2) - m / 2 * np.log(TAIL * np.pi) - np.log(spread).sum() / 2
    sibling = sibling - (TAIL + m) / 2 * np.log1p(squared / TAIL)
    stranger = -m / 2 * np.log(4 * np.pi) - apart / 4  # from a centre that is another's: twice the field's variance
    share = SHARES[:, None]
    return float(np.logaddexp(np.log1p(-share), np.log(share) + stranger - sibling).sum(axis=1).max())
