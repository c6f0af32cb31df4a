"""Probability of belonging to a class, learned from labelled members where there are many.

The latents' errors are neither normal nor the same for all stars, and a class's border cuts
through several of them at once. With a few hundred labelled members gradient-boosted trees
learn what is left of that; each labelled star is judged by trees that have not seen it, so
purity counted on labelled stars holds for others.
"""

from __future__ import annotations

import numpy as np

#: Labelled members (and others) from which trees are grown.
MEMBERS = 200
#: Stars below this probability by calibrated abundances alone are not looked at again.
CANDIDATE = 0.01
FOLDS = 5
REPEATS = 4


def learn(
    features: np.ndarray, chance: np.ndarray, inside: np.ndarray, known: np.ndarray, seed: int = 0
) -> np.ndarray | None:
    """Probability of every star; None where labelled members are too few.

    Parameters
    ----------
    features : ndarray (n, k)
        What is known of a star; NaN allowed.
    chance : ndarray (n,)
        Probability by calibrated abundances, those of labelled stars from fits without them.
    inside : ndarray of bool (n,)
        Members; read where `known` only.
    known : ndarray of bool (n,)
        Labelled stars.

    Returns
    -------
    ndarray (n,) or None
        Mean over :data:`REPEATS` divisions into folds, of trees that have not seen the star. Stars without
        labels are asked of one fold's trees a time too, so that their probabilities are as good, and no
        better, than those of the labelled stars on which purity is counted.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    candidate = chance > CANDIDATE
    taught = np.flatnonzero(candidate & known)
    if min(int(inside[taught].sum()), int((~inside[taught]).sum())) < MEMBERS:
        return None
    asked = np.flatnonzero(candidate & ~known)
    result = chance.copy()
    result[candidate] = 0.0
    rng = np.random.default_rng(seed)
    for _ in range(REPEATS):
        fold = np.empty(taught.size, dtype=int)
        for kind in (True, False):  # the same share of members in every fold
            rows = rng.permutation(np.flatnonzero(inside[taught] == kind))
            fold[rows] = np.arange(rows.size) % FOLDS
        turn = rng.integers(0, FOLDS, asked.size)
        for k in range(FOLDS):
            trees = HistGradientBoostingClassifier(
                max_iter=120, learning_rate=0.05, max_leaf_nodes=15, l2_regularization=1.0, random_state=seed
            ).fit(features[taught[fold != k]], inside[taught[fold != k]])
            for rows in (taught[fold == k], asked[turn == k]):
                if rows.size:
                    result[rows] += trees.predict_proba(features[rows])[:, 1] / REPEATS
    return result
