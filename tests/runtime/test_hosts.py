"""Several hosts (network namespaces) under the faults of a network: products complete, hosts back."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import faultwork
import hosts as namespaces
import pytest

from chemscale.runtime import credentials

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

DRIVER = """
import sys
sys.path.insert(0, {here!r})
if __name__ == "__main__":
    import faultwork
    from pathlib import Path
    from chemscale.runtime.cluster import connect
    from chemscale.runtime.shards import map_shards
    with connect({{"kind": "address", "scheduler_file": {file!r}, "tls": {tls!r}}}) as client:
        client.wait_for_workers(2, timeout=120)
        Path({out!r}, "up").touch()
        shards = faultwork.items(Path({out!r}), 160, sleep=0.5)
        report = map_shards(faultwork.write, shards, client).raise_for_failures()
        client.wait_for_workers(2, timeout=120)
    print(report.done, report.retried)
"""
CLI = [sys.executable, "-c", "from chemscale.cli import main; main()"]


@pytest.fixture()
def net():
    reason = namespaces.missing()
    if reason:
        pytest.skip(reason)
    with namespaces.Hosts(3) as made:
        yield made


@pytest.mark.parametrize(("fault", "seconds"), [("link", 20), ("loss", 20), ("blackhole", 45)])
def test_network_fault(net, tmp_path, fault, seconds):
    """The scheduler's host and two of workers; one of those has the fault for a while in the middle of the work."""
    tls = credentials.write(tmp_path / "tls")
    file, out = tmp_path / "scheduler.json", tmp_path / "out"
    out.mkdir()
    common = ["--tls", str(tls), "--scheduler-file", str(file), "--interface", "net0"]
    here = str(Path(faultwork.__file__).parent)
    env = {"PYTHONPATH": here, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    script = tmp_path / "driver.py"
    script.write_text(DRIVER.format(here=here, file=str(file), tls=str(tls), out=str(out)))
    started = []
    with open(tmp_path / "log", "w") as log:
        options = {"stdout": log, "stderr": log, "env": env}
        try:
            started.append(net.popen("chem0", *CLI, "cluster", "scheduler", *common, **options))
            for host in ("chem1", "chem2"):
                arguments = ["--death-timeout", "15", "--memory", "500 MiB", "--local-directory", str(tmp_path / host)]
                started.append(net.popen(host, *CLI, "cluster", "worker", *common, *arguments, **options))
            driver = net.popen(
                "chem0", sys.executable, str(script), stdout=subprocess.PIPE, stderr=log, env=env, text=True
            )
            started.append(driver)
            wait(lambda: (out / "attempts.log").exists(), 120, tmp_path / "log")
            time.sleep(2)
            net.fault(fault, "chem2")
            time.sleep(seconds)
            net.heal(fault, "chem2")
            text, _ = driver.communicate(timeout=240)
            assert driver.returncode == 0, (tmp_path / "log").read_text()[-3000:]
        finally:
            for process in reversed(started):
                process.terminate()
            for process in started:
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
    assert text.split()[0] == "160"
    faultwork.check(out, 160)


def wait(condition, seconds, log):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.2)
