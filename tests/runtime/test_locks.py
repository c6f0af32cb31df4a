"""Two commands that write one run: the second says who holds it; a dead one's lock is taken over."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from chemscale.errors import StoreError
from chemscale.runtime.locks import lock, read_holder
from chemscale.runtime.run import LOCK, Run

HOLD = """
import sys, time
from chemscale.runtime.run import Run
with Run.open(sys.argv[1]).stage("long"):
    print("held", flush=True)
    time.sleep(60)
"""
COUNT = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from chemscale.errors import StoreError
from chemscale.runtime.locks import lock
folder, done = Path(sys.argv[1]), 0
while done < 25:
    try:
        with lock(folder / "lock", "x"):
            n = int((folder / "n").read_text())
            (folder / "n").write_text(str(n + 1))
            done += 1
    except StoreError:
        pass
"""


def hold(run: Run) -> subprocess.Popen[str]:
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "held\n"
    return child


def test_the_second_writer_is_told_who_holds_the_run_and_readers_never_wait(tmp_path):
    run = Run.create(tmp_path / "run")
    child = hold(run)
    try:
        with pytest.raises(StoreError, match=f"process {child.pid} on {socket.gethostname()} since 20") as caught:
            run.stage("other").__enter__()
        assert str(run.path / LOCK) in caught.value.remedy
        assert Run.open(run.path).manifest["stages"]["long"]["status"] == "running"
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    with run.stage("other"):
        assert read_holder(run.path / LOCK)["pid"] == os.getpid()
    assert not (run.path / LOCK).exists()
    assert set(Run.open(run.path).manifest["stages"]) == {"long", "other"}, "what the other wrote is kept"


def test_a_lock_of_another_host_is_not_taken_over(tmp_path):
    (tmp_path / "lock").write_text(json.dumps({"host": "elsewhere", "pid": 1, "since": "then"}))
    with pytest.raises(StoreError, match="process 1 on elsewhere since then"), lock(tmp_path / "lock", "x"):
        pass


def test_a_process_number_that_was_given_to_another_process_is_not_the_holder(tmp_path):
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "started": 1.0, "since": "then"}
    (tmp_path / "lock").write_text(json.dumps(holder))
    with lock(tmp_path / "lock", "x"), lock(tmp_path / "lock", "x"):
        assert read_holder(tmp_path / "lock")["started"] != 1.0
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("links", [True, False])
def test_writers_of_several_processes_never_meet(tmp_path: Path, links: bool):
    (tmp_path / "n").write_text("0")
    # a lock left by a dead process: all of them find it at once
    (tmp_path / "lock").write_text(json.dumps({"host": socket.gethostname(), "pid": 2**22 + 1, "since": "then"}))
    code = COUNT if links else "import os\ndef no(*a): raise OSError(95, 'no links')\nos.link = no\n" + COUNT
    children = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(3)]
    assert [c.wait(60) for c in children] == [0, 0, 0]
    assert (tmp_path / "n").read_text() == "75"


def test_a_thread_takes_its_lock_again_and_another_thread_of_the_process_is_refused(tmp_path):
    with lock(tmp_path / "lock", "the run"), ThreadPoolExecutor(1) as other:
        with lock(tmp_path / "lock", "the run"):
            pass
        assert (tmp_path / "lock").exists(), "given back when the outer block ends"
        with pytest.raises(StoreError, match="the run is being written by another thread"):
            other.submit(lock(tmp_path / "lock", "the run").__enter__).result()

    def taken() -> bool:
        with lock(tmp_path / "lock", "the run"):
            return True

    with ThreadPoolExecutor(1) as other:
        assert other.submit(taken).result()


def test_what_killed_writers_left_beside_a_lock_goes_with_the_next_one(tmp_path):
    dead = json.dumps({"host": socket.gethostname(), "pid": 2**22 + 1, "since": "then"})
    alive = json.dumps({"host": "elsewhere", "pid": 1, "since": "then"})
    left = {"lock.0123456789ab": dead, "lock.stale-0123456789ab": dead, "lock.ba9876543210": ""}
    stays = {"lock.abcdefabcdef": alive, "lock.aaaaaaaaaaaa": "", "lock.json": "{}", "other": ""}
    for name, content in (left | stays).items():
        (tmp_path / name).write_text(content)
    os.utime(tmp_path / "lock.ba9876543210", (0, 0))
    with lock(tmp_path / "lock", "the run"):
        assert {*os.listdir(tmp_path)} == {"lock", *stays}
