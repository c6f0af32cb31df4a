"""Astronomers' objects out of a survey and back, with units, masks and uncertainties kept."""

from __future__ import annotations

import astropy.units as u
import numpy as np
import pytest
from astropy.nddata import StdDevUncertainty, VarianceUncertainty
from astropy.table import QTable
from helpers import make_survey

import chemscale
from chemscale.errors import InputError, MissingExtra
from chemscale.schema import SchemaError
from chemscale.survey import conversions

specutils = pytest.importorskip("specutils", reason="needs the extra `spectra`")


@pytest.fixture
def survey():
    return make_survey(n_field=20, n_clusters=2, members=3, n_pixels=50)


def test_table_has_units_and_one_column_a_species(survey):
    table = survey.chemscale.to_table([3, 1])
    assert isinstance(table, QTable) and len(table) == 2
    assert table["teff"].unit == u.K and table["teff"][0].value == survey["teff"].values[3]
    assert table["abundance_Mg"][1].value == survey["abundance"].values[1, 1]
    assert list(table["star_id"]) == [survey["star_id"].values[k] for k in (3, 1)]
    assert table["teff"].info.description and table.meta["survey"] == survey.attrs["survey"]


def test_spectrum_of_one_star(survey):
    star = str(survey["star_id"].values[4])
    spectrum = survey.chemscale.to_spectrum(star)
    assert spectrum.flux.shape == (50,) and spectrum.flux.unit == u.dimensionless_unscaled
    np.testing.assert_array_equal(spectrum.flux.value, survey["flux"].values[4])
    np.testing.assert_allclose(spectrum.wavelength.to_value(u.AA), survey["wavelength"].values)
    np.testing.assert_array_equal(spectrum.mask, survey.chemscale.missing().values[4])
    np.testing.assert_array_equal(spectrum.uncertainty.array, survey["ivar"].values[4])
    assert spectrum.meta["star_id"] == star and spectrum.meta["medium"] == "vacuum"


def test_several_stars_keep_the_order_asked_for(survey):
    ids = [str(survey["star_id"].values[k]) for k in (9, 2, 5)]
    both = survey.chemscale.to_spectrum(ids), survey.chemscale.to_collection(ids)
    for many in both:
        assert many.flux.shape == (3, 50)
        np.testing.assert_array_equal(many.flux.value, survey["flux"].values[[9, 2, 5]])
        assert list(many.meta["star_id"]) == ids


def test_wrong_stars_are_named(survey):
    star = str(survey["star_id"].values[0])
    with pytest.raises(InputError) as err:
        survey.chemscale.to_spectrum(star[:-1] + "x")
    assert "no star" in err.value.message and "did you mean" in err.value.remedy
    with pytest.raises(InputError, match="row 99"):
        survey.chemscale.to_table([99])
    with pytest.raises(InputError, match="mask of 3"):
        survey.chemscale.to_table(np.array([True, False, True]))


def test_round_trip_through_specutils(survey, tmp_path):
    ids = [str(s) for s in survey["star_id"].values]
    back = chemscale.from_spectra(
        survey.chemscale.to_collection(ids), labels=survey.chemscale.to_table()[["star_id", "teff"]]
    )
    good = ~survey.chemscale.missing().values
    np.testing.assert_array_equal(~back.chemscale.missing().values, good)
    np.testing.assert_array_equal(back["flux"].values[good], survey["flux"].values[good])
    np.testing.assert_allclose(back["ivar"].values[good], survey["ivar"].values[good], rtol=1e-6)
    np.testing.assert_array_equal(back["teff"].values, survey["teff"].values)
    chemscale.write_survey(back, tmp_path / "s.zarr")
    assert list(chemscale.open_survey(tmp_path / "s.zarr")["star_id"].values) == ids


def make(flux=None, error=0.01, axis=None, unit=u.dimensionless_unscaled, mask=None, kind=StdDevUncertainty, **meta):
    flux = np.linspace(0.8, 1.1, 30) if flux is None else flux
    axis = np.linspace(5000, 5290, len(flux)) * u.AA if axis is None else axis
    uncertainty = None if kind is None else kind(np.full(len(flux), error))
    return specutils.Spectrum(flux=flux * unit, spectral_axis=axis, uncertainty=uncertainty, mask=mask, meta=meta)


