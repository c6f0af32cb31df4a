"""Every study runs on a small run, writes its products, and its numbers are those of the evaluation engine."""

from __future__ import annotations

import csv
import json
import re

import numpy as np
import pytest
from toyrun import make_run, toy_survey
from typer.testing import CliRunner

from chemscale import doppelganger_rates
from chemscale.cli import build
from chemscale.errors import DataError, InputError
from chemscale.rsca.pipeline import fit_run
from chemscale.rsca.uncertainty import bootstrap
from chemscale.statistics.ppca import MaskedPPCA
from chemscale.studies import controls, dataset_size, likeness, linear_map, registry, style, together
from chemscale.studies.elements import abundance_features, species
from chemscale.studies.features import correlation
from chemscale.studies.restarts import restarts
from chemscale.studies.sample import Sample
from chemscale.survey.ingest.datasets import write_survey

SETTINGS = {
    "dimensionality": {"components": 6},
    "ablation": {"restarts": 2, "restart_stars": 300},
    "kept_dimensions": {"restarts": 2, "restart_stars": 300},
    "dataset_size": {"components": "3,6", "repeats": 4},
    "interstellar": {"low": 0.15, "high": 0.3, "components": 6},
    "velocity": {"low": 20.0, "high": 50.0, "components": 6, "both_signs": True},
    "abundances": {"max_species": 3},
    "together": {"draws": 100},
    "controls": {"repeats": 4},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("studies"), toy_survey())


@pytest.fixture(scope="module")
def done(run):
    rsca = [n for n in registry.names() if not n.startswith("vae")]
    return registry.run_studies(run, rsca, SETTINGS)


def test_restarts_follow_the_recipe_of_the_run_and_say_how_they_ended(run, done):
    numbers, basis = (done[0]["kept_dimensions"][key] for key in ("numbers", "basis"))
    assert numbers["restarts"] == 2
    assert basis.endswith(f"{numbers['restarts_converged']} of 2 restarts converged")
    mean = {row["kept"]: row["restart_mean"] for row in table(run, "kept_dimensions")}
    again = {row["method"]: row["restart_mean"] for row in table(run, "ablation") if row["input"] == "spectra"}
    assert (again["rsca"], again["rsca top 3"], again["rsca top 4"]) == (mean["6"], mean["3"], mean["4"])
    assert again["raw"] and not any(row["restart_mean"] for row in table(run, "ablation") if row["input"] != "spectra")


def test_restarts_on_the_whole_field_find_what_the_run_found(run, done):
    context = registry.StudyContext(run)
    found = restarts(context, 2, 0, 6)
    want = context.sample.evaluation.rates("rsca").overall
    for restart in found:
        assert restart.evaluation.moments.n == context.sample.n_field_total
        assert restart.evaluation.rates("rsca").overall == pytest.approx(want, rel=0.1)


def table(run, name):
    with (run.path / "studies" / name / "data.csv").open(encoding="utf-8") as f:
        return list(csv.DictReader(f))


def test_every_study_writes_figure_data_and_summary(run, done):
    summaries, skipped = done
    assert skipped == {}
    for name, summary in summaries.items():
        folder = run.path / "studies" / name
        assert (folder / "figure.pdf").read_bytes().startswith(b"%PDF")
        assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
        assert "of" in summary["basis"] and "components are determined" in summary["basis"], name
        rows = table(run, name)
        assert rows and set(rows[0]) <= set(summary["columns"])
        assert json.loads((folder / "summary.json").read_text())["caption"]
        assert run.open(run.path).manifest["stages"][f"study.{name}"]["status"] == "done"


