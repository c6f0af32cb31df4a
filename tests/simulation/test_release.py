"""Simulated surveys as stores and as FITS releases."""

import json

import numpy as np
import pytest
from astropy.io import fits
from typer.testing import CliRunner

from chemscale.errors import InputError, StoreError
from chemscale.schema import APOGEE_ELEMENTS
from chemscale.simulation import (
    Simulation,
    clean_spectra,
    read_truth,
    simulate_block,
    write_release,
    write_truth,
)
from chemscale.simulation import fits_bytes as raw


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    simulation = Simulation(90, 3, seed=6)
    return simulation, write_release(tmp_path_factory.mktemp("r") / "release", simulation, processes=0)


@pytest.mark.filterwarnings("error")
def test_astropy_reads_a_spectrum_without_complaint(release):
    simulation, done = release
    block = simulate_block(simulation, np.arange(simulation.n_stars))
    files = {p.name: p for p in __import__("pathlib").Path(done["folder"]).glob("*/*/aspcapStar-*.fits")}
    assert len(files) == simulation.n_stars == done["n_files"]
    for i in (0, simulation.n_stars - 1):
        star = block.stars.star_id[i]
        path = files[f"aspcapStar-r12-{star}.fits"]
        assert path.parent.parent.name in {"apo25m", "lco25m"}
        with fits.open(path) as hdus:
            hdus.verify("exception")
            assert len(hdus) == 5
            for k in (1, 2, 3):
                assert hdus[k].data.dtype == ">f4" and hdus[k].data.shape == (8575,)
                assert hdus[k].header["CRVAL1"] == 4.179 and hdus[k].header["CDELT1"] == 6e-6
                assert hdus[k].header["DC-FLAG"] == 1
            np.testing.assert_array_equal(hdus[1].data, block.observed.flux[i])
            chip = slice(246, 3274)
            np.testing.assert_array_equal(hdus[2].data[chip], block.observed.error[i, chip])
            row = hdus[4].data[0]
            assert row["APOGEE_ID"] == star and row["X_H"].shape == (26,)
            assert hdus[0].header["OBJ"] == star


@pytest.mark.filterwarnings("error")
def test_catalogues_follow_the_survey_s_habits(release):
    simulation, done = release
    with fits.open(done["allstar"]) as hdus:
        hdus.verify("exception")
        stars = hdus[1].data
        assert len(stars) == simulation.n_stars
        bad = stars["ASPCAPFLAG"] == 1 << 23
        assert np.all(stars["X_H"][:, APOGEE_ELEMENTS.index("Ge")] == np.float32(-9999.99))
        assert np.all(stars["TEFF"][~bad] > 3000)
        assert all(v.startswith("r12-") for v in stars["VISITS"])
    with fits.open(done["members"]) as hdus:
        hdus.verify("exception")
        table = hdus[1].data
        sure = table["CG_PROB"] > 0.8
        assert len(set(table["APOGEE_ID"][sure])) == simulation.n_members
        assert np.any(table["CG_PROB"] == -9999.99)
        assert len(set(table["APOGEE_ID"])) < len(table)
        assert len(set(table["CLUSTER"][sure])) == 3
    with np.load(done["truth"], allow_pickle=False) as truth:
        assert truth["abundance"].shape == (simulation.n_stars, 26)
        of = {s: i for i, s in enumerate(truth["star_id"])}
        true = truth["teff"][[of[s] for s in stars["APOGEE_ID"]]]
    assert np.abs(stars["TEFF"] - true)[~bad].max() < 400


def test_release_goes_through_ingestion(release, tmp_path):
    from chemscale import open_survey
    from chemscale.survey.ingest.ingestion import ingest
    from chemscale.survey.sources.apogee import ApogeeSource

    simulation, done = release
    summary = ingest(
        ApogeeSource(done["folder"], done["allstar"], done["members"]), tmp_path / "s.zarr", progress=False
    )
    assert summary.n_stars == simulation.n_stars and not summary.rejected
    ds = open_survey(tmp_path / "s.zarr")
    assert int((ds["cluster"] != "").sum()) == simulation.n_members


def test_release_is_never_written_over_something_else(release, tmp_path):
    simulation, done = release
    with pytest.raises(StoreError, match="exists"):
        write_release(done["folder"], simulation)
    (tmp_path / "mine").mkdir()
    with pytest.raises(StoreError, match="not a release"):
        write_release(tmp_path / "mine", simulation, overwrite=True)
    with pytest.raises(InputError, match="H-band"):
        write_release(tmp_path / "low", Simulation(5, 0, grid="lowres"))


def test_two_processes_write_the_same_release(release, tmp_path):
    simulation, done = release
    again = write_release(tmp_path / "again", simulation, processes=2, progress=False)
    with open(done["allstar"], "rb") as a, open(again["allstar"], "rb") as b:
        assert a.read() == b.read()


