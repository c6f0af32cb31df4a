"""Groups of blocks as one task, read by the worker itself: what keeps graphs small at any number of stars.

A Dask graph with a task for each block makes the scheduler the slowest part of a large cluster. A *group* of
neighbouring blocks is read by one task, which works through one after the other and adds up, so that its memory is
that of a block and its result that of a block, and a pass over 10^8 stars takes some five thousand tasks. What
every task of a pass needs (the model, the store's description) is one object of the graph, sent to each
worker once and passed on from worker to worker.

Only arrays that are rows of a store, as :func:`chemscale.open_survey` makes them, can be read that way:
:func:`readers_of` tells.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import dask
import numpy as np
from dask.delayed import Delayed

from chemscale.errors import ClusterError
from chemscale.runtime.cluster import current_client
from chemscale.runtime.liveness import AGAIN, Liveness

if TYPE_CHECKING:
    from distributed import Client

#: Groups a pass is made of at most: a few for each of a thousand workers, so that uneven ones even out.
MAX_GROUPS = 4096
#: Seconds between looks at the cluster while a pass goes on.
POLL_SECONDS = 5.0


class Reader(Protocol):
    """What a group reads from: rows of a variable of a store."""

    shape: tuple[int, ...]

    def read(self, start: int, stop: int, reuse: bool = False, out: np.ndarray | None = None) -> np.ndarray:
        """Rows ``[start, stop)``; with `reuse` they need not outlive the next such read.

        `out` is where they are wanted: it is what comes back wherever nothing has to be done to the stored values.
        """
        ...


def readers_of(arrays: Sequence[Any]) -> list[Reader] | None:
    """The stores' rows behind Dask arrays; None unless every array is nothing but such rows."""
    found = [_reader(a) for a in arrays]
    return None if any(r is None for r in found) else found  # type: ignore[return-value]


def _reader(array: Any) -> Reader | None:
    graph = getattr(array, "dask", None)
    name = f"original-{getattr(array, 'name', '')}"
    layers = getattr(graph, "layers", {})
    if set(layers) != {name, getattr(array, "name", "")}:
        return None
    node = dict(layers[name]).get(name)
    rows = getattr(node, "value", node)  # a data node, or the object itself
    return rows if hasattr(rows, "read") and getattr(rows, "shape", None) == array.shape else None


