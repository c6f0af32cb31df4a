"""The subsample on a cluster: the same fit to the bit, and nothing of it left when it has done its work."""

from __future__ import annotations

import time

import dask
import numpy as np
import pytest
from helpers import make_survey

from chemscale.embedding.fit import fit_survey
from chemscale.statistics import blocks, ppca_arrays, ppca_fit, ppca_sample
from chemscale.statistics.ppca_arrays import Adder, ArraySource, compact, spread_rows
from chemscale.statistics.ppca_sample import ClusterSample
from chemscale.survey.ingest.datasets import write_survey
from chemscale.survey.store.open import open_survey


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("survey") / "s.zarr"
    write_survey(make_survey(4_800, 5, 8, n_pixels=60), path)
    return open_survey(path, chunk_stars=256)


@pytest.fixture(scope="module")
def client():
    from distributed import Client

    with Client(processes=False, n_workers=2, threads_per_worker=1, dashboard_address=None) as client:
        yield client


@pytest.fixture
def large(monkeypatch):
    """Sizes at which this counts as a survey that is first fitted on a subsample, of many blocks."""
    monkeypatch.setattr(ppca_fit, "SMALL", 1000)
    monkeypatch.setattr(ppca_arrays, "BLOCK_BYTES", 60 * 4 * 64)
    monkeypatch.setenv("CHEMSCALE_WORKERS_PER_HOST", str(blocks.available_cores()))


@pytest.mark.parametrize("noise", ["shared", "per-pixel"])
def test_a_fit_does_not_depend_on_where_the_subsample_is(store, client, large, monkeypatch, noise):
    sizes = []
    reduce = ClusterSample.reduce

    def watched(sample, kernel):
        sizes.append((sample.n_stars, sample.n_pixels, len(sample._blocks)))
        return reduce(sample, kernel)

    monkeypatch.setattr(ClusterSample, "reduce", watched)
    settings = {"n_components": 4, "noise": noise, "tol": 1e-3, "keep_bytes": 0}
    on_cluster = fit_survey(store, **settings)
    assert sizes and set(sizes) == {(store.sizes["star"] // 4, int(on_cluster.pixel_used_.sum()), 18)}
    few = len(sizes)
    with dask.config.set(scheduler="synchronous"):
        here = fit_survey(store, **settings)
    assert len(sizes) == few
    for name in ("components_", "mean_", "noise_variance_", "loglike_", "angle_"):
        np.testing.assert_array_equal(getattr(on_cluster, name), getattr(here, name), err_msg=name)
    deadline = time.monotonic() + 20  # the client's word that it needs a thing no more takes a moment
    while client.run_on_scheduler(_wanted) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert client.run_on_scheduler(_wanted) == []


def _wanted(dask_scheduler):
    return [str(key) for key, task in dask_scheduler.tasks.items() if task.who_wants]


def test_stars_of_a_cluster_sample_are_in_order(client, monkeypatch):
    """Parts of uneven sizes, some of them empty."""
    monkeypatch.setattr(ppca_arrays, "BLOCK_BYTES", 0)  # blocks of 64 stars
    rng = np.random.default_rng(5)
    flux, missing = rng.random((300, 7), np.float32), rng.random((300, 7)) < 0.2
    ivar = rng.random((300, 7), np.float32)
    sizes = [100, 0, 3, 130, 0, 67]
    parts, at = [], 0
    for size in sizes:
        rows = slice(at, at + size)
        piece = flux[rows], missing[rows], ivar[rows]
        parts.append(dask.delayed(({"n": np.array(1.0)}, [piece] if size else []), traverse=False))
        at += size
    used = np.array([1, 1, 0, 1, 1, 0, 1], bool)
    sample = ClusterSample(list(dask.persist(*parts)), sizes, used, np.dtype(np.float32))
    assert (sample.n_stars, sample.n_pixels, len(sample._blocks)) == (300, 5, 5)
    for size in (300, 40, 1):
        few = sample.few(size)
        rows = spread_rows(300, size)
        np.testing.assert_array_equal(few.flux, flux[rows][:, used])
        np.testing.assert_array_equal(few.missing, missing[rows][:, used])
        np.testing.assert_array_equal(few.ivar, ivar[rows][:, used])
    total = sample.reduce(lambda x, gone, w: {"x": x.sum(axis=0, dtype=np.float64), "n": np.array(float(len(x)))})
    assert total["n"] == 300
    np.testing.assert_allclose(total["x"], flux[:, used].sum(axis=0, dtype=np.float64))


def test_a_few_of_arrays_are_those_of_a_cluster():
    flux = np.arange(50, dtype=np.float32)[:, None]
    source = ArraySource(flux, np.zeros((50, 1), bool))
    assert source.few(50) is source
    np.testing.assert_array_equal(source.few(7).flux[:, 0], spread_rows(50, 7))


@pytest.mark.parametrize("n", [1, 3, 4, 5, 16, 17, 37, 64, 66])
def test_sums_here_have_the_order_of_the_tree(n):
    values = np.random.default_rng(n).standard_normal((n, 50)) * 10.0 ** np.random.default_rng(1).integers(
        -8, 8, (n, 50)
    )
    stats = [{"x": v} for v in values]
    adder = Adder()
    for part in stats:
        adder.add(part)
    with dask.config.set(scheduler="synchronous"):
        tree = blocks.tree([dask.delayed(s) for s in stats], ppca_arrays.add_stats).compute()
    np.testing.assert_array_equal(adder.result()["x"], tree["x"] if n > 1 else values[0])


def test_blocks_keep_what_they_are_given():
    rng = np.random.default_rng(2)
    flux, missing = rng.random((5, 11)), rng.random((5, 11)) < 0.5
    block = compact(flux, missing, None)
    got = ppca_sample._take(block, np.array([0, 3]))
    np.testing.assert_array_equal(got[0], flux[[0, 3]])
    np.testing.assert_array_equal(got[1], missing[[0, 3]])
    assert got[2] is None
