"""Inference, scores, anomalies, flags and evaluation."""

from __future__ import annotations

import json
import shutil
from threading import Event

import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from typer.testing import CliRunner
from vae_toy import toy_survey

from chemscale.errors import DataError, InputError, ResumeError, StoreError
from chemscale.survey.store.open import open_survey
from chemscale.vae import anomalies, corrupt, flags, inference, pipeline
from chemscale.vae.checkpoint import load_model
from chemscale.vae.data import clean, standard_labels
from chemscale.vae.evaluate import boosted_r2, class_truth, evaluate, label_columns, pearson, precision_recall
from chemscale.vae.inference import infer_arrays, infer_survey
from chemscale.vae.product import open_latents, write_star_ids
from chemscale.vae.scores import WINDOW, _local, scores_in_batches


@pytest.fixture
def run(toy_run, tmp_path):
    """A private copy of the trained run."""
    return shutil.copytree(toy_run, tmp_path / "run")


@pytest.fixture(scope="module")
def model(toy_run):
    return load_model(toy_run / "vae")[0]


def cleaned(ds):
    return clean(*(ds[n].values for n in ("flux", "ivar", "flags")), selected=255)


def test_product_agrees_with_the_arrays(toy, toy_run, model):
    ds = open_latents(toy_run / "latents.zarr")
    assert ds["star_id"].values.tolist() == toy["star_id"].values.tolist()
    flux, weight = clean(*(toy[n].values for n in ("flux", "ivar", "flags")), selected=255, floor=0.005)
    direct = scores_in_batches(model, flux, weight, batch=37)
    for name in ("mean", "covariance", "chi2", "relative_l2", "norm", "local"):
        np.testing.assert_allclose(ds[name].values, direct[name], rtol=2e-3, atol=2e-4)
    assert ds["n_used"].values.tolist() == (weight > 0).sum(1).tolist()


def test_scores_by_hand(toy, model):
    flux, weight = cleaned(toy.isel(star=slice(0, 5)))
    got = infer_arrays(model, flux, weight)
    with torch.inference_mode():
        p = model.encode(model.features(torch.from_numpy(flux), torch.from_numpy(weight)))
        x = model.reconstruct(p.mean, p.auxiliary).numpy()
    good = weight > 0
    for i in range(5):
        residual = (flux - x)[i, good[i]]
        assert got["chi2"][i, 0] == pytest.approx(np.mean(residual**2 * weight[i, good[i]]), rel=1e-3)
        assert got["relative_l2"][i, 0] == pytest.approx(
            np.linalg.norm(residual) / np.linalg.norm(flux[i, good[i]]), rel=1e-3
        )
    inverse = np.linalg.inv(model.prior.numpy())
    expected = np.sqrt(np.einsum("ni,ij,nj->n", got["mean"], inverse, got["mean"]))
    np.testing.assert_allclose(got["norm"], expected, rtol=1e-4)


def test_local_score_is_standard_for_noise_and_sees_silence():
    g = torch.Generator().manual_seed(0)
    pull = torch.randn(400, 20 * WINDOW, generator=g)
    used = torch.ones_like(pull, dtype=torch.bool)
    value, _ = _local(pull, pull**2, used)
    assert 2.0 < float(value.median()) < 3.5  # largest of 40 standard normals
    quiet = pull.clone()
    quiet[:, 3 * WINDOW : 4 * WINDOW] = 0
    value, window = _local(quiet, quiet**2, used)
    assert (window == 3).all()
    assert float(value.min()) > 8


def test_star_without_pixels_is_nan_not_garbage(model):
    flux, weight = np.ones((3, 240), np.float32), np.full((3, 240), 100.0, np.float32)
    weight[1] = 0
    got = infer_arrays(model, flux, weight)
    assert np.isnan(got["mean"][1]).all()
    assert got["local_window"][1] == -1
    assert np.isfinite(got["mean"][[0, 2]]).all()


def stop_after(monkeypatch, n):
    """Interrupt the inference when `n` shards are written."""
    write, seen = inference.ShardRunner._write, []

    def stopping(self, shard, whole):
        if len(seen) == n:
            raise KeyboardInterrupt
        seen.append(shard)
        write(self, shard, whole)

    monkeypatch.setattr(inference.ShardRunner, "_write", stopping)


