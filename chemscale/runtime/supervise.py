"""Keep a Dask worker alive: start it, and start it again when it ends for a reason that may pass.

``python -m chemscale.runtime.supervise ARGUMENTS OF dask worker``

A Dask worker that loses its connection does not come back (distributed #6391): with
``--death-timeout`` it ends, and this loop starts another. It stops

- when it is told to (SIGTERM, SIGINT: passed on, the worker given time to leave);
- when the worker's ``--lifetime`` is over, or its scheduler is gone for good. (Exit status 0 alone tells
  neither: a worker that was cut off by the network leaves in good order, too. So it is started again, and
  when that one finds no scheduler within its ``--death-timeout``, `MAX_AFTER_GOOD_END` times, that is the end.)
- when the worker failed `MAX_FAST_FAILURES` times in a row within seconds of starting (a wrong
  address or certificate does not heal), ending with the worker's own status.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise

logger = logging.getLogger("chemscale.supervise")

MAX_FAST_FAILURES = 20
MAX_AFTER_GOOD_END = 5
#: A worker that lived this long had joined the cluster: count its failures anew.
HEALTHY_SECONDS = 150.0
GRACE_SECONDS = 20.0


def supervise(
    command: Sequence[str],
    *,
    max_fast_failures: int = MAX_FAST_FAILURES,
    pause: float = 1.0,
    lifetime: float | None = None,
) -> int:
    """Run `command` until it succeeds, is told to stop, or keeps failing at once.

    Parameters
    ----------
    command : sequence of str
        The program and its arguments.
    max_fast_failures : int
        Failures in a row, each within `HEALTHY_SECONDS`, before giving up.
    lifetime : float, optional
        Seconds after which an end with status 0 is the planned one.
    pause : float
        Seconds before the first restart; doubled each time, at most 10.

    Returns
    -------
    int
        Exit status: 0 after an orderly end, that of the last failure otherwise.
    """
    child: subprocess.Popen[bytes] | None = None
    stopping = False

    def stop(signum: int, frame: object) -> None:
        nonlocal stopping
        stopping = True
        if child is not None and child.poll() is None:
            child.send_signal(signal.SIGTERM)

    before = {s: signal.signal(s, stop) for s in (signal.SIGTERM, signal.SIGINT)}
    failures, good_end = 0, False
    try:
        while True:
            started = time.monotonic()
            child = subprocess.Popen(command)
            status = _wait(child, lambda: stopping)
            lived = time.monotonic() - started
            if stopping or (status == 0 and lifetime is not None and lived >= lifetime):
                return 0
            if status == 0:
                good_end, failures = True, 0
            else:
                failures = 1 if lived > HEALTHY_SECONDS else failures + 1
            if good_end and failures >= MAX_AFTER_GOOD_END:
                return 0
            if failures >= max_fast_failures:
                logger.error("gave up after %d failures in a row (status %d)", failures, status)
                return status if status > 0 else 1
            delay = min(10.0, pause * 2.0 ** max(0, failures - 1))
            logger.warning("worker ended with status %d after %.0f s; starting another in %.0f s", status, lived, delay)
            deadline = time.monotonic() + delay
            while time.monotonic() < deadline and not stopping:
                time.sleep(0.1)
            if stopping:
                return 0
    finally:
        if child is not None and child.poll() is None:
            child.kill()
            child.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(child: subprocess.Popen[bytes], stopping: object) -> int:
    """Exit status of `child`; once told to stop it has `GRACE_SECONDS` before it is killed."""
    deadline: float | None = None
    while True:
        try:
            return child.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            if callable(stopping) and stopping():
                deadline = deadline or time.monotonic() + GRACE_SECONDS
                if time.monotonic() > deadline:
                    child.kill()


def main(arguments: Sequence[str] | None = None) -> int:
    """Supervise ``dask worker`` with the arguments of this process."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    given = list(sys.argv[1:] if arguments is None else arguments)
    return supervise([sys.executable, "-m", "distributed.cli.dask_worker", *given], lifetime=_lifetime(given))


def _lifetime(arguments: Sequence[str]) -> float | None:
    """Shortest planned life of a worker: ``--lifetime`` less its stagger."""
    from dask.utils import parse_timedelta

    named = dict(pairwise(arguments))
    if "--lifetime" not in named:
        return None
    stagger = parse_timedelta(named.get("--lifetime-stagger", "0 s"))
    return max(0.0, parse_timedelta(named["--lifetime"]) - stagger)


if __name__ == "__main__":
    sys.exit(main())
