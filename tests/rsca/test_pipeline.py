"""From a store to rates and siblings, on a toy survey."""

import json
import re
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
import xarray as xr
from helpers import make_survey
from typer.testing import CliRunner

from chemscale.embedding.product import open_embedding
from chemscale.errors import DataError, InputError, StoreError
from chemscale.quality.masking import mask_survey
from chemscale.report.findings import sections
from chemscale.rsca import basis_stages
from chemscale.rsca.applied import LikenessModel
from chemscale.rsca.auto_run import auto_features, load_auto
from chemscale.rsca.basis_stages import passes_left
from chemscale.rsca.doppelganger import doppelganger_rates
from chemscale.rsca.evaluate import evaluate_run, follows
from chemscale.rsca.neighbours import SiblingIndex
from chemscale.rsca.pipeline import fit_run, load_metric
from chemscale.rsca.siblings import SiblingSearch, siblings, write_neighbours
from chemscale.rsca.stars import RunStars
from chemscale.runtime.observe import Progress, progress_bar
from chemscale.runtime.product import in_order
from chemscale.runtime.run import Run
from chemscale.survey.ingest.datasets import write_survey


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("rsca") / "survey.zarr"
    write_survey(make_survey(600, 8, 6, n_pixels=60, seed=3), path)
    return str(path)


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run"
    fit_run(store, path, components=6, metric="auto")
    return Run.open(path)


def test_evaluate_is_doppelganger_rates_of_the_embedding(run):
    result = evaluate_run(run.path, n_features=2)
    ds = xr.open_zarr(run.file("embedding.zarr"), consolidated=False).load()
    role = ds["role"].values.astype(object).astype(str)
    f, m = role == "field", role == "member"
    cuts = {}
    for side, rows in (("field", f), ("member", m)):
        cuts[f"{side}_extinction"] = ds["extinction"].values[rows]
        cuts[f"{side}_velocity"] = ds["radial_velocity"].values[rows]
    args = ds["coords"].values[f], ds["coords"].values[m], ds["cluster"].values.astype(object).astype(str)[m]
    for key, settings in {
        "raw": {"method": "raw"},
        "scaled": {"method": "scaled"},
        "rsca": {},
        "rsca_top": {"n_features": 2},
        "rsca_without_cross_validation": {"leave_one_out": False},
    }.items():
        assert result[key] == pytest.approx(doppelganger_rates(*args, **settings, **cuts).overall), key
    assert (result["n_field"], result["n_members"], result["n_clusters"]) == (600, 48, 8)
    assert set(result["per_cluster"]) == set(np.unique(args[2]))
    assert result["rsca_top"] < result["raw"] / 2
    assert result["auto"] < result["raw"] / 2
    assert run.load_json("evaluation.json") == result
    assert 0 < result["abundances"]["all"]["raw"] < 1
    assert len(result["correlations"]["rsca"]["radial_velocity"]) == 2


def test_stored_metrics_load_as_they_were(run):
    stars = RunStars.read(run)
    metric = load_metric(run)
    np.testing.assert_allclose(metric.mean_, stars.field.mean(axis=0))
    assert np.all(np.diff(metric.scale_) <= 0)
    auto, detrending = load_auto(run)
    other = RunStars.read(run, "embedding_auto.zarr")
    features = auto_features(auto, detrending, other.members, other, other.member_rows)
    assert features.shape == (48, auto.matrix.shape[1])
    assert auto.committee
    spread = np.var(auto_features(auto, detrending, other.field, other, other.field_rows), axis=0)
    assert np.all(np.diff(spread) <= 1e-9 * spread[0])