def test_inference_resumes_and_recomputes_only_what_is_missing(toy, run, monkeypatch):
    ds = toy.chunk(star=100)
    product = run / "again.zarr"
    first = infer_survey(ds, run / "vae", product, shard_stars=200)
    assert first["computed"] == 600
    before = open_latents(product)["mean"].values
    assert infer_survey(ds, run / "vae", product, shard_stars=200)["computed"] == 0
    stop_after(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        infer_survey(ds, run / "vae", product, shard_stars=200, overwrite=True)
    np.testing.assert_array_equal(open_latents(product)["mean"].values, before)  # the old one, until the new is whole
    monkeypatch.undo()
    shutil.rmtree(product)
    with pytest.raises(DataError, match="not finished"):
        open_latents(product)
    second = infer_survey(ds, run / "vae", product, shard_stars=200)
    assert second["computed"] == 200
    np.testing.assert_array_equal(open_latents(product)["mean"].values, before)
    with pytest.raises(ResumeError, match="shard_stars"):
        infer_survey(ds, run / "vae", product, shard_stars=300)
    assert infer_survey(ds, run / "vae", product, shard_stars=300, overwrite=True)["computed"] == 600


def test_a_block_that_could_not_be_read_is_read_again(toy, run, monkeypatch):
    ds = toy.chunk(star=100)
    expected = open_latents(run / "latents.zarr")["mean"].values
    read, failed = inference.ShardRunner._pixels, []

    def failing_once(self, rows, *out):
        if rows.start in (0, 300) and rows.start not in failed:
            failed.append(rows.start)
            raise OSError("stale file handle")
        return read(self, rows, *out)

    monkeypatch.setattr(inference.ShardRunner, "_pixels", failing_once)
    assert infer_survey(ds, run / "vae", run / "flaky.zarr", shard_stars=200)["computed"] == 600
    assert sorted(failed) == [0, 300]
    np.testing.assert_allclose(open_latents(run / "flaky.zarr")["mean"].values, expected, rtol=1e-4, atol=1e-5)


def test_unfinished_product_is_refused(toy, run):
    import zarr

    zarr.open_group(str(run / "latents.zarr"), mode="r+").attrs["complete"] = False
    with pytest.raises(DataError, match="not finished"):
        open_latents(run / "latents.zarr")


def test_latents_of_other_weights_are_refused(run):
    import zarr

    record = run / "vae" / "model.json"
    record.write_text(record.read_text() + " ")
    with pytest.raises(StoreError, match=r"made from another vae/model\.json"):
        pipeline.evaluate(run)
    zarr.open_group(str(run / "latents.zarr"), mode="r+").attrs["model"] = "0" * 64
    with pytest.raises(StoreError, match="damaged"):
        pipeline.evaluate(run)


def test_names_are_not_written_on_when_the_inference_has_ended(toy_store, toy_run, tmp_path):
    shutil.copytree(toy_run / "latents.zarr", tmp_path / "l.zarr")
    names, stop = zarr.open_array(tmp_path / "l.zarr", path="star_id", mode="r+"), Event()
    there = list(names[:])
    names[:] = np.full(len(there), "", dtype=object)
    stop.set()
    write_star_ids(str(tmp_path / "l.zarr"), open_survey(toy_store), stop)
    assert set(names[:]) == {""}
    stop.clear()
    write_star_ids(str(tmp_path / "l.zarr"), open_survey(toy_store), stop)
    assert list(names[:]) == there


def test_workers_give_the_same_latents(toy_store, toy_run, tmp_path):
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        for stars in (64, 128):  # the second in place of the first, whose arrays the workers still have open
            infer_survey(
                open_survey(toy_store),
                toy_run / "vae",
                tmp_path / "l.zarr",
                store=toy_store,
                client=client,
                shard_stars=stars,
                overwrite=True,
            )
    here, there = open_latents(toy_run / "latents.zarr"), open_latents(tmp_path / "l.zarr")
    np.testing.assert_allclose(there["mean"].values, here["mean"].values, atol=1e-4)
    assert there["star_id"].values.tolist() == here["star_id"].values.tolist()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda ds: ds.isel(wavelength=slice(0, 200)), "grid"),
        (lambda ds: ds.assign_coords(wavelength=ds["wavelength"] + 1.0).assign_attrs(ds.attrs), "grid|medium"),
        (lambda ds: ds.assign_attrs(survey="other"), "trained on 'toy'"),
        (lambda ds: ds.assign_attrs(cleaned=["extinction"]), "spectra as ingested, these are cleaned of extinction"),
        (lambda ds: ds.isel(star=slice(0, 0)), "no stars"),
    ],
)
def test_other_surveys_are_refused(toy, run, change, match):
    with pytest.raises((InputError, DataError), match=match):
        infer_survey(change(toy), run / "vae", run / "x.zarr")


