"""The verdict on a training says what the curves say."""

from __future__ import annotations

import numpy as np
import pytest

import chemscale.runtime.observe as observe
from chemscale.cli import kept
from chemscale.results.verdict import (
    anomalies_verdict,
    flags_verdict,
    record,
    study_verdict,
    training_verdict,
    verdicts,
)
from chemscale.runtime.run import Run


def curves(chi2, held=None):
    out = [{"epoch": e, "phase": "main", "reconstruction_all": float(v)} for e, v in enumerate(chi2)]
    for entry, value in zip(out, held if held is not None else ()):
        entry["validation"] = float(value)
    return out


EPOCH = np.arange(40)


@pytest.mark.parametrize(
    ("chi2", "held", "words"),
    [
        (1 + np.exp(-EPOCH / 4), None, "settled"),
        (1 + np.exp(-EPOCH / 40), None, "still falling"),
        (1 + np.exp(-EPOCH / 4), 1.2 + 0.01 * EPOCH, "it overfits"),
        (1 + np.exp(-EPOCH / 4), 1.1 + np.exp(-EPOCH / 4), "no overfitting"),
        (np.ones(2), None, "too few"),
    ],
)
def test_a_training_is_judged_by_its_curves(chi2, held, words):
    assert words in training_verdict(curves(chi2, held))


def test_the_manifest_keeps_the_words(tmp_path):
    run = Run.create(tmp_path / "run", store="survey.zarr")
    with run.stage("vae.train"):
        pass
    record(run, "vae.train", "settled.")
    with run.stage("ppca") as stage:
        stage.note(verdict="converged")
    assert verdicts(Run.open(run.path)) == {"vae.train": "settled.", "ppca": "converged"}


def test_without_a_terminal_a_line_tells_how_far_the_work_is(capsys, monkeypatch):
    monkeypatch.setattr(observe, "LINE_SECONDS", 0.05)
    with observe.progress_bar(10, "training", unit="epochs") as bar:
        bar.advance(4)
        import time

        time.sleep(0.2)
    lines = capsys.readouterr().err.splitlines()
    assert lines and "training: 4 of 10 epochs" in lines[0] and "left" in lines[0]
    with observe.progress_bar(10, "quiet", show=False):
        time.sleep(0.15)
    assert capsys.readouterr().err == ""


def test_an_interrupted_command_says_what_is_kept_and_how_to_carry_on(tmp_path):
    run = Run.create(tmp_path / "run", store="survey.zarr")
    with run.stage("select"):
        pass
    told = kept(["vae", "train", "s.zarr", "--run", str(run.path)])
    assert "keeps select" in told and told.endswith("--resume")
    assert kept(["rsca", "fit", "s.zarr", "--run", str(tmp_path / "none")]).startswith(
        "carry on with: chemscale rsca fit"
    )


@pytest.mark.parametrize(("flagged", "words"), [(200, "most of them are real"), (11, "nothing stands out")])
def test_anomalies_are_told_against_what_chance_gives(flagged, words):
    result = {"stars": 1000, "flagged": flagged + 5, "false_alarm": 0.01, "causes": {"no data": 5, "local": flagged}}
    told = anomalies_verdict(result, "run")
    assert f"{flagged} of 1,000" in told and "about 10" in told and words in told and "5 without a usable pixel" in told


def test_a_class_far_beyond_the_population_is_not_to_be_believed():
    result = {"counts": {"cemp": 90}, "expected": {"cemp": 4.0}, "suspect": ["cemp"], "unjudged": {"alpha_poor": "no"}}
    told = flags_verdict(result | {"calibrated_on": "labels"}, "run")
    assert "cemp 90 (about 4 expected): do not believe it" in told and "cannot be judged: alpha poor" in told


def test_studies_name_the_slowest():
    told = study_verdict({"a": {"seconds": 1.0}, "b": {"seconds": 9.0}}, {"c": "no visits"}, "run")
    assert told.startswith("2 studies in 10 s, the slowest b (9 s); 1 that this run cannot answer")