def test_siblings_are_the_nearest_by_brute_force(run):
    search = SiblingSearch.open(run.path, metric="paper", n_features=3)
    ids = search.index.star_id
    star = str(ids[17])
    found = siblings(star, run.path, 5, metric="paper", n_features=3)
    d = np.linalg.norm(search.index.features - search.index.features[17], axis=1)
    d[17] = np.inf
    assert found["star_id"].values.tolist() == ids[np.argsort(d)[:5]].tolist()
    np.testing.assert_allclose(found["distance"].values, np.sort(d)[:5], rtol=1e-5)
    metric = load_metric(run)
    want = metric.probability_ratio(found["distance"].values, n_features=3, log=True)
    np.testing.assert_allclose(found["log_ratio"].values, want)
    velocity = search.stars.label("radial_velocity")
    near = siblings(star, run.path, 5, metric="paper", max_delta_velocity=10.0, limits={"teff": (4000, 4900)})
    assert np.all(np.abs(near["radial_velocity"].values - velocity[17]) < 10)
    assert np.all((near["teff"].values >= 4000) & (near["teff"].values <= 4900))
    assert siblings(star, run.path, 3).attrs["metric"] == "auto"


def test_sibling_probability_needs_a_calibration_and_falls_with_distance(run):
    result = evaluate_run(run.path, n_features=3)
    assert result["likeness"]["n_features"] == 3
    star = str(SiblingSearch.open(run.path).index.star_id[2])
    found = siblings(star, run.path, 30, metric="paper", prior=0.01)
    p = found["probability"].values
    assert np.all((p > 0) & (p < 1)) and np.all(np.diff(p) <= 0)
    assert p[0] <= found.attrs["highest_probability"] and "it rests on 8 clusters" in found.attrs["caution"]
    with pytest.raises(InputError, match="calibrated"):
        siblings(star, run.path, 3, metric="paper", n_features=2, prior=0.01)


def test_one_metric_is_recommended_and_used_alike(run):
    result = evaluate_run(run.path, n_features=3)
    weights = {c: v["n_members"] for c, v in result["per_cluster"].items()}
    of = {name: np.array([v[name] for v in result["per_cluster"].values()]) for name in ("auto", "rsca_top")}
    difference, error = result["differences"]["auto - rsca_top"]
    assert difference == pytest.approx(np.average(of["auto"] - of["rsca_top"], weights=list(weights.values())))
    assert error >= 0
    best = result["recommended"]
    assert best["metric"] == ("auto" if difference <= error else "paper")
    star = str(SiblingSearch.open(run.path).index.star_id[0])
    assert siblings(star, run.path, 3).attrs["metric"] == best["metric"]
    ranges = result["ranges"]["teff"]
    assert 0 < ranges["field_inside"] <= 1 and ranges["field"][0] < ranges["field"][2]


def test_the_searched_metric_knows_ratio_and_probability_too(run):
    evaluate_run(run.path)
    star = str(SiblingSearch.open(run.path).index.star_id[4])
    found = siblings(star, run.path, 40, metric="auto", prior=0.01)
    p, low, high = (found[f"probability{s}"].values for s in ("", "_low", "_high"))
    assert np.all(np.diff(p) <= 1e-12) and np.all((low <= p) & (p <= high)) and np.all(np.diff(found["log_ratio"]) <= 0)
    assert siblings(star, run.path, 3, metric="scaled").attrs["metric"] == "scaled"
    with pytest.raises(InputError, match="calibrated"):
        siblings(star, run.path, 3, metric="auto", n_features=1, prior=0.01)


def test_a_run_without_the_searched_metric_says_how_to_add_it(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "auto.zarr")
    remedy = rf"rsca fit \S+ --run {tmp_path / 'run'} --metric auto"
    for ask in (lambda p: siblings("any", p, 3, metric="auto"), lambda p: LikenessModel.of_run(Run.open(p), "auto")):
        with pytest.raises(StoreError) as told:
            ask(tmp_path / "run")
        assert re.search(remedy, told.value.remedy)


def test_products_list_their_variables_in_one_order(run):
    for name in ("ppca.zarr", "embedding.zarr", "auto.zarr"):
        names = list(run.open_dataset(name).data_vars)
        assert names == sorted(names) and len(names) > 1
    alone = xr.Dataset({"b": ("x", [1]), "a": ("x", [2])}, coords={"label_name": ("label_name", ["teff"])})
    assert list(in_order(alone).data_vars) == ["a", "b"] and "label_name" in in_order(alone).coords
    stored = list(open_embedding(run.file("embedding.zarr")).data_vars)
    assert stored == sorted(stored)


