"""Work through the shards of a survey on a cluster: bounded, resumable, and blaming the right one.

The contract between this module and those who use it (ingestion, embedding, inference):

- a *shard* is a piece of work with a key and a small description (a range of stars, a
  list of files), never the spectra themselves;
- ``func(item)`` runs on a worker, reads what it needs, **writes its own output** (aligned
  with the store's shards, so nobody else writes there) and returns a small summary. Doing
  a shard twice gives the same bytes, so a retry is always safe;
- models and other large constants are not part of `func`: it gets them with
  :func:`per_worker`, which loads them once a process, or as `shared`, which is sent to each worker once;
- whoever calls keeps the ledger: ``done`` lists the keys that need no work, ``on_result``
  is called on the client, in order of completion, for each finished shard. What was
  handed to `on_result` is never computed again; a run that is stopped loses at most what
  each worker thread had in hand.

What happens when things go wrong:

==================================  =====================================================
a worker dies, is killed, loses     Dask moves its shards to other workers; the dead one
its network, runs out of memory     is replaced by its nanny or supervisor
a shard raises                      tried again `retries` times; a `ChemscaleError`
                                    (bad data, not bad luck) is not
a shard's workers die               after Dask's own limit it runs again **alone**, so that
                                    neighbours are not blamed; if it kills once more it is
                                    named as poison, and the rest completes
the scheduler is gone for           `ClusterError`; the same command resumes
`lost_timeout`
no worker for `stall_timeout`       `ClusterError`
SIGTERM, Ctrl-C                     finished shards go to `on_result`, the others are
                                    cancelled, the exception goes on
==================================  =====================================================
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from chemscale.errors import ChemscaleError
from chemscale.runtime.liveness import LOST_AFTER, STALL_AFTER, Liveness
from chemscale.runtime.observe import Progress, progress_bar
from chemscale.runtime.outcome import ShardFailure, ShardReport

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)
K = TypeVar("K", bound=Hashable)

#: Shards submitted to a thread of the cluster before its results are back: one in hand and one waiting at every
#: thread, so that none is idle while a result travels (at 1.5 they were, a tenth of the time), and a dying worker takes
#: few along.
SHARDS_A_THREAD = 2.0
#: Seconds between looks at the cluster (size, connection) while results arrive.
TICK = 1.0
#: Results are waited for until there are a sixteenth as many as the cluster has threads, or so many seconds: shards
#: handed over together cost a scheduler a third of what they cost one by one, and every thread has one waiting.
SHARE, PATIENCE = 16, 0.05
#: Seconds the results of shards may take to arrive.
FETCH = 60.0
#: Times one shard may lose its worker or connection before that counts as its own failure.
MAX_LOSSES = 10


_CACHE: dict[Hashable, Any] = {}
_CACHE_LOCK = threading.Lock()


def per_worker(key: Hashable, make: Callable[[], Any]) -> Any:
    """``make()``, once for each worker process and key; later calls get the same object."""
    with _CACHE_LOCK:
        if key not in _CACHE:
            _CACHE[key] = make()
        return _CACHE[key]


def map_shards(
    func: Callable[..., Any],
    shards: Mapping[K, Any] | Iterable[K],
    client: Client | None = None,
    *,
    shared: Any = None,
    done: Collection[K] = (),
    on_result: Callable[[K, Any], None] | None = None,
    results: bool = True,
    retries: int = 2,
    policy: Literal["finish", "stop"] = "finish",
    resources: Mapping[str, float] | None = None,
    shards_a_thread: float = SHARDS_A_THREAD,
    stall_timeout: float = STALL_AFTER,
    lost_timeout: float = LOST_AFTER,
    description: str = "",
    unit: str = "shard",
    weight: Callable[[K], float] | None = None,
    show: bool | None = None,
) -> ShardReport:
    """Run `func` over every shard that is not `done`.

    Parameters
    ----------
    func : callable
        ``func(item) -> small result``; importable on the workers, see the contract above.
    shards : mapping or iterable
        Key -> item, or keys that are their own items.
    client : distributed.Client, optional
        Without one the shards are done here, one after the other, under the same rules.
    shared : object, optional
        Second argument of every call of `func`, when given.
    done : collection of keys
        Already done (from the caller's ledger): skipped.
    on_result : callable, optional
        ``on_result(key, result)``, on the client, as soon as a shard is finished: mark it there.
    results : bool
        False: what `func` returns stays where it is and counts as None. Fetching it costs the scheduler as much as
        the shard.
    retries : int
        Further attempts for a shard that raises.
    policy : {'finish', 'stop'}
        After a shard has failed for good: finish the others and report it (the caller decides,
        usually with :meth:`ShardReport.raise_for_failures`), or stop at once.
    resources : mapping, optional
        Worker resources a shard needs, such as ``{"GPU": 1}``.
    shards_a_thread : float
        Shards in flight, as a multiple of the cluster's threads (of the units of `resources`).
    stall_timeout : float
        Seconds without a worker before giving up.
    lost_timeout : float
        Seconds without an answer of the scheduler before it counts as gone.
    weight : callable, optional
        Units of progress of a shard (its stars), for the bar.

    Returns
    -------
    ShardReport

    Raises
    ------
    ClusterError
        The scheduler is gone, or no worker is left. Finished shards have been handed over.
    ShardsFailed
        With ``policy="stop"``, at the first shard that failed for good.
    """
    items = dict(shards) if isinstance(shards, Mapping) else {k: k for k in shards}
    skip = set(done)
    todo = [k for k in items if k not in skip]
    report = ShardReport(total=len(items), skipped=len(items) - len(todo))
    size = weight or (lambda key: 1.0)
    start = time.monotonic()
    with progress_bar(sum(size(k) for k in todo), description, unit=unit, show=show) as bar:
        work = _Work(func, items, shared, report, on_result, results, retries, policy, bar, size)
        if client is None:
            work.serial(todo)
        else:
            work.on_cluster(todo, client, resources, shards_a_thread, stall_timeout, lost_timeout)
    report.seconds = time.monotonic() - start
    return report


@dataclass
class _Work:
    """State of one :func:`map_shards` call."""

    func: Callable[..., Any]
    items: dict[Any, Any]
    shared: Any
    report: ShardReport
    on_result: Callable[[Any, Any], None] | None
    results: bool
    retries: int
    policy: str
    bar: Progress
    size: Callable[[Any], float]
    attempts: dict[Any, int] = field(default_factory=dict)
    pending: deque[Any] = field(default_factory=deque)
    suspects: deque[Any] = field(default_factory=deque)
    alone: Any = None
    sent: Any = None
    flight: dict[Any, Any] = field(default_factory=dict)
    finished: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue)
    ended: deque[tuple[Any, Any]] = field(default_factory=deque)

    def serial(self, todo: list[Any]) -> None:
        self.pending.extend(todo)
        while self.pending:
            key = self.pending.popleft()
            try:
                result = self.func(self.items[key], *(() if self.shared is None else (self.shared,)))
            except Exception as err:
                self.failed(key, err)
            else:
                self.succeeded(key, result if self.results else None)

    def succeeded(self, key: Any, result: Any) -> None:
        if self.on_result is not None:
            self.on_result(key, result)
        else:
            self.report.results[key] = result
        self.report.done += 1
        self.bar.advance(self.size(key))

    def failed(self, key: Any, err: BaseException) -> None:
        """Retry a shard that raised, or give it up."""
        self.attempts[key] = self.attempts.get(key, 0) + 1
        hopeless = isinstance(err, ChemscaleError)
        if not hopeless and self.attempts[key] <= self.retries:
            logger.warning("shard %s: %s: %s; trying again", key, type(err).__name__, err)
            self.report.retried += 1
            self.pending.append(key)
            return
        message = err.message if isinstance(err, ChemscaleError) else f"{type(err).__name__}: {err}"
        remedy = err.remedy if isinstance(err, ChemscaleError) else ""
        self.give_up(ShardFailure(key, "error", self.attempts[key], message, remedy))

    def killed(self, key: Any, err: BaseException) -> None:
        """A shard whose workers died: once more with nothing beside it, then it is poison."""
        deaths = self.attempts.get(("deaths", key), 0) + _allowed_failures(err) + 1
        self.attempts[("deaths", key)] = deaths
        if self.alone == key:
            self.give_up(
                ShardFailure(key, "killed", deaths, "its workers died, the last time with nothing else running")
            )
            return
        logger.warning("shard %s: %d workers died while it was in hand; it will run alone", key, deaths)
        self.report.retried += 1
        self.suspects.append(key)

    def give_up(self, failure: ShardFailure) -> None:
        self.report.failures.append(failure)
        logger.error("shard %s given up (%s): %s", failure.key, failure.kind, failure.message)
        if self.policy == "stop":
            self.report.raise_for_failures()

    def on_cluster(
        self,
        todo: list[Any],
        client: Client,
        resources: Mapping[str, float] | None,
        shards_a_thread: float,
        stall_timeout: float,
        lost_timeout: float,
    ) -> None:
        self.pending.extend(todo)
        watch = Liveness(client, resources, lost_after=lost_timeout, stall_after=stall_timeout)
        slots, looked = 0, 0.0
        try:
            while self.pending or self.flight or self.suspects:
                if time.monotonic() - looked > TICK or not slots or client.status != "running":
                    slots, looked = watch.slots(f"{self.report.done} shards are done"), time.monotonic()
                self._submit(client, resources, max(1, int(slots * shards_a_thread + 0.999)) if slots else 0)
                self._wait(slots // SHARE)
                fetched = self._fetched(client)
                while self.ended:
                    self._settle(*self.ended.popleft(), client, fetched)
        except BaseException:
            self._hand_over()
            raise
        finally:
            if self.flight:
                _cancel(client, list(self.flight.values()))
                self.flight.clear()

    def _wait(self, enough: int) -> None:
        """Move finished shards to `ended`: those there are, or the first within `TICK` and `enough` more."""
        until = time.monotonic() + TICK
        while True:
            try:
                wait = until - time.monotonic() if len(self.ended) < max(1, enough) else 0.0
                self.ended.append(self.finished.get(timeout=wait) if wait > 0 else self.finished.get_nowait())
            except queue.Empty:
                return
            if len(self.ended) == 1:
                until = time.monotonic() + PATIENCE

    def _fetched(self, client: Client) -> dict[Any, Any]:
        """Results of what has ended well, all in one trip; none where that fails: they are fetched one by one."""
        ready = [future for _, future in self.ended if future.status == "finished"]
        if not self.results or not ready:
            return dict.fromkeys(future.key for future in ready)
        try:
            values = client.sync(client._gather, ready, callback_timeout=FETCH)
        except Exception as err:
            logger.debug("%d results not fetched together: %s", len(ready), err)
            return {}
        return {future.key: value for future, value in zip(ready, values)}

    def _submit(self, client: Client, resources: Mapping[str, float] | None, window: int) -> None:
        """Keep `window` shards in flight; suspects only one at a time and with nothing beside them."""
        if not self.pending and not self.flight and self.suspects and window:
            self.alone = self.suspects.popleft()
            self.pending.append(self.alone)
            window = 1
        elif self.alone is not None and self.flight:
            return
        keys = [self.pending.popleft() for _ in range(min(len(self.pending), window - len(self.flight)))]
        if not keys:
            return
        needs = dict(resources or {}) or None
        try:
            more = () if self.shared is None else ([self._sent(client)] * len(keys),)
            futures = client.map(self.func, [self.items[k] for k in keys], *more, pure=False, resources=needs)
        except Exception as err:
            if client.status == "running" and not isinstance(err, CancelledError):
                raise
            logger.debug("%d shards not submitted, the connection broke: %s", len(keys), err)
            self.pending.extendleft(reversed(keys))
            return
        for key, future in zip(keys, futures):
            self.flight[key] = future
            # the callback only passes the future on: results are looked at in this thread
            future.add_done_callback(lambda f, k=key: self.finished.put((k, f)))

    def _sent(self, client: Client) -> Any:
        """`shared` as a task of its own, which goes from worker to worker; sent again after a lost connection."""
        if self.sent is None or self.sent.status in ("cancelled", "lost"):
            self.sent = client.submit(_keep, self.shared, pure=False)
        return self.sent

    def _settle(self, key: Any, future: Any, client: Client, fetched: Mapping[Any, Any]) -> None:
        """Deal with a future that ended; `fetched` has the results of those that finished."""
        from distributed import KilledWorker

        if key not in self.flight or self.flight[key] is not future:
            return  # of an attempt that was given up
        del self.flight[key]
        try:
            result = fetched[future.key] if future.key in fetched else future.result(timeout=FETCH)
        except KilledWorker as err:
            self.killed(key, err)
        except (CancelledError, ConnectionError) as err:
            # its worker, the network or the scheduler was lost, not its doing: again, but not for ever
            losses = self.attempts.get(("losses", key), 0) + 1
            self.attempts["losses", key] = losses
            if losses > MAX_LOSSES:
                self.failed(key, err)
            else:
                self.report.retried += 1
                self.pending.append(key)
        except Exception as err:
            self.failed(key, err)
        else:
            self.succeeded(key, result)
        future.release()
        if self.alone == key and key not in self.pending:
            self.alone = None

    def _hand_over(self) -> None:
        """Before leaving early: what has finished goes to `on_result`, so that it need not be done again."""
        while True:
            try:
                key, future = self.ended.popleft() if self.ended else self.finished.get_nowait()
            except queue.Empty:
                return
            if key not in self.flight or self.flight[key] is not future:
                continue
            del self.flight[key]
            try:
                if future.status == "finished":
                    self.succeeded(key, future.result(timeout=5) if self.results else None)
            except Exception as err:
                logger.warning("shard %s had finished but its result is lost: %s", key, err)


def _keep(thing: Any) -> Any:
    return thing


def _cancel(client: Client, futures: list[Any]) -> None:
    try:
        client.cancel(futures, asynchronous=False, force=True)
    except Exception as err:
        logger.debug("cancelling: %s", err)


def _allowed_failures(err: BaseException) -> int:
    return int(getattr(err, "allowed_failures", 0) or 0)
