"""Spectra written out and ingested again are the same to the last bit."""

from __future__ import annotations

import numpy as np
import pytest

from chemscale import export_spectra, from_spectra, ingest, open_survey, write_survey
from chemscale.errors import InputError
from chemscale.quality.cleaning import clean_survey
from chemscale.schema import STAR_VARIABLES
from chemscale.survey.info import store_info
from chemscale.survey.ingest.append import append
from chemscale.survey.sources.simulated import SimulatedSource
from chemscale.survey.sources.table import TableSource


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "s.zarr"
    ingest(SimulatedSource(60, 2, seed=3, grid="hband"), path)
    return open_survey(path)


def assert_same(one, two, pixels=("flux", "ivar", "flags")):
    for name in (*pixels, "wavelength"):
        assert one[name].dtype == two[name].dtype
        assert one[name].values.tobytes() == two[name].values.tobytes(), name
    for name in (*STAR_VARIABLES, "abundance", "abundance_error"):
        if name in one.variables and name != "source_file":
            np.testing.assert_array_equal(one[name].values, two[name].values, err_msg=name)


@pytest.mark.parametrize("rows", [slice(None), slice(7, 8), [5, 40, 3]], ids=["all", "one star", "in another order"])
def test_a_fits_file_of_a_selection_comes_back_to_the_bit(survey, tmp_path, rows):
    path = export_spectra(survey, tmp_path / "some.fits", rows)
    ingest(TableSource(path), tmp_path / "again.zarr")
    again = open_survey(tmp_path / "again.zarr")
    assert_same(survey.isel(star=rows), again)
    assert again["wavelength"].attrs["medium"] == survey["wavelength"].attrs["medium"]
    assert again.attrs["normalisation"] == survey.attrs["normalisation"]
    assert again["element"].values.tolist() == survey["element"].values.tolist()


def test_cleaned_spectra_stay_marked_when_they_are_written_out_and_ingested_again(tmp_path):
    pytest.importorskip("specutils")
    path = tmp_path / "s.zarr"
    ingest(SimulatedSource(420, 2, seed=3, grid="lowres"), path)
    clean_survey(path, of=["radial_velocity"], degree=1)
    cleaned = open_survey(path)
    write_survey(cleaned, tmp_path / "copy.zarr")
    ingest(TableSource(export_spectra(cleaned, tmp_path / "cleaned.fits")), tmp_path / "again.zarr")
    for other in ("copy.zarr", "again.zarr"):
        again = open_survey(tmp_path / other)
        assert again.attrs["cleaned"] == ["radial_velocity"]
        assert_same(cleaned, again)
        assert store_info(tmp_path / other)["attrs"]["cleaned"] == ["radial_velocity"]
    spectra = cleaned.chemscale.to_spectrum(slice(0, 3))
    assert from_spectra(spectra).attrs["cleaned"] == ["radial_velocity"]
    with pytest.raises(InputError, match="not all cleaned of the same"):
        from_spectra([spectra, as_ingested_survey(tmp_path / "s.zarr").chemscale.to_spectrum(slice(3, 5))])
    plain = export_spectra(as_ingested_survey(path), tmp_path / "plain.fits", slice(0, 5))
    with pytest.raises(InputError, match=r"as ingested elsewhere, those of .* cleaned of radial_velocity"):
        append(TableSource(plain), tmp_path / "again.zarr", replace_existing=True)
    clean_survey(tmp_path / "again.zarr", of=["teff"], degree=1)
    assert open_survey(tmp_path / "again.zarr").attrs["cleaned"] == ["radial_velocity", "teff"]


def as_ingested_survey(path):
    clean_survey(path, of=[])
    return open_survey(path)


def test_spectra_as_specutils_objects_come_back_to_the_bit(survey, tmp_path):
    pytest.importorskip("specutils")
    spectra = survey.chemscale.to_spectrum(slice(0, 20))
    labels = {n: survey[n].values[:20] for n in ("star_id", "cluster", "teff", "logg", "snr", "ra", "dec")}
    again = from_spectra(spectra, labels=labels, survey=survey.attrs["survey"])
    first = survey.isel(star=slice(0, 20))
    assert_same(
        first[["star_id", "cluster", "teff", "logg", "snr", "ra", "dec", "flux", "ivar"]], again, ("flux", "ivar")
    )
    assert np.array_equal(first["flags"].values != 0, again["flags"].values != 0)


def test_an_existing_file_and_an_unknown_star_are_refused(survey, tmp_path):
    path = export_spectra(survey, tmp_path / "a.fits", [0])
    with pytest.raises(InputError, match="exists already"):
        export_spectra(survey, path, [0])
    with pytest.raises(InputError, match="no star 'nobody'"):
        export_spectra(survey, tmp_path / "b.fits", ["nobody"])
    assert [p.name for p in tmp_path.iterdir()] == ["a.fits"]
