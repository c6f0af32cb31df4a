"""Cleaning: readers lose what follows a covariate and nothing else, no pixel is rewritten, harm is said."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import make_survey

from chemscale import open_survey, write_survey
from chemscale.errors import DataError, InputError, StoreError
from chemscale.quality.cleaning import clean_survey
from chemscale.report import build_report
from chemscale.results.spectra import read
from chemscale.rsca.applied import LikenessModel
from chemscale.rsca.cleaned import cleaned_rates
from chemscale.rsca.elements import elements_run
from chemscale.rsca.pair import pair
from chemscale.rsca.pipeline import fit_run
from chemscale.runtime.run import Run
from chemscale.survey.store.cleaning import read_effects
from chemscale.survey.store.verify import verify

MARKED = slice(10, 16)


def survey(leak: float, **options):
    """A toy survey in which velocity (in units of 40 km/s, and its square) adds to some pixels."""
    ds = make_survey(1500, 8, 8, n_pixels=60, seed=4, **options)
    v = ds["radial_velocity"].values / 40
    shape = np.zeros(60, np.float32)
    shape[MARKED] = leak * np.array([0.3, -0.6, 1.0, 1.0, -0.6, 0.3])
    good = ds["ivar"].values > 1
    ds["flux"] = ds["flux"] + (good * (v + 0.5 * v**2)[:, None] * shape).astype(np.float32)
    return ds


@pytest.fixture()
def store(tmp_path):
    path = tmp_path / "s.zarr"
    write_survey(survey(0.2), path)
    return str(path)


def velocity_correlation(ds):
    use = (ds["flags"].values == 0) & (ds["ivar"].values > 0)
    v, flux = ds["radial_velocity"].values, ds["flux"].values
    return np.array([abs(np.corrcoef(v[u], f[u])[0, 1]) if u.sum() > 10 else 0.0 for u, f in zip(use.T, flux.T)])


def test_the_effect_comes_off_on_reading_only_and_goes_back_on(store):
    before = open_survey(store)
    flux = before["flux"].values
    assert velocity_correlation(before)[MARKED].max() > 0.5
    found = clean_survey(store, of=["radial_velocity"])
    assert found["revision"] == 1 and found["held"] == ["teff", "logg", "fe_h", "alpha_m"] and not found["warnings"]
    wave = before["wavelength"].values
    assert {np.abs(wave - place).argmin() for place, _ in found["strongest"]} <= set(range(MARKED.start, MARKED.stop))
    after = open_survey(store)
    assert after.attrs["cleaned"] == ["radial_velocity"]
    assert velocity_correlation(after).max() < 0.1
    truth = survey(0.0)
    order = {star: i for i, star in enumerate(truth["star_id"].values)}
    rows = [order[star] for star in after["star_id"].values]
    used = (after["flags"].values == 0) & (after["ivar"].values > 0)
    error = (after["flux"].values - truth["flux"].values[rows])[used]
    assert error.std() < 0.15 * (flux - truth["flux"].values[rows])[used].std()
    np.testing.assert_array_equal(after["flux"].isel(star=slice(7, 19)).values, after["flux"].values[7:19])
    np.testing.assert_array_equal(before["flux"].values, flux)  # who had it open sees what was there
    for name in ("ivar", "flags"):
        np.testing.assert_array_equal(after[name].values, before[name].values)
    again = clean_survey(store, of=["radial_velocity"])  # found on what was ingested, not on what is left
    assert not again["changed"]
    assert not verify(store).faults
    clean_survey(store, of=[])
    np.testing.assert_array_equal(open_survey(store)["flux"].values, flux)
    assert not verify(store).faults


def test_siblings_come_closer_where_they_differ_in_what_comes_off(store):
    spread = clean_survey(store, of=["radial_velocity"], dry_run=True)["members_spread"]
    assert spread["change"] < -2 * spread["error"]
    assert open_survey(store).attrs["revision"] == 0


def test_an_effect_that_is_not_there_is_warned_of(store):
    assert any("hardly anything" in text for text in clean_survey(store, of=["extinction"], degree=1)["warnings"])


def test_a_star_without_the_variable_stays_as_it_is(tmp_path):
    ds = survey(0.2)
    ds["radial_velocity"][:5] = np.nan
    write_survey(ds, tmp_path / "s.zarr")
    before = open_survey(tmp_path / "s.zarr")["flux"].values
    assert clean_survey(tmp_path / "s.zarr", of=["radial_velocity"])["uncorrected"] == 5
    after = open_survey(tmp_path / "s.zarr")["flux"].values
    without = np.isnan(open_survey(tmp_path / "s.zarr")["radial_velocity"].values)
    np.testing.assert_array_equal(after[without], before[without])
    assert np.any(before != after, axis=1).sum() >= 1558  # and the star at the median


def test_damage_is_found_and_mended_by_the_same_command(store):
    clean_survey(store, of=["radial_velocity"])
    good = open_survey(store)["flux"].values
    file = next(Path(store).rglob("cleaning-*.npz"))
    data = bytearray(file.read_bytes())
    data[-40] ^= 1
    file.write_bytes(bytes(data))
    (fault,) = verify(store).faults
    assert fault.file.endswith("cleaning-0001.npz") and f"chemscale clean {store} --of radial_velocity" in fault.what
    read_effects.cache_clear()  # as in a new process
    with pytest.raises(StoreError, match=r"cleaning-0001.*checksum"):
        open_survey(store)["flux"].values
    assert clean_survey(store, of=["radial_velocity"])["revision"] == 2
    assert not verify(store).faults
    np.testing.assert_array_equal(open_survey(store)["flux"].values, good)


def test_refusals(store):
    with pytest.raises(InputError, match="radial_velocity"):
        clean_survey(store, of=["radial_velocty"])
    with pytest.raises(InputError, match="no numeric variable 'cluster'"):
        clean_survey(store, of=["cluster"])
    with pytest.raises(InputError, match="degree"):
        clean_survey(store, of=["snr"], degree=0)
    with pytest.raises(DataError, match="too few"):
        clean_survey(store, of=["snr", "ra", "dec", "extinction"], degree=4)


def test_a_run_tells_rates_before_and_after_and_fits_what_is_cleaned(store, tmp_path):
    path = tmp_path / "run"
    fit_run(store, path, components=7)
    found = clean_survey(store, of=["radial_velocity"], rate=lambda effects: cleaned_rates(path, effects))
    before, after = found["rates"]["before"], found["rates"]["after"]
    assert after["correlation"]["radial_velocity"] < 0.1
    fit_run(store, tmp_path / "cleaned", components=7)
    cleaned = Run.open(tmp_path / "cleaned")
    with pytest.raises(InputError, match="cleaned of radial_velocity"):
        cleaned_rates(cleaned.path, None)
    # chemistry taken for the instrument's: refitted without what tells clusters apart, rates get worse, which is said
    harm = clean_survey(store, of=["fe_h", "alpha_m"], rate=lambda effects: cleaned_rates(path, effects), dry_run=True)
    assert harm["rates"]["after"]["rsca"] > before["rsca"]
    assert any("gets worse" in text for text in harm["warnings"])
    model = LikenessModel.of_run(cleaned, "paper")
    model.save(tmp_path / "model")
    model = LikenessModel.load(tmp_path / "model")
    assert model.transform(open_survey(store))["features"].shape[0] == 1564
    clean_survey(store, of=[])
    with pytest.raises(InputError, match="these are as ingested"):
        model.transform(open_survey(store))


def test_what_reads_spectra_of_a_run_refuses_those_cleaned_after_its_fit(store, tmp_path):
    run = fit_run(store, tmp_path / "run", components=5)
    ids = open_survey(store)["star_id"].values[:2]
    clean_survey(store, of=["radial_velocity"])
    told = "made from spectra as ingested, these are cleaned of radial_velocity"
    for command in (lambda: pair(*ids, run.path), lambda: elements_run(run.path), lambda: read(run, ids)):
        with pytest.raises(InputError, match=told):
            command()
    page = build_report(run.path).read_text(encoding="utf-8")
    assert "Spectra are left out" in page and told in page
    clean_survey(store, of=[])
    assert pair(*ids, run.path).attrs["distance"] > 0


def test_the_verb(store):
    command = [sys.executable, "-m", "chemscale", "clean", store]
    done = subprocess.run([*command, "--of", "radial_velocity", "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["covariates"] == ["radial_velocity"]
    assert subprocess.run(command, capture_output=True, text=True).returncode == 2
    assert subprocess.run([*command, "--clear"], capture_output=True, text=True).returncode == 0
    assert open_survey(store).attrs["revision"] == 2


def test_an_extra_column_comes_off_too(tmp_path):
    ds = survey(0.2)
    ds["x_slit"] = ds["radial_velocity"].astype("f8")
    write_survey(ds.drop_vars("radial_velocity"), tmp_path / "s.zarr")
    found = clean_survey(tmp_path / "s.zarr", of=["x_slit"])
    assert found["covariates"] == ["x_slit"] and found["share"] > 3 * found["chance"]


def test_info_says_what_is_cleaned(store):
    from typer.testing import CliRunner

    from chemscale.cli import build

    clean_survey(store, of=["radial_velocity"])
    shown = CliRunner().invoke(build(), ["info", store])
    assert "of radial_velocity" in " ".join(shown.stdout.split())
