"""Fit and embedding of a survey store: equality with in-memory arrays, resuming, refusals."""

from __future__ import annotations

import dask
import numpy as np
import pytest
import zarr
from helpers import make_survey

from chemscale.embedding import product as embedding
from chemscale.embedding.fit import fit_survey
from chemscale.embedding.product import embed_survey, open_embedding
from chemscale.errors import InputError, ResumeError, StoreError
from chemscale.statistics import blocks
from chemscale.statistics.ppca import MaskedPPCA
from chemscale.survey.ingest.datasets import write_survey
from chemscale.survey.store.open import open_survey


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    ds = make_survey(400, 5, 8, n_pixels=40)
    path = tmp_path_factory.mktemp("survey") / "s.zarr"
    write_survey(ds, path)
    return ds, open_survey(path, chunk_stars=128)


@pytest.mark.parametrize("noise", ["shared", "per-pixel"])
@pytest.mark.parametrize("keep_bytes", [0, 2**30])
def test_fit_from_a_store_equals_arrays(survey, noise, keep_bytes):
    memory, store = survey
    chosen = memory["cluster"].values == ""
    missing = memory["flags"].values != 0
    one = fit_survey(store, chosen, n_components=4, noise=noise, tol=1e-4, keep_bytes=keep_bytes)
    two = MaskedPPCA(4, noise=noise, tol=1e-4).fit(
        memory["flux"].values[chosen], missing[chosen], memory["ivar"].values[chosen]
    )
    np.testing.assert_allclose(one.components_, two.components_, atol=1e-5)
    np.testing.assert_allclose(one.mean_, two.mean_, atol=1e-6)
    assert one.n_stars_ == chosen.sum()


def test_flag_bits_select_what_is_missing(survey):
    memory, store = survey
    strict = fit_survey(store, n_components=3)
    loose = fit_survey(store, n_components=3, flags=["gap", "large_error"])
    assert not np.allclose(strict.mean_, loose.mean_, equal_nan=True, atol=1e-7)
    np.testing.assert_array_equal(strict.pixel_used_, (memory["flags"].values == 0).any(axis=0))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("noise", ["shared", "per-pixel"])
def test_embedding_on_a_device_is_that_on_cpus(survey, tmp_path, noise, device):
    if device == "cuda" and not pytest.importorskip("torch").cuda.is_available():
        pytest.skip("no GPU")
    _, store = survey
    ppca = fit_survey(store, n_components=4, noise=noise, outlier_sigmas=2.5)
    wanted = embed_survey(store, ppca, tmp_path / "cpu.zarr")
    found = embed_survey(store, ppca, tmp_path / "device.zarr", device=device)
    assert wanted["n_outliers"].values.sum() > 0
    for name in ("valid", "n_outliers", "outlier_flags", "anomalous", "cluster"):
        np.testing.assert_array_equal(found[name].values, wanted[name].values)
    for name in ("coords", "coords_variance", "misfit"):
        np.testing.assert_allclose(found[name].values, wanted[name].values, rtol=1e-4, atol=1e-6)


def test_an_embedding_on_a_device_that_is_not_there_is_not_begun(survey, tmp_path):
    _, store = survey
    with pytest.raises(InputError, match="quantum"):
        embed_survey(store, fit_survey(store, n_components=2), tmp_path / "e.zarr", device="quantum")
    assert not any(tmp_path.iterdir())


def test_embedding_equals_transform_and_carries_labels(survey, tmp_path):
    memory, store = survey
    ppca = fit_survey(store, n_components=4)
    role = np.where(memory["cluster"].values == "", "field", "member")
    product = embed_survey(store, ppca, tmp_path / "e.zarr", extra={"role": role})
    coords, variance = ppca.transform_with_variance(
        memory["flux"].values, memory["flags"].values != 0, memory["ivar"].values
    )
    np.testing.assert_allclose(product["coords"].values, coords, atol=1e-5)
    np.testing.assert_allclose(product["coords_variance"].values, variance, rtol=1e-4)
    assert product["valid"].values.all()
    assert list(product["role"].values) == list(role)
    assert list(product["star_id"].values) == list(memory["star_id"].values)
    np.testing.assert_array_equal(product["teff"].values, memory["teff"].values)


