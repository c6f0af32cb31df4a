"""Faults in the middle of fit, embed and infer: the products are those of an undisturbed run.

The same for Slurm jobs is in ``tests/deploy/test_slurm_stages.py``.
"""

from __future__ import annotations

import logging
import os
import signal

import pytest
import stagework
from stagework import STAGES, Running, check

from chemscale.runtime.cluster import connect

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    stagework.prepare(folder)
    return folder


@pytest.fixture(scope="module")
def local():
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with connect("local", workers=2, threads=1, memory="1 GiB") as client:
        yield client


@pytest.mark.parametrize("stage", STAGES)
def test_kill_9_of_a_worker(work, local, tmp_path, stage):
    running = Running(stage, work, tmp_path / "out", local, delay=0.1)
    running.until_reading()
    pids = local.run(os.getpid, on_error="ignore")
    os.kill(next(iter(pids.values())), signal.SIGKILL)
    assert running.wait() is None, running.error
    check(stage, work, running.out)


@pytest.mark.parametrize("stage", STAGES)
def test_worker_out_of_memory(work, local, tmp_path, stage):
    running = Running(stage, work, tmp_path / "out", local, hungry=700)
    assert running.wait() is None, running.error
    assert (running.out / "was-hungry").exists()
    check(stage, work, running.out)