def test_hidden_pixels_change_little(toy, model):
    ds = toy_survey(400, seed=3, missing=0.0)
    flux, weight = cleaned(ds)
    rng = np.random.default_rng(0)
    truth = ds["fe_h"].values
    r = [
        abs(pearson(infer_arrays(model, flux, w)["mean"][:, 0], truth))
        for w in (weight, corrupt.hide_random(weight, rng), corrupt.hide_blocks(weight, rng, width=12))
    ]
    assert max(r) - min(r) < 0.03


# -------------------------------------------------------------- anomalies


def test_anomalies_are_calibrated_and_found(run, model):
    result = pipeline.anomalies(run, false_alarm=0.05)
    # few stars: on the safe side, but for those far beyond the bulk, which the calibration leaves out
    assert 0.01 < result["flagged_held_out"] <= 0.06
    scores = [row["score"] for row in result["ranked"]]
    assert scores == sorted(scores, reverse=True)
    assert sum(result["causes"].values()) == result["flagged"]
    ds = toy_survey(600, seed=8, missing=0.0)
    found = corrupt.separation(model, *cleaned(ds), false_alarm=0.05)
    assert found["clean"]["found"] < 0.1
    for name in corrupt.DAMAGES:
        assert found[name]["auc"] > 0.95, name


def scores_of(n: int, rng: np.random.Generator) -> xr.Dataset:
    """Scores such as pure noise gives."""
    return xr.Dataset(
        {
            "chi2": (("star", "part"), rng.chisquare(400, (n, 2)) / 400),
            "local": ("star", np.abs(rng.standard_normal((n, 80))).max(1)),
            "norm": ("star", np.sqrt(rng.chisquare(3, n))),
            "quiet": ("star", rng.standard_normal((n, 80)).max(1)),
        },
        coords={"part": ["all", "iron"]},
    )


def test_the_false_alarm_rate_holds_for_few_reference_stars():
    reached = []
    for seed in range(40):
        ds = scores_of(2300, np.random.default_rng(seed))
        calibration = anomalies.calibrate(ds, np.arange(2300) < 300, 0.02)
        reached.append(anomalies.score(ds, calibration)["anomalous"][300:].mean())
    assert 0.012 < np.mean(reached) < 0.022  # +- 0.0013 of chance


def test_damaged_stars_among_the_reference_do_not_raise_the_threshold():
    ds = scores_of(4000, np.random.default_rng(1))
    damaged = np.arange(4000) % 5 == 0
    ds["chi2"].values[damaged] *= 30
    ds["local"].values[damaged] *= 30
    calibration = anomalies.calibrate(ds, np.ones(4000, dtype=bool), 0.02)
    found = anomalies.score(ds, calibration)["anomalous"]
    assert found[damaged].all()
    assert found[~damaged].mean() == pytest.approx(0.02, abs=0.006)


def test_too_strict_a_rate_is_refused(run):
    with pytest.raises(DataError, match="cannot calibrate"):
        pipeline.anomalies(run, false_alarm=1e-4)
    with pytest.raises(InputError, match="false-alarm"):
        pipeline.anomalies(run, false_alarm=2)


def test_another_survey_of_blank_stars_is_named_and_asks_for_no_impossible_rate(run, toy, tmp_path):
    from chemscale.cli import build
    from chemscale.survey.ingest.datasets import write_survey

    blank = toy.isel(star=slice(0, 20)).copy(deep=True)
    blank["ivar"][:] = 0
    other = str(write_survey(blank, tmp_path / "blank.zarr"))
    done = CliRunner().invoke(build(), ["vae", "infer", other, "--run", str(run), "--overwrite"])
    assert done.exit_code == 0 and f"20 without a usable pixel have none (`chemscale info {other}`" in done.output
    with pytest.raises(DataError, match="0 held-out stars") as refused:
        pipeline.anomalies(run)
    assert "rate" not in refused.value.remedy and "trained on" in refused.value.remedy