def test_an_interrupted_embedding_resumes(survey, tmp_path, monkeypatch):
    _, store = survey
    monkeypatch.setattr(embedding, "PART_STARS", 120)
    ppca = fit_survey(store, n_components=3)
    whole = embed_survey(store, ppca, tmp_path / "whole.zarr")["coords"].values
    path = tmp_path / "e.zarr"
    seen = []

    def stop_early(done, total):
        seen.append(done)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_survey(store, ppca, path, progress=stop_early)
    with pytest.raises(StoreError, match="unfinished"):
        open_embedding(path)
    with pytest.raises(StoreError, match="already exists"):
        embed_survey(store, ppca, path)
    zarr.open_group(f"{path}.partial/product", mode="r+")["coords"][0, 0] = 123.0  # kept: its part is done
    again = []
    product = embed_survey(store, ppca, path, resume=True, progress=lambda done, total: again.append(done))
    assert min(again) > max(seen)
    expected = whole.copy()
    expected[0, 0] = 123.0
    np.testing.assert_array_equal(product["coords"].values, expected)
    other = fit_survey(store, n_components=2)
    with pytest.raises(ResumeError, match="another model"):
        embed_survey(store, other, path, resume=True)
    np.testing.assert_array_equal(embed_survey(store, ppca, path, overwrite=True)["coords"].values, whole)


def test_a_star_without_pixels_gets_nan(tmp_path):
    memory = make_survey(200, 2, 4, n_pixels=30)
    memory["flags"].values[5] |= 4
    write_survey(memory, tmp_path / "s.zarr")
    store = open_survey(tmp_path / "s.zarr")
    product = embed_survey(store, fit_survey(store, n_components=2), tmp_path / "e.zarr")
    assert np.flatnonzero(~product["valid"].values).tolist() == [5]
    assert np.isnan(product["coords"].values[5]).all()


def test_nothing_else_is_overwritten(survey, tmp_path):
    _, store = survey
    ppca = fit_survey(store, n_components=2)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    for keyword in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(StoreError, match="not an embedding"):
            embed_survey(store, ppca, tmp_path / "precious", **keyword)
    with pytest.raises(StoreError, match="no embedding"):
        open_embedding(tmp_path / "nowhere")
    with pytest.raises(InputError, match="one boolean per star"):
        fit_survey(store, np.ones(3, bool))


def test_tasks_per_block_of_a_pass(survey):
    _, store = survey
    from chemscale.statistics.ppca_arrays import add_moments, count_moments
    from chemscale.statistics.ppca_source import DaskSource

    source = DaskSource(*(store[n].data for n in ("flux", "flags", "ivar")), bits=127)
    total = blocks.tree(source._parts(count_moments), add_moments)
    tasks = [t for t in dict(total.__dask_graph__()).values() if type(t).__name__ == "Task"]
    assert len(tasks) <= 2 * store["flux"].data.numblocks[0]


def test_workers_and_blas_share_the_cores():
    from threadpoolctl import threadpool_info

    cores = blocks.available_cores()
    with dask.config.set(scheduler="threads", num_workers=cores):
        assert blocks.task_threads() == cores
    blocks.share_cores(cores)
    assert all(lib["num_threads"] == 1 for lib in threadpool_info() if lib["user_api"] == "blas")
    blocks.share_cores(1)


@pytest.mark.parametrize("noise", ["shared", "per-pixel"])
@pytest.mark.parametrize("client", [False, True])
def test_outliers_are_flagged_in_the_product(tmp_path, noise, client):
    from distributed import Client

    memory = make_survey(400, 5, 8, n_pixels=200)
    hit = memory.copy(deep=True)
    star, pixel = np.argwhere(memory["flags"].values == 0)[::9973][:8].T
    hit["flux"].values[star, pixel] += 15 * memory["ivar"].values[star, pixel] ** -0.5
    write_survey(hit, tmp_path / "hit.zarr")
    store = open_survey(tmp_path / "hit.zarr", chunk_stars=128)
    ppca = fit_survey(store, n_components=6, noise=noise, outlier_sigmas=6.0)
    if client:
        with Client(processes=False, n_workers=2, threads_per_worker=1, dashboard_address=None):
            product = embed_survey(store, ppca, tmp_path / "e.zarr")
    else:
        product = embed_survey(store, ppca, tmp_path / "e.zarr")
    flags = product["outlier_flags"]
    assert (flags.attrs["flag_masks"], flags.attrs["flag_meanings"]) == ([128], "outlier")
    found = flags.values != 0
    assert found[star, pixel].all()
    np.testing.assert_array_equal(product["n_outliers"].values, found.sum(axis=1))
    assert found.sum() <= len(star) + 4
    assert not product["anomalous"].values[star].any()
    clean = ppca.transform(hit["flux"].values, (hit["flags"].values != 0) | found, hit["ivar"].values)
    np.testing.assert_allclose(product["coords"].values, clean, atol=2e-4)


def test_a_model_that_rejects_nothing_adds_nothing(survey, tmp_path):
    _, store = survey
    product = embed_survey(store, fit_survey(store, n_components=3), tmp_path / "e.zarr")
    assert "outlier_flags" not in product
