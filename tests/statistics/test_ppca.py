"""MaskedPPCA against closed forms, slow references and its own symmetries."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import closed_form, dense_em, largest_angle, loglike, toy

from chemscale.errors import DataError, InputError
from chemscale.statistics.ppca import MaskedPPCA
from chemscale.statistics.ppca_source import DaskSource


def model_covariance(ppca):
    used = ppca.pixel_used_
    c = ppca.components_[:, used]
    return (c.T * (ppca.explained_variance_ - ppca.noise_variance_)) @ c + ppca.noise_variance_ * np.eye(used.sum())


@pytest.mark.parametrize(("n", "p", "k"), [(300, 40, 4), (60, 90, 3), (500, 12, 8), (40, 5, 1)])
def test_complete_data_equal_the_closed_form(n, p, k):
    flux, _ = toy(n, p, k, seed=n)
    mean, axes, values, noise = closed_form(flux, k)
    ppca = MaskedPPCA(k).fit(flux)
    np.testing.assert_allclose(ppca.mean_, mean, atol=1e-9)
    np.testing.assert_allclose(ppca.explained_variance_, values, rtol=1e-8)
    assert ppca.noise_variance_ == pytest.approx(noise, rel=1e-8)
    np.testing.assert_allclose(ppca.components_ @ ppca.components_.T, np.eye(k), atol=1e-12)
    np.testing.assert_allclose(np.abs(np.sum(ppca.components_ * axes, axis=1)), 1, atol=1e-9)
    assert largest_angle(ppca.components_, axes.T) < 1e-5
    assert ppca.loglike_[-1] == pytest.approx(loglike(flux, flux > np.inf, mean, model_covariance(ppca)), rel=1e-9)
    rows = np.argmax(np.abs(ppca.components_), axis=1)
    assert np.all(ppca.components_[np.arange(k), rows] > 0)


def test_coordinates_are_the_posterior_mean_in_units_of_flux():
    flux, missing = toy(80, 20, 3)
    ppca = MaskedPPCA(3).fit(flux, missing)
    coords, variance = ppca.transform_with_variance(flux, missing)
    loadings = ppca.components_.T * np.sqrt(ppca.explained_variance_ - ppca.noise_variance_)
    for i in (0, 7, 33):
        seen = ~missing[i]
        w = loadings[seen]
        system = np.linalg.inv(w.T @ w + ppca.noise_variance_ * np.eye(3))
        latent = system @ w.T @ (flux[i, seen] - ppca.mean_[seen])
        scale = np.sqrt(ppca.explained_variance_ - ppca.noise_variance_)
        np.testing.assert_allclose(coords[i], latent * scale, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(variance[i], ppca.noise_variance_ * np.diag(system) * scale**2, rtol=1e-8)
    assert np.sqrt(np.mean((ppca.mean_ + coords @ ppca.components_ - flux)[~missing] ** 2)) < 0.11


@pytest.mark.parametrize("missing", [0.1, 0.4])
def test_missing_pixels_equal_a_slow_dense_em(missing):
    flux, gone = toy(70, 14, 2, missing=missing, low=1.0, seed=5)
    loadings, mean, noise = dense_em(flux, gone, 2, 3000)
    ppca = MaskedPPCA(2).fit(flux, gone)
    reference = loglike(flux, gone, mean, loadings @ loadings.T + noise * np.eye(14))
    assert ppca.loglike_[-1] == pytest.approx(reference, rel=1e-6)
    assert ppca.loglike_[-1] == pytest.approx(loglike(flux, gone, ppca.mean_, model_covariance(ppca)), rel=1e-8)
    assert largest_angle(ppca.components_, loadings) < 1e-3
    assert ppca.noise_variance_ == pytest.approx(noise, rel=1e-4)
    assert np.all(np.diff(ppca.loglike_)[-3:] > -1e-6 * abs(reference))


def test_pixels_seen_in_few_stars_still_reach_a_stationary_point():
    flux, gone = toy(250, 30, 3, missing=0.05, low=1.0)
    rng = np.random.default_rng(1)
    gone[:, :4] = rng.random((250, 4)) < 0.85
    ppca = MaskedPPCA(3).fit(flux, gone)
    best = loglike(flux, gone, ppca.mean_, model_covariance(ppca))
    for _ in range(6):
        axes = ppca.components_ + 1e-3 * rng.normal(size=ppca.components_.shape)
        cov = (axes.T * (ppca.explained_variance_ - ppca.noise_variance_)) @ axes + ppca.noise_variance_ * np.eye(30)
        mean = ppca.mean_ + 1e-3 * rng.normal(size=30)
        assert loglike(flux, gone, ppca.mean_, cov) < best
        assert loglike(flux, gone, mean, model_covariance(ppca)) < best


def test_per_pixel_noise_equals_a_slow_dense_em():
    flux, gone = toy(60, 12, 2, noise=0.0, low=1.0, seed=3)
    rng = np.random.default_rng(4)
    sigma = 0.1 * np.exp(rng.normal(0, 0.7, (60, 1)) + rng.normal(0, 0.3, (60, 12)))
    flux = flux + sigma * rng.normal(size=flux.shape)
    loadings, mean, _ = dense_em(flux, gone, 2, 15000, noise_variance=sigma**2)
    ppca = MaskedPPCA(2, noise="per-pixel", intrinsic="none").fit(flux, gone, 1 / sigma**2)
    fitted = (ppca.components_.T * ppca.explained_variance_) @ ppca.components_

    def total(m, c):
        return sum(loglike(flux[i : i + 1], gone[i : i + 1], m, c + np.diag(sigma[i] ** 2)) for i in range(60))

    assert ppca.loglike_[-1] == pytest.approx(total(mean, loadings @ loadings.T), rel=1e-6)
    assert ppca.loglike_[-1] == pytest.approx(total(ppca.mean_, fitted), rel=1e-6)
    assert largest_angle(ppca.components_, loadings) < 1e-3


def test_equal_errors_give_the_shared_answer():
    flux, gone = toy(200, 25, 3, noise=0.1, seed=8)
    shared = MaskedPPCA(3).fit(flux, gone)
    ivar = np.full(flux.shape, 1 / shared.noise_variance_)
    errors = MaskedPPCA(3, noise="per-pixel", intrinsic="none").fit(flux, gone, ivar)
    assert largest_angle(shared.components_, errors.components_.T) < 1e-4
    np.testing.assert_allclose(shared.transform(flux, gone), errors.transform(flux, gone, ivar), atol=1e-3)


def test_intrinsic_variance_is_recovered():
    rng = np.random.default_rng(0)
    flux, gone = toy(1500, 40, 3, noise=0.0, missing=0.03, seed=2)
    sigma = 0.05 * np.exp(rng.normal(0, 0.6, (1500, 1))) * np.ones((1, 40))
    extra = np.linspace(0.02, 0.08, 40)
    flux = flux + np.sqrt(sigma**2 + extra**2) * rng.normal(size=flux.shape)
    ppca = MaskedPPCA(3, noise="per-pixel").fit(flux, gone, 1 / sigma**2)
    np.testing.assert_allclose(np.sqrt(ppca.noise_variance_), extra, atol=0.006)


@pytest.mark.parametrize("noise", ["shared", "per-pixel"])
@pytest.mark.parametrize("chunks", [(97, 50), (700, 13), (1, 50), (250, -1)])
def test_any_chunking_equals_numpy(noise, chunks):
    n = 40 if chunks[0] == 1 else 700
    flux, gone = toy(n, 50, 4, low=1.0)
    ivar = np.where(gone, 0.0, 100.0)
    lazy = [da.from_array(a, chunks=chunks) for a in (flux, gone, ivar)]
    one = MaskedPPCA(4, noise=noise).fit(flux, gone, ivar)
    two = MaskedPPCA(4, noise=noise).fit(lazy[0], lazy[1].rechunk((333, 50)), lazy[2])
    np.testing.assert_allclose(two.components_, one.components_, atol=1e-6)
    np.testing.assert_allclose(two.mean_, one.mean_, atol=1e-7)
    np.testing.assert_allclose(two.noise_variance_, one.noise_variance_, rtol=1e-6, atol=1e-9)
    coords = two.transform(*lazy)
    assert isinstance(coords, da.Array)
    np.testing.assert_allclose(coords.compute(), one.transform(flux, gone, ivar), atol=1e-5)


def test_float32_agrees_with_float64(monkeypatch):
    flux, gone = toy(2000, 300, 6, noise=0.05, low=0.5, missing=0.03)
    exact = MaskedPPCA(6).fit(flux, gone)
    monkeypatch.setattr("chemscale.statistics.ppca_fit.SMALL", 0)
    single = MaskedPPCA(6, tol=1e-5).fit(flux.astype(np.float32), gone)
    assert largest_angle(exact.components_, single.components_.T) < 1e-4
    assert single.noise_variance_ == pytest.approx(exact.noise_variance_, rel=1e-5)
    np.testing.assert_allclose(single.mean_, exact.mean_, atol=1e-5)
    assert single.loglike_[-1] == pytest.approx(exact.loglike_[-1], rel=1e-6)


def test_subsample_then_all_stars_reaches_the_same_point(monkeypatch):
    monkeypatch.setattr("chemscale.statistics.ppca_fit.SUBSAMPLE_MIN", 300)
    monkeypatch.setattr("chemscale.statistics.ppca_fit.SUBSAMPLE_PER_COMPONENT", 20)
    flux, gone = toy(3000, 60, 4, low=0.8, missing=0.05)
    staged = MaskedPPCA(4).fit(flux, gone)
    monkeypatch.undo()
    direct = MaskedPPCA(4).fit(flux, gone)
    assert staged.n_passes_ <= direct.n_passes_ + 3
    assert largest_angle(direct.components_, staged.components_.T) < 1e-3


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 10**6), power=st.integers(-40, 40), noise=st.sampled_from(["shared", "per-pixel"]))
def test_permutation_of_stars_and_scale_of_flux(seed, power, noise):
    flux, gone = toy(120, 16, 2, low=1.0, seed=seed % 7)
    ivar = np.full(flux.shape, 100.0)
    scale = 2.0**power
    one = MaskedPPCA(2, noise=noise, intrinsic="none").fit(flux, gone, ivar)
    order = np.random.default_rng(seed).permutation(120)
    two = MaskedPPCA(2, noise=noise, intrinsic="none").fit(scale * flux[order], gone[order], ivar[order] / scale**2)
    np.testing.assert_allclose(two.components_, one.components_, atol=1e-4)
    np.testing.assert_allclose(two.mean_ / scale, one.mean_, atol=1e-4)
    np.testing.assert_allclose(
        two.transform(scale * flux, gone, ivar / scale**2) / scale, one.transform(flux, gone, ivar), atol=1e-3
    )


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), noise=st.sampled_from(["shared", "per-pixel"]))
def test_any_mask_pattern(data, noise):
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    n, p, k = 30, 10, 2
    flux, _ = toy(n, p, k, seed=1)
    gone = rng.random((n, p)) < data.draw(st.floats(0, 0.7))
    stars = data.draw(st.lists(st.integers(0, n - 1), max_size=4, unique=True))
    pixels = data.draw(st.lists(st.integers(0, p - 1), max_size=3, unique=True))
    gone[stars] = True
    gone[:, pixels] = True
    flux = np.where(rng.random((n, p)) < 0.5, np.where(gone, np.nan, flux), flux)
    ppca = MaskedPPCA(k, noise=noise, max_iter=15).fit(flux, gone, np.full((n, p), 100.0))
    used = ~gone.all(axis=0)
    np.testing.assert_array_equal(ppca.pixel_used_, used)
    np.testing.assert_array_equal(np.isnan(ppca.mean_), ~used)
    assert np.isfinite(ppca.components_[:, used]).all()
    coords, variance = ppca.transform_with_variance(flux, gone, np.full((n, p), 100.0))
    empty = gone.all(axis=1)
    np.testing.assert_array_equal(np.isnan(coords).any(axis=1), empty)
    assert np.all(variance[~empty] > 0)


def test_masks_nan_and_zero_ivar_mean_the_same():
    flux, gone = toy(60, 12, 2)
    broken = np.where(gone, np.nan, flux)
    one = MaskedPPCA(2).fit(flux, gone)
    for args in ((broken,), (np.ma.array(flux, mask=gone),), (flux, None, np.where(gone, 0.0, 1.0))):
        np.testing.assert_allclose(MaskedPPCA(2).fit(*args).components_, one.components_, atol=1e-10)


def test_a_constant_pixel_and_a_bright_unused_one_do_no_harm():
    flux, gone = toy(100, 12, 2)
    flux[:, 3] = 1.0
    flux[:, 5] = 1e30
    gone[:, 5] = True
    ppca = MaskedPPCA(2).fit(flux, gone)
    assert np.isfinite(ppca.components_[:, 3]).all()
    assert ppca.mean_[3] == pytest.approx(1.0)
    assert not ppca.pixel_used_[5]


def test_graph_of_a_pass_is_small():
    flux, gone = toy(4000, 20, 2)
    lazy = da.from_array(flux, chunks=(100, 20)).map_blocks(lambda b: b)
    mask = da.from_array(gone, chunks=(100, 20)).map_blocks(lambda b: b)
    from chemscale.statistics import blocks
    from chemscale.statistics.ppca_arrays import add_moments, count_moments

    total = blocks.tree(DaskSource(lazy, mask)._parts(count_moments), add_moments)
    tasks = [t for t in dict(total.__dask_graph__()).values() if type(t).__name__ == "Task"]
    assert len(tasks) <= 4 * 40


def test_storage_round_trip(tmp_path):
    import xarray as xr

    flux, gone = toy(100, 12, 2)
    for noise in ("shared", "per-pixel"):
        ppca = MaskedPPCA(2, noise=noise).fit(flux, gone, np.full(flux.shape, 100.0))
        ppca.to_dataset().to_zarr(tmp_path / noise)
        back = MaskedPPCA.from_dataset(xr.open_zarr(tmp_path / noise))
        args = (flux, gone, np.full(flux.shape, 100.0))
        np.testing.assert_array_equal(back.transform(*args), ppca.transform(*args))
        assert (back.noise, back.n_passes_, back.converged_) == (noise, ppca.n_passes_, ppca.converged_)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda x: MaskedPPCA(3, noise="per-pixel").fit(x), InputError, "inverse variances"),
        (lambda x: MaskedPPCA(3).fit(x, np.zeros((2, 2), bool)), InputError, "mask has shape"),
        (lambda x: MaskedPPCA(3).fit(x[0]), InputError, "dimension"),
        (lambda x: MaskedPPCA(12).fit(x), DataError, "cannot give 12"),
        (lambda x: MaskedPPCA(2).fit(x * np.nan), DataError, "valid pixels"),
        (lambda x: MaskedPPCA(2).fit(np.ones_like(x)), DataError, "does not vary"),
        (lambda x: MaskedPPCA(0).fit(x), InputError, "positive integer"),
        (lambda x: MaskedPPCA(2, noise="photon").fit(x), InputError, "noise model"),
        (lambda x: MaskedPPCA(2).transform(x), InputError, "not been fitted"),
        (lambda x: MaskedPPCA(2).fit(x).transform(x[:, :5]), InputError, "pixels"),
    ],
)
def test_wrong_input_is_refused(call, error, match):
    flux, _ = toy(50, 12, 2)
    with pytest.raises(error, match=match):
        call(flux)


def test_same_seed_gives_the_same_fit_to_the_bit():
    """Large enough for the randomised solver of the warm start, stopped long before convergence hides a difference."""
    rng = np.random.default_rng(4)
    flux = rng.normal(size=(1500, 3)) @ rng.normal(size=(3, 700)) + rng.normal(size=(1500, 700))
    mask = rng.random(flux.shape) < 0.05
    one, two = (MaskedPPCA(8, max_iter=2, random_state=7).fit(flux, mask) for _ in range(2))
    np.testing.assert_array_equal(one.components_, two.components_)
    assert one.loglike_ == two.loglike_


@pytest.mark.parametrize("noise", ["shared", "per-pixel"])
@pytest.mark.parametrize("max_iter", [2, 200])
def test_progress_is_told_of_every_pass(noise, max_iter):
    flux, missing = toy(400, 30, 3)
    ivar = np.full(flux.shape, 100.0)
    told = []
    ppca = MaskedPPCA(3, noise=noise, max_iter=max_iter)
    ppca.fit(da.from_array(flux, chunks=(150, -1)), missing, ivar, progress=lambda *event: told.append(event))
    assert [done for done, _, _ in told] == list(range(1, len(ppca.loglike_) + 1))
    assert {most for _, most, _ in told} == {max_iter}
    assert [angle for _, _, angle in told] == ppca.angle_
    assert len(told) == ppca.n_passes_ - 1  # the first one only counts pixels


@pytest.mark.parametrize("seed", range(6))
def test_noise_that_runs_to_zero_is_no_crash(seed):
    """Six pixels in ten missing of ten, two components: the likelihood has no bound."""
    rng = np.random.default_rng(seed)
    flux, _ = toy(30, 10, 2, seed=1)
    gone = rng.random((30, 10)) < 0.625
    ppca = MaskedPPCA(2, max_iter=15).fit(flux, gone)
    assert np.isfinite(ppca.components_[:, ppca.pixel_used_]).all()
    np.testing.assert_array_equal(np.isnan(ppca.transform(flux, gone)).any(axis=1), gone.all(axis=1))


@pytest.mark.parametrize("noise", ["shared", "per-pixel"])
def test_leading_components_of_a_wide_fit_are_those_of_a_narrow_one(noise):
    flux, gone = toy(400, 60, 6, missing=0.1, seed=4)
    ivar = np.full(flux.shape, 100.0)
    wide, narrow = (MaskedPPCA(k, noise=noise, intrinsic="none").fit(flux, gone, ivar) for k in (6, 3))
    cut = wide.leading(3)
    assert cut.transform(flux, gone, ivar).shape == (400, 3)
    assert largest_angle(cut.components_, narrow.components_.T) < narrow.axis_error_[-1]
    if noise == "shared":
        assert cut.noise_variance_ == pytest.approx(narrow.noise_variance_, rel=0.02)
    assert wide.leading(6).score(flux, gone, ivar) == pytest.approx(wide.score(flux, gone, ivar), rel=1e-12)
    with pytest.raises(InputError, match="7 of 6"):
        wide.leading(7)
