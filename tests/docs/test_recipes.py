"""The recipes of CONTRIBUTING work as they are written: each code block becomes a module, the one line is added."""

import importlib.metadata
import importlib.util
import re
import sys
import textwrap
import types
from pathlib import Path

import numpy as np
import pytest
import typer
from helpers import make_survey
from typer.testing import CliRunner

from chemscale.cli import build
from chemscale.cli import ingest as ingest_verbs
from chemscale.rsca import registry as metrics
from chemscale.rsca.evaluate import evaluate_run
from chemscale.rsca.pipeline import fit_run
from chemscale.studies import registry as studies
from chemscale.survey.ingest.datasets import write_survey
from chemscale.survey.sources import base as sources
from chemscale.survey.store.open import open_survey

TEXT = (Path(__file__).resolve().parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def module(heading, folder, name):
    """The first code block below a heading, written to a file and imported."""
    section = TEXT.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    code = textwrap.dedent(re.search(r"^ *```python\n(.*?)^ *```$", section, re.S | re.M).group(1))
    path = folder / f"{name}.py"
    path.write_text(code)
    spec = importlib.util.spec_from_file_location(name, path)
    out = importlib.util.module_from_spec(spec)
    sys.modules[name] = out
    spec.loader.exec_module(out)
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    write_survey(make_survey(300, 6, 5, n_pixels=60, seed=3), folder / "survey.zarr")
    return fit_run(str(folder / "survey.zarr"), folder / "run", components=4)


def test_add_a_survey(tmp_path, monkeypatch):
    text = module("Add a survey", tmp_path, "recipe_survey").TextSource
    spectra = tmp_path / "spectra"
    spectra.mkdir()
    rng = np.random.default_rng(5)
    grid = np.linspace(15100.0, 15200.0, 40)
    flux = rng.normal(1.0, 0.01, (5, 40)).astype(np.float32)
    for k, row in enumerate(flux):
        np.savetxt(spectra / f"star{k}.txt", np.column_stack([grid, row, np.full(40, 0.02)]))
    np.savetxt(spectra / "star5.txt", np.column_stack([grid + 1, flux[0], np.full(40, 0.02)]))
    (spectra / "star6.txt").write_text("15100.0 0.9")
    entry = types.SimpleNamespace(name="text", load=lambda: text)
    installed = importlib.metadata.entry_points

    def entry_points(**wanted):
        return [entry] if wanted.get("group") == "chemscale.surveys" else installed(**wanted)

    for place in (sources, importlib.metadata):  # the command line asks importlib itself
        monkeypatch.setattr(place, "entry_points", entry_points)
    store = tmp_path / "text.zarr"
    app = typer.Typer()  # the verbs of this process may be registered already
    ingest_verbs.register(app)
    done = CliRunner().invoke(app, ["ingest", "text", "--option", f"spectra={spectra}", "--out", str(store)])
    assert done.exit_code == 0, done.output
    survey = open_survey(store)
    assert list(survey.star_id.values) == [f"star{k}" for k in range(5)]
    np.testing.assert_array_equal(survey.flux.values, flux)
    np.testing.assert_allclose(survey.ivar.values, 2500.0, rtol=1e-6)
    assert "2 inputs quarantined" in done.output and "star6.txt" in done.output
    assert "not those of the first file" in done.output


def test_add_a_metric(run, tmp_path, monkeypatch):
    whitened = module("Add a metric", tmp_path, "recipe_metric").Whitened
    monkeypatch.setitem(metrics.METRICS, whitened.name, whitened)
    result = evaluate_run(run.path)
    assert 0 < result["whitened"] < 1 and "whitened" in next(iter(result["per_cluster"].values()))
    shown = CliRunner().invoke(build(), ["rsca", "evaluate", "--run", str(run.path)])
    assert "whitened only" in shown.output
    summary = studies.run_study("ablation", run)
    assert summary["numbers"]["spectra_whitened"] == pytest.approx(result["whitened"])


def test_add_a_study(run, tmp_path, monkeypatch):
    module("Add a study", tmp_path, "chemscale.studies.cluster_sizes")
    monkeypatch.setattr(studies, "MODULES", [*studies.MODULES, "cluster_sizes"])
    done = CliRunner().invoke(
        build(), ["study", "cluster_sizes", "--run", str(run.path), "--option", "cluster_sizes.least=9"]
    )
    assert done.exit_code == 0, done.output
    summary = run.load_json("studies/cluster_sizes/summary.json")
    assert summary["numbers"] == {"clusters": 6, "small_clusters": 6}
    assert np.loadtxt(run.path / "studies/cluster_sizes/data.csv", delimiter=",", skiprows=1, usecols=1).sum() == 30
