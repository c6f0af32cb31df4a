"""Stores and runs named by relative paths: workers, whose directory may be another, write the same products."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from helpers import make_survey

import chemscale
from chemscale.rsca.pipeline import fit_run

CLI = [sys.executable, "-m", "chemscale"]


def same_embedding(one: Path, other: Path) -> None:
    got, expected = (xr.open_zarr(f / "embedding.zarr", consolidated=False) for f in (one, other))
    assert got.attrs["complete"]
    np.testing.assert_array_equal(got["coords"].values, expected["coords"].values)


def test_fit_with_workers_in_another_directory(client, tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    chemscale.write_survey(make_survey(120, 4, 6, 80, seed=2), here / "survey.zarr")
    before = client.run(os.getcwd)
    client.run(os.chdir, str(there))
    try:
        monkeypatch.chdir(here)
        fit_run("survey.zarr", "relative", components=4)
        fit_run(str(here / "survey.zarr"), str(tmp_path / "absolute"), components=4)
    finally:
        for worker, folder in before.items():
            client.run(os.chdir, folder, workers=[worker])
    assert not list(there.iterdir())
    same_embedding(here / "relative", tmp_path / "absolute")


@pytest.mark.slow
def test_verb_on_a_local_cluster(tmp_path):
    chemscale.write_survey(make_survey(120, 4, 6, 80, seed=2), tmp_path / "survey.zarr")
    where = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    for run in ("run", str(tmp_path / "elsewhere")):
        command = [*CLI, "rsca", "fit", "survey.zarr", "--run", run, "--components", "4", "--cluster", "local"]
        done = subprocess.run(command, cwd=tmp_path, env=os.environ | where, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    same_embedding(tmp_path / "run", tmp_path / "elsewhere")
