"""Any table of spectra: four file formats, mapping, units, bounded memory, bad input."""

from __future__ import annotations

import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest
from astropy.io import fits

from chemscale import open_survey
from chemscale.errors import DataError, InputError
from chemscale.schema import Flag
from chemscale.survey.ingest.ingestion import ingest
from chemscale.survey.sources.base import Source
from chemscale.survey.sources.table import TableSource


def contents(n: int = 6, pixels: int = 40, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "flux": rng.normal(1, 0.05, (n, pixels)).astype("f4"),
        "error": rng.uniform(0.01, 0.03, (n, pixels)).astype("f4"),
        "wavelength": np.linspace(5000.0, 5100.0, pixels),
        "star_id": np.array([f"s{i}" for i in range(n)]),
        "teff": np.where(np.arange(n) == 2, -9999.0, rng.uniform(4000, 5000, n)),
        "radial_velocity": rng.normal(0, 30, n),
        "quality": np.arange(n),
        "cluster": np.array(["M_67", "M 67"] + [""] * (n - 2)),
        "abundance": rng.normal(0, 0.1, (n, 3)).astype("f4"),
        "element": np.array(["Fe", "Mg", "Si"]),
        "my_own": np.ones(n),
    }


def write_npz(path, data):
    np.savez(path, **data)


def write_npz_compressed(path, data):
    np.savez_compressed(path, **data)


def write_hdf5(path, data):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as root:
        for name, values in data.items():
            root[name] = values.astype("S") if values.dtype.kind == "U" else values


def write_zarr(path, data):
    import zarr

    group = zarr.open_group(path, mode="w")
    for name, values in data.items():
        group.create_array(name, data=values)


def write_fits(path, data):
    columns, images = [], []
    for name, values in data.items():
        if len(values) != len(data["flux"]) or values.ndim == 0:
            if values.dtype.kind != "U":
                images.append(fits.ImageHDU(values, name=name))
            continue
        form = {"f4": "E", "f8": "D", "i8": "K"}.get(values.dtype.str[1:], "20A")
        columns.append(fits.Column(name, f"{values.shape[1] if values.ndim == 2 else ''}{form}", array=values))
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns), *images]).writeto(path)


WRITERS = {
    "t.npz": write_npz,
    "c.npz": write_npz_compressed,
    "t.h5": write_hdf5,
    "t.zarr": write_zarr,
    "t.fits": write_fits,
}


def read_all(source):
    plan = source.plan()
    return plan, source.read(plan.items, plan.wavelength, plan.elements)


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_stars(tmp_path, name):
    data = contents()
    if name == "t.fits":  # a text array that is not a column has no place in FITS
        data = {k: v for k, v in data.items() if k not in {"element", "abundance"}}
    WRITERS[name](tmp_path / name, data)
    source = TableSource(str(tmp_path / name))
    assert isinstance(source, Source)
    plan, block = read_all(source)
    assert not plan.rejected and not block.rejected
    assert block.star_id == [f"s{i}" for i in range(6)]
    np.testing.assert_array_equal(block.flux, data["flux"])
    np.testing.assert_allclose(block.ivar, 1 / data["error"].astype(float) ** 2, rtol=1e-6)
    np.testing.assert_array_equal(plan.wavelength, data["wavelength"])
    assert block.labels["cluster"].tolist() == ["M 67", "M 67", "", "", "", ""]
    np.testing.assert_allclose(block.labels["teff"], np.where(data["teff"] < 0, np.nan, data["teff"]), rtol=1e-6)
    assert block.labels["quality"].tolist() == list(range(6))
    if "element" in data:
        assert plan.elements == ("Fe", "Mg", "Si")
        np.testing.assert_array_equal(block.labels["abundance"], data["abundance"])
    assert plan.attrs["ignored"] == ["my_own"] and plan.attrs["medium_stated"] is False
    # any rows, in any order, on another worker
    there, items = pickle.loads(pickle.dumps((source, plan.items)))
    some = there.read([items[4], items[1], items[3]], plan.wavelength, plan.elements)
    np.testing.assert_array_equal(some.flux, data["flux"][[4, 1, 3]])
    assert some.labels["quality"].tolist() == [4, 1, 3]


