"""The same spectra are the same however a file stores them: kind of file, byte order, packing, number of stars."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from chemscale.errors import InputError
from chemscale.schema import Flag
from chemscale.survey.sources.table import TableSource

PIXELS = 130


def stars(n, order, flux_type, mask_type):
    rng = np.random.default_rng(n)
    mask = np.zeros((n, PIXELS), bool)
    mask[:, 20:25] = True
    return {
        "flux": (1 + rng.normal(0, 0.01, (n, PIXELS)))
        .astype(flux_type)
        .astype(np.dtype(flux_type).newbyteorder(order)),
        "error": np.full((n, PIXELS), 0.01, np.dtype(flux_type).newbyteorder(order)),
        "mask": mask.astype(np.dtype(mask_type).newbyteorder(order)),
        "wavelength": (5000.0 + np.arange(PIXELS)).astype(np.dtype("f8").newbyteorder(order)),
        "teff": (4500 + np.arange(n)).astype(np.dtype("i4").newbyteorder(order)),
        "star_id": (10**15 + np.arange(n)).astype(np.dtype("i8").newbyteorder(order)),
        "cluster": np.array(["M 67", "", "N/A", "NGC 1"])[np.arange(n) % 4],
    }


def as_npz(folder, arrays, packed, chunk):
    (np.savez_compressed if packed else np.savez)(folder / "t.npz", **arrays)
    return folder / "t.npz"


def as_hdf5(folder, arrays, packed, chunk):
    with h5py.File(folder / "t.h5", "w") as root:
        for name, values in arrays.items():
            plain = values.astype("S") if values.dtype.kind == "U" else values
            options = {"chunks": (min(chunk, len(plain)), *plain.shape[1:])}
            root.create_dataset(name, data=plain, compression="gzip" if packed else None, **options)
    return folder / "t.h5"


def as_zarr(folder, arrays, packed, chunk):
    group = zarr.open_group(folder / "t.zarr", mode="w")
    for name, values in arrays.items():
        native = values.astype(values.dtype.newbyteorder("=")) if values.dtype.kind != "U" else values.astype(str)
        group.create_array(name, data=native, chunks=(min(chunk, len(native)), *native.shape[1:]))
    return folder / "t.zarr"


def as_fits(folder, arrays, packed, chunk):
    codes = {"f4": "E", "f8": "D", "i4": "J", "i8": "K", "i2": "I", "u1": "B", "b1": "L", "u2": "I", "u4": "J"}
    columns = []
    n = len(arrays["flux"])
    for name, values in arrays.items():
        values = np.tile(values, (n, 1)) if name == "wavelength" else values
        kind = values.dtype.str[1:]
        zero = {"u2": 2**15, "u4": 2**31}.get(kind)
        form = f"{values.dtype.itemsize // 4}A" if values.dtype.kind == "U" else codes[kind]
        form = form if values.ndim == 1 else f"{values.shape[1]}{form}"
        columns.append(fits.Column(name, form, bzero=zero, array=values.astype(values.dtype.newbyteorder("="))))
    path = folder / "t.fits"
    fits.BinTableHDU.from_columns(columns).writeto(path)
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes(), 1))
    return path


@settings(max_examples=40, deadline=None)
@given(
    write=st.sampled_from([as_npz, as_hdf5, as_zarr, as_fits]),
    n=st.sampled_from([1, 2, 3, PIXELS - 1, PIXELS, PIXELS + 1]),
    order=st.sampled_from(["<", ">"]),
    flux_type=st.sampled_from(["f4", "f8"]),
    mask_type=st.sampled_from(["b1", "u1", "i2", "u2", "i4"]),
    packed=st.booleans(),
    chunk=st.sampled_from([1, 2, 100]),
)
def test_spectra_do_not_depend_on_how_they_are_stored(write, n, order, flux_type, mask_type, packed, chunk):
    arrays = stars(n, order, flux_type, mask_type)
    with tempfile.TemporaryDirectory() as folder:
        source = TableSource(str(write(Path(folder), arrays, packed, chunk)))
        plan = source.plan()
        block = source.read(plan.items, plan.wavelength, plan.elements)
    assert block.star_id == [str(10**15 + i) for i in range(n)]
    assert np.array_equal(block.flux, arrays["flux"].astype("f4"))
    assert np.array_equal(block.labels["teff"], 4500.0 + np.arange(n))
    assert block.labels["cluster"].tolist() == [["M 67", "", "", "NGC 1"][i % 4] for i in range(n)]
    assert np.array_equal((block.flags & Flag.SURVEY_BAD) != 0, arrays["mask"] != 0)
    assert np.array_equal(plan.wavelength, 5000.0 + np.arange(PIXELS))


@pytest.mark.parametrize(
    ("unit", "factor"),
    [("A", 1), ("Angstroms", 1), ("ANGSTROM", 1), ("0.1nm", 1), ("nanometers", 10), ("micron", 1e4)],
)
def test_wavelength_units_are_read_as_people_write_them(tmp_path, unit, factor):
    path = as_fits(tmp_path, stars(3, "=", "f4", "u1"), False, 1)
    with fits.open(path, mode="update") as units:
        at = units[1].columns.names.index("wavelength") + 1
        units[1].header[f"TUNIT{at}"] = unit
        units[1].data["wavelength"] /= factor
    np.testing.assert_allclose(TableSource(str(path)).plan().wavelength, 5000.0 + np.arange(PIXELS), rtol=1e-12)


def test_logarithms_of_wavelengths_are_refused_as_such(tmp_path):
    path = as_fits(tmp_path, stars(3, "=", "f4", "u1"), False, 1)
    with fits.open(path, mode="update") as units:
        at = units[1].columns.names.index("wavelength") + 1
        units[1].header[f"TUNIT{at}"] = "log10(Angstrom)"
    with pytest.raises(InputError, match="logarithms"):
        TableSource(str(path)).plan()


def test_what_nobody_says_is_assumed_aloud(tmp_path):
    plan = TableSource(str(as_npz(tmp_path, stars(2, "=", "f4", "u1"), False, 1))).plan()
    assert any("vacuum" in what for what in plan.attrs["assumed"])
    assert any("at rest" in what for what in plan.attrs["assumed"])
