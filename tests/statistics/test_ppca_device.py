"""The tensor kernels give the sums of the compiled ones; on a GPU the same tests run with its device."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest

from chemscale.errors import InputError
from chemscale.rsca.pipeline import fit_run
from chemscale.statistics import ppca_device
from chemscale.statistics.outliers import Rejection
from chemscale.statistics.ppca import MaskedPPCA
from chemscale.statistics.ppca_embed import embed_block
from chemscale.statistics.ppca_kernels import Model, SharedPass, shared_stats
from chemscale.statistics.ppca_kernels_weighted import WeightedPass, weighted_stats

N, P, K = 260, 130, 4
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request):
    if request.param == "cuda" and not pytest.importorskip("torch").cuda.is_available():
        pytest.skip("no GPU")
    return request.param


def spectra(seed=0, hard=True):
    """flux, missing, ivar with one star without a pixel; hits, a star that does not fit, a pixel seldom seen."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(P, K)))[0]
    error = rng.uniform(0.08, 0.15, (N, P))
    flux = 1 + (rng.normal(size=(N, K)) * [3, 2, 1, 0.5]) @ basis.T + error * rng.normal(size=(N, P))
    missing = rng.random((N, P)) < 0.05
    if hard:
        missing[:, 5] |= rng.random(N) < 0.9
        flux[rng.random((N, P)) < 0.003] += 6
        flux[7] += rng.normal(0, 3, P)
    missing[3] = True
    flux[missing] = np.nan
    return flux, missing, 1 / error**2, basis


def close(found, wanted, rtol):
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        size = np.abs(value).max() if np.size(value) else 0.0
        np.testing.assert_allclose(found[key], value, rtol=0, atol=rtol * max(size, 1e-12), err_msg=key)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("rejection", [None, Rejection()])
@pytest.mark.parametrize("noise", ["shared", "shared with errors", "per-pixel"])
def test_the_sums_of_a_block_are_those_of_the_compiled_kernels(device, noise, rejection, dtype):
    flux, missing, ivar, basis = spectra()
    flux, ivar, unit = np.where(missing, 0, flux).astype(dtype), ivar.astype(dtype), 0.5
    extra = np.linalg.qr(np.concatenate([basis, np.random.default_rng(1).normal(size=(P, 3))], 1))[0][:, K:]
    model = Model(np.ones(P) / unit, basis, np.array([3, 2, 1, 0.5]) / unit, 0.01 / unit**2)
    given = {"dtype": np.dtype(dtype), "unit": unit}
    if noise == "per-pixel":
        model.noise = np.linspace(0.001, 0.004, P) / unit**2
        task = WeightedPass(model, extra, rejection)
        wanted = {k: np.array(v) for k, v in weighted_stats(flux, missing, ivar, task, **given).items()}
        found = ppca_device.weighted_stats(flux, missing, ivar, task=task, device=device, **given)
    else:
        errors = ivar if "errors" in noise else None
        shared = SharedPass(model, extra, np.array([5]), rejection)
        wanted = {k: np.array(v) for k, v in shared_stats(flux, missing, shared, ivar=errors, **given).items()}
        found = ppca_device.shared_stats(flux, missing, errors, task=shared, device=device, **given)
    if rejection is not None:
        assert wanted["rejected_stars"] > 20 and wanted["anomalous"] >= 1
    close(found, wanted, 1e-6 if dtype == np.float64 else 2e-5)


@pytest.mark.parametrize(("noise", "sigmas"), [("shared", None), ("per-pixel", 6.0)])
def test_a_fit_on_a_device_is_that_on_cpus(device, noise, sigmas):
    flux, missing, ivar, _ = spectra(2, hard=noise == "per-pixel")
    given = {"noise": noise, "outlier_sigmas": sigmas, "random_state": 3}
    wanted = MaskedPPCA(K, **given).fit(flux, missing, ivar)
    found = MaskedPPCA(K, device=device, **given).fit(flux, missing, ivar)
    assert found.converged_ and found.n_outlier_stars_ == wanted.n_outlier_stars_
    assert found.n_outlier_stars_ > 20 or sigmas is None
    used = wanted.pixel_used_
    angles = np.linalg.svd(found.components_[:, used] @ wanted.components_[:, used].T, compute_uv=False)
    assert np.all(angles > 1 - 1e-8)
    assert found.loglike_[-1] == pytest.approx(wanted.loglike_[-1], rel=1e-7)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("rejection", [None, Rejection()])
