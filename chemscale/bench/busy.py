"""How long the workers have nothing to do while a stage goes on: its serial part, counted rather than fitted.

Amdahl's law, fitted to times on a few workers, also counts what they cost each other: cores shared with the scheduler,
memory shared by all. What the client does alone (algebra between passes, files that begin and end a product) is
the part that more workers leave as it is; while it lasts no worker computes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from distributed.diagnostics.plugin import SchedulerPlugin

if TYPE_CHECKING:
    from distributed import Client, Scheduler

_NAME = "chemscale-busy-workers"


class BusyWorkers(SchedulerPlugin):
    """Keeps from when to when each task of the cluster was computed, or its input fetched (seconds since the epoch)."""

    name = _NAME

    def __init__(self) -> None:
        self.intervals: list[tuple[float, float]] = []

    def transition(self, key: Any, start: Any, finish: Any, *args: Any, **kwargs: Any) -> None:
        """Called by the scheduler whenever a task changes its state."""
        if start == "processing" and finish in ("memory", "erred"):
            self.intervals += [(each["start"], each["stop"]) for each in kwargs.get("startstops") or ()]


@contextmanager
def watched(client: Client) -> Iterator[None]:
    """Within the block the scheduler keeps the times of all tasks; a cluster that goes on afterwards must not."""
    client.register_plugin(BusyWorkers(), name=_NAME)
    try:
        yield
    finally:
        client.unregister_scheduler_plugin(_NAME)


def idle_seconds(client: Client, begun: float, ended: float) -> float:
    """Seconds between two times (since the epoch) in which no worker was at work; within :func:`watched`."""
    return uncovered(client.run_on_scheduler(_intervals, begun), begun, ended)


def _intervals(since: float, dask_scheduler: Scheduler) -> list[tuple[float, float]]:
    """Runs on the scheduler; what was before `since` is not wanted again."""
    plugin: Any = dask_scheduler.plugins[_NAME]
    plugin.intervals = [each for each in plugin.intervals if each[1] > since]
    return list(plugin.intervals)


def uncovered(intervals: Iterable[tuple[float, float]], begun: float, ended: float) -> float:
    """Length of what `intervals` leave of the time from `begun` to `ended`.

    >>> uncovered([(2.0, 4.0), (1.0, 3.0), (6.0, 9.0)], 0.0, 8.0)
    3.0
    """
    left, reached = 0.0, begun
    for start, stop in sorted(intervals):
        left += max(0.0, min(start, ended) - reached)
        reached = max(reached, min(stop, ended))
    return left + max(0.0, ended - reached)
