"""A run remembers how its basis was fitted, and what refits it asks for the same."""

from __future__ import annotations

from dataclasses import asdict
from types import SimpleNamespace

import pytest

from chemscale.rsca.recipes import RECIPES, chosen_recipe, recipe_of


def run_with(settings):
    return SimpleNamespace(manifest={"stages": {"ppca": {"settings": settings}}})


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipe_of_a_run_is_the_one_it_was_fitted_with(name):
    recipe = chosen_recipe(name, tol=0.02, outlier_sigmas=8.0)
    assert recipe_of(run_with({"components": 30, "key": "x", **asdict(recipe)})) == recipe


def test_runs_of_releases_without_recipes_have_the_papers():
    assert recipe_of(run_with({"components": 30})) == RECIPES["paper"]
    old = recipe_of(run_with({"components": 30, "noise": "per-pixel"}))
    assert (old.noise, old.outlier_sigmas) == ("per-pixel", None)
