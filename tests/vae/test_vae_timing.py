"""A dry run of a training measures a few steps, and says how long the whole takes."""

from __future__ import annotations

import json
import time

import pytest
from typer.testing import CliRunner
from vae_toy import TOY_REGIONS, toy_survey

from chemscale.cli import build
from chemscale.errors import DataError, InputError
from chemscale.survey.ingest.datasets import write_survey
from chemscale.vae.fitting import train
from chemscale.vae.timing import training_time

MODEL = {"n_components": 8, "hidden": (32, 16), "decoder": (16,)}


@pytest.mark.parametrize(("stars", "epochs", "batch"), [(700, 30, 64), (2500, 8, 256)])
def test_the_estimate_is_within_a_factor_of_two_of_the_training(tmp_path, stars, epochs, batch):
    """In one of three tries: what else runs on the machine changes between the estimate and the training."""
    ds = toy_survey(stars)
    given = {"model": MODEL, "regions": TOY_REGIONS}
    given["settings"] = {"epochs": epochs, "batch": batch, "decoder_finetune_epochs": 4, "label_pretrain_epochs": 6}
    ratios = []
    for k in range(3):
        expected = training_time(ds, **given)
        began = time.perf_counter()
        summary = train(ds, tmp_path / f"run{k}", scale=True, **given)
        ratios.append(expected.seconds / (time.perf_counter() - began))
        assert expected.stars == pytest.approx(summary["stars"], rel=0.12)
        if 0.5 <= ratios[-1] <= 2:
            return
    raise AssertionError(f"estimated over real: {ratios}")


def test_more_epochs_take_longer_and_nothing_is_written(tmp_path):
    ds = toy_survey(400)
    one = training_time(ds, model=MODEL, regions=TOY_REGIONS, settings={"epochs": 500, "batch": 40})
    two = training_time(ds, model=MODEL, regions=TOY_REGIONS, settings={"epochs": 5000, "batch": 40})
    assert two.main > one.main and two.steps > 5 * one.steps  # ten times the epochs, on a machine of varying speed
    with pytest.raises(DataError, match="stars to train on"):
        training_time(toy_survey(60), model=MODEL, regions=TOY_REGIONS)
    with pytest.raises(InputError, match="which has its own"):
        training_time(ds, model=MODEL, regions=TOY_REGIONS, groups="groups.toml")


def test_the_command_line_tells_it(tmp_path):
    write_survey(toy_survey(400), tmp_path / "s.zarr")
    (tmp_path / "toy.json").write_text(json.dumps(TOY_REGIONS.to_dict()))
    words = ["vae", "train", str(tmp_path / "s.zarr"), "--run", str(tmp_path / "vae"), "--preset", "quick", "--dry-run"]
    done = CliRunner().invoke(build(), [*words, "--regions", str(tmp_path / "toy.json"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["seconds"] > 0 and "nothing was written" in " ".join(done.stderr.split())
    assert not (tmp_path / "vae").exists()
