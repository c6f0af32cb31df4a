"""Classes learned from labelled members."""

from __future__ import annotations

import numpy as np

from chemscale.vae import membership
from chemscale.vae.calibrate import largest_set
from chemscale.vae.evaluate import precision_recall


def world(n: int, seed: int = 0):
    """A class above 0.7 of a quantity whose error a third quantity says; and what a common error makes of it."""
    rng = np.random.default_rng(seed)
    truth = 0.2 + 0.4 * rng.standard_normal(n)
    error = np.where(rng.random(n) < 0.5, 0.02, 0.3)
    seen = truth + error * rng.standard_normal(n)
    chance = 1 / (1 + np.exp(-(seen - 0.7) / 0.1))
    return np.column_stack([seen, error]), chance, truth > 0.7


def numbers(n: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 2**32, n, dtype=np.uint32)


def learn(features: np.ndarray, chance: np.ndarray, inside: np.ndarray, known: np.ndarray) -> np.ndarray:
    trees = membership.grow(features, chance, inside, known, numbers(len(chance)))
    assert trees is not None
    return trees.probability(features, chance, numbers(len(chance)))


def test_trees_find_more_members_at_the_same_purity():
    features, chance, inside = world(12_000)
    known = np.arange(12_000) < 8000
    learned = learn(features, chance, inside, known)
    recall = {}
    for name, p in (("chance", chance), ("trees", learned)):
        flagged = p >= largest_set(p[known], 0.95, inside[known])
        recall[name] = precision_recall(flagged[~known], inside[~known])["recall"]
    flagged = learned >= largest_set(learned[known], 0.95, inside[known])
    assert precision_recall(flagged[~known], inside[~known])["precision"] > 0.92
    assert recall["trees"] > recall["chance"] + 0.1


def test_no_star_is_judged_by_its_own_label():
    """Labels without any relation to the features: nothing may be learned, or purity would be a lie."""
    rng = np.random.default_rng(1)
    features, inside = rng.standard_normal((6000, 6)), rng.random(6000) < 0.3
    learned = learn(features, np.full(6000, 0.3), inside, np.ones(6000, dtype=bool))
    top = np.argsort(-learned)[:600]
    assert abs(inside[top].mean() - 0.3) < 0.06


def test_a_stars_probability_does_not_depend_on_the_stars_beside_it():
    features, chance, inside = world(6000)
    draws = numbers(6000)
    trees = membership.grow(features, chance, inside, np.arange(6000) < 4000, draws)
    assert trees is not None
    whole = trees.probability(features, chance, draws)
    parts = [trees.probability(features[a:b], chance[a:b], draws[a:b]) for a, b in ((0, 7), (7, 4100), (4100, 6000))]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_folds_are_even_and_differ_between_divisions():
    folds = np.stack([membership._folds(numbers(50_000), r, membership.FOLDS) for r in range(membership.REPEATS)])
    for row in folds:
        assert abs(np.bincount(row, minlength=membership.FOLDS) / 50_000 - 1 / membership.FOLDS).max() < 0.01
    for other in folds[1:]:
        assert (folds[0] == other).mean() < 0.25


def test_few_members_teach_nothing():
    features, chance, inside = world(1000)
    assert membership.grow(features, chance, inside, np.arange(1000) < 300, numbers(1000)) is None
