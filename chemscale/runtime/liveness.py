"""Whether a cluster is still there: waiting for it has an end, and the end says what was missing.

A Dask client whose scheduler is gone keeps trying to reconnect, for as long as it was told to wait for a
connection, and a computation without workers waits for ever. Whoever waits for results asks a :class:`Liveness` now
and then instead of trusting either.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from chemscale.errors import ClusterError

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)

#: Seconds without a word from the scheduler before it counts as gone: longer than a link that is down for a while, and
#: than the 30 s after which a silent connection breaks.
LOST_AFTER = 60.0
#: Seconds without a worker before giving up: a queue takes its time.
STALL_AFTER = 600.0
#: Seconds the scheduler may take to answer one question.
ANSWER = 10.0
#: What to do then.
AGAIN = "the same command carries on with what is not done (`chemscale ingest`: with --resume)"


class Liveness:
    """Watches the scheduler and the workers of a client.

    Parameters
    ----------
    resources : mapping, optional
        Only workers that have these count.
    lost_after, stall_after : float
        Seconds without the scheduler, without a worker, before :meth:`slots` raises.
    """

    def __init__(
        self,
        client: Client,
        resources: Mapping[str, float] | None = None,
        *,
        lost_after: float = LOST_AFTER,
        stall_after: float = STALL_AFTER,
    ):
        self.client, self.resources = client, resources
        self.lost_after, self.stall_after = lost_after, stall_after
        self.answered = self.worked = time.monotonic()

    def slots(self, so_far: str = "") -> int:
        """Tasks the cluster can work on at once now: threads, or units of the scarcest resource asked for.

        0 while the scheduler does not answer or has no worker.

        Raises
        ------
        ClusterError
            That has lasted too long; `so_far` is part of the message.
        """
        after = f"; {so_far}" if so_far else ""
        info = self._identity()
        now = time.monotonic()
        if info is None:
            if self.client.status == "closed" or now - self.answered > self.lost_after:
                raise ClusterError(
                    f"the connection to the scheduler is lost{after}",
                    f"start the cluster again; {AGAIN}",
                )
            return 0
        self.answered = now
        slots = self._count(info)
        if slots:
            self.worked = now
        elif now - self.worked > self.stall_after:
            raise ClusterError(
                f"no worker for {self.stall_after:.0f} s{after}",
                f"look at the workers' logs or the queue; {AGAIN}",
            )
        return slots

    def _identity(self) -> dict[str, Any] | None:
        """What the scheduler says of itself (workers only where they are asked for); None when it does not answer."""
        scheduler: Any = self.client.scheduler
        if self.client.status != "running" or scheduler is None:
            return None
        try:
            return self.client.sync(scheduler.identity, n_workers=-1 if self.resources else 0, callback_timeout=ANSWER)
        except Exception as err:
            logger.debug("the scheduler does not answer: %s", err)
            return None

    def _count(self, info: Mapping[str, Any]) -> int:
        if not self.resources:
            return int(info["total_threads"])
        units = (
            min(w["nthreads"], *((w.get("resources") or {}).get(r, 0) / n for r, n in self.resources.items()))
            for w in info["workers"].values()
        )
        return int(sum(units))
