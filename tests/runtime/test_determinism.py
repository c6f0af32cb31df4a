"""The same command gives the same bytes: twice, with one worker and two, with threads and with processes.

Resumed and undisturbed runs are compared in ``test_crashes.py`` and ``tests/survey/store/test_crash.py``.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import dask
import pytest
from commands import COMMANDS, products

from chemscale.runtime.cluster import connect

#: Ways to run each command: Dask's scheduler, or workers of a local cluster.
WAYS = ("again", "threads", "one worker", "two workers")


def carried_out(folder: Path, base: Path, name: str, way: str) -> dict[str, str]:
    """Products of a command done in a copy of `base`; always in the same place, since a run knows where it lies."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder)
    command = COMMANDS[name]
    if way.endswith(("worker", "workers")):
        with connect("local", workers=1 if way == "one worker" else 2, threads=1, memory="1 GiB"):
            command.act(folder)
    else:
        with dask.config.set(scheduler="threads" if way == "threads" else "synchronous"):
            command.act(folder)
    return products(folder)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Folder of a command's inputs, its products, and where it is carried out; made once for each command."""
    made = {}

    def prepare(name: str) -> tuple[Path, dict[str, str], Path]:
        if name not in made:
            top = tmp_path_factory.mktemp("determinism")
            here, base = top / "here", top / "base"
            here.mkdir()
            COMMANDS[name].older(here)
            here.rename(base)
            made[name] = base, carried_out(here, base, name, "synchronous"), here
        return made[name]

    return prepare


def same(prepared, name: str, way: str) -> None:
    base, expected, here = prepared(name)
    found = carried_out(here, base, name, way)
    assert set(found) == set(expected)
    assert [n for n in expected if found[n] != expected[n]] == []


def test_a_fit_on_threads_gives_the_same_bytes(prepared):
    same(prepared, "rsca fit", "threads")


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_gives_the_same_bytes_in_every_way(prepared, name, way):
    same(prepared, name, way)
