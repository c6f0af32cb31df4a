"""The scripts of deploy/slurm, submitted to a real Slurm as a user would."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tomllib
from pathlib import Path

import pytest

import chemscale
from chemscale.runtime.settings import from_mapping

PIPELINE = """
[pipeline]
store = "survey.zarr"
run = "run"

[simulate]
stars = 300
clusters = 4
seed = 3
grid = "lowres"

[fit]
components = 5

[evaluate]
"""


@pytest.mark.parametrize("name", ["cpu.toml", "gpu.toml"])
def test_cluster_files_are_read(deploy, name):
    table = tomllib.loads((deploy / "slurm" / name).read_text())["cluster"]
    assert from_mapping(table).kind == "slurm"


@pytest.fixture()
def folder(deploy, tmp_path, monkeypatch):
    """A user's folder: the scripts, edited where they say EDIT, and a pipeline."""
    for file in (deploy / "slurm").iterdir():
        shutil.copy(file, tmp_path)
    toml = tmp_path / "cpu.toml"
    text = toml.read_text().replace('memory = "16 GiB"', 'memory = "2 GiB"').replace("processes = 4", "processes = 2")
    text += f'interface = "lo"\nshared_directory = "{tmp_path}/shared"\n'
    toml.write_text(text.replace("maximum = 16", "maximum = 2").replace("workers = 2 ", "workers = 1 "))
    (tmp_path / "pipeline.toml").write_text(PIPELINE)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("CHEMSCALE_INTERFACE", "lo")
    monkeypatch.setenv("CHEMSCALE_SHARED", str(tmp_path))
    monkeypatch.setenv("CHEMSCALE_MEMORY", "900 MiB")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def submit(slurm, folder: Path, *arguments: str, seconds: float = 420) -> str:
    """Submit and wait; what the job printed."""
    job = slurm.call("sbatch", "--parsable", "--output=job.out", "--mem=2G", *arguments).strip().split(";")[0]
    state = slurm.wait(job, seconds)
    text = (folder / "job.out").read_text()
    assert state == "COMPLETED", f"{state}\n{text[-4000:]}"
    return text


slurm_test = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(900)]


class TestScripts:
    pytestmark = slurm_test

    def test_pipeline_with_jobs_as_workers(self, slurm, folder):
        submit(slurm, folder, "pipeline.sh", "pipeline.toml")
        rates = json.loads((folder / "run/evaluation.json").read_text())
        assert 0 <= rates["rsca"] <= 1
        for file in folder.rglob("*"):
            if file.is_file() and "shared" not in file.parts:
                assert b"PRIVATE KEY" not in file.read_bytes(), file
        assert not list((folder / "shared").glob("tls-*"))

    def test_pipeline_in_one_allocation(self, slurm, folder):
        submit(slurm, folder, "--cpus-per-task=2", "allocation.sh", "pipeline.toml")
        assert (folder / "run/evaluation.json").exists()
        assert not list(folder.glob(".chemscale-*")), "credentials are gone"

    def test_array_ingestion(self, slurm, folder):
        """Three partitions as an array; the last one closes the store, which equals one made at once."""
        arguments = ["simulated", "--option", "stars=1500", "--option", "clusters=4", "--option", 'grid="lowres"']
        script = ["--array=1-3", "ingest-array.sh", *arguments, "--out", "array.zarr"]
        job = slurm.call("sbatch", "--parsable", "--output=part-%a.out", "--mem=1G", *script).strip()
        for part in (1, 2, 3):
            state = slurm.wait(f"{job}_{part}", 400)
            assert state == "COMPLETED", (folder / f"part-{part}.out").read_text()
        assert chemscale.open_survey("array.zarr").sizes["star"] > 1500