def test_units_of_axis_and_uncertainty(survey):
    nm = make(axis=np.linspace(500, 529, 30) * u.nm)
    energy = make(axis=(np.linspace(5290, 5000, 30) * u.AA).to(u.eV, u.spectral()), flux=np.linspace(1.1, 0.8, 30))
    variance = make(error=1e-4, kind=VarianceUncertainty)
    ds = chemscale.from_spectra([nm, energy, variance], star_id=["a", "b", "c"], medium="air")
    np.testing.assert_allclose(ds["wavelength"].values, np.linspace(5000, 5290, 30))
    for k in range(3):
        np.testing.assert_allclose(ds["flux"].values[k], np.linspace(0.8, 1.1, 30), rtol=1e-6)
        np.testing.assert_allclose(ds["ivar"].values[k], 1e4, rtol=1e-5)


def test_other_grids_are_rebinned_and_masked_pixels_do_not_leak():
    flux = np.ones(60)
    flux[20] = 50.0
    fine = make(flux=flux, axis=np.linspace(5000, 5295, 60) * u.AA, mask=flux > 2)
    with pytest.raises(InputError, match="another wavelength grid"):
        chemscale.from_spectra([make(), fine], star_id=["a", "b"], medium="air")
    ds = chemscale.from_spectra(
        [make(), fine], star_id=["a", "b"], medium="air", wavelength=np.linspace(501, 528, 28) * u.nm
    )
    used = ~ds.chemscale.missing().values[1]
    assert used.sum() >= 25
    np.testing.assert_allclose(ds["flux"].values[1][used], 1.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("spectra", "options", "message"),
    [
        ([make(unit=u.Jy)], {}, "not normalised"),
        ([make(kind=None)], {}, "no uncertainty"),
        ([make()], {"medium": None}, "medium"),
        ([make()], {"star_id": None}, "no identifiers"),
        ([make()], {"star_id": ["a", "b"]}, "2 identifiers for 1"),
        ([], {}, "no spectra"),
        ([make()], {"labels": {"star_id": ["b"], "teff": [1.0]}}, "no row in labels"),
        ([make()], {"labels": {"teff": [1.0] * u.s}}, "'teff'"),
        ([make()], {"labels": {"teff": [1.0]}, "columns": {"TEFF": "teff"}}, "no column 'TEFF'"),
    ],
)
def test_wrong_input_is_explained(spectra, options, message):
    with pytest.raises(InputError, match=message):
        chemscale.from_spectra(spectra, **{"star_id": ["a"], "medium": "vacuum", **options})


def test_duplicates_break_the_contract():
    with pytest.raises(SchemaError, match="duplicate"):
        chemscale.from_spectra([make(), make()], star_id=["a", "a"], medium="vacuum")


def test_labels_are_matched_converted_and_counted():
    table = QTable(
        {"star_id": ["b", "a"], "T": [4.0, 5.0] * u.kK, "radial_velocity": [1e3, 2e3] * u.m / u.s, "note": ["x", "y"]}
    )
    with pytest.warns(UserWarning, match="left out: note"):
        ds = chemscale.from_spectra(
            [make(star_id="a"), make(star_id="b")], labels=table, columns={"T": "teff"}, medium="air"
        )
    np.testing.assert_allclose(ds["teff"].values, [5000, 4000])
    np.testing.assert_allclose(ds["radial_velocity"].values, [2, 1])


def test_missing_extra_is_named(survey, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "specutils", None)
    with pytest.raises(MissingExtra) as err:
        conversions.to_spectrum(survey, 0)
    assert "chemscale[spectra]" in err.value.remedy


def plain_spectra(n=5, p=50):
    wave = np.linspace(5000, 5100, p) * u.AA
    rng = np.random.default_rng(0)
    flux = rng.normal(1, 0.01, (n, p))
    return wave, flux, StdDevUncertainty(np.full((n, p), 0.01))


