"""Pixels that no model explains are left out, and only those."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from reference import dense_em, largest_angle, toy

from chemscale.statistics.outliers import Rejection, find_outliers
from chemscale.statistics.ppca import MaskedPPCA
from chemscale.statistics.ppca_embed import embed_block
from chemscale.statistics.ppca_kernels import Model


def hit_spectra(n=300, p=400, k=3, *, hits=100, size=3.0, seed=0):
    """Spectra with errors that vary from star to star and with isolated, unflagged hits."""
    rng = np.random.default_rng(seed)
    flux, gone = toy(n, p, k, noise=0.0, missing=0.04, low=1.0, seed=seed)
    sigma = 0.05 * np.exp(rng.normal(0, 0.4, (n, 1))) * np.exp(rng.normal(0, 0.1, (n, p)))
    flux += sigma * rng.normal(size=flux.shape)
    where = np.zeros((n, p), bool)
    where.ravel()[rng.choice(n * p, hits, replace=False)] = True
    where &= ~gone
    return np.where(where, flux + size, flux), gone, 1 / sigma**2, where


@pytest.mark.parametrize("noise", ["shared", "per-pixel"])
def test_hits_are_found_and_the_basis_is_that_of_masked_hits(noise):
    flux, gone, ivar, hits = hit_spectra()
    robust = MaskedPPCA(3, noise=noise, outlier_sigmas=6).fit(flux, gone, ivar)
    masked = MaskedPPCA(3, noise=noise).fit(flux, gone | hits, ivar)
    plain = MaskedPPCA(3, noise=noise).fit(flux, gone, ivar)
    assert robust.converged_
    np.testing.assert_array_equal(robust.outlier_count_, hits.sum(axis=0))
    assert robust.n_outlier_stars_ == hits.any(axis=1).sum()
    assert robust.n_anomalous_ == 0
    assert largest_angle(robust.components_, masked.components_.T) < 1e-3
    assert largest_angle(plain.components_, masked.components_.T) > 0.03
    np.testing.assert_allclose(robust.transform(flux, gone, ivar), masked.transform(flux, gone | hits, ivar), atol=1e-2)


@pytest.mark.parametrize("noise", ["shared", "per-pixel"])
def test_the_robust_solution_is_that_of_a_slow_reference(noise):
    """Textbook EM in float64 on the pixels within six errors of their star's posterior mean, until neither changes."""
    flux, gone, ivar, _ = hit_spectra(80, 40, 2, hits=12, seed=3)
    variance = 1 / ivar if noise == "per-pixel" else None
    out = gone.copy()
    for _ in range(3):
        loadings, mean, noise_variance = dense_em(flux, out, 2, 2000, variance)
        weight = np.where(gone, 0.0, ivar if variance is not None else 1 / noise_variance)
        system = np.eye(2) + np.einsum("np,pi,pj->nij", weight, loadings, loadings)
        z = np.linalg.solve(system, ((weight * (flux - mean)) @ loadings)[:, :, None])[:, :, 0]
        size = np.abs(flux - mean - z @ loadings.T) * np.sqrt(ivar)
        misfit = np.sum(np.where(gone, 0, np.minimum(size, 100)), axis=1) / (~gone).sum(axis=1) / 0.79788456
        out = gone | (size > 6 * np.maximum(misfit, 1.0)[:, None])
    ppca = MaskedPPCA(2, noise=noise, outlier_sigmas=6, intrinsic="none").fit(flux, gone, ivar)
    np.testing.assert_array_equal(ppca.outlier_count_, (out & ~gone).sum(axis=0))
    assert largest_angle(ppca.components_, loadings) < 1e-3
    clean = MaskedPPCA(2, noise=noise, intrinsic="none").fit(flux, out, ivar)
    assert clean.score(flux, out, ivar) == pytest.approx(
        MaskedPPCA.from_dataset(ppca.to_dataset()).score(flux, out, ivar), rel=1e-6
    )


@pytest.mark.parametrize("noise", ["shared", "per-pixel"])
def test_any_chunking_rejects_the_same_pixels(noise):
    flux, gone, ivar, _ = hit_spectra(seed=5)
    one = MaskedPPCA(3, noise=noise, outlier_sigmas=6).fit(flux, gone, ivar)
    lazy = [da.from_array(a, chunks=(70, 50)) for a in (flux, gone, ivar)]
    two = MaskedPPCA(3, noise=noise, outlier_sigmas=6).fit(*lazy)
    np.testing.assert_array_equal(one.outlier_count_, two.outlier_count_)
    np.testing.assert_allclose(two.components_, one.components_, atol=1e-6)
    np.testing.assert_allclose(two.transform(*lazy).compute(), one.transform(flux, gone, ivar), atol=1e-5)


