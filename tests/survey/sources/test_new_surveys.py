"""DESI, SDSS/BOSS, LAMOST MRS, GALAH and Gaia XP: made-up files in the public layouts, from disk to block."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from newer_releases import desi_coadd, galah, lamost_mrs, sdss_spec, write_xp

from chemscale import open_survey
from chemscale.catalogues.units import SPEED_OF_LIGHT
from chemscale.errors import InputError
from chemscale.schema import Flag
from chemscale.survey.ingest.ingestion import ingest
from chemscale.survey.sources.desi import DesiSource
from chemscale.survey.sources.gaia_xp import GaiaXpSource
from chemscale.survey.sources.galah import CAMERAS, GalahSource
from chemscale.survey.sources.lamost_mrs import LamostMrsSource
from chemscale.survey.sources.sdss_spec import SdssSpecSource


def read_all(source):
    source = pickle.loads(pickle.dumps(source))
    plan = source.plan()
    return plan, pickle.loads(pickle.dumps(source)).read(plan.items, plan.wavelength, plan.elements)


def line_at(plan, block, row, near, half=40):
    """Wavelength of the deepest usable pixel near `near`."""
    good = (np.abs(plan.wavelength - near) < half) & (block.ivar[row] > 0)
    return plan.wavelength[good][np.argmin(block.flux[row][good])]


# ---------------------------------------------------------------- DESI


@pytest.mark.parametrize("compressed", [False, True])
def test_desi_targets_come_to_rest_with_their_masks(tmp_path, compressed):
    ids = np.array([39627652591521544, 39627652591521545, 39627652591521546])
    desi_coadd(tmp_path / "d" / "coadd-main-bright-1.fits", ids, (150, -80, 0), compressed=compressed)
    Table({"TARGETID": ids[:2], "VRAD": [150.0, -80.0], "TEFF": [5000.0, -9999.0], "FEH": [-0.5, 0.1]}).write(
        tmp_path / "d" / "rvtab-main-bright-1.fits"
    )
    plan, block = read_all(DesiSource(str(tmp_path / "d")))
    assert block.star_id == [str(i) for i in ids[:2]]
    assert "no velocity" in block.rejected[0].reason and "--labels" in block.rejected[0].reason
    for row in (0, 1):
        assert abs(line_at(plan, block, row, 6562.8) - 6562.8) < 1.0
    used = (block.flags == 0) & (block.ivar > 0)
    assert used.mean() > 0.97
    assert (block.flags & Flag.SURVEY_BAD != 0).any(axis=1).all()
    assert abs(np.median(block.flux[used]) - 1) < 0.02
    np.testing.assert_array_equal(block.labels["teff"], np.array([5000, np.nan], "f4"))
    np.testing.assert_allclose(block.labels["radial_velocity"], [150, -80], rtol=1e-5)


def test_desi_sky_fibres_and_galaxies_are_no_stars(tmp_path):
    ids = np.array([1, 2, 3])
    desi_coadd(tmp_path / "coadd-x.fits", ids, (0, 0, 0), kinds=["TGT", "SKY", "TGT"])
    Table({"TARGETID": ids, "Z": [1e-4, 0.0, 0.3], "SPECTYPE": ["STAR", "STAR", "GALAXY"]}).write(
        tmp_path / "redrock-x.fits"
    )
    plan, block = read_all(DesiSource(str(tmp_path)))
    assert block.star_id == ["1"]
    assert [r.reason for r in plan.rejected] == ["a sky fibre, no target"]
    assert "GALAXY" in block.rejected[0].reason
    assert block.labels["radial_velocity"][0] == pytest.approx(1e-4 * SPEED_OF_LIGHT, rel=1e-5)


def test_desi_ratios_are_those_of_their_target_in_whatever_order_scores_stands(tmp_path):
    desi_coadd(tmp_path / "coadd-x.fits", [11, 12, 13], [0.0] * 3)
    with fits.open(tmp_path / "coadd-x.fits") as units:
        scores = Table({"TARGETID": [13, 11, 12], "MEDIAN_COADD_SNR_R": [30.0, 10.0, 20.0]})
        units.append(fits.table_to_hdu(scores))
        units[-1].name = "SCORES"
        units.writeto(tmp_path / "coadd-y.fits")
    plan = DesiSource(str(tmp_path / "coadd-y.fits"), frame="observed").plan()
    assert {item.star_id: item.labels["snr"] for item in plan.items} == {"11": 10, "12": 20, "13": 30}


def test_desi_velocities_that_their_pipeline_warns_of_do_not_count(tmp_path):
    desi_coadd(tmp_path / "d" / "coadd-a.fits", [11, 12, 13, 14], [60.0, 60.0, 60.0, 60.0])
    rvtab = {"TARGETID": [11, 12], "VRAD": [60.0, 900.0], "RVS_WARN": [0, 4]}
    Table(rvtab).write(tmp_path / "d" / "rvtab-a.fits")
    redrock = {"TARGETID": [13, 14], "Z": [2e-4, 2e-4], "ZWARN": [16, 4], "SPECTYPE": ["STAR", "STAR"]}
    Table(redrock).write(tmp_path / "d" / "redrock-a.fits")
    plan, block = read_all(DesiSource(str(tmp_path / "d")))
    assert block.star_id == ["11", "13"] and block.labels["gaia_source_id"].tolist() == [2**61, 2**61 + 2]
    assert [r.star_id for r in block.rejected] == ["12", "14"] and "no velocity" in block.rejected[0].reason
    assert {
        f"1 velocities that {w} warns of, of {f}"
        for w, f in (("RVS_WARN", "rvtab-a.fits"), ("ZWARN", "redrock-a.fits"))
    } <= set(plan.attrs["ignored"])


def test_the_real_desi_coadd_is_usable_all_but_its_empty_fibres(shared_data):
    path = shared_data / "wild" / "desi-coadd.fits"
    if not path.exists():
        pytest.skip("no DESI coadd here")
    _, block = read_all(DesiSource(str(path), frame="observed"))
    assert len(block.star_id) == 1 and len(block.rejected) == 4
    assert ((block.flags == 0) & (block.ivar > 0)).mean() > 0.98


# ---------------------------------------------------------------- SDSS/BOSS


def test_sdss_spectra_come_to_rest_and_galaxies_are_refused(tmp_path):
    sdss_spec(tmp_path / "spec-1234-55555-0042.fits", mask=2**24)
    sdss_spec(tmp_path / "spec-1234-55555-0043.fits", kind="GALAXY")
    labels = tmp_path / "l.csv"
    labels.write_text("plate|mjd|fiberid|teff|feh\n1234|55555|42|4900|-0.3\n")
    plan, block = read_all(SdssSpecSource(str(tmp_path), str(labels)))
    assert block.star_id == ["spec-1234-55555-0042"] and "GALAXY" in block.rejected[0].reason
    assert abs(line_at(plan, block, 0, 6562.8) - 6562.8) < 1.0
    assert 3 <= (block.flags[0] & Flag.SURVEY_BAD != 0).sum() <= 8  # and-mask only: the or-mask is of single exposures
    assert block.labels["teff"][0] == 4900 and block.labels["quality"][0] == 16
    assert block.labels["visits"].tolist() == ["1234-55555"]


def test_a_redshift_that_the_sdss_pipeline_doubts_needs_a_table_or_the_observed_frame(tmp_path):
    sdss_spec(tmp_path / "spec-1234-55555-0042.fits", warning=4)
    _, block = read_all(SdssSpecSource(str(tmp_path)))
    assert "ZWARNING 4" in block.rejected[0].reason and "--labels with rv" in block.rejected[0].reason
    (tmp_path / "l.csv").write_text("file,rv\nspec-1234-55555-0042,60\n")
    plan, block = read_all(SdssSpecSource(str(tmp_path), str(tmp_path / "l.csv")))
    assert abs(line_at(plan, block, 0, 6562.8) - 6562.8) < 1.0 and block.labels["quality"][0] == 4
    _, block = read_all(SdssSpecSource(str(tmp_path), frame="observed"))
    assert len(block.star_id) == 1 and np.isnan(block.labels["radial_velocity"][0])


def test_the_real_sdss_spectrum_is_read(shared_data):
    if not (shared_data / "wild").exists():
        pytest.skip("no SDSS spectrum here")
    _, block = read_all(SdssSpecSource(str(shared_data / "wild")))
    assert block.star_id == ["spec-0266-51602-0031"]
    assert ((block.flags == 0) & (block.ivar > 0)).mean() > 0.9


# ---------------------------------------------------------------- LAMOST MRS


@pytest.mark.parametrize("rows", [False, True])
def test_mrs_arms_share_a_grid_at_rest(tmp_path, rows):
    lamost_mrs(tmp_path / "med-58025-P_sp01-021.fits", rows=rows)
    lamost_mrs(tmp_path / "med-58025-P_sp01-022.fits.gz", rows=rows, damaged="B")
    plan, block = read_all(LamostMrsSource(str(tmp_path)))
    assert block.star_id == ["med-58025-P_sp01-021", "med-58025-P_sp01-022"]
    assert abs(line_at(plan, block, 0, 5184.0) - 5184.0) < 0.2
    assert abs(line_at(plan, block, 0, 6563.0) - 6563.0) < 0.2
    blue = plan.wavelength < 5400
    assert (block.ivar[1][blue] == 0).all() and (block.ivar[1][~blue] > 0).any()
    _, single = read_all(LamostMrsSource(str(tmp_path), product="exposure"))
    assert single.star_id[0] == "med-58025-P_sp01-021:84420148"


def test_mrs_files_are_not_taken_for_low_resolution(tmp_path):
    from chemscale.survey.sources.lamost import LamostSource

    lamost_mrs(tmp_path / "med-58025-P_sp01-021.fits")
    _, block = read_all(LamostSource(str(tmp_path)))
    assert "ingest lamost-mrs" in block.rejected[0].reason


# ---------------------------------------------------------------- GALAH


@pytest.mark.parametrize("dr4", [True, False])
@pytest.mark.parametrize("continuum", ["survey", "running-quantile"])
def test_galah_cameras_share_a_grid_at_rest_with_the_catalogues_species(tmp_path, dr4, continuum):
    star, other = "170418003701205", "170418003701206"
    galah(tmp_path / "s", star, 55.0, dr4=dr4)
    galah(tmp_path / "s", other, 0.0, cameras=(1, 3), dr4=dr4)
    catalogue = Table({"sobject_id": [int(star), int(other)], "rv_comp_1": [55.0, 0.0], "teff": [5100.0, np.nan]})
    catalogue["fe_h"], catalogue["Mg_fe"], catalogue["e_Mg_fe"] = [-0.2, 0.1], [0.1, np.nan], [0.02, np.nan]
    catalogue.write(tmp_path / "dr4.fits")
    plan, block = read_all(GalahSource(str(tmp_path / "s"), str(tmp_path / "dr4.fits"), continuum=continuum))
    assert block.star_id == [star, other]
    for low, high in CAMERAS:
        assert abs(line_at(plan, block, 0, (low + high) / 2) - (low + high) / 2) < 0.15
    missing = (plan.wavelength > 5600) & (plan.wavelength < 5900)
    assert (block.ivar[1][missing] == 0).all() and (block.flags[1][missing] & Flag.GAP != 0).all()
    used = block.ivar > 0
    assert abs(np.median(block.flux[used]) - 1) < 0.01
    assert abs(np.median(block.ivar[used] ** -0.5) - 0.01) < 0.003
    assert plan.elements == ("Fe", "Mg") and plan.medium == "air"
    np.testing.assert_allclose(block.labels["abundance"][0], [-0.2, -0.1], atol=1e-6)


def test_galah_without_a_velocity_is_refused(tmp_path):
    galah(tmp_path, "170418003701205", 0.0)
    _, block = read_all(GalahSource(str(tmp_path)))
    assert "no velocity" in block.rejected[0].reason


# ---------------------------------------------------------------- Gaia XP


@pytest.mark.parametrize("form", ["csv", "csv.gz", "brackets", "parquet"])
def test_xp_spectra_are_read_in_every_form_and_normalised(tmp_path, form):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    ids, flux, error = write_xp(tmp_path, form)
    plan, block = read_all(GaiaXpSource(str(tmp_path)))
    assert block.star_id == [str(i) for i in ids] and len(plan.wavelength) == 343
    assert plan.wavelength[0] == 3360 and plan.wavelength[-1] == 10200
    used = block.ivar > 0
    assert used.mean() > 0.95 and abs(np.median(block.flux[used]) - 1) < 0.05
    signal = np.median((block.flux * np.sqrt(block.ivar))[used])
    assert signal == pytest.approx(np.median(flux / error), rel=0.1)
    assert block.labels["ra"][0] == 10
    ingest(GaiaXpSource(str(tmp_path), continuum="median"), tmp_path / "s.zarr", progress=False)
    assert ((open_survey(tmp_path / "s.zarr").flags.values == 0).mean(axis=1) > 0.95).all()


def test_xp_coefficients_are_refused_with_what_to_do(tmp_path):
    (tmp_path / "XpContinuousMeanSpectrum_1.csv").write_text('source_id,bp_coefficients\n1,"(1, 2)"\n')
    with pytest.raises(InputError, match="no column 'flux'"):
        GaiaXpSource(str(tmp_path)).plan()


# ---------------------------------------------------------------- what is not stored


def test_every_extension_and_column_of_a_file_is_read_or_listed(tmp_path):
    """Of each survey's files: what is read and what is left out are all there is."""
    desi_coadd(tmp_path / "desi" / "coadd-main-1.fits", np.array([39627652591521544]), (10,))
    Table({"TARGETID": [39627652591521544], "VRAD": [10.0], "CHISQ": [1.0]}).write(tmp_path / "desi" / "rvtab-1.fits")
    sdss_spec(tmp_path / "boss" / "spec-0266-51602-0031.fits")
    lamost_mrs(tmp_path / "mrs" / "med-58025-P1_sp01-021.fits")
    galah(tmp_path / "galah", "170418003701205", 10.0)
    for source in (
        DesiSource(str(tmp_path / "desi")),
        SdssSpecSource(str(tmp_path / "boss")),
        LamostMrsSource(str(tmp_path / "mrs")),
        GalahSource(str(tmp_path / "galah")),
    ):
        plan = source.plan()
        held = []
        with fits.open(plan.items[0].path.partition("#")[0]) as units:
            for i, unit in enumerate(units):
                name = unit.name if unit.name and unit.name != "PRIMARY" else f"HDU{i}"
                if isinstance(unit, fits.BinTableHDU) and not isinstance(unit, fits.CompImageHDU):
                    held += [f"{name}.{c}" for c in unit.columns.names]
                elif unit.data is not None:
                    held.append(name)
        told = [*plan.attrs["read"], *(what.partition(" (")[0] for what in plan.attrs["ignored"])]
        assert set(held) <= set(told), (source.name, set(held) - set(told))
        assert plan.attrs["read"] and not set(plan.attrs["read"]) & set(plan.attrs["ignored"])
        if source.name == "desi":
            assert "CHISQ of rvtab-1.fits" in plan.attrs["ignored"]