def test_simulate_command_writes_store_and_truth(tmp_path):
    from chemscale import open_survey
    from chemscale.cli import build

    out = tmp_path / "s.zarr"
    command = ["simulate", "--stars", "40", "--clusters", "2", "--seed", "3", "--workers", "0", "--json"]
    result = CliRunner().invoke(build(), [*command, "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["n_stars"] == Simulation(40, 2).n_stars
    ds = open_survey(out)
    truth = read_truth(str(out), ds["star_id"].values)
    fe = APOGEE_ELEMENTS.index("Fe")
    assert np.nanmax(np.abs(ds["fe_h"].values - truth["abundance"].values[:, fe])) < 0.25
    assert float(np.nanmax(np.abs(ds["fe_h"].values - truth["abundance"].values[:, fe]))) > 0
    with pytest.raises(StoreError, match="truth"):
        CliRunner().invoke(build(), [*command, "--out", str(out)], catch_exceptions=False)
    clean = clean_spectra(ds.isel(star=[20, 3]))
    seen = ds["flux"].isel(star=[20, 3]).values
    assert np.median(np.abs(seen - clean)[:, 4000:6000]) < 0.05
    assert np.corrcoef(seen[0, 4000:6000], clean[0, 4000:6000])[0, 1] > 0.7
    with pytest.raises(InputError, match="not stars of a simulated"):
        clean_spectra(ds.drop_vars("source_file"))
    with pytest.raises(InputError, match="either"):
        CliRunner().invoke(build(), command, catch_exceptions=False)


def test_a_release_in_a_folder_with_brackets_is_written_and_told_as_named(tmp_path, monkeypatch):
    """Brackets are markup to the terminal library and a pattern to shells and to glob: here they are a name."""
    import shlex

    from chemscale.cli import build

    monkeypatch.setenv("COLUMNS", "60")
    (tmp_path / "[red]of me").mkdir()
    folder = tmp_path / "[red]of me" / "release [1]"
    small = ["simulate", "--stars", "6", "--clusters", "1", "--workers", "0", "--as-release", str(folder)]
    told = CliRunner().invoke(build(), small, catch_exceptions=False).stderr
    n_files = Simulation(6, 1).n_stars
    assert len(list(folder.rglob("aspcapStar-*.fits"))) == n_files
    assert f"release written: {folder}\n{n_files} spectra, {folder}/allStar" in told
    words = shlex.split(told[told.index("next: ") + len("next: ") :])
    assert words[:5] == ["chemscale", "ingest", "apogee", "--spectra", str(folder)]
    store = str(tmp_path / "[red]of me" / "store.zarr")
    done = CliRunner().invoke(build(), [*words[1:-1], store, "--workers", "0", "--json"], catch_exceptions=False)
    assert json.loads(done.stdout)["n_stars"] == n_files


@pytest.mark.parametrize("option", ["--resume", "--noise-free", "--cluster=local"])
def test_what_a_release_cannot_do_is_refused_not_ignored(option, tmp_path):
    from chemscale.cli import build

    words = ["simulate", "--stars", "6", "--clusters", "0", "--as-release", str(tmp_path / "r"), option]
    with pytest.raises(InputError, match=f"{option.split('=')[0]} goes with --out alone"):
        CliRunner().invoke(build(), words, catch_exceptions=False)
    assert not (tmp_path / "r").exists()


def test_truth_is_complete_and_refuses_strangers(tmp_path, monkeypatch):
    simulation = Simulation(300, 2, seed=5)
    monkeypatch.setattr("chemscale.simulation.truth._CHUNK", 128)
    path = write_truth(simulation, str(tmp_path / "a.truth.zarr"))
    truth = read_truth(str(tmp_path / "a.zarr"))
    whole = simulation.truth(np.arange(simulation.n_stars))
    assert truth["star_id"].values.tolist() == whole.star_id
    np.testing.assert_allclose(truth["abundance"].values, whole.abundance, rtol=1e-5, atol=1e-6)
    assert set(truth["cluster"].values) == set(whole.cluster)
    with pytest.raises(InputError, match="not in"):
        read_truth(path, ["2M00000000+0000000"])
    with pytest.raises(StoreError, match="exists"):
        write_truth(simulation, path)
    with pytest.raises(StoreError, match="no truth"):
        read_truth(str(tmp_path / "b.zarr"))


def test_cards():
    assert raw.card("KEY", 1.5).startswith("KEY     =                  1.5")
    assert raw.card("NAME", "it's").startswith("NAME    = 'it''s   '")
    assert len(raw.card("LONG", "x" * 40, "y" * 80)) == 80
    with pytest.raises(ValueError, match="too long"):
        raw.card("LONG", "x" * 90)
