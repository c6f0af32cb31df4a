"""Probability of belonging to a class, learned from labelled members where there are many.

The latents' errors are neither normal nor the same for all stars, and a class's border cuts
through several of them at once. With a few hundred labelled members gradient-boosted trees
learn what is left of that; each labelled star is judged by trees that have not seen it, so
purity counted on labelled stars holds for others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

#: Labelled members (and others) from which trees are grown.
MEMBERS = 200
#: Stars below this probability by calibrated abundances alone are not looked at again.
CANDIDATE = 0.01
FOLDS = 5
REPEATS = 4


@dataclass(frozen=True)
class Trees:
    """Trees of every division of the labelled stars into folds, and every fold left out.

    Attributes
    ----------
    grown : tuple of tuple
        Classifiers by division and by the fold that they have not seen.
    """

    grown: tuple[tuple[Any, ...], ...]

    def probability(self, features: np.ndarray, chance: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Probability of every star, alike for labelled stars and others.

        The mean over the divisions of the trees that have not seen the star's fold. A star without a label has a
        fold too, so that its probability is as good, and no better, than those of the labelled stars on which purity
        is counted.

        Parameters
        ----------
        features, chance, draws : ndarray (n, k), (n,), (n,)
            As for :func:`grow`.

        Returns
        -------
        ndarray (n,)
        """
        candidate = np.flatnonzero(chance > CANDIDATE)
        result = chance.copy()
        result[candidate] = 0.0
        for repeat, trees in enumerate(self.grown):
            fold = _folds(draws[candidate], repeat, len(trees))
            for k, tree in enumerate(trees):
                rows = candidate[fold == k]
                if rows.size:
                    result[rows] += tree.predict_proba(features[rows])[:, 1] / len(self.grown)
        return result


def _folds(draws: np.ndarray, repeat: int, folds: int) -> np.ndarray:
    """Fold of each star in one of the divisions."""
    mixed = draws.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) * np.uint64(2 * repeat + 1)
    return ((mixed >> np.uint64(33)) % np.uint64(folds)).astype(np.int64)


def grow(
    features: np.ndarray, chance: np.ndarray, inside: np.ndarray, known: np.ndarray, draws: np.ndarray
) -> Trees | None:
    """Trees grown from labelled stars; None where labelled members are too few.

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
    draws : ndarray (n,) uint32
        A random number of each star's own, which decides its folds.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    taught = np.flatnonzero((chance > CANDIDATE) & known)
    if min(int(inside[taught].sum()), int((~inside[taught]).sum())) < MEMBERS:
        return None
    grown = []
    for repeat in range(REPEATS):
        fold = _folds(draws[taught], repeat, FOLDS)
        grown.append(
            tuple(
                HistGradientBoostingClassifier(
                    max_iter=120, learning_rate=0.05, max_leaf_nodes=15, l2_regularization=1.0, random_state=0
                ).fit(features[taught[fold != k]], inside[taught[fold != k]])
                for k in range(FOLDS)
            )
        )
    return Trees(tuple(grown))
