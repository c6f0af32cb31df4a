"""SDSS-V mwmStar spectra, on files made from the public data model (no real one was at hand)."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits
from newer_releases import MWM_GRIDS, mwm_star, mwm_table

from chemscale.errors import InputError
from chemscale.schema import Flag
from chemscale.survey.sources.base import Source
from chemscale.survey.sources.sdss_v import SdssVSource


def read_all(source):
    plan = source.plan()
    return plan, source.read(plan.items, plan.wavelength, plan.elements)


@pytest.mark.parametrize("wavelength", [True, False])
@pytest.mark.parametrize("instrument", ["apogee", "boss"])
def test_spectra(tmp_path, instrument, wavelength):
    mwm_star(
        tmp_path / "00" / "42",
        units=[mwm_table(i, 1, wavelength=wavelength) for i in ("boss", "boss", "apogee", "apogee")],
    )
    source = SdssVSource(str(tmp_path), instrument=instrument)
    assert isinstance(source, Source)
    plan, block = read_all(source)
    np.testing.assert_allclose(plan.wavelength, MWM_GRIDS[instrument])
    assert block.star_id == ["42"] and not block.rejected
    assert abs(block.flux.mean() - 1) < 1e-3
    np.testing.assert_allclose(block.ivar, 1e4, rtol=1e-5)
    assert block.labels["radial_velocity"].tolist() == [-33.0] and block.labels["ra"].tolist() == [10.0]
    assert len(plan.attrs.get("interstellar_windows", [])) == (4 if instrument == "apogee" else 0)
    _, again = read_all(SdssVSource(str(tmp_path), instrument=instrument, continuum="running-quantile"))
    assert abs(np.median(again.flux) - 1) < 0.02


def test_better_observatory_and_flags(tmp_path):
    flags = np.zeros(8575)
    flags[100], flags[101], flags[102] = 1, 1 << 9, 1 << 40  # bad, persistence (not bad), a bit of no meaning here
    poor, good = mwm_table("apogee", 1, snr=20), mwm_table("apogee", 1, snr=90, seed=1, change={"pixel_flags": flags})
    mwm_star(tmp_path, units=[mwm_table("boss", 0), mwm_table("boss", 0), poor, good])
    _, block = read_all(SdssVSource(str(tmp_path)))
    assert block.labels["snr"].tolist() == [90.0]
    assert np.flatnonzero(block.flags[0] & Flag.SURVEY_BAD).tolist() == [100]


def test_catalogue_and_members(tmp_path):
    mwm_star(tmp_path / "s", 42)
    mwm_star(tmp_path / "s", 43)
    columns = [
        fits.Column("sdss_id", "K", array=[43, 44]),
        fits.Column("teff", "E", array=[4700, 5000]),
        fits.Column("fe_h", "E", array=[-0.3, 0]),
        fits.Column("mg_h", "E", array=[-0.2, 0]),
        fits.Column("e_mg_h", "E", array=[0.02, 0.1]),
        fits.Column("result_flags", "K", array=[2**33, 0]),
        fits.Column("gaia_dr2_source_id", "K", array=[1, 2]),
        fits.Column("gaia_dr3_source_id", "K", array=[2**62 + 1, -1]),
        fits.Column("Age", "E", array=[2.5, 3.5]),
    ]
    empty = fits.BinTableHDU.from_columns([fits.Column("sdss_id", "K", array=np.zeros(0))])
    summary = tmp_path / "astraAllStarASPCAP.fits"
    fits.HDUList([fits.PrimaryHDU(), empty, fits.BinTableHDU.from_columns(columns)]).writeto(summary)
    (tmp_path / "m.csv").write_text("sdss_id,cluster\n43,M_67\n99,M_67\n")
    plan, block = read_all(SdssVSource(str(tmp_path / "s"), str(summary), str(tmp_path / "m.csv"), extra=["age"]))
    assert block.labels["gaia_source_id"].tolist() == [0, 2**62 + 1]
    np.testing.assert_array_equal(block.labels["x_age"], [np.nan, 2.5])
    assert plan.elements == ("Fe", "Mg")
    assert block.star_id == ["42", "43"] and block.labels["cluster"].tolist() == ["", "M 67"]
    np.testing.assert_array_equal(block.labels["teff"], np.array([np.nan, 4700], "f4"))
    np.testing.assert_allclose(block.labels["abundance"][1], [-0.3, -0.2], rtol=1e-6)
    assert block.labels["quality"].tolist() == [0, 2**33]
    assert [r.star_id for r in plan.rejected] == ["99"]
    for wrong in (tmp_path / "m.csv", tmp_path / "none.fits"):
        with pytest.raises(InputError, match=wrong.name):
            SdssVSource(str(tmp_path / "s"), str(wrong)).plan()


def test_wrong_files(tmp_path):
    empty = [mwm_table("boss", 1), mwm_table("boss", 0), mwm_table("apogee", 0), mwm_table("apogee", 0)]
    mwm_star(tmp_path, 1, empty)
    mwm_star(
        tmp_path, 2, [*empty[:2], mwm_table("apogee", 1, change={"wavelength": MWM_GRIDS["apogee"] * 1.001}), empty[3]]
    )
    mwm_star(tmp_path, 3, [*empty[:2], mwm_table("apogee", 1, change={"flux": np.ones(100)}), empty[3]])
    mwm_star(tmp_path, 4, [*empty[:2], mwm_table("apogee", 1, change={"flux": np.full(8575, np.nan)}), empty[3]])
    mwm_star(tmp_path, 5, [*empty[:2], mwm_table("apogee", 1, continuum=False), empty[3]])
    mwm_star(tmp_path, 6, [*empty[:2], mwm_table("apogee", 1, change={"continuum": np.zeros(8575)}), empty[3]])
    (tmp_path / "mwmStar-0.6.0-7.fits").write_bytes((tmp_path / "mwmStar-0.6.0-1.fits").read_bytes())
    (tmp_path / "mwmStar-nonsense.fits").write_bytes(b"")
    plan, block = read_all(SdssVSource(str(tmp_path)))
    assert block.star_id == [] and len(plan.rejected) == 1
    found = {r.star_id: r.reason for r in block.rejected}
    for star, reason in {
        "1": "no spectrum of this instrument",
        "2": "another wavelength grid",
        "3": "column flux has 100 values",
        "4": "flux is not finite",
        "5": "no `continuum` vector",
        "6": "no usable pixel",
        "7": "SDSS_ID says '1'",
    }.items():
        assert reason in found[star], star
    with pytest.raises(InputError, match="instrument"):
        SdssVSource(str(tmp_path), instrument="x")