def test_a_component_that_hangs_on_one_star_is_told(tmp_path, caplog):
    """A star on another scale gets a component of its own, and passes every test of convergence."""
    survey = make_survey(600, 8, 6, n_pixels=60, seed=3)
    flux = survey["flux"].values
    star = int(np.flatnonzero(survey["cluster"].values == "")[10])
    flux[star] *= 5
    survey["flux"] = (survey["flux"].dims, flux, survey["flux"].attrs)
    write_survey(survey, tmp_path / "odd.zarr")
    run = fit_run(str(tmp_path / "odd.zarr"), tmp_path / "run", components=6)
    told = run.manifest["stages"]["embed"]["facts"]["on_one_star"]
    assert str(survey["star_id"].values[star]) in told and told in caplog.text
    section = next(s for s in sections(run) if s.id == "basis")
    assert ["hangs on single stars", told] in section.tables[0].rows


def test_labels_that_features_follow_are_named():
    found = follows({"rsca": {"teff": [-0.91, 0.2], "fe_h": [0.9]}, "auto": {"logg": [0.1]}})
    assert len(found) == 1 and "feature 1 of rsca follows teff" in found[0] and "-0.91" in found[0]


def test_unknown_star_suggests_names(run):
    with pytest.raises(InputError, match="did you mean"):
        siblings("S0017x", run.path)
    with pytest.raises(InputError, match="no star"):
        siblings("", run.path)
    with pytest.raises(InputError, match="no star of this run has 'nonsense'"):
        siblings(str(SiblingSearch.open(run.path).index.star_id[0]), run.path, limits={"nonsense": (0, 1)})


@pytest.mark.parametrize("method", ["exact", "faiss"])
def test_all_neighbours_are_exact(method):
    if method == "faiss":
        pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(700, 5)).astype(np.float32)
    x[3] = np.nan
    x[10] = x[11]
    index = SiblingIndex(x, np.array([f"s{i}" for i in range(700)]))
    d = np.linalg.norm(x[:, None].astype(float) - x[None], axis=2)
    d[np.arange(700), np.arange(700)] = np.inf
    d[np.isnan(d)] = np.inf
    rows, distances = index.all_nearest(4, method=method, leaf=50)
    want = np.sort(d, axis=1)[:, :4]
    np.testing.assert_allclose(distances, want, rtol=1e-4, atol=1e-6)
    assert np.all(rows[3] == -1)
    assert not np.any(rows == np.arange(700)[:, None])
    good = np.arange(700) != 3
    np.testing.assert_allclose(np.take_along_axis(d, rows, axis=1)[good], want[good], rtol=1e-4, atol=1e-6)
    part, _ = index.all_nearest(4, method=method, rows=slice(100, 150))
    np.testing.assert_array_equal(part, rows[100:150])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_neighbours_are_exact_far_from_the_origin(dtype):
    """A common offset of 100 with a scatter of 0.01, and a clump a thousand scatters from the rest."""
    rng = np.random.default_rng(4)
    x = (100 + 0.01 * rng.normal(size=(3000, 8))).astype(dtype)
    x[:300, 0] += 10
    index = SiblingIndex(x, np.arange(3000).astype(str))
    rows, distances = index.all_nearest(5, leaf=128)
    for i in [*range(0, 300, 20), *range(300, 3000, 60)]:
        d = np.linalg.norm(x.astype(float) - x[i].astype(float), axis=1)
        d[i] = np.inf
        want = np.argsort(d, kind="stable")[:5]
        near, near_distance = index.nearest(i, 5)
        np.testing.assert_array_equal(near, want)
        np.testing.assert_allclose(near_distance, d[want], rtol=1e-12)
        np.testing.assert_array_equal(rows[i], want)
        np.testing.assert_allclose(distances[i], d[want], rtol=1e-6)