def group_size(n: int, most: int = MAX_GROUPS) -> int:
    """Blocks in a group, of `n` in all. Depends on nothing else, so that results do not depend on the cluster."""
    return max(1, -(-n // most))


@dataclass(frozen=True)
class SharedInputs:
    """What the groups of a pass have in common."""

    function: Callable[..., Any]
    combine: Callable[[Any, Any], Any]
    readers: list[Reader]


def map_groups(
    function: Callable[..., Any],
    combine: Callable[[Any, Any], Any],
    sources: list[Reader],
    rows: Sequence[int],
    stars: np.ndarray,
) -> list[Delayed]:
    """Delayed sums over groups of blocks; groups without a chosen star are left out.

    Parameters
    ----------
    function : callable
        ``function(stars of the block, one NumPy block per reader)``; must not keep the blocks (:meth:`Reader.read`).
    combine : callable
        ``combine(total or None, result of a block)`` -> new total; may change the total in place.
    rows : sequence of int
        Stars of each block.
    stars : ndarray of bool (star, columns)
        Travels with the groups; the first column says which stars are chosen.
    """
    shared = dask.delayed(_keep, pure=False)(SharedInputs(function, combine, sources))
    call = dask.delayed(run_group, pure=False, traverse=False)
    edges = np.concatenate([[0], np.cumsum(rows)]).astype(int)
    size, parts = group_size(len(rows)), []
    for first in range(0, len(rows), size):
        inner = edges[first : first + size + 1]
        marks = stars[inner[0] : inner[-1]]
        if not marks[:, 0].any():
            continue
        whole = bool(marks.all())
        packed = None if whole else np.packbits(marks, axis=0)
        name = f"stars-{inner[0]}-{inner[-1]}-{uuid.uuid4().hex}"  # an error names its task
        edge = tuple(int(e) for e in inner)
        parts.append(partial(call, shared, edge, packed, stars.shape[1], dask_key_name=name))
    return in_order_on_workers(parts)


def in_order_on_workers(tasks: Sequence[Callable[[], Delayed]]) -> list[Delayed]:
    """Make delayed tasks so that neighbours run on one worker, where their results are then added up.

    Left to itself the scheduler deals neighbours out to different workers, and most partial sums travel; and a worker
    without a task in hand waits for the scheduler after each, milliseconds that no pinned task costs. Only a
    preference: a worker with nothing to do takes over tasks of others, and those of a lost worker go elsewhere.
    Results do not depend on where tasks run.
    """
    client = current_client()
    workers = {} if client is None else client.scheduler_info(n_workers=-1)["workers"]
    homes = [address for address in sorted(workers) for _ in range(workers[address]["nthreads"])]
    if not homes:
        return [task() for task in tasks]
    made = []
    for i, task in enumerate(tasks):
        with dask.annotate(workers=[homes[i * len(homes) // len(tasks)]], allow_other_workers=True):
            made.append(task())
    return made


def compute_sum(total: Delayed) -> Any:
    """The value of a sum over groups.

    Raises
    ------
    ClusterError
        A group whose workers died again and again (its stars are named), or the scheduler is gone.
    """
    from concurrent.futures import CancelledError

    from distributed import KilledWorker
    from distributed.comm import CommClosedError

    client = current_client()
    try:
        return dask.compute(total)[0] if client is None else _on_cluster(client, total)
    except KilledWorker as err:
        task = str(err.task)
        what = " to ".join(task.split("-")[1:3]) if task.startswith("stars-") else task
        raise ClusterError(
            f"stars {what}: their worker died {err.allowed_failures + 1} times while they were read and added up",
            "more memory for each worker, or `chemscale verify` of the store; a sum cannot leave them out",
        ) from err
    except (CancelledError, CommClosedError) as err:
        raise ClusterError(
            "the connection to the scheduler was lost in the middle of a pass over the survey",
            f"start the cluster again; {AGAIN}",
        ) from err


def _on_cluster(client: Client, total: Delayed) -> Any:
    """As ``dask.compute``, which would wait for ever for a cluster without workers."""
    from concurrent.futures import CancelledError

    from distributed import wait

    watch = Liveness(client)
    future = client.compute(total)
    try:
        while not future.done():
            try:
                wait(future, timeout=POLL_SECONDS)
            except TimeoutError:
                watch.slots("it was in the middle of a pass over the survey")
            except CancelledError:
                break
        return future.result()
    finally:
        future.release()


def _keep(thing: Any) -> Any:
    return thing


def run_group(shared: SharedInputs, edges: tuple[int, ...], packed: np.ndarray | None, columns: int) -> Any:
    """Work through the blocks between `edges`; runs on a worker."""
    n = edges[-1] - edges[0]
    if packed is None:
        marks = np.ones((n, columns), dtype=bool)
    else:
        marks = np.unpackbits(packed, axis=0, count=n).astype(bool)
    total = None
    for start, stop in itertools.pairwise(edges):
        stars = marks[start - edges[0] : stop - edges[0]]
        if stars[:, 0].any():
            found = (r.read(start, stop, reuse=True) for r in shared.readers)
            total = shared.combine(total, shared.function(stars, *found))
    return total


def split_at_blocks(start: int, stop: int, edges: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of rows between `start` and `stop`, cut where blocks of the store begin."""
    inner = edges[(edges > start) & (edges < stop)]
    bounds = [start, *(int(e) for e in inner), stop]
    return itertools.pairwise(bounds)
