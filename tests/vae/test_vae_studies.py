"""The VAE's studies on a trained run: their numbers against computations made another way."""

from __future__ import annotations

import csv
import shutil

import numpy as np
import pytest
from vae_toy import FAST, FAST_MODEL, toy_survey

from chemscale.errors import DataError, InputError
from chemscale.simulation.generator import Simulation
from chemscale.simulation.truth import truth_path, write_truth
from chemscale.studies.registry import run_study
from chemscale.studies.vae_cannon import Sample, _rmse, cannon, fit_cannon, infer_cannon, quadratic, sliced_cannon
from chemscale.survey.ingest.datasets import write_survey
from chemscale.survey.ingest.ingestion import ingest
from chemscale.survey.ingest.planning import plan_ingest
from chemscale.survey.sources.simulated import SimulatedSource
from chemscale.survey.store.open import open_survey
from chemscale.vae import pipeline
from chemscale.vae.truth import read_truth


@pytest.fixture(scope="module")
def run(toy_run, tmp_path_factory):
    """A private copy of the trained run."""
    return shutil.copytree(toy_run, tmp_path_factory.mktemp("studies") / "run")


@pytest.fixture(scope="module")
def truth(toy_store, tmp_path_factory):
    """The toy survey's noise-free spectra as a file."""
    clean = toy_survey(600, missing=0.0, noise=0.0001)
    path = tmp_path_factory.mktemp("truth") / "true.npz"
    np.savez(path, flux_true=clean["flux"].values[::-1], star_id=clean["star_id"].values[::-1].astype(str))
    return str(path)


def rows(run, name):
    assert (run / "studies" / name / "figure.pdf").stat().st_size > 1000
    with open(run / "studies" / name / "data.csv", newline="") as f:
        return list(csv.DictReader(f))


def held(run):
    """Posterior means and survey of the held-out stars."""
    ds, _, out = pipeline.latents(run)
    survey = open_survey(pipeline.Run.open(run).store)
    return ds["mean"].values[out], survey.isel(star=np.flatnonzero(out)), out


def test_population_lies_over_the_halos_density(run):
    summary = run_study("vae_population", run)
    survey = open_survey(pipeline.Run.open(run).store)
    table = {r["label"]: r for r in rows(run, "vae_population")}
    assert float(table["c_fe"]["mean"]) == pytest.approx(float(survey["c_fe"].mean()), abs=1e-4)
    assert float(table["c_fe"]["paper_mean"]) == 0.62
    assert 0 < summary["numbers"]["fraction_cemp"] < 1
    assert summary["numbers"]["against"] == "labels"


def test_latents_and_corruption(run):
    assert run_study("vae_latents", run)["numbers"]["r_fe_h"] > 0.8
    own = [r for r in rows(run, "vae_latents") if r["label"] == "fe_h" and r["latent"] == "metal"]
    assert len({np.sign(float(own[0][k])) for k in ("slope_cool", "slope_middle", "slope_hot")}) == 1
    summary = run_study("vae_corruption", run, {"false_alarm": 0.1})
    assert summary["numbers"]["auc_noise_30_percent"] > 0.95
    assert rows(run, "vae_corruption")


def test_catalogues_average_over_runs(run, toy_run):
    alone = run_study("vae_table1", run)
    z, survey, _ = held(run)
    expected = abs(np.corrcoef(z[:, 0], survey["fe_h"].values)[0, 1])
    assert alone["numbers"]["r_fe_h"] == pytest.approx(expected, abs=1e-6)
    both = run_study("vae_table1", run, {"runs": str(toy_run)})
    assert both["numbers"]["catalogues"] == 2
    table = rows(run, "vae_table1")
    assert {r["label"] for r in table} == {"fe_h", "alpha_fe", "c_fe", "teff", "logg"}
    assert all(float(r["r_error"]) < 1e-9 for r in table)  # the same catalogue twice does not scatter


