"""Commands that write a run, ended at any file operation: readers get the old state, the new one, or a clear error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import COMMANDS

DRIVER = Path(__file__).with_name("crash_driver.py")
TESTS = DRIVER.parents[1]


def crash(folder: Path, command: str, how: str, points: int) -> None:
    paths = os.pathsep.join(str(p) for p in (TESTS, TESTS / "vae", TESTS / "survey"))
    env = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, str(DRIVER), str(folder), command, how, str(points)]
    done = subprocess.run(arguments, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert result["bad"] == []
    assert result["operations"] > 1 and result["tried"] == min(points, result["operations"])
    assert sum(result["answers"].values()) == result["tried"]


@pytest.mark.parametrize("command", ["rsca fit", "vae infer"])
def test_a_killed_command_is_never_half_read_and_repeating_it_gives_the_same_bytes(tmp_path, command):
    crash(tmp_path, command, "kill", 4)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("how", ["kill", "ENOSPC", "EIO"])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_every_kind_of_failure(tmp_path, command, how):
    crash(tmp_path, command, how, 300)
