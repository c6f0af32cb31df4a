"""What release 8de129b wrote stays readable: stores, runs and checkpoints open, verify, resume and report.

The recipe: the package as of that commit is taken out of the repository's history and run in processes of its own,
with the libraries that are installed now.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import chemscale

RELEASE = "8de129b"
ROOT = Path(__file__).resolve().parents[1]
OLD = "from chemscale.cli import main; main()"


def run(arguments: list[str], *, package: Path, cwd: Path, start: list[str]) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(package), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    command = [sys.executable, *start, *arguments]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def old_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package of the old release."""
    package = tmp_path_factory.mktemp("package")
    archive = subprocess.run(["git", "archive", RELEASE, "chemscale"], cwd=ROOT, capture_output=True)
    if archive.returncode:
        pytest.skip(f"the history of this checkout does not reach {RELEASE} (a shallow clone?)")
    subprocess.run(["tar", "-x", "-C", str(package)], input=archive.stdout, check=True)
    return package


@pytest.fixture(scope="module")
def old_products(tmp_path_factory: pytest.TempPathFactory, old_package: Path) -> Path:
    """A folder with s.zarr, its run, rates.json, v.zarr and vae, all made by the old release."""
    folder = tmp_path_factory.mktemp("release")
    for line in (
        "simulate --stars 300 --clusters 6 --seed 3 --out s.zarr",
        "rsca fit s.zarr --run run --components 8",
        "rsca evaluate --run run --json",
        "simulate --stars 400 --clusters 2 --grid lowres --seed 4 --out v.zarr",
        "vae train v.zarr --run vae --preset quick --epochs 2",
        "vae infer v.zarr --run vae",
    ):
        done = run(line.split(), package=old_package, cwd=folder, start=["-c", OLD])
        assert done.returncode == 0, f"{line}: {done.stderr}"
        if "--json" in line:
            (folder / "rates.json").write_text(done.stdout)
    return folder


def now(folder: Path, line: str) -> str:
    done = run(line.split(), package=ROOT, cwd=folder, start=["-m", "chemscale"])
    assert done.returncode == 0, f"{line}: {done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_an_old_store_opens_and_verifies(old_products: Path):
    survey = chemscale.open_survey(str(old_products / "s.zarr"))
    assert survey.sizes["star"] > 300 and float(survey.flux[:5].max()) > 0.5
    now(old_products, "verify s.zarr")
    now(old_products, "info v.zarr")


@pytest.mark.slow
def test_an_old_run_gives_the_same_rates_and_reports(old_products: Path):
    then = json.loads((old_products / "rates.json").read_text())
    after = json.loads(now(old_products, "rsca evaluate --run run --json"))
    for kind in ("raw", "scaled", "rsca", "rsca_top"):
        assert after[kind] == pytest.approx(then[kind], abs=1e-6)
    now(old_products, "report --run run")
    assert (old_products / "run" / "report.html").exists()


@pytest.mark.slow
def test_an_old_checkpoint_infers_and_resumes(old_products: Path):
    now(old_products, "vae infer v.zarr --run vae")
    now(old_products, "vae infer v.zarr --run vae --overwrite")
    now(old_products, "vae train v.zarr --run vae --preset quick --epochs 2 --resume")


LAMOST = "lamost --spectra lamost_dr10/spectra --spectra lamost_repeats/spectra --spectra lamost_dr1"
LAMOST += " --labels lamost_dr10/labels.csv --members lamost_repeats/groups.csv"
ASPCAP = "apogee --spectra apogee/aspcapStar --allstar catalogues/allStar-r12-l33-rows.fits"
APSTAR = "apogee --spectra apogee/apStar --product apStar"


@pytest.mark.slow
@pytest.mark.parametrize(("survey", "n"), [(LAMOST, 1019), (ASPCAP, 18), (APSTAR, 4)])
def test_real_files_become_what_the_old_release_made_of_them(survey, n, old_package, shared_data, tmp_path):
    stores = {}
    for name, package in (("then", old_package), ("now", ROOT)):
        line = f"ingest {survey} --out {tmp_path / name}.zarr --workers 0"
        done = run(line.split(), package=package, cwd=shared_data, start=["-c", OLD])
        assert done.returncode == 0, f"{name}: {done.stderr}"
        stores[name] = chemscale.open_survey(str(tmp_path / f"{name}.zarr"))
    then, now_ = stores["then"], stores["now"]
    assert then.sizes["star"] == now_.sizes["star"] == n
    for variable in then.variables:
        if variable not in now_:  # a label that no star has is not stored any more
            assert np.isnan(then[variable].values).all(), variable
            continue
        np.testing.assert_array_equal(then[variable].values, now_[variable].values, err_msg=variable)
