"""The command line answers at once: processor seconds, so that a busy machine does not decide."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from chemscale.cli import AREAS, command

#: Processor seconds that a start may take where an empty Python starts in `BARE`; in proportion on slower cores.
LIMIT, BARE = 0.5, 0.05


def cpu_seconds(*arguments, starts=8):
    """User and system time of the fastest of so many starts: a core shared with other work only adds to it."""
    spent = []
    for _ in range(starts):
        before = os.times()
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60)
        after = os.times()
        assert done.returncode == 0, done.stderr
        spent.append(after.children_user - before.children_user + after.children_system - before.children_system)
        if spent[-1] <= LIMIT * 0.8:
            break
    return min(spent)


@pytest.fixture(scope="module")
def limit():
    return LIMIT * max(1.0, cpu_seconds("-c", "pass") / BARE)


def verbs(node=None, path=()):
    node = command() if node is None else node
    yield path
    for name, sub in (getattr(node, "commands", None) or {}).items():
        yield from verbs(sub, (*path, name))


def test_importing_takes_half_a_second_at_most(limit):
    assert cpu_seconds("-c", "import chemscale") <= limit


@pytest.mark.parametrize("words", [(), ("vae", "train"), ("ingest", "table"), ("rsca", "fit"), ("report",)])
def test_help_takes_half_a_second_at_most(words, limit):
    assert cpu_seconds("-m", "chemscale", *words, "--help") <= limit


def test_a_verb_alone_is_the_same_command_as_in_the_whole_tree():
    whole = command().commands
    assert sorted(whole) == sorted(verb for verbs in AREAS.values() for verb in verbs)
    program = (
        "import sys\n"
        "from chemscale.cli import AREAS, command\n"
        "print([p.name for p in command(sys.argv[1]).commands[sys.argv[1]].params])\n"
    )
    for verb in ("ingest", "flags", "run"):
        done = subprocess.run([sys.executable, "-c", program, verb], capture_output=True, text=True, timeout=60)
        assert done.stdout.strip() == str([p.name for p in whole[verb].params]), done.stderr


def test_help_of_every_verb_imports_nothing_heavy_and_cuts_no_name_of_an_option():
    """One process walks all of them: none may pull in what makes a start slow, nor need more than 80 columns."""
    program = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from chemscale.cli import command\n"
        "root = command()\n"
        f"paths = {[list(p) for p in verbs()]!r}\n"
        "for path in paths:\n"
        "    done = CliRunner().invoke(root, [*path, '--help'], env={'COLUMNS': '80'})\n"
        "    assert done.exit_code == 0 and '…' not in done.output, (path, done.output)\n"
        "print([m for m in ('torch', 'dask', 'xarray', 'astropy', 'plotly', 'matplotlib') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