def test_approximate_neighbours_are_nearly_all_of_the_exact_ones():
    pytest.importorskip("faiss")
    x = np.random.default_rng(1).normal(size=(6000, 8)).astype(np.float32) * np.geomspace(8, 0.5, 8, dtype=np.float32)
    index = SiblingIndex(x, np.arange(6000).astype(str))
    rows, distances = index.all_nearest(5, method="approximate")
    exact, _ = index.all_nearest(5)
    recall = np.mean([np.isin(e, r).mean() for e, r in zip(exact, rows)])
    assert recall > 0.95
    assert not np.any(rows == np.arange(6000)[:, None])
    np.testing.assert_allclose(distances[7], np.linalg.norm(x[rows[7]].astype(float) - x[7], axis=1), rtol=1e-5)


def test_neighbour_table(run):
    ds = xr.open_zarr(write_neighbours(run.path, 3, metric="paper", rows_at_once=100), consolidated=False)
    search = SiblingSearch.open(run.path, metric="paper")
    rows, distance = search.index.nearest(40, 3)
    np.testing.assert_array_equal(ds["row"].values[40], rows)
    np.testing.assert_allclose(ds["distance"].values[40], distance, rtol=1e-5)
    with pytest.raises(InputError, match="k is"):
        write_neighbours(run.path, 10_000)


def test_command_line(store, tmp_path):
    from chemscale.cli import build

    runner = CliRunner()
    app = build()
    out = str(tmp_path / "run")
    done = runner.invoke(app, ["rsca", "fit", store, "--run", out, "--components", "5"])
    assert done.exit_code == 0, done.output
    done = runner.invoke(app, ["rsca", "evaluate", "--run", out, "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert {"raw", "scaled", "rsca", "rsca_top", "per_cluster", "n_field", "n_members", "n_clusters"} <= set(result)
    assert "auto" not in result
    star = str(SiblingSearch.open(out).index.star_id[0])
    done = runner.invoke(app, ["rsca", "siblings", star, "--run", out, "--n", "4", "--json", "--where", "teff=0:"])
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.stdout)["siblings"]) == 4


def test_what_the_data_cannot_give(store, tmp_path):
    with pytest.raises(StoreError, match="not a chemscale run"):
        evaluate_run(tmp_path)
    with pytest.raises(InputError, match="unknown metric"):
        fit_run(store, tmp_path / "a", metric="nonsense")
    with pytest.raises(DataError, match="degrees of freedom"):
        fit_run(store, tmp_path / "b", components=45)
    ds = make_survey(60, 2, 5, n_pixels=40, seed=1)
    write_survey(ds, tmp_path / "two")
    with pytest.raises(DataError, match="needs four clusters, there are 2"):  # before any pass over the spectra
        fit_run(str(tmp_path / "two"), tmp_path / "c", components=3, metric="auto")
    assert not (tmp_path / "c" / "ppca.zarr").exists()
    for name, change in {
        "no cluster with two members": {"cluster": np.full(70, "")},
        "no field stars": {"cluster": np.array(["a", "b"])[np.arange(70) % 2]},
    }.items():
        path = str(tmp_path / name.replace(" ", "_"))
        write_survey(ds.assign(cluster=("star", change["cluster"].astype(object))), path)
        with pytest.raises(DataError, match=name):
            fit_run(path, tmp_path / f"run_{name[:5]}", components=3)
    single = ds["cluster"].values.astype(object).astype(str)
    members = np.flatnonzero(single != "")
    single[members] = [f"c{i // 2}" for i in range(9)] + ["alone"]
    path = str(tmp_path / "single.zarr")
    single[members[8]] = "c0"
    write_survey(ds.assign(cluster=("star", single.astype(object))), path)
    done = fit_run(path, tmp_path / "single", components=3)
    facts = done.manifest["stages"]["select"]["facts"]
    assert facts["dropped"] == {"cluster has fewer than 2 members left": 1}
    assert facts["n_clusters"] == 4


