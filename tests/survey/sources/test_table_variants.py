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


def packed_arrays():
    """Integers with a scale and a value for "undefined", and what they mean."""
    stored, attributes = dict(stars(5, "=", "f8", "b1")), {}
    stored["flux"] = np.round((stored["flux"] - 1) * 1e4).astype("i2")
    stored["flux"][2, 60] = -32768
    attributes["flux"] = {"scale_factor": 1e-4, "add_offset": 1.0, "_FillValue": np.int16(-32768)}
    stored["teff"] = np.array([450, 4321, 460, 470, 480], "i2")
    attributes["teff"] = {"scale_factor": 10.0, "_FillValue": np.int16(4321), "units": "K"}
    stored["logg"], attributes["logg"] = np.array([4.5, 2.0, 4.0, 3.0, 1.0]), {"missing_value": 2.0}
    stored["mask"] = np.where(stored["mask"], 200, 0).astype("u1").view("i1")
    attributes["mask"] = {"_Unsigned": "true"}
    return stored, attributes


@pytest.mark.parametrize("kind", ["hdf5", "zarr", "text as bytes"])
def test_scaled_and_undefined_numbers_of_netcdf_mean_their_physical_values(tmp_path, kind):
    stored, attributes = packed_arrays()
    if kind == "zarr":
        group = zarr.open_group(tmp_path / "t.zarr", mode="w")
        for name, values in stored.items():
            array = group.create_array(name, data=values)
            array.attrs.update({k: getattr(v, "item", lambda v=v: v)() for k, v in attributes.get(name, {}).items()})
        path = tmp_path / "t.zarr"
    else:
        path = tmp_path / "t.h5"
        with h5py.File(path, "w") as root:
            for name, values in stored.items():
                data = root.create_dataset(name, data=values.astype("S") if values.dtype.kind == "U" else values)
                for key, value in attributes.get(name, {}).items():
                    data.attrs[key] = np.bytes_(value) if kind != "hdf5" and isinstance(value, str) else value
    source = TableSource(str(path))
    plan = source.plan()
    block = source.read(plan.items, plan.wavelength, plan.elements)
    np.testing.assert_array_equal([i.labels["teff"] for i in plan.items], [4500, np.nan, 4600, 4700, 4800])
    np.testing.assert_array_equal([i.labels["logg"] for i in plan.items], [4.5, np.nan, 4.0, 3.0, 1.0])
    wanted = stars(5, "=", "f8", "b1")["flux"]
    undefined = np.isnan(block.flux)
    assert np.argwhere(undefined).tolist() == [[2, 60]] and block.ivar[2, 60] == 0
    np.testing.assert_allclose(block.flux[~undefined], wanted[~undefined], atol=6e-5)
    assert np.array_equal((block.flags & Flag.SURVEY_BAD) != 0, stars(5, "=", "f8", "b1")["mask"])


@pytest.mark.parametrize("version", [2, 3])
def test_what_xarray_packs_into_zarr_is_unpacked(tmp_path, version):
    import xarray as xr

    arrays = stars(5, "=", "f8", "b1")
    teff = np.array([4500, np.nan, 4600, 4700, 4800])
    pixels = {k: (("star", "pixel"), arrays[k]) for k in ("flux", "error")}
    data = xr.Dataset(pixels | {"wavelength": ("pixel", arrays["wavelength"]), "teff": ("star", teff)})
    encoding = {"teff": {"dtype": "i2", "_FillValue": 4321}, "flux": {"_FillValue": -77.0}}
    data["flux"][1, 50] = np.nan
    data.to_zarr(tmp_path / "x.zarr", encoding=encoding, zarr_format=version, consolidated=False)
    source = TableSource(str(tmp_path / "x.zarr"))
    plan = source.plan()
    block = source.read(plan.items, plan.wavelength, plan.elements)
    np.testing.assert_array_equal([i.labels["teff"] for i in plan.items], teff)
    assert np.argwhere(np.isnan(block.flux)).tolist() == [[1, 50]]


@pytest.mark.parametrize("version", [2, 3])
def test_a_plain_zarr_array_has_zeros_where_its_fill_value_is_zero(tmp_path, version):
    group = zarr.open_group(tmp_path / "t.zarr", mode="w", zarr_format=version)
    for name, values in stars(3, "=", "f4", "u1").items():
        group.create_array(name, data=values, fill_value="" if values.dtype.kind == "U" else 0)
    source = TableSource(str(tmp_path / "t.zarr"))
    plan = source.plan()
    block = source.read(plan.items, plan.wavelength, plan.elements)
    assert ((block.flags & Flag.SURVEY_BAD) != 0).sum() == 3 * 5 and (block.ivar > 0).all()


def test_hdf5_links_are_followed_and_what_holds_nothing_is_listed(tmp_path):
    arrays = stars(3, "=", "f4", "b1")
    with h5py.File(tmp_path / "labels.h5", "w") as other:
        other["t"] = np.array([4500.0, 4600.0, 4700.0])
    with h5py.File(tmp_path / "t.h5", "w") as root:
        root["inside/spectra"] = arrays["flux"]
        root["flux"] = h5py.SoftLink("/inside/spectra")
        root["teff"] = h5py.ExternalLink("labels.h5", "t")
        root["error"], root["wavelength"] = arrays["error"], arrays["wavelength"]
        root["inside/up"], root["nothing"], root["lost"] = h5py.SoftLink("/"), h5py.Empty("f4"), h5py.SoftLink("/none")
    plan = TableSource(str(tmp_path / "t.h5")).plan()
    assert [i.labels["teff"] for i in plan.items] == [4500, 4600, 4700]
    told = [what.partition(":")[0] for what in plan.attrs["ignored"]]
    assert told == ["inside/spectra", "lost (a link that leads nowhere", "nothing (it holds no values)"]


def test_zarr_arrays_in_groups_are_listed(tmp_path):
    group = zarr.open_group(tmp_path / "t.zarr", mode="w")
    for name, values in stars(3, "=", "f4", "b1").items():
        group.create_array(name, data=values)
    group.create_group("more").create_array("sky", data=np.zeros(4))
    assert TableSource(str(tmp_path / "t.zarr")).plan().attrs["ignored"] == ["more/sky"]
