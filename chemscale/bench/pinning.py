"""Workers held to a core of their own, so that a measurement says what a worker is worth and not what cores lay idle.

One worker of one thread on a free machine is more than one core's work: threads that unpack, the client and the
scheduler run beside it, on cores that are gone as soon as every core has a worker. A ratio between such
runs says more about the machine than about the software. Held to as many cores as there are workers, client and
scheduler included, it compares like with like.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distributed import Client


@contextmanager
def a_core_each(client: Client) -> Iterator[bool]:
    """Within the block every worker of a local cluster has one core, and this process those of the workers together.

    Yields
    ------
    bool
        False, and nothing is changed, where that cannot be: more workers than cores, or a system without processor
        affinity (Linux has it). A worker that its nanny starts again in the meantime is free.
    """
    workers = sorted(client.scheduler_info(n_workers=-1)["workers"])
    cores = available()
    if not workers or len(cores) < len(workers):
        yield False
        return
    for core, worker in zip(cores, workers):
        client.run(hold, {core}, workers=[worker])
    hold(set(cores[: len(workers)]))
    try:
        yield True
    finally:
        hold(set(cores))
        client.run(hold, set(cores))


def available() -> list[int]:
    """Cores this process may use; none on a system that cannot say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def hold(cores: set[int]) -> None:
    """Hold this process, all its threads and those they start, to `cores`."""
    for thread in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):  # it has ended
            os.sched_setaffinity(int(thread), cores)