def test_stars_without_a_pixel_are_left_out_and_named(tmp_path):
    ds = make_survey(150, 4, 3, n_pixels=40, seed=5)
    cluster = ds["cluster"].values.astype(str)
    victims = [
        int(np.flatnonzero(cluster == "")[0]),
        *np.flatnonzero(cluster == cluster[cluster != ""][0])[:2].tolist(),
    ]
    ivar = ds["ivar"].values.copy()
    ivar[victims] = 0
    path = str(tmp_path / "survey.zarr")
    write_survey(ds.assign(ivar=(ds["ivar"].dims, ivar)), path)
    run = fit_run(path, tmp_path / "run", components=3)
    result = evaluate_run(tmp_path / "run")
    assert (result["n_field"], result["n_members"], result["n_clusters"]) == (149, 9, 3)
    left = run.manifest["stages"]["embed"]["facts"]["left_out"]
    assert sorted(left["no_usable_pixel"]) == sorted(ds["star_id"].values.astype(str)[victims])
    assert left["cluster_left_with_one"] == [cluster[cluster != ""][0]]


def test_passes_left_follow_the_angle():
    assert passes_left([0.1], 0.01, 30) == 29  # one angle tells no rate
    assert passes_left([np.inf, 0.4], 0.01, 30) == 28
    assert passes_left([0.4, 0.2], 0.01, 30) == 5  # halves: 0.1, 0.05, 0.025, 0.0125, 0.00625
    assert passes_left([0.4, np.inf, 0.1], 0.01, 30) == 4
    assert passes_left([0.2, 0.4], 0.01, 30) == 28  # grows
    assert passes_left([0.2, 0.009], 0.01, 30) == 0
    assert passes_left([0.2, 0.19], 0.01, 3) == 1


def test_a_long_fit_says_how_long(monkeypatch):
    said: list[str] = []
    for first, left in ((np.inf, 28), (0.4, 5)):
        clock = iter([0.0, 100.0, *[160.0] * 3])
        monkeypatch.setattr(basis_stages.time, "monotonic", lambda clock=clock: next(clock))
        bar = Progress(30, "", "passes")
        watch = basis_stages._Passes(bar, 0.01, said.append)
        watch(1, 30, first)
        watch(2, 30, 0.2)
        assert (bar.done, bar.total) == (2, 2 + left)
        assert (", at most" if left == 28 else ", about") in bar.line()
    assert said == [
        "a pass takes 60.0 s: at most 28.0 min",
        "a pass takes 60.0 s: about 5.0 min to go, at most 28.0 min",
    ]


def test_fit_moves_a_bar_and_is_quiet_without_a_terminal(store, tmp_path, monkeypatch, capsys):
    bars: list[Progress] = []

    @contextmanager
    def watched(*args, **kwargs):
        with progress_bar(*args, **kwargs) as bar:
            bars.append(bar)
            yield bar

    monkeypatch.setattr(basis_stages, "progress_bar", watched)
    run = fit_run(store, tmp_path / "run", components=4)
    passes = next(bar for bar in bars if bar.unit == "passes")
    assert passes.done == passes.total == run.manifest["stages"]["ppca"]["facts"]["passes"] - 1
    assert "stops at 0.01" in passes.description
    assert capsys.readouterr().err == ""


def test_one_fit_serves_both_metrics_where_their_bases_are_alike(tmp_path):
    path = str(tmp_path / "s.zarr")
    write_survey(make_survey(300, 6, 6, n_pixels=60, seed=6), path)
    said: list[str] = []
    run = fit_run(path, tmp_path / "run", components=6, metric="auto", progress=said.append)
    assert sum(text.startswith("fitting 6 components") for text in said) == 1
    first, second = (xr.open_zarr(run.file(f"ppca{s}.zarr"), consolidated=False).load() for s in ("", "_auto"))
    xr.testing.assert_identical(first, second)
    assert run.manifest["stages"]["ppca_auto"]["facts"] == run.manifest["stages"]["ppca"]["facts"]
    said.clear()
    fit_run(path, tmp_path / "other", components=6, metric="auto", recipe="paper", progress=said.append)
    assert sum(text.startswith("fitting") for text in said) == 2
    assert sum("components for the better metric" in text for text in said) == 1