def test_contract_names_need_nothing_else(tmp_path):
    data = contents()
    ivar = (1 / data["error"] ** 2).astype("f4")
    flags = np.zeros(ivar.shape, np.uint8)
    flags[1, 3] = Flag.TELLURIC
    mask = np.zeros(ivar.shape, bool)
    mask[2, 4] = True
    np.savez(
        tmp_path / "mine.npz",
        FLUX=data["flux"].astype(">f8"),
        ivar=ivar,
        flags=flags,
        mask=mask,
        wavelength=data["wavelength"],
        medium="air",
        survey="Mine",
        normalisation="spline",
    )
    plan, block = read_all(TableSource(str(tmp_path / "mine.npz")))
    assert plan.medium == "air" and plan.attrs["survey"] == "Mine" and plan.attrs["normalisation"] == "spline"
    assert block.star_id[5] == "mine-00000005" and plan.items[5].path.endswith("mine.npz#5")
    np.testing.assert_array_equal(block.ivar, ivar)
    assert block.flags[1, 3] == Flag.TELLURIC and block.flags[2, 4] == Flag.SURVEY_BAD and block.flags.sum() == 40
    assert TableSource(str(tmp_path / "mine.npz"), medium="vacuum").plan().medium == "vacuum"


def test_mapping_and_units(tmp_path):
    data = contents()
    np.savez(
        tmp_path / "t.npz",
        spec=data["flux"],
        sigma=data["error"],
        lam=data["wavelength"] / 10,
        name=data["star_id"],
        v=data["radial_velocity"] * 1000,
    )
    mapping = tmp_path / "map.toml"
    mapping.write_text(
        'survey = "GALAH"\nmedium = "air"\n'
        '[columns]\nflux = "spec"\nerror = "sigma"\nwavelength = "lam"\nstar_id = "name"\nradial_velocity = "v"\n'
        '[units]\nwavelength = "nm"\nradial_velocity = "m/s"\n'
    )
    source = TableSource(str(tmp_path / "t.npz"), str(mapping))
    plan, block = read_all(source)
    np.testing.assert_allclose(plan.wavelength, data["wavelength"])
    np.testing.assert_allclose(block.labels["radial_velocity"], data["radial_velocity"], rtol=1e-6)
    assert plan.medium == "air" and source.describe()["mapping"]["survey"] == "GALAH"
    for text, reason in (
        ('[columns]\nflux = "nothing"', "no array 'nothing' for flux; it has spec"),
        ('[columns]\nfluxx = "spec"', "'fluxx' is not in the contract"),
        ('colums = "x"', "'colums' is not a setting"),
        ("not toml", "cannot be read as TOML"),
        ('[columns]\nflux = "spec"\nerror = "sigma"\nwavelength = "lam"', "500 to 510 are not in Angstrom"),
        (mapping.read_text().replace('"nm"', '"kg"'), "cannot be turned into Angstrom"),
        (mapping.read_text().replace('"air"', '"water"'), "medium is 'water'"),
    ):
        mapping.write_text(text)
        with pytest.raises(InputError, match=reason.replace("[", r"\[")):
            TableSource(str(tmp_path / "t.npz"), str(mapping)).plan()


def test_units_in_the_file(tmp_path):
    data = contents()
    columns = [
        fits.Column("flux", "40E", array=data["flux"]),
        fits.Column("error", "40E", array=data["error"]),
        fits.Column("wavelength", "40D", array=np.tile(data["wavelength"] / 1e4, (6, 1)), unit="um"),
        fits.Column("logg", "E", array=np.ones(6), unit="log(cm.s**-2)"),
    ]
    path = tmp_path / "t.fits"
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns)]).writeto(path)
    plan, block = read_all(TableSource(str(path)))
    np.testing.assert_allclose(plan.wavelength, data["wavelength"], rtol=1e-12)
    assert block.labels["logg"].tolist() == [1.0] * 6


