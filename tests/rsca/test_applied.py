"""Models applied to spectra that were never in the store, stored as one file, and results as tables."""

import json

import numpy as np
import pytest
from astropy.table import Table
from helpers import make_survey
from typer.testing import CliRunner

from chemscale.cli import build
from chemscale.errors import InputError, StoreError
from chemscale.rsca.applied import LikenessModel, open_model, spectra
from chemscale.rsca.evaluate import evaluate_run
from chemscale.rsca.pair import pair
from chemscale.rsca.pipeline import fit_run
from chemscale.rsca.siblings import SiblingSearch, siblings
from chemscale.rsca.tables import write_table
from chemscale.survey.ingest.datasets import write_survey
from chemscale.survey.store.open import open_survey


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("applied") / "survey.zarr"
    write_survey(make_survey(500, 8, 6, n_pixels=60, seed=3), path)
    return str(path)


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    done = fit_run(store, tmp_path_factory.mktemp("run") / "run", components=6, metric="auto")
    evaluate_run(done.path)
    return done


@pytest.mark.parametrize("metric", ["paper", "auto"])
def test_features_of_the_runs_own_stars_are_the_runs_and_the_file_keeps_them(run, store, metric, tmp_path):
    model = LikenessModel.of_run(run, metric)
    found = model.transform(open_survey(store))
    index = SiblingSearch.open(run.path, metric=metric, n_features=model.n_features).index
    assert found["star_id"].values.tolist() == index.star_id.tolist()
    np.testing.assert_allclose(found["features"].values, index.features, rtol=2e-3, atol=2e-3)
    assert 0 <= found["outside_domain"].values.mean() < 0.1
    file = tmp_path / "model.safetensors"
    model.save(file)
    again = open_model(file)
    np.testing.assert_array_equal(again.transform(open_survey(store))["features"], found["features"])
    np.testing.assert_array_equal(again.probability([0.1, 2.0], 0.01), model.probability([0.1, 2.0], 0.01))


