"""The loop that keeps workers alive ends when it should, and only then."""

from __future__ import annotations

import sys

import pytest

from chemscale.runtime.supervise import _lifetime, supervise

COUNT = "import sys, pathlib; p = pathlib.Path({file!r}); n = int(p.read_text()) if p.exists() else 0; " \
    "p.write_text(str(n + 1)); sys.exit({statuses!r}[min(n, len({statuses!r}) - 1)])"  # fmt: skip


@pytest.mark.parametrize(
    ("statuses", "lifetime", "starts", "status"),
    [
        ([0], 0.0, 1, 0),  # the planned end
        ([1, 1, 0], 0.0, 3, 0),  # two failures, then the planned end
        ([3], None, 8, 3),  # never comes up: its own status
        ([0, 1], None, 6, 0),  # cut off in good order, and then no scheduler any more
        ([0, 1, 0, 1], None, 8, 0),  # back in between
    ],
)
def test_when_it_ends(tmp_path, statuses, lifetime, starts, status):
    file = tmp_path / "n"
    command = [sys.executable, "-c", COUNT.format(file=str(file), statuses=statuses)]
    assert supervise(command, max_fast_failures=8, pause=0.01, lifetime=lifetime) == status
    assert int(file.read_text()) == starts


def test_lifetime_is_read_from_the_arguments():
    assert _lifetime(["--lifetime", "10minutes", "--lifetime-stagger", "2minutes"]) == 480
    assert _lifetime(["--nthreads", "1"]) is None