def test_causes_name_the_region():
    n = 400
    rng = np.random.default_rng(0)
    chi2 = np.exp(0.05 * rng.standard_normal((n, 3)))
    chi2[0] = [9.0, 1.0, 60.0]
    chi2[1, :] = np.nan
    ds = xr.Dataset(
        {
            "chi2": (("star", "part"), chi2),
            "local": ("star", np.abs(rng.normal(3, 0.3, n))),
            "norm": ("star", np.abs(rng.normal(1, 0.2, n))),
            "quiet": ("star", rng.normal(3, 0.3, n)),
        },
        coords={"part": ["all", "iron", "carbon"]},
    )
    ds["norm"].values[2] = 30
    ds["local"].values[3] = 1e4
    ds["quiet"].values[4] = 15
    calibration = anomalies.calibrate(ds, np.arange(n) > 10, 0.02)
    table = anomalies.score(ds, calibration)
    assert table["cause"][:5].tolist() == ["reconstruction:carbon", "no data", "latent", "window", "filled window"]
    assert table["anomalous"][:5].all()
    ds = ds.assign(
        star_id=("star", [f"s{i}" for i in range(n)]),
        local_window=("star", np.zeros(n, int)),
        relative_l2=(("star", "part"), chi2),
    )
    rows = anomalies.ranked(ds, table, top=n)
    scores = [row["score"] for row in rows]
    assert rows[-1]["star_id"] == "s1" and scores[:-1] == sorted(scores[:-1], reverse=True)  # nothing to see: last
    assert [r["cause"] for r in anomalies.ranked(ds, table, top=1)] != ["no data"]


# ------------------------------------------------------------------ flags


def latents_of(z: np.ndarray, variance: float = 0.01) -> xr.Dataset:
    n, d = z.shape
    return xr.Dataset(
        {
            "mean": (("star", "latent"), z),
            "auxiliary": (("star", "w"), np.random.default_rng(9).standard_normal((n, 2))),
            "covariance": (("star", "latent", "latent_"), np.broadcast_to(np.eye(d) * variance, (n, d, d))),
            "star_id": ("star", np.array([f"s{i}" for i in range(n)], dtype=object)),
        }
    )


def test_two_stars_calibrate_to_dex_and_fix_the_sign():
    z = np.random.default_rng(0).standard_normal((2000, 3))
    ds = latents_of(z)
    known = np.where(np.arange(2000) < 2, 1.0, np.nan)
    given = {"metal": known * (-1.2 - 0.6 * z[:, 0]), "carbon": known * (0.2 + 0.4 * z[:, 2])}
    result = flags.apply(ds, ("metal", "alpha", "carbon"), abundances=given, signs={"alpha": -1}, purity=0.95)
    assert result.model.signs == {"metal": -1, "alpha": -1, "carbon": 1}
    assert result.model.calibrations["metal"].slope == pytest.approx(-0.6)
    truth = (-1.2 - 0.6 * z[:, 0] < -1) & (0.2 + 0.4 * z[:, 2] > 0.7)
    quality = precision_recall(result.member["cemp"], truth)
    assert quality["precision"] > 0.95
    assert quality["recall"] > 0.6


def test_k_sigma_cuts_without_labels():
    z = np.random.default_rng(1).standard_normal((5000, 3))
    rule = {"rich": {"sigma": {"metal": (">", 1.0)}, "purity": 0.5}}
    result = flags.apply(latents_of(z), ("metal", "alpha", "carbon"), rules=rule)
    assert result.member["rich"].mean() == pytest.approx(0.159, abs=0.02)
    assert (result.outlying[:, 0] == 1).mean() == pytest.approx(0.0228, abs=0.01)
    with pytest.raises(InputError, match="unknown latents"):
        flags.apply(latents_of(z), ("metal", "alpha", "carbon"), rules={"x": {"sigma": {"tin": (">", 1)}}})


def test_a_few_stars_without_information_move_no_cut():
    z, names = np.random.default_rng(4).standard_normal((2000, 3)), ("metal", "alpha", "carbon")
    known, unknown = latents_of(z), latents_of(z)
    unknown["covariance"] = unknown["covariance"].copy()
    unknown["covariance"][:40] = 50.0 * np.eye(3)
    found = [flags.apply(ds, names, plain=True) for ds in (known, unknown)]
    for name in ("cemp", "alpha_poor"):
        np.testing.assert_array_equal(found[0].member[name], found[1].member[name])


