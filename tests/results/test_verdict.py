"""The verdict on a training says what the curves say."""

from __future__ import annotations

import shlex

import numpy as np
import pytest
import xarray as xr

import chemscale.runtime.observe as observe
from chemscale.cli import kept
from chemscale.results.verdict import (
    anomalies_verdict,
    flags_verdict,
    record,
    siblings_verdict,
    study_verdict,
    training_verdict,
    verdicts,
)
from chemscale.runtime.run import Run
from chemscale.vae.alignment import MOST_OVERFIT


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
        (1 + EPOCH / 400, None, "not settled"),
        (1 + np.exp(-EPOCH / 4), 1.2 + 0.01 * EPOCH, "it overfits"),
        (1 + np.exp(-EPOCH / 4), 1.1 + np.exp(-EPOCH / 4), "no overfitting"),
        (np.ones(2), None, "too few"),
    ],
)
def test_a_training_is_judged_by_its_curves(chi2, held, words):
    assert words in training_verdict(curves(chi2, held))


def test_only_the_main_phase_is_judged():
    before = [{"epoch": e, "phase": "labels", "linear": 1.0} for e in range(-5, 0)]
    after = [{"epoch": e, "phase": "decoders", "reconstruction_all": 9.0} for e in range(40, 48)]
    main = [{k: v for k, v in c.items() if k != "phase"} for c in curves(1 + np.exp(-EPOCH / 4))]
    told = training_verdict([*before, *main, *after])
    assert told.startswith("chi-square per pixel 1.000 after 40 epochs of the main phase (53 in all), settled")


def test_stars_known_by_heart_are_overfitting_by_the_rule_of_the_guard():
    held = curves(1 + np.exp(-EPOCH / 4), 1.1 + np.exp(-EPOCH / 4))
    told = training_verdict(held, overfit=MOST_OVERFIT + 0.01)
    assert "1.05 times that of the stars trained on: it overfits, train on more stars" in told
    assert "1.01 times that of the stars trained on: no overfitting" in training_verdict(held, overfit=1.01)
    assert "within 0 %: no overfitting" in training_verdict(held, overfit=float("nan"))


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


def near(star, distances, **columns):
    attrs = {"star": star, "metric": "auto", "n_features": 7, "star_cluster": columns.pop("own", "")}
    data = {"star_id": [f"{star}-{k}" for k in range(len(distances))], "distance": distances, **columns}
    return xr.Dataset({k: ("sibling", np.asarray(v)) for k, v in data.items()}, attrs=attrs)


def test_siblings_end_with_how_many_how_sure_and_what_next():
    ds = near("A 1", [0.3, 0.9, 1.4], own="M 67", cluster=["M 67", "", "NGC 188"], log_ratio=[2.25, 0.5, -1.0])
    told = siblings_verdict([ds], "run")
    for words in (
        "3 stars near A 1 by the auto metric (7 features), distances 0.3 to 1.4",
        "1 of them are listed in its cluster M 67",
        "2 are more like siblings than like the field",
        "largest 2.25",
        "--prior P",
        "next: chemscale rsca pair 'A 1' 'A 1-0' --run run",
    ):
        assert words in told
    chance = {"probability": [0.5, 0.2, 0.1], "probability_low": [0.25, 0.1, 0.0], "probability_high": [0.75, 0.5, 0.2]}
    told = siblings_verdict([ds.assign({k: ("sibling", v) for k, v in chance.items()})], "run")
    assert "at this prior 0.8 of them are siblings (0.35 to 1.4)" in told
    assert "largest chance" not in told
    alike = ds.assign({k: ("sibling", v) for k, v in (chance | {"probability": [0.5, 0.5, 0.1]}).items()}).assign_attrs(
        highest_probability=0.5, caution="the likeness is not calibrated: it rests on 8 clusters"
    )
    told = siblings_verdict([alike], "run")
    assert "2 have the largest chance there is here, 0.5: nothing closer was ever counted" in told
    assert "not calibrated: it rests on 8 clusters" in told


def test_siblings_of_a_list_name_the_star_with_the_most():
    told = siblings_verdict([near("A", [1.0]), near("B", [1.0, 2.0]), near("C", [])], "run")
    assert "3 stars near 3 stars" in told and "B has the most, 2" in told and "rsca evaluate --run run" in told
    assert "larger --within" in siblings_verdict([near("A", [])], "run")


def test_an_interrupt_inside_a_command_is_told(monkeypatch, capsys):
    import chemscale.survey.info as info
    from chemscale import cli

    def interrupt(store):
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "store_info", interrupt)
    monkeypatch.setattr("sys.argv", ["chemscale", "info", "s.zarr"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 130 and "carry on with: chemscale info s.zarr" in capsys.readouterr().err


def test_the_next_command_can_be_pasted_whatever_the_folder_is_called():
    told = study_verdict({"a": {"seconds": 1.0}}, {}, "my runs/it's one")
    command = told.partition("next: ")[2]
    assert shlex.split(command) == ["chemscale", "report", "--run", "my runs/it's one"]
