"""Files of surveys that are not quite what they should be: the right value, or a reason; never wrong in silence."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import MaskedColumn, Table, vstack
from newer_releases import desi_coadd, galah, lamost_mrs, mwm_star, sdss_spec, write_xp, xp_rows
from releases import lamost_arrays, write_allstar, write_apstar, write_aspcap, write_lamost

from chemscale.errors import InputError
from chemscale.schema import Flag
from chemscale.survey.python_labels import contract_variables
from chemscale.survey.sources.apogee import ApogeeSource
from chemscale.survey.sources.desi import DesiSource
from chemscale.survey.sources.gaia_xp import SAMPLING, GaiaXpSource
from chemscale.survey.sources.galah import GalahSource
from chemscale.survey.sources.lamost import LamostSource
from chemscale.survey.sources.lamost_mrs import LamostMrsSource
from chemscale.survey.sources.sdss_spec import SdssSpecSource
from chemscale.survey.sources.sdss_v import SdssVSource


def read_all(source):
    plan = source.plan()
    return plan, source.read(plan.items, plan.wavelength, plan.elements)


def change(path, how):
    """Rewrite a FITS file by `how`, which changes its HDUs or returns others."""
    with fits.open(path) as units:
        units = fits.HDUList([unit.copy() for unit in units])
        changed = how(units) or units
    fits.HDUList(changed).writeto(path, overwrite=True)


def with_column(unit, name, values):
    """A copy of a table HDU with a column replaced; masked values are written as TNULL."""
    table = Table(unit.data)
    table[name] = values
    made = fits.table_to_hdu(table)
    made.name = unit.name
    made.header.update({k: unit.header[k] for k in ("RV", "SNR") if k in unit.header})
    return made


def undefined(n, rows, shape):
    mask = np.zeros(n, bool)
    mask[rows] = True
    return mask.reshape(shape)


# ---------------------------------------------------------------- undefined pixels and flags


def test_undefined_flux_of_lamost_is_no_flux(tmp_path):
    arrays = lamost_arrays()
    path = write_lamost(tmp_path / "spec-a.fits", arrays=arrays, header={"Z": 0.0})
    counts = MaskedColumn(np.round(arrays["FLUX"])[None].astype("i4"), mask=undefined(3909, slice(1000, 1050), (1, -1)))
    change(path, lambda units: [units[0], with_column(units[1], "FLUX", counts)])
    plan, block = read_all(LamostSource(str(tmp_path)))
    inside = (plan.wavelength > arrays["WAVELENGTH"][1002]) & (plan.wavelength < arrays["WAVELENGTH"][1047])
    assert not block.ivar[0][inside].any() and (block.flags[0][inside] & Flag.GAP).all()


def test_undefined_masks_of_mrs_are_bad_pixels(tmp_path):
    path = tmp_path / "med-58025-P_sp01-021.fits"
    lamost_mrs(path, rows=True, velocity=0.0)
    mask = MaskedColumn(np.zeros(3430, "i4"), mask=undefined(3430, slice(1000, 1010), (-1,)))
    change(path, lambda units: [units[0], *(with_column(u, "ANDMASK", mask) for u in units[1:])])
    _, block = read_all(LamostMrsSource(str(tmp_path)))
    assert 20 <= (block.flags[0] & Flag.SURVEY_BAD != 0).sum() <= 24


def test_undefined_flags_of_sdss_v_are_bad_pixels(tmp_path):
    path = mwm_star(tmp_path, 42)
    flags = MaskedColumn(np.zeros((1, 8575), "i8"), mask=undefined(8575, slice(300, 310), (1, -1)))
    flags.fill_value = 2**19  # no bit that is bad

    def how(units):
        units[3] = with_column(units[3], "pixel_flags", flags)

    change(path, how)
    _, block = read_all(SdssVSource(str(tmp_path)))
    assert np.flatnonzero(block.flags[0] & Flag.SURVEY_BAD).tolist() == list(range(300, 310))


def test_undefined_pixels_of_an_apstar_mask_are_bad(tmp_path):
    path = write_apstar(tmp_path / "apStar-dr17-2M1.fits", "2M1")

    def how(units):
        units[3].data[500:510] = -32768
        units[3].header["BLANK"] = -32768

    change(path, how)
    _, block = read_all(ApogeeSource(str(tmp_path), product="apStar"))
    assert (block.flags[0, 500:510] & Flag.SURVEY_BAD != 0).all()


def test_undefined_integers_of_allstar_are_missing(tmp_path):
    write_aspcap(tmp_path / "s" / "aspcapStar-dr17-2M1.fits", "2M1")
    write_allstar(tmp_path / "allStar.fits", [{"APOGEE_ID": "2M1"}])

    def how(units):
        table = Table(units[1].data)
        for name in ("ASPCAPFLAG", "NVISITS", "TEFF"):
            table[name] = MaskedColumn([3], mask=[True])
            table[name].fill_value = 4
        units[1] = fits.table_to_hdu(table)

    change(tmp_path / "allStar.fits", how)
    _, block = read_all(ApogeeSource(str(tmp_path / "s"), str(tmp_path / "allStar.fits")))
    assert block.labels["quality"].tolist() == [0]
    assert np.isnan(block.labels["teff"]).all() and np.isnan(block.labels["n_visits"]).all()


# ---------------------------------------------------------------- wavelengths


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda wave: np.where(np.arange(len(wave)) == 5, np.nan, wave), "B_WAVELENGTH: wavelength is not finite"),
        (lambda wave: wave[::-1], "B_WAVELENGTH: wavelength does not increase at pixel 1"),
        (np.log10, "B_WAVELENGTH: wavelengths from 3.55"),
        (lambda wave: wave[:-1], "wavelengths for 2751 pixels"),
    ],
)
def test_desi_wavelengths_that_are_none_refuse_the_file(tmp_path, damage, reason):
    desi_coadd(tmp_path / "coadd-1.fits", np.array([11]), (0,))

    def how(units):
        units["B_WAVELENGTH"].data = np.ascontiguousarray(damage(units["B_WAVELENGTH"].data))

    change(tmp_path / "coadd-1.fits", how)
    _, block = read_all(DesiSource(str(tmp_path), frame="observed"))
    assert block.star_id == [] and reason in block.rejected[0].reason


def test_desi_wavelengths_are_read_in_the_unit_they_state(tmp_path):
    for name in ("a", "b"):
        desi_coadd(tmp_path / name / "coadd-1.fits", np.array([11]), (0,))

    def how(units):
        for arm in "BRZ":
            units[f"{arm}_WAVELENGTH"].data = units[f"{arm}_WAVELENGTH"].data / 10
            units[f"{arm}_WAVELENGTH"].header["BUNIT"] = "nm"

    change(tmp_path / "b" / "coadd-1.fits", how)
    (_, one), (_, other) = (read_all(DesiSource(str(tmp_path / n), frame="observed")) for n in ("a", "b"))
    np.testing.assert_allclose(one.flux, other.flux, rtol=1e-5)


@pytest.mark.parametrize(("value", "reason"), [(np.nan, "not finite at pixel 100"), (3.5, "does not increase")])
def test_an_sdss_spectrum_with_a_bad_wavelength_is_refused_alone(tmp_path, value, reason):
    for fibre in (42, 43):
        sdss_spec(tmp_path / f"spec-1234-55555-00{fibre}.fits")

    def how(units):
        units[1].data["loglam"][100] = value

    change(tmp_path / "spec-1234-55555-0042.fits", how)
    _, block = read_all(SdssSpecSource(str(tmp_path)))
    assert block.star_id == ["spec-1234-55555-0043"] and reason in block.rejected[0].reason


def test_galah_on_logarithmic_wavelengths_is_refused(tmp_path):
    galah(tmp_path, "170418003701205", 0.0)
    for path in tmp_path.glob("*.fits"):
        change(path, lambda units: [u.header.update({"CTYPE1": "WAVE-LOG"}) for u in units] and None)
    _, block = read_all(GalahSource(str(tmp_path), frame="observed"))
    assert block.star_id == [] and "logarithmic" in block.rejected[0].reason


def test_lamost_wavelengths_that_contradict_the_header_are_refused(tmp_path):
    arrays = lamost_arrays()
    write_lamost(tmp_path / "spec-a.fits", arrays=arrays | {"WAVELENGTH": arrays["WAVELENGTH"] / 1.00028})  # in air
    write_lamost(tmp_path / "spec-b.fits", arrays=arrays)
    _, block = read_all(LamostSource(str(tmp_path)))
    assert block.star_id == ["spec-b"] and "COEFF0" in block.rejected[0].reason


# ---------------------------------------------------------------- which row is whose


def test_desi_targets_come_from_fibermap_wherever_it_stands(tmp_path):
    desi_coadd(tmp_path / "coadd-1.fits", np.array([11, 12, 13]), (0, 0, 0), kinds=["TGT", "SKY", "TGT"])
    exposures = fits.table_to_hdu(Table({"TARGETID": [13, 13, 12, 11, 11, 12]}))
    exposures.name = "EXP_FIBERMAP"
    change(tmp_path / "coadd-1.fits", lambda units: [units[0], exposures, *units[1:]])
    plan, block = read_all(DesiSource(str(tmp_path), frame="observed"))
    assert block.star_id == ["11", "13"] and [r.star_id for r in plan.rejected] == ["12"]


@pytest.mark.parametrize("name", ["FIBERMAP", "R_IVAR", "Z_MASK"])
def test_a_coadd_whose_rows_disagree_is_refused(tmp_path, name):
    desi_coadd(tmp_path / "coadd-1.fits", np.array([11, 12]), (0, 0))
    desi_coadd(tmp_path / "coadd-2.fits", np.array([13]), (0,))

    def how(units):
        units[name].data = units[name].data[:1]

    change(tmp_path / "coadd-1.fits", how)
    plan, block = read_all(DesiSource(str(tmp_path), frame="observed"))
    assert block.star_id == ["13"] and "FIBERMAP" in plan.rejected[0].reason


def test_a_lamost_file_of_several_spectra_is_refused(tmp_path):
    path = write_lamost(tmp_path / "spec-a.fits")

    def how(units):
        both = fits.table_to_hdu(vstack([Table(units[1].data)] * 2))
        both.name = "COADD"
        return [units[0], both]

    change(path, how)
    _, block = read_all(LamostSource(str(tmp_path)))
    assert block.star_id == [] and "2 rows" in block.rejected[0].reason


# ---------------------------------------------------------------- Gaia XP


def test_a_datalink_file_is_put_in_order_and_its_wavelengths_are_compared(tmp_path):
    write_xp(tmp_path, "single", 2)
    _, straight = read_all(GaiaXpSource(str(tmp_path)))
    first, second = sorted(tmp_path.glob("*.csv"))
    lines = first.read_text().splitlines()
    first.write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    second.write_text(second.read_text().replace("\n336.0,", "\n334.0,"))
    _, block = read_all(GaiaXpSource(str(tmp_path)))
    np.testing.assert_array_equal(block.flux[0], straight.flux[0])
    assert len(block.star_id) == 1 and "are not the sampling" in block.rejected[0].reason


def test_one_sampling_counts_for_a_store_packed_or_not(tmp_path):
    write_xp(tmp_path / "a", "csv", 2)
    (tmp_path / "a" / "XpSampledMeanSpectrum_1.csv").rename(tmp_path / "a" / "out.csv")
    assert "no *_sampling.csv" in GaiaXpSource(str(tmp_path / "a")).plan().attrs["assumed"][0]
    text = "pos\n" + "\n".join(map(str, SAMPLING + 0.5)) + "\n"
    (tmp_path / "a" / "out_sampling.csv.gz").write_bytes(gzip.compress(text.encode()))
    plan = GaiaXpSource(str(tmp_path / "a")).plan()
    assert plan.wavelength[0] == 3365.0 and not plan.attrs["assumed"]
    (tmp_path / "a" / "other_sampling.csv").write_text(text.replace("336.5", "335.5"))
    with pytest.raises(InputError, match="another sampling"):
        GaiaXpSource(str(tmp_path / "a")).plan()


def test_xp_rows_with_nulls_keep_their_other_pixels(tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    ids, flux, error = xp_rows(3)
    flux, error = [row.tolist() for row in flux], [row.tolist() for row in error]
    flux[1][5], error[2] = None, None
    table = pa.table({"source_id": ids, "flux": flux, "flux_error": error})
    parquet.write_table(table, tmp_path / "XpSampledMeanSpectrum_1.parquet")
    _, block = read_all(GaiaXpSource(str(tmp_path)))
    assert block.star_id == [str(i) for i in ids[:2]] and "0 of its error" in block.rejected[0].reason
    assert np.flatnonzero(block.ivar[1] == 0).tolist() == [5]


# ---------------------------------------------------------------- catalogues


@pytest.fixture
def spectra(tmp_path):
    for name in "abc":
        write_lamost(tmp_path / "s" / f"spec-{name}.fits")
    return str(tmp_path / "s")


@pytest.mark.parametrize(("unit", "factor"), [("hourangle", 1 / 15), ("rad", np.pi / 180), ("deg", 1)])
def test_positions_are_compared_in_degrees(spectra, tmp_path, unit, factor):
    table = Table({"ra": [10.0 * factor], "dec": [-5.0], "teff": [5777.0]}, units={"ra": unit, "dec": "deg"})
    table.write(tmp_path / "l.ecsv")
    _, block = read_all(LamostSource(spectra, str(tmp_path / "l.ecsv"), label_key="coordinates"))
    assert 5777.0 in block.labels["teff"]
    np.testing.assert_allclose(block.labels["ra"], 10.0)


def test_decimal_commas_are_read_where_semicolons_divide_fields(spectra, tmp_path):
    rows = "file;teff;logg;feh\nspec-a;5777,5;4,44;-1,5e-1\nspec-b;;N/A;\nspec-c;5000;--;{}\n"
    (tmp_path / "l.csv").write_text(rows.format("0,25"))
    plan, block = read_all(LamostSource(spectra, str(tmp_path / "l.csv")))
    np.testing.assert_array_equal(block.labels["teff"], np.array([5777.5, np.nan, 5000], "f4"))
    np.testing.assert_array_equal(block.labels["fe_h"], np.array([-0.15, np.nan, 0.25], "f4"))
    assert not any("no number" in what for what in plan.attrs["ignored"])
    (tmp_path / "l.csv").write_text(rows.format("0.25"))  # points too: a comma may stand for thousands there
    plan, block = read_all(LamostSource(spectra, str(tmp_path / "l.csv")))
    np.testing.assert_array_equal(block.labels["fe_h"], np.array([np.nan, np.nan, 0.25], "f4"))
    assert "feh (1 of 3 values are no numbers, such as '-1,5e-1') of l.csv" in plan.attrs["ignored"]


def test_text_in_columns_of_numbers_is_told(spectra, tmp_path):
    (tmp_path / "l.csv").write_text("file|teff|logg\nspec-a|5777,5|4.4\nspec-b||N/A\nspec-c|5000|--\n")
    plan, block = read_all(LamostSource(spectra, str(tmp_path / "l.csv")))
    np.testing.assert_array_equal(block.labels["teff"], np.array([np.nan, np.nan, 5000], "f4"))
    assert "teff (1 of 3 values are no numbers, such as '5777,5') of l.csv" in plan.attrs["ignored"]
    assert not any("logg" in what for what in plan.attrs["ignored"])
    (tmp_path / "sky.csv").write_text("ra,dec,teff\n00:40:00,-05:00:00,5777\n")
    with pytest.raises(InputError, match="no number of degrees"):
        LamostSource(spectra, str(tmp_path / "sky.csv"), label_key="coordinates").plan()
    (tmp_path / "m.csv").write_text("file|group|proba\nspec-a|M 67|0,95\n")
    with pytest.raises(InputError, match="no number, such as '0,95'"):
        LamostSource(spectra, members=str(tmp_path / "m.csv")).plan()
    with pytest.raises(InputError, match="holds '5777,5', no number"):
        contract_variables({"teff": np.array(["5777,5", "4800"])}, {}, np.array(["a", "b"]))


def test_clusters_that_differ_in_case_or_blanks_are_told(spectra, tmp_path):
    (tmp_path / "m.csv").write_text("file,group\nspec-a,M67\nspec-b,M 67\nspec-c,NGC 188\n")
    plan, block = read_all(LamostSource(spectra, members=str(tmp_path / "m.csv")))
    assert block.labels["cluster"].tolist() == ["M67", "M 67", "NGC 188"]
    assert plan.attrs["assumed"] == ["M 67, M67 are different clusters, as they are written"]


def test_tables_as_vizier_writes_them(spectra, tmp_path):
    comments = "#RESOURCE=made up\n#---\n\n"
    members = "file\tgroup\tproba\n \t \t\n------\t-------\t-----\nspec-a\tNGC 188\t0.95\nspec-b\tNGC 188\t0.1\n\n"
    (tmp_path / "m.tsv").write_text(comments + members)
    (tmp_path / "l.tsv").write_text(
        comments + "file;teff;rv\n ;K;m/s\n------;----;---\nspec-a;5000;-9990\nspec-c;5100;10\n"
    )
    source = LamostSource(spectra, str(tmp_path / "l.tsv"), members=str(tmp_path / "m.tsv"))
    plan, block = read_all(source)
    assert block.labels["cluster"].tolist() == ["NGC 188", "", ""]
    np.testing.assert_array_equal(block.labels["teff"], np.array([5000, np.nan, 5100], "f4"))
    assert block.labels["radial_velocity"][0] == pytest.approx(-9.99)
    assert plan.attrs["membership"]["rows"] == 2 and not plan.rejected
    (tmp_path / "gaps.csv").write_text("file,teff,rv\nspec-a,5000,1\n--,--,--\nspec-b,4000,2\n")  # gaps, no ruler
    _, block = read_all(LamostSource(spectra, str(tmp_path / "gaps.csv")))
    np.testing.assert_array_equal(block.labels["teff"], np.array([5000, 4000, np.nan], "f4"))


def test_names_of_columns_may_hold_the_delimiter(spectra, tmp_path):
    (tmp_path / "l.csv").write_text('"file","teff, K","logg"\nspec-a,5000,4.4\n')
    plan, block = read_all(LamostSource(spectra, str(tmp_path / "l.csv")))
    assert block.labels["logg"][0] == np.float32(4.4) and "teff, K of l.csv" in plan.attrs["ignored"]


def test_columns_of_ecsv_that_are_objects_are_told(spectra, tmp_path):
    table = Table({"file": ["spec-a"], "teff": [5000.0]})
    table["place"] = SkyCoord([10.0], [-5.0], unit="deg")
    table.write(tmp_path / "l.ecsv")
    plan, block = read_all(LamostSource(spectra, str(tmp_path / "l.ecsv")))
    assert block.labels["teff"][0] == 5000.0 and "place (a SkyCoord) of l.ecsv" in plan.attrs["ignored"]


def test_columns_of_several_values_a_row_are_told(spectra, tmp_path):
    columns = {"file": ["spec-a"], "teff": [[5000.0, 6000.0]], "logg": [[4.0]], "group": [["a", "b"]]}
    Table(columns).write(tmp_path / "l.fits")
    plan, block = read_all(LamostSource(spectra, str(tmp_path / "l.fits")))
    assert "teff" not in block.labels and block.labels["logg"][0] == 4.0
    assert "teff (several values a row) of l.fits" in plan.attrs["ignored"]
    with pytest.raises(InputError, match="group holds several values a row"):
        LamostSource(spectra, members=str(tmp_path / "l.fits")).plan()


def test_velocities_and_positions_are_read_in_the_unit_they_state(tmp_path):
    desi_coadd(tmp_path / "d" / "coadd-1.fits", np.array([11]), (50,))
    Table({"TARGETID": [11], "VRAD": [50_000.0]}, units={"VRAD": "m/s"}).write(tmp_path / "d" / "rvtab-1.fits")
    _, block = read_all(DesiSource(str(tmp_path / "d")))
    np.testing.assert_allclose(block.labels["radial_velocity"], [50.0], rtol=1e-6)
    ids, flux, error = xp_rows(1)
    table = Table({"source_id": ids, "ra": [np.pi / 4], "dec": [0.1], "flux": flux, "flux_error": error})
    table["ra"].unit = "rad"
    table.write(tmp_path / "XpSampledMeanSpectrum_1.fits")
    _, block = read_all(GaiaXpSource(str(tmp_path / "XpSampledMeanSpectrum_1.fits")))
    np.testing.assert_allclose(block.labels["ra"], [45.0])


def test_the_surveys_own_catalogues_are_read_in_the_units_they_state(tmp_path):
    write_aspcap(tmp_path / "a" / "aspcapStar-dr17-2M1.fits", "2M1")
    write_allstar(tmp_path / "allStar.fits", [{"APOGEE_ID": "2M1", "VHELIO_AVG": -12_000.0}])

    def how(units):
        units[1].header[f"TUNIT{units[1].columns.names.index('VHELIO_AVG') + 1}"] = "m/s"

    change(tmp_path / "allStar.fits", how)
    _, block = read_all(ApogeeSource(str(tmp_path / "a"), str(tmp_path / "allStar.fits")))
    assert block.labels["radial_velocity"].tolist() == [-12.0]
    mwm_star(tmp_path / "m", 42)
    Table({"sdss_id": [42], "v_rad": [-12_000.0]}, units={"v_rad": "m/s"}).write(tmp_path / "summary.fits")
    _, block = read_all(SdssVSource(str(tmp_path / "m"), str(tmp_path / "summary.fits")))
    assert block.labels["radial_velocity"].tolist() == [-12.0]


def test_a_galah_file_of_another_name_is_refused_in_words(tmp_path):
    (tmp_path / "mine.fits").write_text("no spectrum")
    with pytest.raises(InputError, match=r"mine.fits: file name does not follow"):
        GalahSource(str(tmp_path / "mine.fits")).plan()
