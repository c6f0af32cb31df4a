"""One pipeline on this machine's processes, on hosts of their own and on Slurm: the products are the same.

Store, basis, embedding, metric and rates bit by bit; latents, whose matrix products run in batches, to 1e-5.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import hosts as namespaces
import numpy as np
import pytest
import xarray as xr

import chemscale

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CLI = [sys.executable, "-m", "chemscale"]
ROOT = str(Path(__file__).resolve().parents[2])
PIPELINE = """
[pipeline]
store = "survey.zarr"
run = "run"

[ingest]
source = "simulated"
option = ["stars=700", "clusters=6", "seed=3", 'grid="lowres"']

[fit]
components = 6

[evaluate]
{more}
[infer]
"""
TRAIN = '\n[train]\npreset = "quick"\nepochs = 2\n'


def write(folder: Path, cluster: dict, more: str = "") -> None:
    folder.mkdir(exist_ok=True)
    table = "\n".join(f"{k} = {json.dumps(v)}" for k, v in cluster.items())
    (folder / "pipeline.toml").write_text(PIPELINE.format(more=more) + f"\n[cluster]\n{table}\n")


def call(folder: Path, *words: str, prefix: tuple[str, ...] = (), **environment: str) -> None:
    command = [*prefix, *CLI, *words]
    done = subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


def journey(folder: Path, model: Path, **how) -> None:
    """The pipeline, with the trained model of another run instead of training again."""
    call(folder, "run", "pipeline.toml", "--until", "evaluate", **how)
    shutil.copytree(model, folder / "run/vae")
    call(folder, "run", "pipeline.toml", **how)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What two processes of this machine make of it."""
    folder = tmp_path_factory.mktemp("local")
    write(folder, {"kind": "local", "workers": 2, "threads": 1}, TRAIN)
    call(folder, "run", "pipeline.toml")
    return folder


def compare(got: Path, expected: Path) -> None:
    one, other = (chemscale.open_survey(f / "survey.zarr").load() for f in (got, expected))
    assert one.sizes["star"] > 700
    same(one, other)
    for name in ("ppca.zarr", "embedding.zarr", "rsca.zarr", "latents.zarr"):
        one, other = (xr.open_zarr(f / "run" / name, consolidated=False).load() for f in (got, expected))
        same(one, other, exact=name != "latents.zarr")
    rates = [json.loads((f / "run/evaluation.json").read_text()) for f in (got, expected)]
    for r in rates:
        r.pop("seconds", None)
    assert rates[0] == rates[1]


def same(one: xr.Dataset, other: xr.Dataset, exact: bool = True) -> None:
    assert set(one.variables) == set(other.variables)
    for name in other.variables:
        a, b = one[name].values, other[name].values
        if exact or b.dtype.kind != "f":
            np.testing.assert_array_equal(a, b, err_msg=name)
        else:
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=name)


def test_one_process(expected, tmp_path):
    """No cluster at all: threads of each stage's own process."""
    folder = tmp_path / "serial"
    write(folder, {"kind": "local", "workers": 1, "threads": 1})
    text = (folder / "pipeline.toml").read_text()
    (folder / "pipeline.toml").write_text(text[: text.index("[cluster]")])
    journey(folder, expected / "run/vae")
    compare(folder, expected)


def test_hosts_in_network_namespaces(expected, tmp_path):
    reason = namespaces.missing()
    if reason:
        pytest.skip(reason)
    with namespaces.Hosts(3) as net:
        cluster = namespaces.HostCluster(net, tmp_path, [ROOT])
        try:
            cluster.until(cluster.file.exists, 120)
            folder = tmp_path / "hosts"
            write(folder, cluster.settings)
            journey(folder, expected / "run/vae", prefix=("ip", "netns", "exec", "chem0"), PYTHONPATH=ROOT)
        finally:
            cluster.stop()
    compare(folder, expected)


@pytest.mark.slurm
def test_jobs_of_slurm(slurm, expected, tmp_path):
    folder = tmp_path / "slurm"
    settings = {
        "kind": "slurm", "workers": 2, "threads": 1, "memory": "1 GiB", "queue": "cpu", "interface": "lo",
        "walltime": "00:20:00", "shared_directory": str(tmp_path / "shared"), "log_directory": str(tmp_path / "logs"),
        "local_directory": str(tmp_path / "scratch"),
    }  # fmt: skip
    write(folder, settings)
    journey(folder, expected / "run/vae", PYTHONPATH=ROOT)
    compare(folder, expected)
