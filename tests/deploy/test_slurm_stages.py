"""scancel of a Slurm job in the middle of fit, embed and infer: the products are those of an undisturbed run."""

from __future__ import annotations

import pytest
import stagework
from stagework import STAGES, Running, check
from test_slurm import settings

from chemscale.runtime.cluster import connect

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def client(slurm, tmp_path_factory):
    with connect(settings(tmp_path_factory.mktemp("jobs"), memory="1 GiB")) as made:
        yield made


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    stagework.prepare(folder)
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_scancel(slurm, client, work, tmp_path, stage):
    client.wait_for_workers(2, timeout=200)
    running = Running(stage, work, tmp_path / "out", client, delay=0.2)
    running.until_reading()
    slurm.call("scancel", slurm.jobs()[0])
    assert running.wait() is None, running.error
    check(stage, work, running.out)
