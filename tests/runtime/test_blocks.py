"""Groups: sums over runs of blocks equal sums over blocks, on any scheduler, in few tasks."""

from __future__ import annotations

import itertools
from functools import partial

import dask
import dask.array as da
import numpy as np
import pytest
from helpers import make_survey

from chemscale import open_survey, write_survey
from chemscale.runtime import blocks as block_groups


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    path = tmp_path_factory.mktemp("groups") / "s.zarr"
    write_survey(make_survey(500, 4, 5, n_pixels=40), path)
    return open_survey(path, chunk_stars=64)


def total(stars, flux, flags):
    chosen = stars[:, 0]
    return np.where(flags[chosen] == 0, flux[chosen], 0).sum(axis=0), stars.sum(axis=0)


def fold(before, part):
    return part if before is None else (before[0] + part[0], before[1] + part[1])


@pytest.mark.parametrize("most", [1, 3, 4096])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_sums_over_groups(survey, monkeypatch, most, share):
    monkeypatch.setattr(block_groups, "group_size", lambda n: -(-n // most))
    flux, flags = survey["flux"].data, survey["flags"].data
    readers = block_groups.readers_of([flux, flags])
    n = flux.shape[0]
    chosen = np.random.default_rng(0).random(n) < share
    stars = np.stack([chosen, np.arange(n) % 2 == 0], axis=1)
    parts = block_groups.map_groups(total, fold, readers, flux.chunks[0], stars)
    assert len(parts) <= min(most, len(flux.chunks[0]))
    if not share:
        assert parts == []
        return
    found = dask.compute(*parts, scheduler="threads")
    expected = np.where(flags.compute()[chosen] == 0, flux.compute()[chosen], 0).sum(axis=0)
    np.testing.assert_allclose(sum(f[0] for f in found), expected, rtol=1e-5)
    np.testing.assert_array_equal(sum(f[1] for f in found), stars.sum(axis=0))


def test_only_rows_of_a_store_are_read_by_the_worker(survey):
    flux = survey["flux"].data
    assert block_groups.readers_of([flux]) is not None
    for other in (flux[:100], flux + 1, flux.rechunk((50, -1)), da.ones((5, 3)), np.ones((5, 3))):
        assert block_groups.readers_of([other]) is None
        assert block_groups.readers_of([flux, other]) is None


def test_ranges_are_cut_where_blocks_begin():
    edges = np.array([0, 10, 20, 30])
    assert list(block_groups.split_at_blocks(5, 25, edges)) == [(5, 10), (10, 20), (20, 25)]
    assert list(block_groups.split_at_blocks(10, 20, edges)) == [(10, 20)]


def test_groups_depend_on_the_survey_alone():
    assert [block_groups.group_size(n) for n in (1, 4096, 4097, 97_657)] == [1, 1, 2, 24]


def worker_of(number):
    from distributed import get_worker

    return number, get_worker().address


def test_neighbours_run_on_one_worker(client):
    task = dask.delayed(worker_of, pure=False)
    made = block_groups.in_order_on_workers([partial(task, i) for i in range(16)])
    found = client.gather(client.compute(made))
    assert [number for number, _ in found] == list(range(16))
    homes = [address for _, address in found]
    assert len(set(homes)) == 2
    # An idle worker may take over a few of the last ones; dealt out one by one they would change eight times or more.
    assert sum(a != b for a, b in itertools.pairwise(homes)) <= 4


def test_without_a_cluster_tasks_are_made_as_they_are():
    assert [t.compute() for t in block_groups.in_order_on_workers([partial(dask.delayed(abs), -3)])] == [3]