def test_a_long_transform_tells_how_far_it_is_and_gives_the_same(run, store, monkeypatch):
    monkeypatch.setattr("chemscale.rsca.applied.os.cpu_count", lambda: 1)
    model, survey, told = LikenessModel.of_run(run, "paper"), open_survey(store), []
    n = survey.sizes["star"]
    found = model.transform(survey.chunk(star=-(-n // 10)), told.append)
    assert sum(told) == n and len(told) == 3  # four blocks at once
    np.testing.assert_allclose(found["features"], model.transform(survey)["features"], rtol=1e-9, atol=1e-12)


def test_strange_spectra_are_flagged_and_other_grids_refused(run, tmp_path):
    model = LikenessModel.of_run(run, "paper")
    other = make_survey(40, 2, 3, n_pixels=60, seed=3)
    other["flux"][:5] = 1 + 8 * (other["flux"][:5] - 1)
    found = model.transform(other)
    assert found["outside_domain"].values[:5].all() and found["outside_domain"].values[5:].mean() < 0.2
    with pytest.raises(InputError, match="60 from"):
        model.transform(make_survey(40, 2, 3, n_pixels=50, seed=3))
    (tmp_path / "no.safetensors").write_bytes(b"nothing")
    with pytest.raises(StoreError, match="rsca export"):
        LikenessModel.load(tmp_path / "no.safetensors")


def test_wavelengths_in_another_medium_are_refused_and_taken_for_the_models_where_nothing_says(run, tmp_path, caplog):
    made = LikenessModel.of_run(run, "paper")
    made.save(tmp_path / "model.safetensors")
    other = make_survey(40, 2, 3, n_pixels=60, seed=3)
    own = other["wavelength"].attrs["medium"]
    other["wavelength"].attrs["medium"] = {"air": "vacuum", "vacuum": "air"}[own]
    for model in (made, LikenessModel.load(tmp_path / "model.safetensors")):
        with pytest.raises(InputError, match=f"the model's in {own}"):
            model.transform(other)
    other.attrs["medium_stated"] = False
    found = made.transform(other)
    assert np.isfinite(found["features"]).all() and f"taken to be in {own}" in caplog.text


def test_what_of_a_table_takes_no_part_in_a_transform_is_told(tmp_path, caplog):
    ivar = np.full((4, 60), 1e4)
    ivar[2] = 0
    np.savez(tmp_path / "t.npz", flux=np.ones((4, 60)), ivar=ivar, wavelength=15000.0 + np.arange(60))
    with spectra(str(tmp_path / "t.npz")) as survey:
        assert survey.sizes["star"] == 3
    assert "1 of its spectra left out: no pixel has both a flux and a valid error" in caplog.text
    assert "assumed: wavelengths are in vacuum" in caplog.text


@pytest.mark.parametrize("metric", ["paper", "auto"])
def test_a_pair_is_as_far_apart_as_the_search_says(run, store, metric):
    search = SiblingSearch.open(run.path, metric=metric, n_features=3 if metric == "paper" else None)
    near = search.siblings(str(search.index.star_id[0]), 1)
    first, second = near.attrs["star"], str(near["star_id"].values[0])
    found = pair(first, second, run.path, metric=metric, prior=0.01)
    assert found.attrs["distance"] == pytest.approx(float(near["distance"][0]), rel=1e-4)
    assert 0 < found.attrs["distance_error"] < 10 * found.attrs["distance"] + 1
    assert found.attrs["probability_low"] <= found.attrs["probability"] <= found.attrs["probability_high"]
    survey = open_survey(store).load()
    rows = [survey["star_id"].values.astype(str).tolist().index(s) for s in (first, second)]
    flux = survey["flux"].values[rows]
    good = np.isfinite(found["difference"].values)
    np.testing.assert_allclose(found["difference"].values[good], (flux[1] - flux[0])[good], atol=1e-6)
    with pytest.raises(InputError, match="twice"):
        pair(first, first, run.path)


def test_within_gives_all_and_only_stars_that_near(run):
    search = SiblingSearch.open(run.path, metric="paper", n_features=3)
    star = str(search.index.star_id[9])
    every = siblings(star, run.path, len(search.index.features) - 1, metric="paper")["distance"].values
    radius = float(np.median(every))
    found = siblings(star, run.path, None, metric="paper", within=radius)
    np.testing.assert_allclose(found["distance"].values, every[every <= radius])
    assert siblings(star, run.path, 4, metric="paper", within=radius).sizes["sibling"] == 4


@pytest.mark.parametrize("ending", [".fits", ".csv", ".vot", ".parquet"])
def test_tables_hold_what_was_found(run, ending, tmp_path):
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    search = SiblingSearch.open(run.path, metric="paper")
    ids = [str(s) for s in search.index.star_id[:2]]
    (tmp_path / "ids.txt").write_text("\n".join(ids))
    out = tmp_path / f"siblings{ending}"
    words = ["rsca", "siblings", "--stars", str(tmp_path / "ids.txt"), "--run", str(run.path), "--n", "3"]
    done = CliRunner().invoke(build(), [*words, "--out", str(out)])
    assert done.exit_code == 0, done.output
    table = Table.read(out, format={".csv": "ascii.csv", ".vot": "votable"}.get(ending))
    assert [str(v) for v in table["star"]] == [i for i in ids for _ in range(3)]
    want = np.concatenate([siblings(i, run.path, 3)["distance"].values for i in ids])
    np.testing.assert_allclose(np.asarray(table["distance"]), want, rtol=1e-6)
    with pytest.raises(InputError, match="end its name"):
        write_table(siblings(ids[0], run.path, 3), tmp_path / "x.doc")


def test_command_line_transforms_exports_and_compares(run, store, tmp_path):
    model, table = tmp_path / "m[red].safetensors", tmp_path / "t[red].fits"  # no markup of the terminal's
    call = CliRunner().invoke
    done = call(build(), ["rsca", "export", "--run", str(run.path), "--out", str(model)])
    assert done.exit_code == 0 and f"wrote {model}" in done.output, done.output
    done = call(build(), ["rsca", "transform", store, "--run", str(model), "--out", str(table), "--json"])
    assert done.exit_code == 0 and f"wrote {table}" in done.output, done.output
    found = Table.read(table)
    assert len(found) == 548 and {"star_id", "features_1", "domain_distance", "outside_domain"} <= set(found.colnames)
    ids = [str(v).strip() for v in found["star_id"][:2]]
    done = call(build(), ["rsca", "pair", *ids, "--run", str(run.path), "--prior", "0.01", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout[done.stdout.index("{") :])["star_2"] == ids[1]
