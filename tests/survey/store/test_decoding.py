"""Shards read without zarr-python: the same values, and damage that is noticed."""

from __future__ import annotations

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ZstdCodec

from chemscale.survey.store.decoding import ShardFiles
from chemscale.survey.store.layout import Layout, array_spec, chunk_file, pixel_codecs

LAYOUT = Layout(8, 24, 48)


def written(folder, compressors, shape=(61, 5), dtype="float32", **more):
    """An array of 61 rows in shards of 24, and its values."""
    settings = {"chunks": (8, *shape[1:]), "shards": (24, *shape[1:]), "fill_value": 7} | more
    array = zarr.create_array(str(folder), name="flux", shape=shape, dtype=dtype, compressors=compressors, **settings)
    values = np.random.default_rng(3).integers(0, 200, shape).astype(dtype)
    array[:] = values
    return zarr.open_array(str(folder), path="flux", mode="r"), values


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize(
    "compressors",
    [pixel_codecs("flux"), pixel_codecs("flags"), [BloscCodec(cname="zstd")], [Crc32cCodec()], None],
    ids=["flux", "flags", "zstd", "crc", "none"],
)
def test_any_rows_are_those_of_zarr(tmp_path, compressors, dtype):
    array, values = written(tmp_path, compressors, dtype=dtype)
    files = ShardFiles.of(tmp_path, "flux", array)
    assert files is not None
    for start in range(0, 61, 3):
        for stop in (start, start + 1, start + 8, start + 30, 61):
            found = files.read(start, min(stop, 61))
            assert found.dtype == values.dtype
            np.testing.assert_array_equal(found, values[start : min(stop, 61)])
            np.testing.assert_array_equal(found, array[start : min(stop, 61)])
            wanted = np.full_like(found, 9)
            assert files.read(start, min(stop, 61), out=wanted) is wanted
            np.testing.assert_array_equal(wanted, found)
    assert files.read(0, 8, out=np.empty((7, 5), dtype)).shape == (8, 5), "an array of another shape is left alone"


@pytest.mark.parametrize(
    "other",
    [
        {"compressors": [ZstdCodec(), Crc32cCodec()]},
        {"compressors": None, "shards": None},
        {"compressors": None, "serializer": BytesCodec(endian="big")},
        {"compressors": None, "chunks": (8, 1)},
        {"compressors": None, "chunk_key_encoding": {"name": "v2", "separator": "."}},
    ],
)
def test_other_arrays_are_left_to_zarr(tmp_path, other):
    array, _ = written(tmp_path, **other)
    assert ShardFiles.of(tmp_path, "flux", array) is None


def test_the_arrays_of_a_store_are_read_so(tmp_path):
    """Every pixel variable as a survey writes it."""
    for name, dtype in (("flux", "float32"), ("ivar", "float32"), ("flags", "uint8")):
        zarr.create_array(str(tmp_path), name=name, **array_spec(name, dtype, (61, 5), LAYOUT))
        array = zarr.open_array(str(tmp_path), path=name, mode="r")
        assert ShardFiles.of(tmp_path, name, array) is not None


@pytest.mark.parametrize("what", ["shard", "chunk"])
def test_rows_that_were_never_written_are_an_error(tmp_path, what):
    """The fill value is no measurement: every row of a store is written."""
    array = zarr.create_array(str(tmp_path), name="flux", **array_spec("flux", "float32", (61, 5), LAYOUT))
    array[:8] = 1
    files = ShardFiles.of(tmp_path, "flux", zarr.open_array(str(tmp_path), path="flux", mode="r"))
    assert files.read(0, 8).min() == 1
    with pytest.raises(ValueError, match=f"{'flux/c/1/0' if what == 'shard' else 'chunk 1'} is missing"):
        files.read(*((24, 30) if what == "shard" else (8, 16)))


@pytest.mark.parametrize("where", ["chunk", "index"])
def test_a_flipped_bit_is_noticed(tmp_path, where):
    array, _ = written(tmp_path, pixel_codecs("flux"))
    path = tmp_path / chunk_file("flux", 0, 2)
    data = bytearray(path.read_bytes())
    data[40 if where == "chunk" else -10] ^= 4
    path.write_bytes(data)
    files = ShardFiles.of(tmp_path, "flux", array)
    with pytest.raises(ValueError, match=f"{where}.*damaged"):
        files.read(0, 24)
    if where == "chunk":
        files.read(8, 24)  # the others are whole


@pytest.mark.parametrize("keep", [0, 3, 30, 100])
def test_a_file_cut_short_is_noticed(tmp_path, keep):
    array, _ = written(tmp_path, pixel_codecs("flux"))
    path = tmp_path / chunk_file("flux", 0, 2)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"shorter|damaged"):
        ShardFiles.of(tmp_path, "flux", array).read(0, 24)


def test_a_chunk_of_another_size_is_noticed(tmp_path):
    """Checksums in order, but not this array's chunk: neither too little nor too much is written."""
    array, values = written(tmp_path, pixel_codecs("flux"))
    other = zarr.create_array(
        str(tmp_path),
        name="other",
        shape=(24, 4),
        chunks=(8, 4),
        shards=(24, 4),
        dtype="f4",
        compressors=pixel_codecs("flux"),
    )
    other[:] = values[:24, :4]
    (tmp_path / chunk_file("flux", 0, 2)).write_bytes((tmp_path / chunk_file("other", 0, 2)).read_bytes())
    with pytest.raises(ValueError, match="not a chunk of 160 bytes"):
        ShardFiles.of(tmp_path, "flux", array).read(0, 24)
