"""The in-memory part of a step: what the completed covariance does when the basis turns."""

import numpy as np
import pytest

from chemscale.statistics import compiled
from chemscale.statistics.ppca_imputation import newton_rows, self_consistent
from chemscale.statistics.ppca_kernels import invert_spd


def psd(rng, n, count=1):
    a = rng.standard_normal((count, n, 2 * n))
    out = a @ a.transpose(0, 2, 1) / n
    return out if count > 1 else out[0]


def test_without_missing_pixels_it_is_the_eigenproblem():
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.standard_normal((40, 9)))[0]
    ritz = psd(rng, 9)
    found = self_consistent(ritz, directions, 3, 5, np.zeros((40, 3, 3)), np.zeros(40), 1e-9)
    values, vectors = np.linalg.eigh(ritz)
    np.testing.assert_allclose(found.values, values[::-1][:5], rtol=1e-12)
    np.testing.assert_allclose(np.abs(np.sum(found.vectors * vectors[:, ::-1][:, :5], axis=0)), 1, rtol=1e-9)
    np.testing.assert_allclose(found.answer, 0, atol=1e-12)


def test_the_solution_is_a_fixed_point_of_its_own_covariance():
    """Rebuild the changed covariance from its definition and check the eigenvectors."""
    rng = np.random.default_rng(1)
    p, d, k = 60, 12, 3
    directions = np.linalg.qr(rng.standard_normal((p, d)))[0]
    ritz = np.diag(np.linspace(3, 0.1, d)) + 0.05 * psd(rng, d)
    fraction = rng.uniform(0, 0.2, p)
    latent2 = fraction[:, None, None] * np.diag(np.diag(ritz)[:k])
    found = self_consistent(ritz, directions, k, k, latent2, fraction, 1e-12)
    lead = found.vectors
    basis, new = directions[:, :k], directions @ lead
    change = new @ (new.T @ basis) - basis  # (P - P0) B
    answer = np.einsum("pk,pkl->pl", change, latent2)
    residuals = (directions @ ritz[:, k:]) @ (lead[k:] @ lead[:k].T)  # the latents' share of what moved
    filled = fraction[:, None] * basis
    whole = directions @ ritz @ directions.T
    whole = whole + answer @ basis.T + basis @ answer.T + residuals @ filled.T + filled @ residuals.T
    inside = directions.T @ whole @ directions
    np.testing.assert_allclose(inside @ lead, lead * found.values, atol=2e-2 * np.linalg.norm(lead[k:]))
    plain = np.linalg.eigh(ritz)[1][:, ::-1][:, :k]
    assert np.linalg.norm(inside @ plain - plain @ (plain.T @ inside @ plain)) > 3 * np.linalg.norm(
        inside @ lead - lead * found.values
    )


def test_newton_rows_solve_each_pixels_system():
    rng = np.random.default_rng(2)
    spread = np.array([3.0, 2.0, 1.0])
    latent2 = 0.1 * psd(rng, 3, 20)
    residual = rng.standard_normal((20, 3))
    rows = newton_rows(residual, spread, latent2)
    for r, x, u in zip(residual, rows, latent2):
        assert np.linalg.eigvalsh(u / np.sqrt(np.outer(spread, spread))).max() < 1
        np.testing.assert_allclose(x @ (np.diag(spread) - 0.97 * u), r, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(newton_rows(residual, spread, None), residual / spread)


def test_a_pixel_all_missing_gives_a_bounded_step():
    rows = newton_rows(np.ones((1, 2)), np.ones(2), np.eye(2)[None])
    assert np.isfinite(rows).all()
    assert np.abs(rows).max() < 50


@pytest.mark.parametrize("k", [1, 2, 7, 30])
def test_compiled_inverse_against_lapack(k):
    matrices = psd(np.random.default_rng(k), k, 5) + 0.1 * np.eye(k)
    inverse, logdet = invert_spd(matrices)
    np.testing.assert_allclose(inverse, np.linalg.inv(matrices), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(logdet, np.linalg.slogdet(matrices)[1], rtol=1e-10, atol=1e-12)


def test_compiled_inverse_refuses_an_indefinite_matrix():
    with pytest.raises(np.linalg.LinAlgError, match="positive definite"):
        invert_spd(np.array([[[1.0, 2.0], [2.0, 1.0]]]))


def test_sums_over_missing_are_a_product():
    rng = np.random.default_rng(3)
    missing = rng.random((50, 31)) < 0.2
    rows = rng.standard_normal((50, 6))
    np.testing.assert_allclose(compiled.sum_over_missing(missing, rows), missing.T.astype(float) @ rows, atol=1e-12)
    stars, pixels = compiled.count_missing(missing)
    np.testing.assert_array_equal(stars, missing.sum(axis=1))
    np.testing.assert_array_equal(pixels, missing.sum(axis=0))


@pytest.mark.parametrize("k", [1, 2, 7, 31])
def test_compiled_solution_against_lapack(k):
    rng = np.random.default_rng(k)
    matrices = psd(rng, k, 5) + 0.1 * np.eye(k)
    right = rng.standard_normal((5, k))
    expected = np.linalg.solve(matrices, right[:, :, None])[:, :, 0]
    matrices[3] *= -1
    found = right.copy()
    good = compiled.solve_spd(matrices, found)
    assert good.tolist() == [True, True, True, False, True]
    np.testing.assert_allclose(found[good], expected[good], rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(found[3], right[3])