def test_a_basis_that_is_there_is_kept_until_store_or_settings_change(tmp_path):
    path, run = str(tmp_path / "s.zarr"), tmp_path / "run"
    write_survey(make_survey(300, 6, 6, n_pixels=60, seed=6), path)
    said: list[str] = []

    def fits(**settings):
        said.clear()
        stages = fit_run(path, run, progress=said.append, **{"components": 4, **settings}).manifest["stages"]
        return not any("is there" in text for text in said), stages["ppca"]["started"]

    assert fits()[0]
    coords = xr.open_zarr(run / "embedding.zarr", consolidated=False)["coords"].values
    assert not fits()[0]
    assert fits(components=5)[0]
    assert fits()[0]
    np.testing.assert_array_equal(xr.open_zarr(run / "embedding.zarr", consolidated=False)["coords"].values, coords)
    assert not fits(metric="auto")[0] and (run / "auto.json").exists()
    assert fits(overwrite=True)[0]
    mask_survey(path, find=(), windows=[(15001.0, 15003.0)])
    assert fits()[0]
    shutil.rmtree(run / "embedding.zarr")
    assert fits()[0]


def test_rates_stay_where_a_fit_changes_nothing_and_go_where_it_does(tmp_path):
    path, run = str(tmp_path / "s.zarr"), tmp_path / "run"
    write_survey(make_survey(300, 6, 6, n_pixels=60, seed=6), path)
    fit_run(path, run, components=4)
    rates = evaluate_run(run)
    assert fit_run(path, run, components=4).load_json("evaluation.json") == rates
    assert not fit_run(path, run, components=4, metric="auto").has("evaluation.json")
    rates = evaluate_run(run)
    assert fit_run(path, run, components=4, metric="auto").load_json("evaluation.json") == rates
    assert not fit_run(path, run, components=4).has("evaluation.json")
    evaluate_run(run)
    assert not fit_run(path, run, components=5).has("evaluation.json")


def test_the_number_of_components_that_held_out_clusters_ask_for(store, tmp_path, monkeypatch):
    monkeypatch.setattr("chemscale.rsca.pipeline.WIDE", 6)
    run = fit_run(store, tmp_path / "run", components="auto")
    facts = run.manifest["stages"]["components"]["facts"]
    k, engine = facts["components"], RunStars.read(run).evaluation
    assert engine.members.shape[1] == k == facts["tried"][int(np.argmin(facts["rates"]))]
    assert facts["verdict"].startswith(f"{k} of 6 components chosen by leave-one-cluster-out")
    # an embedding with the leading components is that of the wide basis to within what the others stood for
    assert engine.rates("rsca").overall == pytest.approx(min(facts["rates"]), abs=0.01)
    again = fit_run(store, tmp_path / "run", components="auto")
    assert again.manifest["stages"]["ppca"]["started"] == run.manifest["stages"]["ppca"]["started"]


def test_recipes_and_changes_of_them():
    from chemscale.rsca.recipes import OUTLIER_SIGMAS, RECIPES, chosen_recipe

    assert (RECIPES["paper"].noise, RECIPES["paper"].outlier_sigmas) == ("shared", None)
    assert (RECIPES["recommended"].noise, RECIPES["recommended"].outlier_sigmas) == ("per-pixel", OUTLIER_SIGMAS)
    changed = chosen_recipe("paper", noise="per-pixel", max_passes=7, tol=None)
    assert (changed.noise, changed.max_passes, changed.tol) == ("per-pixel", 7, RECIPES["paper"].tol)
    assert chosen_recipe("recommended", outlier_sigmas=0.0).outlier_sigmas is None
    with pytest.raises(InputError, match="unknown recipe"):
        chosen_recipe("best")
