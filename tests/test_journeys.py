"""Whole journeys on real and realistic data, through the command line. Minutes: marked slow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

EXE = [sys.executable, "-m", "chemscale"]


def chemscale(*words: str | Path, cwd: Path) -> str:
    done = subprocess.run([*EXE, *map(str, words)], cwd=cwd, env=dict(os.environ), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_real_lamost_repeats_are_siblings(shared_data, tmp_path):
    """Repeats of a star play its clusters, DR10 stars the field: RSCA must beat plain PPCA distances."""
    dr10, repeats = shared_data / "lamost_dr10", shared_data / "lamost_repeats"
    summary = json.loads(
        chemscale(
            *("ingest", "lamost", "--spectra", dr10 / "spectra", "--spectra", repeats / "spectra"),
            *("--spectra", shared_data / "lamost_dr1", "--labels", dr10 / "labels.csv"),
            *("--members", repeats / "groups.csv", "--member-key", "file", "--member-column", "group"),
            *("--out", "lamost.zarr", "--json"),
            cwd=tmp_path,
        )
    )
    assert summary["n_stars"] + summary["n_rejected"] == 900 + 109 + 10
    chemscale("verify", "lamost.zarr", cwd=tmp_path)
    chemscale("rsca", "fit", "lamost.zarr", "--run", "run", "--components", "20", "--recipe", "paper", cwd=tmp_path)
    rates = json.loads(chemscale("rsca", "evaluate", "--run", "run", "--json", cwd=tmp_path))
    assert rates["n_clusters"] == 50
    assert rates["rsca"] < 0.7 * rates["raw"]
    assert rates["rsca_without_cross_validation"] < rates["rsca"]


def test_emulated_survey_shows_the_published_pattern(shared_data, tmp_path):
    """Section 4: raw coordinates hardly tell siblings, three RSCA dimensions do, and without cross-validation
    the rate is too good to be true. Bounds leave room for the scatter between surveys of 22 clusters."""
    emulator = shared_data / "synthetic" / "hband_emulator.npz"
    chemscale(
        *("simulate", "--stars", "12000", "--clusters", "22", "--seed", "11"),
        *("--emulator", emulator, "--out", "survey.zarr"),
        cwd=tmp_path,
    )
    chemscale("rsca", "fit", "survey.zarr", "--run", "run", "--components", "30", cwd=tmp_path)
    rates = json.loads(chemscale("rsca", "evaluate", "--run", "run", "--n-features", "3", "--json", cwd=tmp_path))
    assert rates["raw"] > 0.15
    assert rates["rsca_top"] < 0.035
    assert rates["rsca_without_cross_validation"] < 0.6 * rates["rsca"]