def test_bad_rows_and_ids(tmp_path):
    data = contents(8)
    data["flux"][0] = np.nan
    data["error"][1] = 0
    data["flux"][2, :5] = [np.inf, np.nan, 1e38, -1e38, 0]
    data["star_id"] = np.array(["a", "b", "../x", "<script>", "", "dup", "dup", "line\nbreak"])
    write_npz(tmp_path / "t.npz", data)
    plan, block = read_all(TableSource(str(tmp_path / "t.npz")))
    assert block.star_id == ["../x", "<script>", "dup"]
    assert {r.reason.split(":")[0] for r in plan.rejected} == {
        "identifier is empty",
        "duplicate identifier",
        "identifier holds control characters or undecodable bytes",
    }
    assert all("\n" not in r.star_id for r in plan.rejected)
    assert {r.star_id: r.reason for r in block.rejected} == {
        "a": "flux is not finite in any pixel",
        "b": "no pixel has both a flux and a valid error",
    }
    assert np.all(block.ivar[0, :2] == 0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"flux": np.ones(40)}, "flux has shape"),
        ({"error": np.ones((6, 39))}, "error has shape"),
        ({"wavelength": np.linspace(5000, 5100, 39)}, "wavelength has shape"),
        ({"wavelength": np.linspace(5100, 5000, 40)}, "wavelength decreases"),
        ({"wavelength": np.linspace(0.5, 0.51, 40)}, "not in Angstrom"),
        ({"teff": np.ones(5)}, "teff has shape"),
        ({"teff": np.array(["a"] * 6)}, "teff holds"),
        ({"abundance": np.ones((6, 2))}, "abundance has shape"),
        ({"star_id": np.array(["a", {}, "b", "c", "d", "e"], dtype=object)}, "unpickled"),
        ({"medium": np.array("water")}, "medium is 'water'"),
        ({"flux": None}, "no array 'flux'"),
        ({"error": None}, "neither 'ivar' nor 'error'"),
        ({"element": None}, "without element"),
    ],
)
def test_wrong_arrays(tmp_path, change, reason):
    data = {k: v for k, v in (contents() | change).items() if v is not None}
    np.savez(tmp_path / "t.npz", **data)
    with pytest.raises(InputError, match=reason):
        TableSource(str(tmp_path / "t.npz")).plan()


def test_files_that_are_none(tmp_path):
    write_npz(tmp_path / "good.npz", contents())
    whole = (tmp_path / "good.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "text.h5").write_text("hello")
    (tmp_path / "text.fits").write_text("hello")
    (tmp_path / "empty.fits").write_bytes(b"")
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "t.xyz").write_text("")
    for name in ("cut.npz", "text.npz", "text.h5", "text.fits", "empty.fits", "a.zarr", "t.xyz", "none.npz"):
        if name == "text.h5":
            pytest.importorskip("h5py")
        with pytest.raises(InputError, match=name.replace(".", r"\.")):
            TableSource(str(tmp_path / name)).plan()
    with zipfile.ZipFile(tmp_path / "lie.npz", "w") as archive:
        header = b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999, 40), }"
        archive.writestr("flux.npy", header.ljust(127) + b"\n")
    with pytest.raises(InputError, match="declares"):
        TableSource(str(tmp_path / "lie.npz")).plan()


@pytest.mark.parametrize("name", ["t.npz", "t.fits", "t.h5", "t.zarr"])
def test_memory_is_bounded_by_the_block(tmp_path, name):
    """A 64 MB file: planning and reading 50 rows must not hold it."""
    n, pixels = 8000, 1000
    data = {
        "flux": np.ones((n, pixels), "f4"),
        "error": np.full((n, pixels), 0.01, "f4"),
        "wavelength": np.linspace(5000.0, 6000.0, pixels),
    }
    WRITERS[name](tmp_path / name, data)
    source = TableSource(str(tmp_path / name))
    tracemalloc.start()
    plan = source.plan()
    block = source.read(plan.items[4000:4050], plan.wavelength, ())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert block.flux.shape == (50, pixels)
    assert peak < 20 * 2**20


