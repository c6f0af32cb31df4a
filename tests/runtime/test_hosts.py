"""Several hosts (network namespaces) under the faults of a network: products complete and right, hosts back."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import hosts as namespaces
import pytest
import stagework
from stagework import STAGES, check

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    reason = namespaces.missing()
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("work")
    stagework.prepare(folder)
    return folder


class Driver:
    """A client on the scheduler's host that runs one stage after the other."""

    def __init__(self, cluster: namespaces.HostCluster):
        self.cluster = cluster
        command = [sys.executable, str(HERE / "stage_driver.py"), json.dumps(cluster.settings)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = cluster.run("chem0", *command, **pipes)
        assert self.line() == "ready"

    def line(self) -> str:
        line = self.process.stdout.readline().strip()
        assert line, self.cluster.log.read_text()[-3000:]
        return line

    def begin(self, stage: str, folder: Path, out: Path, delay: float) -> None:
        """Start a stage; returns when a worker has read spectra."""
        job = {"stage": stage, "folder": str(folder), "out": str(out), "delay": delay}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        assert self.line() == "reading"

    def end(self) -> str:
        """Wait until it has ended and both workers are there; its error."""
        return json.loads(self.line())["error"]


@pytest.fixture(scope="module")
def driver(work, tmp_path_factory):
    with namespaces.Hosts(3) as net:
        cluster = namespaces.HostCluster(
            net, tmp_path_factory.mktemp("hosts"), [str(HERE), str(HERE.parent), str(HERE.parents[1])]
        )
        try:
            yield Driver(cluster)
        finally:
            cluster.stop()


@pytest.mark.parametrize(("fault", "seconds"), [("link", 20), ("loss", 20), ("blackhole", 45)])
@pytest.mark.parametrize("stage", STAGES)
def test_network_fault(driver, work, tmp_path, stage, fault, seconds):
    """One of two workers' hosts has the fault in the middle of a stage."""
    driver.begin(stage, work, tmp_path / "out", delay=0.2 if stage == "fit" else 1.0)
    time.sleep(1)
    net = driver.cluster.net
    net.fault(fault, "chem2")
    try:
        time.sleep(seconds)
    finally:
        net.heal(fault, "chem2")
    assert driver.end() == ""
    check(stage, work, tmp_path / "out")