def test_table_of_catalogues_that_are_made(tmp_path):
    simulation = Simulation(300, 0, 5, "lowres", "halo")
    store = str(tmp_path / "s.zarr")
    source = SimulatedSource(**simulation.settings())
    ingest(source, store, job=plan_ingest(source))
    write_truth(simulation, truth_path(store))
    pipeline.train(store, tmp_path / "run", model=FAST_MODEL, settings=FAST, scale=False)
    pipeline.infer(store, tmp_path / "run")
    made = run_study("vae_table1", tmp_path / "run", {"catalogues": 2})
    assert made["numbers"]["catalogues"] == 2
    other = open_survey(str(tmp_path / "run" / "catalogues" / "1.zarr"))
    assert other.attrs["simulation"] == simulation.settings() | {"seed": 6}
    written = (tmp_path / "run" / "catalogues" / "run-1" / "vae" / "model.json").stat().st_mtime_ns
    again = run_study("vae_table1", tmp_path / "run", {"catalogues": 2})
    assert again["numbers"] == made["numbers"]
    assert (tmp_path / "run" / "catalogues" / "run-1" / "vae" / "model.json").stat().st_mtime_ns == written


def test_snr_residuals_scatter_as_the_evaluation_says(run):
    run_study("vae_snr", run, {"width": 1000.0})
    table = rows(run, "vae_snr")
    rmse = pipeline.evaluate(run)
    for row in table:
        scatter = np.hypot(float(row["scatter"]), float(row["mean"]))
        assert scatter == pytest.approx(rmse[f"rmse_{row['label']}"], rel=0.02)


def test_flags_are_counted_on_held_out_stars(run):
    summary = run_study("vae_flags", run, {"purities": "0.3,0.8"})
    quality = pipeline.evaluate(run)["flags"]
    assert summary["numbers"]["cemp_recall"] == pytest.approx(quality["cemp"]["recall"], nan_ok=True)
    cemp = [r for r in rows(run, "vae_flags") if r["class"] == "cemp"]
    flagged = {r["purity_asked"]: int(r["flagged"]) for r in cemp}
    assert flagged["0.3"] >= flagged["0.8"]


def test_independence_sees_labels_in_w_not_in_z(run):
    numbers = run_study("vae_independence", run, {"repeats": 1})["numbers"]
    table = {(r["input"], r["label"]): float(r["r2"]) for r in rows(run, "vae_independence")}
    assert table["w", "teff"] > 0.7
    assert numbers["r2_teff"] < table["w", "teff"] - 0.3


def test_spectra_of_three_kinds(run, truth):
    summary = run_study("vae_spectra", run, {"truth": truth})
    assert "relative_l2_solar" in summary["numbers"]
    assert all(0 < v < 0.1 for v in summary["numbers"].values())
    assert len(rows(run, "vae_spectra")) == 240
    with pytest.raises(DataError, match="no pixel between"):
        run_study("vae_spectra", run, {"low": 9000.0, "high": 9100.0})


def test_worst_reconstructions(run):
    summary = run_study("vae_worst", run, {"stars": 3})
    ds, _, out = pipeline.latents(run)
    error = ds["relative_l2"].values[:, 0]
    table = rows(run, "vae_worst")
    assert float(table[0]["relative_l2"]) == pytest.approx(np.nanmax(error[out]), rel=1e-5)
    assert summary["numbers"]["largest"] == pytest.approx(float(table[0]["relative_l2"]), rel=1e-5)
    numbers = run_study("vae_outliers", run, {"stars": 4})["numbers"]
    assert numbers["r_fe_h"] > 0.8
    assert len(rows(run, "vae_outliers")) == 12


def test_latents_of_other_stars_are_not_drawn_over_the_run_s_own_spectra(run, tmp_path):
    """After `vae infer OTHER --run RUN --overwrite` a row of the latents is another star than the store's."""
    run = shutil.copytree(run, tmp_path / "run")
    store = pipeline.Run.open(run).store
    write_survey(open_survey(store).isel(star=slice(100, 300)), tmp_path / "other.zarr")
    pipeline.infer(str(tmp_path / "other.zarr"), run, overwrite=True)
    for name in ("vae_worst", "vae_outliers", "vae_latents", "vae_corruption"):
        with pytest.raises(DataError, match="are those of other stars than"):
            run_study(name, run)


def test_cannon_recovers_a_quadratic_world():
    rng = np.random.default_rng(0)
    labels = rng.standard_normal((400, 3))
    world = rng.standard_normal((10, 60)) * np.array([1.0] + [0.1] * 3 + [0.01] * 6)[:, None]
    flux = quadratic(labels) @ world + 0.002 * rng.standard_normal((400, 60))
    weight = np.full(flux.shape, 1 / 0.002**2)
    weight[:, ::9] *= rng.random((400, 7)) > 0.1  # missing pixels
    coefficients, scatter = fit_cannon(flux[:300], weight[:300], labels[:300])
    assert np.abs(coefficients - world).max() < 0.06
    got = infer_cannon(flux[300:], weight[300:], coefficients, scatter, labels[:300:10])
    assert np.sqrt(np.mean((got - labels[300:]) ** 2)) < 0.05


