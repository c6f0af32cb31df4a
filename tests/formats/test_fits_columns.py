"""FITS values mean what the standard says: scaled, unsigned, undefined, logical, of variable length, compressed."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from astropy.io import fits as afits
from astropy.table import MaskedColumn, Table

from chemscale import open_survey
from chemscale.errors import InputError
from chemscale.formats import fits
from chemscale.schema import Flag
from chemscale.survey.ingest.ingestion import ingest
from chemscale.survey.sources.table import TableSource

N, P = 12, 40
WAVE = 5000.0 + np.arange(P)


def spectra(seed=0):
    return (1 + np.random.default_rng(seed).normal(0, 0.01, (N, P))).astype("f4")


def table_file(path, *columns, **header):
    base = [
        afits.Column("flux", f"{P}E", array=spectra()),
        afits.Column("ivar", f"{P}E", array=np.full((N, P), 1e4)),
        afits.Column("wavelength", f"{P}D", array=np.tile(WAVE, (N, 1))),
    ]
    names = {c.name for c in columns}
    hdu = afits.BinTableHDU.from_columns([c for c in base if c.name not in names] + list(columns))
    hdu.header.update(header)
    afits.HDUList([afits.PrimaryHDU(), hdu]).writeto(path)
    return path


def image_file(path, mask, flux=None):
    units = [afits.PrimaryHDU()]
    for name, data in (("FLUX", spectra() if flux is None else flux), ("IVAR", np.full((N, P), 1e4, "f4"))):
        units.append(afits.ImageHDU(data, name=name))
    units += [mask, afits.ImageHDU(WAVE, name="WAVELENGTH")]
    afits.HDUList(units).writeto(path)
    return path


def stored(path, out):
    ingest(TableSource(str(path)), out, progress=False)
    return open_survey(out)


def pack(path):
    packed = path.with_suffix(".fits.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    return packed


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64, np.int8, np.uint8, np.int32])
@pytest.mark.parametrize("packed", [False, True])
def test_an_integer_mask_image_of_any_kind_marks_its_pixels_only(tmp_path, dtype, packed):
    bad = np.zeros((N, P), dtype)
    bad[:, 3:6] = 2
    path = image_file(tmp_path / "i.fits", afits.ImageHDU(bad, name="MASK"))
    flags = stored(pack(path) if packed else path, tmp_path / "s.zarr").flags.values
    assert (np.flatnonzero(flags[0]) == [3, 4, 5]).all()
    assert (flags != 0).sum() == 3 * N


@pytest.mark.parametrize("tiles", [None, (1, P), (5, 7)])
def test_a_compressed_mask_image_is_read(tmp_path, tiles):
    bad = np.zeros((N, P), np.int32)
    bad[:, 10:15] = 4
    unit = afits.CompImageHDU(bad, name="MASK", tile_shape=tiles)
    flags = stored(image_file(tmp_path / "c.fits", unit), tmp_path / "s.zarr").flags.values
    assert ((flags != 0).sum(1) == 5).all()


def test_a_logical_mask_column_marks_true_pixels_and_undefined_ones(tmp_path):
    bad = np.zeros((N, P), bool)
    bad[:, 7] = True
    path = table_file(tmp_path / "l.fits", afits.Column("mask", f"{P}L", array=bad))
    raw = bytearray(path.read_bytes())
    at = raw.rindex(b"T", 0, raw.rindex(b"F"))  # a true value among the last row's
    raw[at] = 0  # neither T nor F: undefined, and so not good
    path.write_bytes(raw)
    assert (np.flatnonzero(stored(path, tmp_path / "s.zarr").flags.values[-1]) == [7]).all()


def with_cards(path, *cards):
    """Cards added to the table's header behind astropy's back, which would convert the column."""
    raw = path.read_bytes()
    start = raw.index(b"XTENSION")
    end = raw.index(b"END" + b" " * 77, start)
    added = b"".join(c.encode().ljust(80) for c in cards)
    assert raw[end + 80 : end + 80 + len(added)].strip() == b""
    path.write_bytes(raw[:end] + added + raw[end : end + 80] + raw[end + 80 + len(added) :])
    return path


def test_scaled_and_unsigned_label_columns_are_physical(tmp_path):
    columns = [
        afits.Column("teff", "I", array=np.full(N, 8000)),
        afits.Column("n_visits", "J", array=np.full(N, 3, np.uint32), bzero=2**31),
    ]
    path = with_cards(table_file(tmp_path / "t.fits", *columns), "TSCAL4  = 0.1", "TZERO4  = 4000.0")
    assert afits.getdata(path, 1)["teff"][0] == 4800
    survey = stored(path, tmp_path / "s.zarr")
    assert np.allclose(survey.teff.values, 4800)
    assert (survey.n_visits.values == 3).all()


@pytest.mark.parametrize("code, null", [("B", 255), ("I", -32768), ("J", 999999), ("K", 999999)])
def test_an_undefined_integer_is_nan_in_a_label_and_the_field_in_a_cluster(tmp_path, code, null):
    given = np.full(N, 100)
    given[::3] = null
    path = table_file(
        tmp_path / "n.fits",
        afits.Column("teff", code, array=given, null=null),
        afits.Column("cluster", code, array=given, null=null),
    )
    survey = stored(path, tmp_path / "s.zarr")
    assert np.isnan(survey.teff.values[::3]).all() and np.nanmax(survey.teff.values) == 100
    assert set(survey.cluster.values[::3].astype(str)) == {""} and set(survey.cluster.values.astype(str)) == {"", "100"}


def test_a_table_that_astropy_joined_with_gaps_has_gaps(tmp_path):
    table = Table({"flux": spectra(), "ivar": np.full((N, P), 1e4, "f4"), "wavelength": np.tile(WAVE, (N, 1))})
    table["teff"] = MaskedColumn(np.full(N, 4800), mask=np.arange(N) % 3 == 0)
    table["cluster"] = MaskedColumn(np.full(N, 7), mask=np.arange(N) >= 5)
    table.write(tmp_path / "j.fits")
    survey = stored(tmp_path / "j.fits", tmp_path / "s.zarr")
    assert np.isnan(survey.teff.values).sum() == 4
    assert (survey.cluster.values == "7").sum() == 5 and (survey.cluster.values == "").sum() == 7


def test_a_column_of_variable_length_is_read_where_all_rows_are_alike(tmp_path):
    rows = np.empty(N, object)
    rows[:] = list(spectra(3))
    path = table_file(tmp_path / "v.fits", afits.Column("flux", "PE()", array=rows))
    assert np.array_equal(stored(path, tmp_path / "s.zarr").flux.values, spectra(3))


def scale_first_column(path, **cards):
    """Write TSCAL1 and the like into the header of the table without touching the values that stand in the file."""
    content = bytearray(path.read_bytes())
    at = content.find(b"END".ljust(80), content.find(b"TTYPE1"))
    new = b"".join(f"{key:8}= {value:>20}".encode().ljust(80) for key, value in cards.items()) + b"END".ljust(80)
    content[at : at + len(new)] = new
    path.write_bytes(content)


@pytest.mark.parametrize("pack_it", [False, True])
@pytest.mark.parametrize(
    ("code", "good", "bad", "cards"),
    [
        ("PI()", -(2**15), -(2**15) + 512, {"TZERO1": 2**15}),
        ("PB()", 128, 130, {"TZERO1": -128}),
        ("QJ()", 0, 77, {"TNULL1": 77}),
        ("PL()", False, True, {}),
    ],
    ids=["unsigned", "signed bytes", "undefined", "logical"],
)
def test_a_mask_of_variable_length_means_its_physical_values(tmp_path, code, good, bad, cards, pack_it):
    wanted = np.zeros((N, P), bool)
    wanted[:, 7], wanted[3, 11] = True, True
    rows = np.empty(N, object)
    rows[:] = [np.where(row, bad, good).astype({"I": "i2", "B": "u1", "J": "i4", "L": "?"}[code[1]]) for row in wanted]
    columns = [afits.Column("mask", code, array=rows)]
    for name, values in (("flux", spectra()), ("ivar", np.full((N, P), 1e4)), ("wavelength", np.tile(WAVE, (N, 1)))):
        columns.append(afits.Column(name, f"{P}D", array=values))
    path = tmp_path / "v.fits"
    afits.HDUList([afits.PrimaryHDU(), afits.BinTableHDU.from_columns(columns)]).writeto(path)
    scale_first_column(path, **cards)
    survey = stored(pack(path) if pack_it else path, tmp_path / "s.zarr")
    assert np.array_equal((survey.flags.values & Flag.SURVEY_BAD) != 0, wanted)


def test_scaled_flux_of_variable_length_is_scaled_in_every_row(tmp_path):
    rows = np.empty(N, object)
    rows[:] = [np.round((row - 1) * 1e4).astype("i2") for row in spectra()]
    path = table_file(tmp_path / "v.fits", afits.Column("flux", "PI()", array=rows))
    with afits.open(path) as units:
        first = units[1].columns.names.index("flux") + 1
    scale_first_column(path, **{f"TSCAL{first}": 1e-4, f"TZERO{first}": 1.0})
    np.testing.assert_allclose(stored(path, tmp_path / "s.zarr").flux.values, spectra(), atol=6e-5)


def test_a_ragged_column_is_refused_by_name_where_it_is_needed_and_listed_where_not(tmp_path):
    rows = np.empty(N, object)
    rows[:] = [r[: 5 + i] for i, r in enumerate(spectra())]
    with pytest.raises(InputError, match="flux cannot be read: variable-length array, 5 to 16 values"):
        TableSource(str(table_file(tmp_path / "v.fits", afits.Column("flux", "PE()", array=rows)))).plan()
    other = table_file(tmp_path / "o.fits", afits.Column("extra", "PE()", array=rows), afits.Column("bits", "9X"))
    ignored = TableSource(str(other)).plan().attrs["ignored"]
    assert ignored == ["bits (bit array)", "extra (variable-length array, 5 to 16 values a row)"]


def test_a_blank_pixel_of_an_integer_image_is_nan(tmp_path):
    data = np.arange(6, dtype=np.int16)
    unit = afits.ImageHDU(data)
    unit.header["BLANK"] = 2
    afits.HDUList([afits.PrimaryHDU(), unit]).writeto(tmp_path / "b.fits")
    values = fits.scan(fits.read_bytes(str(tmp_path / "b.fits")))[1].image()
    assert np.isnan(values[2]) and values[3] == 3


def test_what_a_file_is_stands_in_its_first_bytes_not_in_its_name(tmp_path):
    path = table_file(tmp_path / "t.fits")
    wanted = TableSource(str(path)).plan()
    plain, packed = tmp_path / "plain.fits.gz", tmp_path / "packed.fits"
    plain.write_bytes(path.read_bytes())
    packed.write_bytes(gzip.compress(path.read_bytes()))
    for other in (plain, packed):
        assert len(TableSource(str(other)).plan().items) == len(wanted.items)


def test_words_split_by_tdim(tmp_path):
    names = np.array([["C", "CI", "Fe"]])
    unit = afits.BinTableHDU.from_columns([afits.Column("ELEM_SYMBOL", "15A", dim="(5,3)", array=names)])
    afits.HDUList([afits.PrimaryHDU(), unit]).writeto(tmp_path / "e.fits")
    assert fits.scan(fits.read_bytes(str(tmp_path / "e.fits")))[1].column("elem_symbol").tolist() == [["C", "CI", "Fe"]]


def test_every_flag_of_the_contract_survives_a_logical_flags_column(tmp_path):
    bad = np.zeros((N, P), bool)
    bad[:, 1] = True
    flags = stored(table_file(tmp_path / "f.fits", afits.Column("flags", f"{P}L", array=bad)), tmp_path / "s.zarr")
    assert (flags.flags.values[:, 1] == Flag.SURVEY_BAD).all() and (flags.flags.values[:, 2] == 0).all()


@pytest.mark.parametrize(("card", "medium"), [({"AIRORVAC": "air"}, "air"), ({"AIRORVAC": "vacuum"}, "vacuum")])
@pytest.mark.parametrize("primary", [False, True])
def test_the_medium_of_wavelengths_by_the_keywords_of_surveys(tmp_path, card, medium, primary):
    path = table_file(tmp_path / "m.fits", **({} if primary else card))
    if primary:
        for key, value in card.items():
            afits.setval(path, key, value=value, ext=0)
    plan = TableSource(str(path)).plan()
    assert plan.medium == medium and plan.attrs["medium_stated"]
    vacuum = table_file(tmp_path / "v.fits", VACUUM=medium == "vacuum")
    assert TableSource(str(vacuum)).plan().medium == medium


def two_tables(path, order):
    """Spectra in one table, labels in another; both name their stars, in an order of their own."""
    ids = np.array([f"S{i:02}" for i in range(N)])
    columns = [afits.Column("star_id", "3A", array=ids), afits.Column("flux", f"{P}E", array=spectra())]
    columns.append(afits.Column("error", f"{P}E", array=np.full((N, P), 0.01)))
    labels = [afits.Column("star_id", "3A", array=ids[order]), afits.Column("teff", "E", array=4000.0 + order)]
    tables = [
        afits.BinTableHDU.from_columns(columns, name="SPECTRA"),
        afits.BinTableHDU.from_columns(labels, name="LAB"),
    ]
    afits.HDUList([afits.PrimaryHDU(), *tables, afits.ImageHDU(WAVE, name="WAVELENGTH")]).writeto(path)
    return str(path)


def test_tables_of_one_file_that_list_their_stars_in_another_order_are_refused(tmp_path):
    plan = TableSource(two_tables(tmp_path / "a.fits", np.arange(N))).plan()
    assert [item.labels["teff"] for item in plan.items] == [4000.0 + i for i in range(N)]
    shuffled = np.roll(np.arange(N), 1)
    with pytest.raises(InputError, match="row 0 is S00 in one table, S11 in another"):
        TableSource(two_tables(tmp_path / "b.fits", shuffled)).plan()


@pytest.mark.parametrize("ivar", [1e4, 0.01, 1e-4], ids=["inverse variance", "error", "variance"])
def test_ivar_and_error_that_contradict_each_other_are_refused(tmp_path, ivar):
    weights = {"error": np.full((N, P), 0.01), "ivar": np.full((N, P), ivar)}
    weights["error"][0, :3] = [0, np.nan, -1]
    np.savez(tmp_path / "t.npz", flux=spectra(), wavelength=WAVE, **weights)
    if ivar == 1e4:
        assert len(TableSource(str(tmp_path / "t.npz")).plan().items) == N
    else:
        with pytest.raises(InputError, match="'ivar' and 'error' contradict each other"):
            TableSource(str(tmp_path / "t.npz")).plan()
