"""Fixtures of the VAE's tests."""

from __future__ import annotations

import pytest
from vae_toy import FAST, FAST_MODEL, TOY_REGIONS, toy_survey


@pytest.fixture(scope="session")
def toy():
    """600 toy stars in memory."""
    return toy_survey()


@pytest.fixture(scope="session")
def toy_store(toy, tmp_path_factory):
    """The toy survey as a store."""
    from chemscale.survey.ingest.datasets import write_survey

    return write_survey(toy, tmp_path_factory.mktemp("vae") / "toy.zarr")


@pytest.fixture(scope="session")
def toy_run(toy_store, tmp_path_factory):
    """A run with a trained model and latents of the toy survey; read-only."""
    from chemscale.vae import pipeline

    run = tmp_path_factory.mktemp("vae-run") / "run"
    settings = {**FAST, "epochs": 40, "late_label_weight": 0.0}  # as `scaled` has it for so few stars
    pipeline.train(toy_store, run, model=FAST_MODEL, settings=settings, regions=TOY_REGIONS, scale=False)
    pipeline.infer(toy_store, run)
    return run
