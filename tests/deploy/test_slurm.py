"""Jobs of a real Slurm: workers come, die, are cancelled and replaced; results stay right."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path

import faultwork
import pytest

from chemscale.runtime import backends
from chemscale.runtime.cluster import connect
from chemscale.runtime.shards import map_shards

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]


def settings(tmp_path: Path, **more) -> dict:
    table = {
        "kind": "slurm", "workers": 2, "threads": 1, "memory": "700 MiB", "queue": "cpu", "interface": "lo",
        "walltime": "00:20:00", "shared_directory": str(tmp_path / "shared"), "log_directory": str(tmp_path / "logs"),
        "local_directory": str(tmp_path / "scratch"), "death_timeout": 30,
    }  # fmt: skip
    return table | more


def test_two_jobs_work_over_tls(slurm, tmp_path):
    with connect(settings(tmp_path)) as client:
        client.wait_for_workers(2, timeout=120)
        assert backends.describe(client)["encrypted"]
        assert len(slurm.jobs()) == 2
        report = map_shards(faultwork.write, faultwork.items(tmp_path, 12), client).raise_for_failures()
        key = next((tmp_path / "shared").rglob("key.pem"))
        assert key.parent.stat().st_mode & 0o077 == 0
        ps = subprocess.run(["ps", "axeww", "-o", "args"], capture_output=True, text=True).stdout
        assert "PRIVATE KEY" not in ps
        for log in (tmp_path / "logs").iterdir():
            assert "PRIVATE KEY" not in log.read_text()
    assert report.done == 12
    faultwork.check(tmp_path, 12)
    assert not key.exists(), "credentials go with the cluster"
    deadline = time.monotonic() + 40
    while slurm.jobs() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not slurm.jobs(), "jobs go with the cluster"


def test_scancel_of_a_job_is_survived_and_the_job_replaced(slurm, tmp_path):
    cancelled = []

    def cancel(key, result):
        if len(cancelled) == 0:
            cancelled.append(slurm.jobs()[0])
            slurm.call("scancel", cancelled[0])

    with connect(settings(tmp_path)) as client:
        client.wait_for_workers(2, timeout=120)
        items = faultwork.items(tmp_path, 60, sleep=0.4)
        report = map_shards(faultwork.write, items, client, on_result=cancel).raise_for_failures()
        deadline = time.monotonic() + 90
        while len(set(slurm.jobs()) - set(cancelled)) < 2 and time.monotonic() < deadline:
            time.sleep(1)
        assert len(set(slurm.jobs()) - set(cancelled)) == 2, "another job took its place"
    assert report.done == 60
    faultwork.check(tmp_path, 60)


def test_kill_9_of_a_worker_in_a_job(slurm, tmp_path):
    with connect(settings(tmp_path)) as client:
        client.wait_for_workers(2, timeout=120)
        items = faultwork.items(tmp_path, 20, sleep=0.2, kill_once=(4,))
        report = map_shards(faultwork.write, items, client).raise_for_failures()
    assert report.done == 20
    faultwork.check(tmp_path, 20)


def test_lifetime_ends_workers_in_good_order(slurm, tmp_path):
    """Workers that leave before their walltime hand their work over: nothing is done twice."""
    with connect(settings(tmp_path, lifetime="12 s", lifetime_stagger="3 s")) as client:
        items = faultwork.items(tmp_path, 60, sleep=0.5)
        report = map_shards(faultwork.write, items, client).raise_for_failures()
    assert report.done == 60
    faultwork.check(tmp_path, 60)
    assert len({r["pid"] for r in report.results.values()}) >= 3, "others came after the first two had left"


def test_the_whole_queue_cancelled_and_resumed(slurm, tmp_path):
    """Scheduler, client and jobs gone at once (walltime of the head job): the ledger carries the rest."""
    done: list[str] = []
    try:
        with connect(settings(tmp_path)) as client:

            def mark(key, result):
                done.append(key)
                if len(done) == 10:
                    threading.Timer(0.0, os.kill, (os.getpid(), 15)).start()

            map_shards(faultwork.write, faultwork.items(tmp_path, 40, sleep=0.2), client, on_result=mark)
    except KeyboardInterrupt:
        pass
    begun = len(faultwork.attempts(tmp_path))
    assert 10 <= len(done) < 40 and begun - len(done) <= 2
    with connect(settings(tmp_path)) as client:
        rest = map_shards(faultwork.write, faultwork.items(tmp_path, 40), client, done=done).raise_for_failures()
    assert rest.done == 40 - len(done)
    faultwork.check(tmp_path, 40)
