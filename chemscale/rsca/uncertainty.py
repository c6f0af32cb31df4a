"""How certain a doppelganger rate is."""

from __future__ import annotations

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
