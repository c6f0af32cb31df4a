"""How certain a doppelganger rate is."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from chemscale.rsca.rates import DoppelgangerRates


def bootstrap(
    rates: DoppelgangerRates | tuple[np.ndarray, np.ndarray], draws: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """Standard error and 16-84 % interval of a global rate, from clusters drawn with replacement.

    The clusters are the experiment's independent units: their number, not the number of pairs, limits a rate.

    Parameters
    ----------
    rates : DoppelgangerRates, or (rates, weights) arrays of shape (n_clusters,)
    draws, seed : int

    Returns
    -------
    (float, float, float)
        Standard error, 16th and 84th percentile.
    """
    if isinstance(rates, tuple):
        values, weights = (np.asarray(v, float) for v in rates)
    else:
        values = np.array(list(rates.per_cluster.values()), float)
        weights = np.array([rates.n_members[c] for c in rates.per_cluster], float)
    good = np.isfinite(values)
    values, weights = values[good], weights[good]
    pick = np.random.default_rng(seed).integers(0, len(values), (draws, len(values)))
    means = np.sum(values[pick] * weights[pick], axis=1) / np.sum(weights[pick], axis=1)
    low, high = np.quantile(means, [0.16, 0.84])
    return float(means.std(ddof=1)), float(low), float(high)


def paired(
    first: Mapping[str, float],
    second: Mapping[str, float],
    weights: Mapping[str, int],
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Difference of two global rates on the same clusters, and its standard error.

    Clusters are drawn with replacement for both rates at once: what makes a cluster hard for both cancels.

    Parameters
    ----------
    first, second : mapping of cluster to rate
    weights : mapping of cluster to number of members
    """
    shared = [c for c in first if _known(first[c]) and _known(second.get(c))]
    if not shared:
        return float("nan"), float("nan")
    delta = np.array([first[c] - second[c] for c in shared])
    size = np.array([weights[c] for c in shared], float)
    if len(shared) < 2:
        return float(delta[0]), float("nan")
    return float(np.average(delta, weights=size)), bootstrap((delta, size), seed=seed)[0]


def _known(rate: float | None) -> bool:
    """Whether a cluster was rated: JSON has None for NaN."""
    return rate is not None and bool(np.isfinite(rate))