def test_cannon_beside_latents(run):
    numbers = run_study("vae_cannon", run, {"train": 300, "test": 100})["numbers"]
    assert numbers["rmse_fe_h_Cannon"] < numbers["rmse_fe_h_mean_of_the_sample"]
    assert numbers["rmse_fe_h_line"] < numbers["rmse_fe_h_mean_of_the_sample"]
    table = {(r["label"], r["method"]): r for r in rows(run, "vae_cannon")}
    assert all(np.isfinite(float(r["rmse"])) for r in table.values())
    assert {"Cannon in 5040 / Teff", "Cannon in slices of Teff"} < {m for _, m in table}


def test_slices_of_temperature_beat_one_quadratic_where_lines_bend_with_it():
    rng = np.random.default_rng(1)
    labels = np.column_stack([rng.uniform(4000, 7000, 900), rng.normal(0, 1, 900)])
    strength = np.exp(-(((labels[:, :1] - np.linspace(4000, 7000, 50)) / 500) ** 2))
    flux = 1 - 0.1 * strength * (1 + 0.5 * labels[:, 1:]) + 0.002 * rng.standard_normal((900, 50))
    whole = Sample(flux, np.full(flux.shape, 1 / 0.002**2), labels, labels[:, 0])
    train, test = whole.part(np.arange(700)), whole.part(np.arange(700, 900))
    errors = [
        np.std(found[:, 1] - test.labels[:, 1]) for found in (cannon(train, test), sliced_cannon(train, test, 600))
    ]
    assert errors[1] < 0.5 * errors[0]


def test_one_star_without_latents_does_not_void_an_error():
    rms, error, stars = _rmse(np.array([0.1, -0.1, np.nan]), np.random.default_rng(0))
    assert (round(rms, 6), stars) == (0.1, 2)
    assert np.isfinite(error)


def test_gradient_flow_trains_both_ways(run):
    with pytest.raises(DataError, match="trains two models"):
        run_study("vae_gradient_flow", run)
    run_study("vae_gradient_flow", run, {"stars": 400, "seeds": 2, "epochs": 3})
    table = rows(run, "vae_gradient_flow")
    assert ("all", "relative_l2") in {(r["latent"], r["label"]) for r in table}
    assert any(abs(float(r["with_stops"]) - float(r["without_stops"])) > 1e-6 for r in table)
    assert all(float(r["with_scatter"]) >= 0 for r in table)


def test_training_size_needs_and_uses_truth(run, truth):
    with pytest.raises(DataError, match="noise-free spectra are not known"):
        run_study("vae_training_size", run)
    run_study("vae_training_size", run, {"truth": truth, "sizes": "300,420", "snr": "20,100", "epochs": 15})
    table = rows(run, "vae_training_size")
    assert len(table) == 4
    error = {(r["snr"], r["stars"]): float(r["relative_l2"]) for r in table}
    noise = {r["snr"]: float(r["noise_l2"]) for r in table}
    assert noise["20"] == pytest.approx(5 * noise["100"], rel=0.15)
    assert error["20", "420"] < noise["20"]
    with pytest.raises(InputError, match="sizes or snr"):
        run_study("vae_training_size", run, {"truth": truth, "sizes": "many"})


def test_truth_is_read_by_star_and_refused_where_it_does_not_fit(truth, toy, tmp_path):
    ids = toy["star_id"].values.astype(str)
    got = read_truth(truth, ids[:5], 240)
    assert np.abs(got - np.nan_to_num(toy["flux"].values[:5], nan=1.0))[toy["flags"].values[:5] == 0].max() < 0.06
    with pytest.raises(InputError, match="no noise-free spectrum of nobody"):
        read_truth(truth, np.array(["nobody"]), 240)
    with pytest.raises(InputError, match="shape"):
        read_truth(truth, ids, 100)
    np.savez(tmp_path / "x.npz", other=np.zeros(3))
    with pytest.raises(InputError, match="flux_true"):
        read_truth(tmp_path / "x.npz", ids, 240)
    (tmp_path / "y.npy").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read"):
        read_truth(tmp_path / "y.npy", ids, 240)


def test_too_few_stars(run):
    with pytest.raises(DataError, match="held-out stars"):
        run_study("vae_corruption", run, {"stars": 50})