def test_a_survey_written_by_xarray(tmp_path):
    """Zarr from xarray: text of variable length, `medium` and `units` as attributes."""
    import xarray as xr

    data = contents()
    pixels = {k: (("star", "wavelength"), data[k]) for k in ("flux", "error")}
    stars = {k: ("star", data[k]) for k in ("star_id", "cluster")}
    wave = ("wavelength", data["wavelength"] / 10, {"medium": "air", "units": "nm"})
    xr.Dataset(pixels | stars, {"wavelength": wave}).to_zarr(tmp_path / "x.zarr", zarr_format=3)
    plan, block = read_all(TableSource(str(tmp_path / "x.zarr")))
    assert plan.medium == "air" and plan.attrs["medium_stated"] is True
    np.testing.assert_allclose(plan.wavelength, data["wavelength"])
    assert block.star_id == data["star_id"].tolist() and block.labels["cluster"].tolist()[:2] == ["M 67", "M 67"]


def test_a_long_fits_table_is_read_in_pieces(tmp_path, monkeypatch):
    """Columns come whole however little of the file is mapped at a time."""
    from chemscale.formats import fits_file as table_files

    table = np.zeros(11, [("teff", ">f4"), ("flux", ">f4", (5,)), ("star_id", "S4")])
    table["teff"], table["flux"] = np.arange(11), np.arange(55).reshape(11, 5)
    table["star_id"] = [f"s{i}".encode() for i in range(11)]
    fits.BinTableHDU(table).writeto(tmp_path / "t.fits")
    monkeypatch.setattr(table_files, "_MAPPED", 4 * table.dtype.itemsize)
    file = table_files.FitsFile(str(tmp_path / "t.fits"))
    np.testing.assert_array_equal(file.rows("teff"), table["teff"])
    np.testing.assert_array_equal(file.rows("flux"), table["flux"])
    assert file.rows("star_id").tolist() == [f"s{i}" for i in range(11)]
    np.testing.assert_array_equal(file.rows("flux", slice(3, 9)), table["flux"][3:9])


@pytest.mark.parametrize("scale", [1e-18, 1e-16, 1e4, 1e30])
@pytest.mark.parametrize("kind", ["error", "ivar"])
def test_flux_that_is_not_normalised_is_refused_or_divided_by_its_continuum(tmp_path, scale, kind):
    rng = np.random.default_rng(0)
    wave = 5000.0 + np.arange(300)
    flux = (1 + 0.2 * np.sin(wave / 400)) * rng.normal(1, 0.01, (9, 300)) * scale
    weight = np.full(flux.shape, 0.01 * scale)
    np.savez(tmp_path / "t.npz", flux=flux, wavelength=wave, **{kind: weight if kind == "error" else weight**-2.0})
    with pytest.raises(InputError, match=r"not continuum-normalised(.|\n)*--continuum"):
        ingest(TableSource(str(tmp_path / "t.npz")), tmp_path / "s.zarr", progress=False)
    for continuum in ("running-quantile", "median"):
        source = TableSource(str(tmp_path / "t.npz"), continuum=continuum)
        ingest(source, tmp_path / "s.zarr", overwrite=True, progress=False)
        survey = open_survey(tmp_path / "s.zarr")
        assert ((survey.flags.values == 0) & (survey.ivar.values > 0)).mean() > 0.95
        assert abs(np.median(survey.flux.values) - 1) < 0.1
        assert abs(np.median(survey.ivar.values**-0.5) - 0.01) < 0.003


def test_a_survey_without_a_usable_pixel_is_an_error_that_says_why(tmp_path):
    wave = 5000.0 + np.arange(60)
    np.savez(tmp_path / "t.npz", flux=np.ones((4, 60)), error=np.full((4, 60), 0.5), wavelength=wave)
    with pytest.raises(DataError, match=r"no pixel of the 4 stars can be used: 100% have an error above 0.05"):
        ingest(TableSource(str(tmp_path / "t.npz")), tmp_path / "s.zarr", progress=False)
    assert not (tmp_path / "s.zarr").exists()