def test_cuts_as_the_paper_prints_them_flag_purer_and_smaller_sets():
    rng = np.random.default_rng(3)
    truth = rng.standard_normal((40_000, 3)) * (0.57, 0.15, 0.75) + (-1.23, 0.22, 0.62)
    z = (truth - truth.mean(0)) / truth.std(0) + 0.4 * rng.standard_normal(truth.shape)
    rules = {"printed": {"sigma": flags.PRINTED["cemp"]}, "definition": {"sigma": flags.PRESETS["cemp"]["sigma"]}}
    found = flags.apply(latents_of(z), ("metal", "alpha", "carbon"), rules=rules)
    of_class = (truth[:, 0] < -1) & (truth[:, 2] > 0.7)
    printed, definition = (precision_recall(found.member[k], of_class) for k in ("printed", "definition"))
    assert printed["precision"] > definition["precision"] + 0.05
    assert printed["recall"] < definition["recall"] - 0.15


def test_a_class_needs_a_calibration_of_every_latent_it_cuts_on():
    z = np.random.default_rng(2).standard_normal((1000, 3))
    names = ("metal", "alpha", "carbon")
    iron = {"metal": -1.2 + 0.6 * z[:, 0]}
    result = flags.apply(latents_of(z), names, abundances=iron)
    assert not result.member
    assert result.model.why_not("cemp") == "cannot be judged: no [C/Fe]"
    assert result.model.why_not("alpha_poor") == "cannot be judged: no [alpha/Fe]"
    plain = flags.apply(latents_of(z), names, plain=True)
    assert {k: c.units for k, c in plain.model.classes.items()} == {"cemp": "sigma", "alpha_poor": "sigma"}
    assert plain.member["cemp"].mean() == pytest.approx(plain.model.classes["cemp"].expected, abs=0.03)
    assert not plain.suspect
    two = latents_of(np.where(np.arange(1000)[:, None] % 2, 1.0, -1.0) + 0.01 * z)
    assert flags.apply(two, names, rules={"rich": {"sigma": {"carbon": (">", 0.9)}}}, plain=True).suspect == ["rich"]


def test_labels_that_cannot_be_used(tmp_path):
    ds = latents_of(np.zeros((5, 3)))
    names = ("metal", "alpha", "carbon")
    nothing = np.full(3, np.nan)
    with pytest.raises(InputError, match="different latents"):
        flags.apply(ds, names, abundances={"metal": np.r_[1.0, 2.0, nothing]})
    with pytest.raises(InputError, match="unknown latents"):
        flags.apply(ds, names, abundances={"tin": np.r_[1.0, np.nan, nothing]})
    with pytest.raises(InputError, match="purity"):
        flags.apply(ds, names, purity=1.5)
    file = tmp_path / "labels.csv"
    file.write_text("star_id,metal,carbon\ns0,-1.5,\ns1,-0.5,0.3\n")
    assert flags.read_labels(file) == {"s0": {"metal": -1.5}, "s1": {"metal": -0.5, "carbon": 0.3}}
    file.write_text("star,metal\ns0,1\n")
    with pytest.raises(InputError, match="star_id"):
        flags.read_labels(file)
    file.write_text("star_id,metal\ns0,lots\n")
    with pytest.raises(InputError, match="lots"):
        flags.read_labels(file)


def test_signs_without_labels_agree_with_the_labels(run):
    summary = pipeline.flags(run)
    result = json.loads((run / "flags.json").read_text())
    assert result["signs"] == summary["signs"]
    ds, _, _ = pipeline.latents(run)
    survey = open_survey(pipeline.Run.open(run).store)
    r = np.corrcoef(ds["mean"].values[:, 0], survey["fe_h"].values)[0, 1]
    assert np.sign(r) == summary["signs"]["metal"]


# -------------------------------------------------------------- evaluation


def test_evaluation_has_the_promised_keys(run):
    result = pipeline.evaluate(run)
    wanted = ["r_fe_h", "r_alpha_fe", "r_c_fe", "r2_teff", "r2_logg", "relative_l2"]
    wanted += ["rmse_fe_h", "rmse_alpha_fe", "rmse_c_fe"]
    assert all(np.isfinite(result[k]) for k in wanted)
    assert set(result["flags"]) >= {"cemp", "alpha_poor"}
    assert json.loads((run / "vae_evaluation.json").read_text())["r_fe_h"] == pytest.approx(result["r_fe_h"])


def test_evaluation_of_another_survey_is_refused(toy, run):
    ds, _, out = pipeline.latents(run)
    with pytest.raises(DataError, match="stars in the survey"):
        evaluate(ds, toy.isel(star=slice(0, 10)), out)
    with pytest.raises(DataError, match="no held-out"):
        evaluate(ds, toy, np.zeros(600, bool))


