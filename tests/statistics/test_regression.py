"""Regression of pixels: the weighted least-squares solution, whatever the blocks; thin pixels are left alone."""

import numpy as np
import pytest

from chemscale.statistics.regression import block_equations


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    x = np.concatenate([np.ones((400, 1)), rng.normal(size=(400, 3))], axis=1)
    values = x @ rng.normal(size=(4, 7)) + 0.1 * rng.normal(size=(400, 7))
    weights = rng.uniform(0.5, 2, (400, 7)) * (rng.random((400, 7)) > 0.2)
    values[weights == 0] = np.nan
    weights[10:, 6] = 0
    return x, values, weights


def test_coefficients_are_weighted_least_squares_of_the_pixels_that_are_there(problem):
    x, values, weights = problem
    found, left = block_equations(x, values, weights).solve()
    part, _ = block_equations(x, values, weights).solve(slice(0, 2))
    for p in range(6):
        use = weights[:, p] > 0
        root = np.sqrt(weights[use, p])
        expected, rest = np.linalg.lstsq(x[use] * root[:, None], values[use, p] * root, rcond=None)[:2]
        np.testing.assert_allclose(found[p], expected, atol=1e-5)
        assert left[p] == pytest.approx(rest[0], rel=1e-3)
        fewer = np.linalg.lstsq(x[use, :2] * root[:, None], values[use, p] * root, rcond=None)[0]
        np.testing.assert_allclose(part[p], fewer, atol=1e-5)


def test_any_blocks_give_the_same_sums(problem):
    x, values, weights = problem
    whole = block_equations(x, values, weights)
    cut = [slice(0, 33), slice(33, 250), slice(250, 400)]
    first, *more = (block_equations(x[c], values[c], weights[c]) for c in cut)
    total = first
    for part in more:
        total = total + part
    for name, value in vars(whole).items():
        np.testing.assert_allclose(vars(total)[name], value, rtol=1e-5, atol=1e-4)


def test_a_pixel_of_few_stars_has_no_coefficients(problem):
    found, left = block_equations(*problem).solve()
    assert not found[6].any() and left[6] > 0
