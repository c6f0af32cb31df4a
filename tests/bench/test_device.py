"""Limits of a device and the share of them that is reached, on the CPU here."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from chemscale.bench import device, surveys
from chemscale.bench.stages import PRODUCTS, STAGES
from chemscale.errors import InputError


def test_a_device_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="no kind of device"):
        device.measure(600, tmp_path, "abacus")


def test_every_stage_can_be_timed():
    from chemscale.bench import stages

    assert set(stages._WORK) == set(STAGES) and set(PRODUCTS) <= set(STAGES)


@pytest.mark.parametrize(("resources", "expected"), [({}, None), ({"GPU": 1}, "cuda")])
def test_the_fit_that_is_timed_is_that_of_the_workers(monkeypatch, resources, expected):
    """Compiled kernels on CPU workers, the tensor code on those with a GPU."""
    from types import SimpleNamespace

    from chemscale.bench import stages

    asked = {}
    monkeypatch.setattr("chemscale.survey.store.open.open_survey", lambda store: store)
    monkeypatch.setattr("chemscale.embedding.fit.fit_survey", lambda ds, **settings: asked.update(settings))
    client = SimpleNamespace(scheduler_info=lambda n_workers: {"workers": {"w": {"resources": resources}}})
    stages.run_stage("fit", "a store", client, None, 100)
    assert asked["device"] == expected


def test_limits_and_shares_of_a_cpu(tmp_path, monkeypatch):
    """The command line's own path: work can reach a limit but not pass it by much."""
    from chemscale.cli import build

    monkeypatch.setattr(device, "STEPS", 3)
    monkeypatch.setattr(surveys, "BASE_STARS", 700)
    line = ["bench", "gpu", "--device", "cpu", "--stars", "700", "--out", str(tmp_path), "--json"]
    done = CliRunner().invoke(build("bench"), line)
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["device"] == "cpu" and found["stars"] == 700
    assert set(found["share"]) == {"inference", "training", "fit, one pass"}
    assert all(share > 0 for share in found["share"].values()), found["share"]
    assert found["share"]["inference"] < 1.5, found
    assert all(value > 0 for value in (*found["limits"].values(), *found["work"].values()))
