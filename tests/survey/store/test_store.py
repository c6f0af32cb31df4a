"""Stores: what is written is what is read; what is not finished is refused."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import xarray as xr
from helpers import make_survey
from hypothesis import given, settings
from hypothesis import strategies as st

from chemscale.errors import InputError, StoreError
from chemscale.runtime.files import Folder
from chemscale.schema import SchemaError, validate
from chemscale.survey.ingest.datasets import write_survey
from chemscale.survey.store.layout import Layout, choose_layout
from chemscale.survey.store.open import block_stars, open_survey
from chemscale.survey.store.rows import StoreGroup

SMALL = Layout(chunk_stars=16, shard_stars=32, label_stars=64)


def assert_same(a: xr.Dataset, b: xr.Dataset) -> None:
    assert set(a.variables) == set(b.variables)
    for name in a.variables:
        x, y = a[name].values, b[name].values
        assert x.dtype == y.dtype, name
        np.testing.assert_array_equal(x, y, err_msg=name)


@pytest.mark.parametrize("as_dask", [False, True])
def test_round_trip(tmp_path, as_dask):
    ds = make_survey(n_field=90, n_clusters=3, members=5)
    path = write_survey(ds.chunk(star=33) if as_dask else ds, tmp_path / "s.zarr", layout=SMALL)
    back = open_survey(path)
    assert_same(ds, back)
    validate(back)
    assert back.attrs["survey"] == "toy" and back.attrs["provenance"] == {"generator": "make_survey"}
    assert back.flux.chunks is not None and back.teff.chunks is None
    assert_same(ds, pickle.loads(pickle.dumps(back)))


def test_blocks_are_whole_chunks(tmp_path):
    ds = make_survey(n_field=90, n_clusters=3, members=5)
    path = write_survey(ds, tmp_path / "s.zarr", layout=SMALL)
    assert open_survey(path, chunk_stars=16).flux.chunks[0] == (16,) * 6 + (9,)
    assert open_survey(path, chunk_stars=17).flux.chunks[0] == (32, 32, 32, 9)
    with pytest.raises(InputError):
        open_survey(path, chunk_stars=0)


def test_per_star_variables_are_lazy_and_index(tmp_path):
    ds = make_survey(n_field=90)
    back = open_survey(write_survey(ds, tmp_path / "s.zarr", layout=SMALL))
    keep = np.flatnonzero(ds.teff.values > 4500)
    assert_same(ds.isel(star=keep), back.isel(star=keep))
    assert_same(ds.isel(star=slice(5, 80, 7)), back.isel(star=slice(5, 80, 7)))
    assert_same(ds.isel(star=slice(None, None, -1)), back.isel(star=slice(None, None, -1)))
    assert back.star_id.isel(star=-1).item() == ds.star_id.values[-1]


def test_plain_zarr_reads_the_group(tmp_path):
    ds = make_survey()
    path = write_survey(ds, tmp_path / "s.zarr")
    plain = xr.open_zarr(path)
    np.testing.assert_array_equal(plain.flux.values, ds.flux.values)
    assert plain.flags.attrs["flag_meanings"].startswith("gap non_finite")
    assert plain.wavelength.attrs["medium"] == "vacuum"


def test_bytes_do_not_depend_on_the_occasion(tmp_path):
    ds = make_survey()
    trees = []
    for name in ("a", "b"):
        folder = Folder(write_survey(ds, tmp_path / name))
        trees.append({n: folder.read(n) for n, _ in folder.walk()})
    assert trees[0] == trees[1]


def test_existing_path_is_refused(tmp_path):
    ds = make_survey(n_field=20)
    path = write_survey(ds, tmp_path / "s.zarr")
    with pytest.raises(StoreError, match="already exists"):
        write_survey(ds, path)
    other = make_survey(n_field=20, seed=5)
    write_survey(other, path, overwrite=True)
    assert_same(other, open_survey(path))


def test_overwrite_never_removes_what_is_not_a_store(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreError, match="not a chemscale store"):
        write_survey(make_survey(n_field=20), tmp_path / "home", overwrite=True)
    assert (tmp_path / "home" / "thesis.tex").exists()


def test_unfinished_and_foreign_stores_are_refused(tmp_path):
    with pytest.raises(StoreError, match="no survey store"):
        open_survey(tmp_path / "nothing")
    path = tmp_path / "s.zarr"
    write_survey(make_survey(n_field=20), path)
    root = path / "_chemscale" / "root.json"
    record = json.loads(root.read_text())
    root.write_text(json.dumps(record | {"version": 99}))
    with pytest.raises(StoreError, match="version 99"):
        open_survey(path)
    root.unlink()
    with pytest.raises(StoreError, match="unfinished"):
        open_survey(path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError):
        open_survey(tmp_path / "file")


def test_contract_is_checked_before_anything_is_written(tmp_path):
    ds = make_survey(n_field=20)
    ds["star_id"].values[1] = ds["star_id"].values[0]
    with pytest.raises(SchemaError, match="duplicate"):
        write_survey(ds, tmp_path / "s.zarr")
    assert not (tmp_path / "s.zarr").exists()


def test_flipped_bit_is_not_read_silently(tmp_path):
    path = tmp_path / "s.zarr"
    write_survey(make_survey(), path)
    shard = path / "flux" / "c" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 4
    shard.write_bytes(data)
    with pytest.raises(StoreError, match="verify"):
        open_survey(path).flux.compute(scheduler="sync")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_hidden_rows(data):
    n_rows = data.draw(st.integers(1, 60))
    hidden = np.array(sorted(data.draw(st.sets(st.integers(0, n_rows - 1)))), dtype="i8")
    group = StoreGroup("nowhere", n_rows, hidden)
    visible = np.setdiff1d(np.arange(n_rows), hidden)
    size = data.draw(st.integers(1, 20))
    counts = [int(np.sum((visible >= a) & (visible < a + size))) for a in range(0, n_rows, size)]
    assert group.star_chunks(size) == [c for c in counts if c]
    start = data.draw(st.integers(0, len(visible)))
    stop = data.draw(st.integers(start, len(visible)))
    first, last = group.row_range(start, stop)
    np.testing.assert_array_equal(np.setdiff1d(np.arange(first, last), hidden), visible[start:stop])


@pytest.mark.parametrize("n", [64, 50, 16, 3])
@pytest.mark.parametrize("name", ["flux", "flags"])
def test_shards_are_what_zarr_itself_writes(n, name):
    import zarr
    from zarr.storage import MemoryStore

    from chemscale.survey.store.layout import array_spec, encode

    rng = np.random.default_rng(n)
    dtype = {"flux": "float32", "flags": "uint8"}[name]
    values = (50 * rng.random((n, 300))).astype(dtype)
    layout = Layout(16, 64, 64)
    memory: dict = {}
    with zarr.config.set({"array.write_empty_chunks": False}):
        zarr.create_array(MemoryStore(memory), **array_spec(name, dtype, values.shape, layout))[...] = values
    assert encode(name, dtype, values, layout) == memory["c/0/0"].to_bytes()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 10**8), st.integers(1, 100_000))
def test_layout_respects_memory_and_alignment(n, pixels):
    layout = choose_layout(n, pixels)
    row = pixels * 9
    assert layout.shard_stars * row <= max(320 << 20, layout.chunk_stars * row)
    assert layout.chunk_stars * row <= max(40 << 20, 64 * row)
    assert block_stars(layout, pixels) % layout.chunk_stars == 0


def test_a_million_stars_stay_below_the_file_quota():
    layout = choose_layout(10**6, 8575)
    pixel_files = 3 * layout.n_shards(10**6)
    label_files = 40 * -(-(10**6) // layout.label_stars)
    assert pixel_files + label_files + 60 < 2000
