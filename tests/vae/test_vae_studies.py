"""The VAE's studies on a trained run."""

from __future__ import annotations

import shutil

import pytest

from chemscale.errors import DataError
from chemscale.studies.registry import run_study


def test_latents_and_corruption(toy_run, tmp_path):
    run = shutil.copytree(toy_run, tmp_path / "run")
    summary = run_study("vae_latents", run)
    assert summary["numbers"]["r_fe_h"] > 0.8
    assert (run / "studies" / "vae_latents" / "figure.pdf").exists()
    summary = run_study("vae_corruption", run, {"false_alarm": 0.1})
    assert summary["numbers"]["auc_noise_30_percent"] > 0.95
    assert (run / "studies" / "vae_corruption" / "data.csv").exists()


def test_too_few_stars(toy_run, tmp_path):
    run = shutil.copytree(toy_run, tmp_path / "run")
    with pytest.raises(DataError, match="held-out stars"):
        run_study("vae_corruption", run, {"stars": 50})