def test_ablation_is_the_doppelganger_rate(run, done):
    sample = Sample.read(run)
    field, members = sample.coords[: sample.n_field], sample.coords[sample.n_field :]
    numbers = done[0]["ablation"]["numbers"]
    for key, method in (("spectra_raw", "raw"), ("spectra_scaled", "scaled"), ("spectra_transformed", "rsca")):
        assert numbers[key] == pytest.approx(
            doppelganger_rates(field, members, sample.clusters, method=method, **vars(sample.covariates)).overall
        )
    x = abundance_features(sample, species(sample, subset=True))
    iron = sample.abundance[:, sample.elements.index("Fe")]
    assert np.allclose(x[:, 0], iron)
    assert np.allclose(x[:, 1], sample.abundance[:, sample.elements.index("Mg")] - iron)
    expected = doppelganger_rates(
        x[: sample.n_field], x[sample.n_field :], sample.clusters, **vars(sample.covariates)
    ).overall
    assert numbers["abundance_subset_transformed"] == pytest.approx(expected)


def test_dimensionality_and_kept_dimensions_agree_with_each_other(run, done):
    last = table(run, "dimensionality")[-1]
    kept = {int(r["kept"]): float(r["rate"]) for r in table(run, "kept_dimensions")}
    assert int(last["components"]) == 6
    assert float(last["cross_validated"]) == pytest.approx(kept[6], rel=1e-5)
    assert float(last["top_3"]) == pytest.approx(kept[3], rel=1e-5)
    assert float(last["top_4"]) == pytest.approx(kept[4], rel=1e-5)
    assert kept[1] > kept[3]  # three chemical latents: one feature cannot do


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A run of its own, of a survey in which 40 stars have no abundances."""
    ds = toy_survey()
    ds["abundance"][:40] = np.nan
    return make_run(tmp_path_factory.mktemp("bare"), ds)


def test_a_run_of_few_components_is_widened_as_far_as_its_clusters_allow(bare):
    summary = registry.run_study("dimensionality", bare, {"components": 12, "stars": 300})
    assert int(table(bare, "dimensionality")[-1]["components"]) == summary["numbers"]["most_components"] == 12
    assert re.search(r"one of 12 was fitted to \d+ of its field stars", summary["caption"])
    summary = registry.run_study("dataset_size", bare, {"components": "6,60", "stars": 150, "repeats": 2})
    assert "The data allow 35 of 60 components." in summary["caption"]


def test_abundance_panels_hold_the_stars_that_have_them(bare):
    summary = registry.run_study("per_cluster", bare)
    assert "40 stars lack one" in summary["caption"] and "median_cluster_rate_abundances" in summary["numbers"]
    sample = Sample.read(bare)
    engine = sample.evaluate(abundance_features(sample, species(sample, subset=True)))
    rates = {r["cluster"]: float(r["rate"]) for r in table(bare, "per_cluster") if r["input"] == "abundances"}
    assert rates == pytest.approx(engine.rates("rsca").per_cluster, abs=1e-6)


def test_dataset_size_rates_only_clusters_it_was_not_trained_on(run):
    sample = Sample.read(run)
    e = sample.evaluation
    chosen = np.arange(len(e.names) - 1)
    train = sample.clusters != e.names[-1]
    rsca = e.fit("rsca", train=train)
    expected = e.rates(matrices={e.names[-1]: rsca.matrix()}).overall
    assert dataset_size.held_out_rate(e, chosen, 6) == pytest.approx(expected)
    assert np.isnan(dataset_size.held_out_rate(e, chosen[:1], 6))  # 5 degrees of freedom for 6 components


def test_dataset_size_rates_the_subsets_own_clusters_as_the_paper_does(run, done):
    e = Sample.read(run).evaluation
    everyone = np.arange(len(e.names))
    assert dataset_size.own_rate(e, everyone, 6) == pytest.approx(e.rates("rsca").overall)
    pair = everyone[:2]
    assert np.isnan(dataset_size.own_rate(e, pair, 6)) and np.isfinite(dataset_size.own_rate(e, pair, 3))
    rows = table(run, "dataset_size")
    whole = [r for r in rows if r["curve"] == "own" and int(r["clusters"]) == len(everyone) and r["components"] == "6"]
    assert float(whole[0]["rate"]) == pytest.approx(e.rates("rsca").overall, rel=1e-6)
    counted = {(r["curve"], int(r["components"]), int(r["clusters"])) for r in rows}
    assert len(counted) == len(rows) == 2 * (2 * len(everyone) - 1)  # every size of every curve and K has its row
    assert all(int(r["n_subsets"]) <= int(r["n_drawn"]) for r in rows)


def test_linear_map_gives_the_features_of_complete_spectra(run, done):
    rows = table(run, "linear_map")
    sample = Sample.read(run)
    weights = np.array([[float(r["weight_1"] or "nan")] for r in rows])[:, 0]
    ppca = MaskedPPCA.from_dataset(run.open_dataset("ppca.zarr").load())
    rng = np.random.default_rng(0)
    used = ppca.pixel_used_
    change = np.where(used, rng.normal(size=used.size) * 1e-3, 0.0)  # below what counts as an outlier
    spectra = np.nan_to_num(ppca.mean_) + np.array([np.zeros_like(change), change])
    errors = {"ivar": np.full(spectra.shape, 1e12)} if ppca.noise == "per-pixel" else {}
    z = ppca.transform(spectra, np.broadcast_to(~used, spectra.shape), **errors)
    x = sample.evaluation.fit("rsca").transform(np.asarray(z), 1)[:, 0]
    assert np.nansum(weights * change) == pytest.approx(x[1] - x[0], rel=0.02)
    lines = linear_map.strong_lines(15140.0, 16960.0, "vacuum", 12)
    assert len(lines) == 12 and all(15140 < w < 16960 for _, w in lines)


def test_likeness_falls_with_distance_and_bins_are_right(run, done):
    numbers = done[0]["likeness"]["numbers"]
    assert 0.2 < numbers["slope"] < 1.2  # the scatter of six stars is underestimated: overconfident
    rows = table(run, "likeness")
    chance = [float(r["probability_corrected"]) for r in rows]
    assert chance == sorted(chance, reverse=True) and 0 <= chance[-1] < chance[0] <= 1
    near, far = np.array([0.1, 0.2, 0.9]), np.array([0.3, 1.5, 1.7, 1.9])
    ratio, error = likeness.shares(near, far, np.array([0.0, 1.0, 2.0, 3.0]))
    assert ratio[0] == pytest.approx(np.log(1.0 / 0.25)) and error[0] == pytest.approx(np.sqrt(1 / 3 + 1))
    assert np.isnan(ratio[1:]).all()


def test_the_better_metric_has_no_leak_into_its_control(tmp_path):
    folder = tmp_path / "auto"
    folder.mkdir()
    write_survey(toy_survey(seed=8), folder / "s.zarr")
    made = fit_run(str(folder / "s.zarr"), folder / "run", components=6, metric="auto")
    rates = [controls.strangers_auto(made, 400, seed) for seed in range(2)]
    assert 0.35 < np.mean(rates) < 0.65


def test_shuffled_clusters_are_near_one_half(done):
    numbers = done[0]["controls"]["numbers"]
    assert 0.3 < numbers["shuffled_members_rate"] < 0.7
    assert 0.4 < numbers["control_rate"] < 0.6
    assert numbers["true_rate"] < 0.1


def test_bootstrap_matches_the_closed_form():
    rng = np.random.default_rng(1)
    values = rng.normal(0.1, 0.02, 400)
    error, low, high = bootstrap((values, np.ones(400)), draws=4000)
    assert error == pytest.approx(values.std() / 20, rel=0.1)
    assert low < values.mean() < high
    heavy = bootstrap((np.array([0.0, 1.0, np.nan]), np.array([1.0, 1e9, 5.0])))
    assert heavy[2] == pytest.approx(1.0)


def test_visits_and_pairs():
    assert together.visit_dates("r12-5001-58001-100,r12-5001-58003-7") == {"5001-58001", "5001-58003"}
    assert together.visit_dates("58001, 58002") == {"58001", "58002"}
    assert together.visit_dates("") == frozenset()
    visits = [frozenset(v) for v in ({"a"}, {"a"}, {"b"}, {"a", "b"}, set())]
    first, second, kind = together.pair_kinds(visits, np.array(["c"] * 5))
    pairs = dict(zip(zip(first.tolist(), second.tolist()), kind.tolist()))
    assert pairs == {(0, 1): 1, (0, 2): 0, (0, 3): -1, (1, 2): 0, (1, 3): -1, (2, 3): -1}


@pytest.mark.parametrize("effect", [0.0, 0.6])
def test_together_finds_a_planted_effect_and_no_other(effect):
    rng = np.random.default_rng(3)
    clusters = np.repeat([f"c{i}" for i in range(12)], 20)
    near = rng.random(240) < 0.5
    values = rng.gamma(4.0, 1.0, 240) * np.where(near, 1 - effect, 1.0)
    result = together.difference(values, near, clusters, 400, 0)
    if effect:
        assert result["difference"] > 0.3 and result["p_value"] < 0.01
    else:
        assert abs(result["difference"]) < 4 * result["difference_error"] and result["p_value"] > 0.01


def test_correlation_needs_something_to_correlate():
    x = np.arange(100.0)
    assert correlation(x, x**3)[0] < 1
    assert correlation(x, x**3, rank=True)[0] == pytest.approx(1)
    assert np.isnan(correlation(x, np.full(100, np.nan))[0])


def test_reasons_instead_of_figures(run, tmp_path):
    bare = make_run(tmp_path, toy_survey(n_field=150, n_clusters=3, n_pixels=40, elements=()))
    summaries, skipped = registry.run_studies(bare, ["ablation", "abundances", "interstellar"])
    assert "no abundances" in skipped["abundances"]
    assert "widen the limits" in skipped["interstellar"]
    assert "Left out" in summaries["ablation"]["caption"]
    with pytest.raises(DataError, match="no abundances"):
        registry.run_study("abundances", bare)


def test_names_and_settings_are_checked(run):
    with pytest.raises(InputError, match="did you mean 'ablation'"):
        registry.get("ablaton")
    with pytest.raises(InputError, match="no setting 'repeat'"):
        registry.run_study("dataset_size", run, {"repeat": 3})


def test_command_lists_runs_and_suggests(run):
    app, runner = build(), CliRunner()
    listed = runner.invoke(app, ["study", "--json"])
    assert json.loads(listed.stdout)["ablation"]["source"].endswith("Figure 4")
    options = ["--option", "kept_dimensions.restarts=0"]
    result = runner.invoke(app, ["study", "kept_dimensions", "--run", str(run.path), *options, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["studies"]["kept_dimensions"]["settings"]["restarts"] == 0
    typo = runner.invoke(app, ["study", "dimensionalty", "--run", str(run.path)])
    assert isinstance(typo.exception, InputError) and "did you mean 'dimensionality'" in typo.exception.remedy
    assert "--run" in str(runner.invoke(app, ["study", "ablation"]).exception)


def test_style_tables_and_text(tmp_path):
    file = style.write_csv(tmp_path / "t.csv", {"a": [1, 2], "b": [0.5, np.nan], "c": ["x,y", 'q"']})
    assert file.read_bytes() == b'a,b,c\r\n1,0.5,"x,y"\r\n2,,"q"""\r\n'
    with pytest.raises(ValueError, match="unequal"):
        style.write_csv(tmp_path / "u.csv", {"a": [1], "b": [1, 2]})
    assert style.plain("$x$") == r"\$x\$"
    assert style.label("radial_velocity").endswith("(km s$^{-1}$)")
    with style.context():
        fig, ax = style.figure()
        ax.set_title(style.plain("M$67_{"))
        files = style.save(fig, tmp_path)
    assert fig.get_figwidth() == pytest.approx(3.4)
    assert all(f.stat().st_size > 1000 for f in files)
