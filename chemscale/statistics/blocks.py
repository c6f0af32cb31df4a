"""The Dask layer under the statistics: map a kernel over blocks of stars, combine in a tree.

Graph size: one task per block (Dask fuses the reading of flux, flags and ivar into the
kernel's task) plus 1/3 of a combining task. Block results are small sums, so a worker holds
the block it is working on and nothing else.

Threads. Workers and BLAS would otherwise each start one thread per core. Inside a block task BLAS is
limited to ``cores / task threads`` (at least one) with threadpoolctl, once per process, so that the product of
both equals the number of cores. Several single-threaded tasks at once beat one task with a many-threaded
BLAS, because reading, decompressing and element-wise steps then run in parallel, too.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import dask
import dask.array as da
import numpy as np
from dask.delayed import Delayed
from threadpoolctl import ThreadpoolController

from chemscale.errors import InputError

T = TypeVar("T")

#: Partial results combined in one task.
FAN_IN = 4

_lock = threading.Lock()
_libraries: list[tuple[Any, int]] | None = None  # BLAS libraries and the threads they started with
_limit = 0


def available_cores() -> int:
    """Cores this process may use (its CPU affinity)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_cores(task_threads: int) -> None:
    """Limit BLAS in this process to its share of the cores when `task_threads` tasks run at once.

    Never more than the threads BLAS started with (``OMP_NUM_THREADS``). The limit is process-wide and
    costs a library scan the first time; repeated calls with the same value return at once.
    """
    global _libraries, _limit
    want = max(1, available_cores() // max(1, task_threads))
    with _lock:
        if want == _limit:
            return
        if _libraries is None:
            found = ThreadpoolController().select(user_api="blas").lib_controllers
            _libraries = [(library, library.num_threads) for library in found]
        for library, most in _libraries:
            library.set_num_threads(min(want, most))
        _limit = want


def task_threads() -> int:
    """Tasks that may run at once on this machine, seen from inside a task.

    On a distributed worker: its threads times the number of workers sharing its host's cores, as announced by the
    environment variable ``CHEMSCALE_WORKERS_PER_HOST`` (default: one worker per core share, which
    a worker pinned to its own cores gets from its affinity). In the threaded scheduler: the size of the pool.
    """
    try:
        from distributed import get_worker

        worker = get_worker()
    except (ImportError, ValueError):
        pool = dask.config.get("pool", None)
        if pool is not None and hasattr(pool, "_max_workers"):
            return int(pool._max_workers)
        scheduler = dask.config.get("scheduler", None)
        if scheduler in ("synchronous", "sync", "single-threaded"):
            return 1
        return int(dask.config.get("num_workers", None) or available_cores())
    siblings = int(os.environ.get("CHEMSCALE_WORKERS_PER_HOST", "0")) or 1
    return worker.state.nthreads * siblings


def align(arrays: Sequence[Any], rows: tuple[int, ...]) -> list[da.Array]:
    """Dask arrays with the chunks `rows` along stars and one chunk along every other dimension."""
    out = []
    for array in arrays:
        if not isinstance(array, da.Array):
            array = da.from_array(np.asarray(array), chunks=(rows, *(-1,) * (array.ndim - 1)))
        out.append(array.rechunk({0: rows, **dict.fromkeys(range(1, array.ndim), -1)}))
    return out


def map_blocks(function: Callable[..., Any], arrays: Sequence[Any], rows: tuple[int, ...]) -> list[Delayed]:
    """One delayed ``function(*blocks)`` per block of rows, fused with the tasks that load the blocks.

    Parameters
    ----------
    function : callable
        Called with one NumPy block per array; may return anything.
    arrays : sequence of array
        First dimension stars; any chunking (they are rechunked to `rows`).
    """
    if not rows:
        raise InputError("there are no stars", "pass at least one star")
    # Every axis but the first has one chunk, so all arrays may share the names of the axes; an output with the
    # same axes (not a contraction) is what lets Dask fuse the loading tasks.
    axes = ("star", "pixel", "third")
    aligned = align(arrays, rows)
    ndim = max(array.ndim for array in aligned)
    indexed = [item for array in aligned for item in (array, axes[: array.ndim])]
    result = da.blockwise(
        call,
        axes[:ndim],
        *indexed,
        function=function,
        dtype=object,
        adjust_chunks=dict.fromkeys(axes[:ndim], lambda n: 1),
        align_arrays=False,
        meta=np.empty((0,) * ndim, dtype=object),
    )
    return list(result.to_delayed(optimize_graph=True).ravel())


def call(*blocks: np.ndarray, function: Callable[..., Any]) -> Any:
    """``function(*blocks)`` inside a task, with BLAS limited to the task's share of the cores."""
    share_cores(task_threads())
    return function(*blocks)


def tree(parts: list[Delayed], combine: Callable[..., T]) -> Delayed:
    """Combine delayed results pairwise in a tree of fan-in :data:`FAN_IN`; lazy."""
    step = dask.delayed(combine, pure=False)
    while len(parts) > 1:
        parts = [step(*parts[i : i + FAN_IN]) for i in range(0, len(parts), FAN_IN)]
    return parts[0]


def finish(total: Delayed, function: Callable[..., Any]) -> Delayed:
    """Lazy ``function(total)``."""
    return dask.delayed(function, pure=False)(total)
