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


def test_trees_find_more_members_at_the_same_purity():
    features, chance, inside = world(12_000)
    known = np.arange(12_000) < 8000
    learned = membership.learn(features, chance, inside, known)
    assert learned is not None
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
    learned = membership.learn(features, np.full(6000, 0.3), inside, np.ones(6000, dtype=bool))
    assert learned is not None
    top = np.argsort(-learned)[:600]
    assert abs(inside[top].mean() - 0.3) < 0.06


def test_few_members_teach_nothing():
    features, chance, inside = world(1000)
    assert membership.learn(features, chance, inside, np.arange(1000) < 300) is None