def test_boosted_r2_of_function_and_noise():
    rng = np.random.default_rng(0)
    z = rng.standard_normal((4000, 3))
    assert boosted_r2(z, z[:, 0] ** 2 + 0.1 * rng.standard_normal(4000)) > 0.9
    assert boosted_r2(z, rng.standard_normal(4000)) < 0.02


def test_labels_come_from_abundances_where_there_are_no_others():
    table = np.array([[-1.0, -0.3, -0.7, np.nan], [0.1, 0.2, 0.4, 0.2], [np.nan, 0.0, 0.0, 0.0]])
    survey = xr.Dataset(
        {"abundance": (("star", "element"), table), "teff": ("star", [5000.0, 6000.0, 5500.0])},
        coords={"element": ["Fe", "C", "Mg", "Si"]},
    )
    found = label_columns(survey)
    np.testing.assert_allclose(found["c_fe"], [0.7, 0.1, np.nan])
    np.testing.assert_allclose(found["alpha_fe"], [0.3, 0.2, np.nan])
    survey["fe_h"] = ("star", [-2.0, 0.0, -0.5])  # a label of its own counts first
    np.testing.assert_allclose(label_columns(survey)["c_fe"], [1.7, 0.2, 0.5])
    assert set(label_columns(survey[["teff"]])) == {"teff"}


def test_a_survey_s_own_label_errors_are_used():
    survey = xr.Dataset({"teff": ("star", [5000.0, 6000.0, 5500.0]), "teff_error": ("star", [50.0, np.nan, 0.0])})
    found = standard_labels(survey, ["teff"], relative_error=0.02)
    np.testing.assert_allclose(found.errors[:, 0] * found.scale[0], [50.0, 120.0, 110.0], rtol=1e-5)


def test_noise_is_taken_out_of_the_error(run):
    result = pipeline.evaluate(run)
    assert result["relative_l2_kind"] == "noise subtracted"
    assert result["relative_l2"] < 0.9 * result["relative_l2_observed"]
    assert result["noise_l2"] == pytest.approx(0.01, rel=0.2)  # S/N 100
    clean = toy_survey(600, missing=0.0, noise=1e-4)["flux"].values
    np.save(run / "true.npy", clean)
    true = pipeline.evaluate(run, truth=run / "true.npy")
    assert true["relative_l2_kind"] == "noise-free truth"
    assert true["relative_l2"] == pytest.approx(result["relative_l2"], rel=0.2)
    # both definitions, and the kinds of stars that the paper names
    assert true["relative_l2_squared"] == pytest.approx(true["relative_l2"] ** 2, rel=0.3)
    assert 0 < true["relative_l2_classes"]["carbon_rich"] < 2 * true["relative_l2"]


def test_evaluation_infers_latents_that_are_missing(toy_run, tmp_path):
    run = shutil.copytree(toy_run, tmp_path / "run")
    before = pipeline.evaluate(run)
    shutil.rmtree(run / "latents.zarr")
    after = pipeline.evaluate(run)
    assert after["r_fe_h"] == pytest.approx(before["r_fe_h"], abs=1e-6)
    assert (run / "latents.zarr").exists()


def test_class_truth_needs_its_labels():
    labels = {"fe_h": np.array([-2.0, 0.0])}
    assert class_truth(labels, {"fe_h": ("<", -1.0)}).tolist() == [True, False]
    assert class_truth(labels, {"c_fe": (">", 0.7)}) is None


# ----------------------------------------------------------- command line


def test_command_line(toy_store, toy_run, tmp_path):
    from chemscale.cli import build

    run = shutil.copytree(toy_run, tmp_path / "run")
    runner = CliRunner()
    for arguments in (
        ["vae", "infer", toy_store, "--run", str(run), "--json"],
        ["vae", "evaluate", "--run", str(run), "--json"],
        ["anomalies", "--run", str(run), "--false-alarm", "0.05", "--json"],
        ["flags", "--run", str(run), "--json"],
    ):
        result = runner.invoke(build(), arguments)
        assert result.exit_code == 0, result.output
        json.loads(result.stdout)
    result = runner.invoke(build(), ["vae", "infer", toy_store, "--run", str(tmp_path / "none")])
    assert isinstance(result.exception, StoreError)
