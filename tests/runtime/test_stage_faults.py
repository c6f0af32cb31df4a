"""Faults in the middle of fit, embed and infer: the products are those of an undisturbed run.

The same for Slurm jobs is in ``tests/deploy/test_slurm_stages.py``.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import stagework
from stagework import STAGES, Running, check

from chemscale.errors import ClusterError
from chemscale.runtime import credentials
from chemscale.runtime.cluster import connect
from chemscale.runtime.liveness import LOST_AFTER
from chemscale.runtime.outcome import ShardsFailed

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


@pytest.mark.parametrize("stage", STAGES)
def test_poison_is_named(work, local, tmp_path, stage):
    """Bounded retries; the rest is complete, and the same call does the one part when the poison is gone."""
    running = Running(stage, work, tmp_path / "out", local, poison=700)
    error = running.wait()
    if stage == "fit":  # a sum cannot leave stars out: the error says which
        assert isinstance(error, ClusterError) and "stars 640 to 768: their worker died" in error.message
        return
    assert isinstance(error, ShardsFailed), error
    assert [(f.key, f.kind) for f in error.failures] == [(5, "killed")]
    assert sorted(running.finished()) == [i for i in range(-(-2572 // stagework.BLOCK)) if i != 5]
    again = Running(stage, work, tmp_path / "out", local)
    assert again.wait() is None, again.error
    check(stage, work, again.out)


class Cluster:
    """A scheduler and two supervised workers as a user starts them on machines of their own."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.tls = credentials.write(folder / "tls")
        self.file = folder / "scheduler.json"
        self.started: list[subprocess.Popen] = []
        self.scheduler = self.run("scheduler")
        for i in range(2):
            more = ["--death-timeout", "10", "--memory", "1 GiB", "--local-directory", str(folder / f"scratch-{i}")]
            self.run("worker", *more)

    def run(self, what: str, *more: str) -> subprocess.Popen:
        cli = [sys.executable, "-m", "chemscale", "cluster", what]
        common = ["--tls", str(self.tls), "--scheduler-file", str(self.file)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        with open(self.folder / "cluster.log", "a") as log:
            process = subprocess.Popen([*cli, *common, *more], stdout=log, stderr=log, env=environment)
        self.started.append(process)
        return process

    def join(self):
        """A client, once a scheduler and both workers are there."""
        deadline = time.monotonic() + 200
        while not self.file.exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        return connect({"kind": "address", "scheduler_file": str(self.file), "tls": str(self.tls), "timeout": 200})

    def stop(self) -> None:
        for process in reversed(self.started):
            process.terminate()
        for process in self.started:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        yield made
    finally:
        made.stop()


@pytest.mark.parametrize("stage", STAGES)
def test_scheduler_killed(work, cluster, tmp_path, stage):
    """The stage ends with a clear error; with another scheduler the same call completes, keeping what was done."""
    with cluster.join() as client:
        running = Running(stage, work, tmp_path / "out", client, delay=0.2)
        running.until_reading()
        time.sleep(1)
        cluster.scheduler.kill()
        cluster.scheduler.wait()
        begun = time.monotonic()
        error = running.wait()
        assert isinstance(error, ClusterError) and "scheduler" in error.message
        assert "the same command" in error.remedy
        assert time.monotonic() - begun < LOST_AFTER + 60, "bounded"
    kept = running.finished()
    assert stage == "fit" or kept
    cluster.file.unlink()
    cluster.scheduler = cluster.run("scheduler")
    with cluster.join() as client:
        again = Running(stage, work, tmp_path / "out", client)
        assert again.wait() is None, again.error
    check(stage, work, again.out)
    assert kept.items() <= again.finished().items(), "what was done is not done again"