def test_as_many_stars_as_pixels_are_neither_exchanged_nor_refused():
    for n in (49, 50, 51):
        wave, flux, error = plain_spectra(n, 50)
        ids = [f"s{i}" for i in range(n)]
        made = specutils.Spectrum(flux * u.one, wave, uncertainty=error, spectral_axis_index=1)
        survey = chemscale.from_spectra(made, star_id=ids, medium="air")
        np.testing.assert_array_equal(survey.flux.values, flux.astype("f4"))
        again = conversions.to_spectrum(survey, ids)
        assert again.spectral_axis_index == 1
        np.testing.assert_array_equal(again.flux.value, flux.astype("f4"))


@pytest.mark.parametrize("n", [5, 50])
def test_a_spectrum_with_its_spectral_axis_first_is_turned(n):
    wave, flux, _ = plain_spectra(n, 50)
    error = StdDevUncertainty(np.full((50, n), 0.01))
    made = specutils.Spectrum(flux.T * u.one, wave, uncertainty=error, spectral_axis_index=0)
    survey = chemscale.from_spectra(made, star_id=[f"s{i}" for i in range(n)], medium="air")
    np.testing.assert_array_equal(survey.flux.values, flux.astype("f4"))


def test_labels_in_python_mean_what_they_mean_in_files():
    import pandas as pd
    from astropy.table import MaskedColumn, QTable, Table
    from astropy.utils.masked import Masked

    wave, flux, error = plain_spectra()
    spectra = specutils.Spectrum(flux * u.one, wave, uncertainty=error, spectral_axis_index=1)
    gone = np.array([False, True, False, True, False])
    table = QTable({"star_id": np.array([b"a", b"b", b"c", b"d", b"e"])})
    table["cluster"] = np.array([b"M67", b"", b"nan", b"-1", b"M_67"])
    table["teff"] = Masked(np.where(gone, -9999.0, 5000.0) * u.K, mask=gone)
    table["radial_velocity"] = np.array([-250e3, 250e3, -9999.0, np.nan, 1e3]) * u.m / u.s
    table["logg"] = MaskedColumn(np.full(5, 4), mask=gone)
    table["quality"] = MaskedColumn(np.full(5, 3), mask=gone)
    table["gaia_source_id"] = MaskedColumn(2**62 + 1 + np.arange(5), mask=gone)
    survey = chemscale.from_spectra(spectra, labels=table, medium="air")
    assert survey.star_id.values.tolist() == ["a", "b", "c", "d", "e"]
    assert survey.cluster.values.tolist() == ["M67", "", "", "", "M 67"]
    np.testing.assert_array_equal(survey.teff.values, np.where(gone, np.nan, 5000).astype("f4"))
    np.testing.assert_array_equal(survey.radial_velocity.values, np.array([-250, 250, np.nan, np.nan, 1], "f4"))
    assert np.isnan(survey.logg.values[gone]).all() and (survey.logg.values[~gone] == 4).all()
    assert survey.quality.values.tolist() == [3, 0, 3, 0, 3]
    assert survey.gaia_source_id.values.tolist() == [2**62 + 1, 0, 2**62 + 3, 0, 2**62 + 5]  # to the last digit
    frame = pd.DataFrame({"star_id": list("abcde"), "teff": pd.array([5000, None, 4000, 1, None], dtype="Int64")})
    frame["cluster"] = pd.array(["M67", None, "N/A", "x", pd.NA], dtype="string")
    survey = chemscale.from_spectra(spectra, labels=frame, medium="air")
    np.testing.assert_array_equal(survey.teff.values, np.array([5000, np.nan, 4000, 1, np.nan], "f4"))
    assert survey.cluster.values.tolist() == ["M67", "", "", "x", ""]
    doubles = Table({"star_id": 4295806720000000000.0 + 64 * np.arange(5), "teff": np.ones(5)})
    with pytest.raises(InputError, match="last digits are lost"):
        chemscale.from_spectra(spectra, labels=doubles, medium="air")


def test_counts_are_refused_with_what_to_do():
    wave, flux, error = plain_spectra()
    counts = specutils.Spectrum(1e4 * flux * u.one, wave, uncertainty=error, spectral_axis_index=1)
    with pytest.raises(InputError, match="not continuum-normalised"):
        chemscale.from_spectra(counts, star_id=list("abcde"), medium="air")