@pytest.mark.parametrize("noise", ["shared", "shared with errors", "per-pixel"])
def test_coordinates_and_outliers_of_a_block_are_those_of_the_compiled_kernels(
    device, noise, rejection, dtype, monkeypatch
):
    monkeypatch.setattr("chemscale.statistics.ppca_embed.SMALL", 0)  # of this size the CPU takes float64 in any case
    flux, missing, ivar, basis = spectra(6)
    block = np.where(missing, 0, flux).astype(dtype), missing, None if noise == "shared" else ivar.astype(dtype)
    intrinsic = np.linspace(0.001, 0.004, P) if noise == "per-pixel" else 0.01
    model = Model(np.ones(P), basis, np.array([3, 2, 1, 0.5]), intrinsic)
    given = {"model": model, "weighted": noise == "per-pixel", "rejection": rejection}
    wanted = embed_block(*block, **given)
    found = embed_block(*block, **given, device=device)
    limit = 1e-9 if dtype == np.float64 else 2e-4
    np.testing.assert_allclose(found.coords, wanted.coords, rtol=0, atol=limit)
    np.testing.assert_allclose(found.variance, wanted.variance, rtol=limit)
    assert np.isnan(found.coords[3]).all() and np.isnan(found.variance[3]).all()
    if rejection is None:
        assert found.outliers is None
        return
    assert wanted.outliers.stars.size > 20 and wanted.outliers.anomalous[7]
    np.testing.assert_array_equal(found.outliers.listed.marked(P), wanted.outliers.listed.marked(P))
    np.testing.assert_array_equal(found.outliers.anomalous, wanted.outliers.anomalous)
    np.testing.assert_allclose(found.outliers.misfit, wanted.outliers.misfit, rtol=1e-4)


def test_a_model_fitted_on_a_device_gives_coordinates_there(device):
    flux, missing, ivar, _ = spectra(7, hard=False)
    on_device = MaskedPPCA(K, noise="per-pixel", device=device).fit(flux, missing, ivar)
    there, variance = on_device.transform_with_variance(flux, missing, ivar)
    here, expected = on_device.set_params(device=None).transform_with_variance(flux, missing, ivar)
    np.testing.assert_allclose(there, here, atol=1e-9)
    np.testing.assert_allclose(variance, expected, rtol=1e-9)


def test_blocks_stay_on_the_device_where_there_is_room(device, monkeypatch):
    """With room for all of them every later pass gets tensors, and the fit is the same."""
    flux, missing, ivar, _ = spectra(4)
    arrays = [da.from_array(a, chunks=(70, -1)) for a in (flux, missing, ivar)]
    kinds = []

    def watched(flux, *rest, task, **given):
        kinds.append((type(flux).__name__, len(flux)))
        return ppca_device.weighted_stats(flux, *rest, task=task, **given)

    monkeypatch.setitem(ppca_device.KERNELS, "per-pixel", watched)
    fits = []
    for room in (0, 2**40):
        monkeypatch.setattr("chemscale.statistics.ppca_fit.room", lambda _, room=room: room)
        kinds.clear()
        fits.append(MaskedPPCA(K, noise="per-pixel", tol=1e-4, device=device).fit(*arrays))
        blocks = {kind for kind, rows in kinds if rows < N}
        assert blocks == ({"Tensor"} if room else {"ndarray"})
    np.testing.assert_allclose(fits[0].components_, fits[1].components_, atol=1e-6)


def test_a_device_that_is_not_there_is_said():
    flux, missing, ivar, _ = spectra(5)
    with pytest.raises(InputError, match="quantum"):
        MaskedPPCA(K, device="quantum").fit(flux, missing, ivar)


def test_a_run_with_a_device_that_is_not_there_is_not_begun(tmp_path):
    with pytest.raises(InputError, match="quantum"):
        fit_run(str(tmp_path / "s.zarr"), tmp_path / "run", device="quantum")
    assert not (tmp_path / "run").exists()