@pytest.mark.parametrize("noise", ["shared", "per-pixel"])
def test_a_star_whose_whole_spectrum_does_not_fit_is_named_and_not_clipped(noise):
    flux, gone, ivar, _ = hit_spectra(hits=0, seed=7)
    rng = np.random.default_rng(1)
    flux[17] += rng.normal(0, 0.4, flux.shape[1])
    ppca = MaskedPPCA(3, noise=noise, outlier_sigmas=6, intrinsic="none").fit(flux, gone, ivar)
    assert ppca.n_anomalous_ == 1
    assert ppca.outlier_count_.sum() <= 2


def test_a_saturated_pixel_in_every_tenth_star_changes_nothing():
    flux, gone, ivar, _ = hit_spectra(400, 150, 3, hits=0, seed=9)
    before = MaskedPPCA(3, noise="per-pixel", outlier_sigmas=6).fit(flux, gone, ivar)
    rng = np.random.default_rng(2)
    rows = rng.choice(400, 40, replace=False)
    saturated = flux.copy()
    saturated[rows, rng.integers(0, 150, 40)] = 10.0
    after = MaskedPPCA(3, noise="per-pixel", outlier_sigmas=6).fit(saturated, gone, ivar)
    assert largest_angle(before.components_, after.components_.T) < 0.1 * before.axis_error_[-1]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("size", [2e2, 1e4, 1e6])
def test_good_pixels_beside_a_saturated_one_stay_and_small_hits_are_found(weighted, size):
    """A pixel of thousands of its errors pulls the posterior: most pixels of its star seem off at first."""
    rng = np.random.default_rng(0)
    n, p, k, error = 60, 300, 6, 0.01
    lines = np.exp(-0.5 * ((np.arange(p)[:, None] - np.linspace(20, 280, k)) / 4) ** 2)
    basis = np.linalg.qr(lines)[0]
    flux = 1 + (rng.normal(size=(n, k)) * np.linspace(3, 0.5, k)) @ basis.T + error * rng.normal(size=(n, p))
    gone = rng.random((n, p)) < 0.03
    saturated = 18 + np.arange(n) % 5
    gone[np.arange(n), saturated] = gone[:, [150, 153]] = False
    flux[np.arange(n), saturated] += size * error
    flux[::2, 150] += 15 * error
    flux[gone] = 0.0
    model = Model(np.ones(p), basis, np.linspace(3, 0.5, k), 0.0 if weighted else error**2)
    ivar = np.full((n, p), 1 / error**2)
    found = embed_block(flux, gone, ivar, model=model, weighted=weighted, rejection=Rejection(6.0))
    assert found.outliers is not None
    listed = found.outliers.listed
    pixels = [listed.pixel[listed.start[i] : listed.start[i + 1]].tolist() for i in range(n)]
    assert pixels == [[s, 150] if i % 2 == 0 else [s] for i, s in enumerate(saturated)]
    assert not found.outliers.anomalous.any()
    clean = gone.copy()
    clean[np.arange(n), saturated] = clean[::2, 150] = True
    wanted = embed_block(flux, clean, ivar, model=model, weighted=weighted)
    np.testing.assert_allclose(found.coords, wanted.coords, atol=1e-6)
    np.testing.assert_allclose(found.variance, wanted.variance, rtol=1e-6)


def test_noise_alone_has_no_outliers():
    rng = np.random.default_rng(0)
    residual = rng.normal(0, 2.0, (50, 2000))
    found = find_outliers(residual, np.full(50, 2000), 0.25, 1.0, Rejection(6.0))
    assert found.listed.pixel.size == 0
    np.testing.assert_allclose(found.misfit, 1.0, atol=0.06)
    assert not found.anomalous.any()


def test_a_residual_is_judged_by_its_own_error():
    residual = np.zeros((2, 200))
    residual[:, 5] = 1.0
    precision = np.full((2, 200), 100.0)
    precision[1, 5] = 1.0  # a pixel that is known to be bad may be off by one
    found = find_outliers(residual, np.full(2, 200), precision, 1.0, Rejection(6.0))
    assert (found.stars.tolist(), found.listed.pixel.tolist()) == ([0], [5])
