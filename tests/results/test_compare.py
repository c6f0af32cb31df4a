"""Comparing two runs: what differs is named, what is the same agrees."""

from __future__ import annotations

import json

import pytest
from toyrun import make_run, toy_survey
from typer.testing import CliRunner

from chemscale.cli import build
from chemscale.errors import InputError, StoreError
from chemscale.results.compare import compare
from chemscale.rsca.pipeline import fit_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder, ds = tmp_path_factory.mktemp("compare"), toy_survey(n_field=250, n_pixels=60)
    a = make_run(folder, ds, k=6)
    b = make_run(folder, ds.isel(star=slice(0, None)), k=4, store="again.zarr", run="other")
    return a.path, b.path


def test_a_run_is_like_itself(runs):
    found = compare(runs[0], runs[0])
    assert found["settings"] == {} and found["neighbours"]["shared"] == 1.0
    assert all(r["difference"] == 0 for r in found["rates"].values())
    assert "latents" in found["absent"]


def test_what_differs_is_named_with_its_size(runs):
    found = compare(*runs)
    assert found["settings"]["ppca.components"] == [6, 4]
    assert found["neighbours"]["chance"] < 0.1 < found["neighbours"]["shared"] < 1
    rate = found["rates"]["raw"]
    assert rate["clusters"] == 8 and rate["error"] > 0


def test_the_command_line_shows_it(runs, tmp_path):
    shown = CliRunner().invoke(build(), ["compare", *map(str, runs)])
    assert shown.exit_code == 0 and "ppca.components" in shown.stdout and "nearest stars" in shown.stdout
    found = json.loads(CliRunner().invoke(build(), ["compare", *map(str, runs), "--json"]).stdout)
    assert found["rates"]["rsca"]["clusters"] == 8
    with pytest.raises(StoreError, match="not a chemscale run"):
        compare(runs[0], tmp_path)


def test_a_page_is_written_under_no_ending_but_its_own(runs, tmp_path):
    for command in (["compare", *map(str, runs)], ["report", "--run", str(runs[0])]):
        with pytest.raises(InputError, match=r"unknown ending '\.txt'.*\n.*\.html"):
            CliRunner().invoke(build(), [*command, "--out", str(tmp_path / "c.txt")], catch_exceptions=False)
    assert not list(tmp_path.iterdir())


def test_neighbours_are_those_of_each_runs_recommended_metric(tmp_path):
    """One run recommends the searched metric, the other all six of the paper's features: both are used and named."""
    from chemscale.rsca.siblings import siblings
    from chemscale.survey.ingest.datasets import write_survey

    ds = toy_survey(n_field=250, n_pixels=60)
    write_survey(ds, tmp_path / "survey.zarr")
    for name, best in (("auto", {"metric": "auto"}), ("paper", {"metric": "paper", "n_features": 5})):
        run = fit_run(str(tmp_path / "survey.zarr"), tmp_path / name, components=6, metric=name)
        run.save_json("evaluation.json", {"recommended": best, "per_cluster": {}})
    found = compare(tmp_path / "auto", tmp_path / "paper")["neighbours"]
    assert found["metrics"][0].startswith("auto, ") and found["metrics"][1] == "paper, 5 features"
    star = str(ds["star_id"].values[0])
    near = [set(siblings(star, tmp_path / n, 10)["star_id"].values) for n in ("auto", "paper")]
    assert near[0] != near[1] and 0 < found["shared"] < 1
    shown = CliRunner().invoke(build(), ["compare", str(tmp_path / "auto"), str(tmp_path / "paper")])
    assert "by the recommended metric of each run" in " ".join(shown.stdout.split())


def test_two_runs_given_to_the_report_are_compared_on_a_page(runs, tmp_path):
    out = tmp_path / "compare.html"
    words = ["report", "--run", str(runs[0]), "--run", str(runs[1]), "--out", str(out)]
    assert CliRunner().invoke(build(), words).exit_code == 0
    page = out.read_text(encoding="utf-8")
    assert "ppca.components" in page and "Doppelganger rates" in page and "latents not compared" in page
    assert "http" not in page.replace("http-equiv", "")


def test_a_third_run_is_refused_not_dropped(runs):
    done = CliRunner().invoke(build(), ["report", *(w for r in (*runs, runs[0]) for w in ("--run", str(r)))])
    assert isinstance(done.exception, InputError) and "3 runs were given" in str(done.exception)


def test_spectra_that_were_cleaned_are_told_from_spectra_that_were_not(tmp_path):
    from chemscale.quality.cleaning import clean_survey
    from chemscale.survey.ingest.datasets import write_survey

    store = str(tmp_path / "survey.zarr")
    write_survey(toy_survey(n_field=400, n_pixels=60), store)
    before = fit_run(store, tmp_path / "before", components=4)
    clean_survey(store, of=["radial_velocity"], degree=1)
    after = fit_run(store, tmp_path / "after", components=4)
    assert compare(before.path, after.path)["settings"] == {"spectra": ["as ingested", "cleaned of radial_velocity"]}
