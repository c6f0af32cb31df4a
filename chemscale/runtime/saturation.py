"""The scheduler alone: real graphs and shard lists with tasks that do nothing, on many simulated workers.

A simulated worker is a Dask worker in this process (``inproc``), so that neither the network
nor the work hides what the scheduler costs. The event loop serves scheduler, workers and
client alike, hence what is measured is an upper bound of the scheduler's own cost per task.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from .scaling import provenance
from .shards import AHEAD

#: Stars in a task: a shard for ingestion and inference, a chunk for the passes of a fit.
SHARD_STARS, CHUNK_STARS = 4096, 4096


def graph_tasks(stars: int, passes: int = 6, chunk: int = CHUNK_STARS, shard: int = SHARD_STARS) -> dict[str, int]:
    """Tasks of each stage for `stars` stars, and the most that are in the scheduler at once.

    A pass of the fit has one task a chunk (read, mask and sums in one) and a reduction of 1/7 of
    that more (tree of eight); passes follow each other. Embedding goes through parts of 65,536
    stars, ingestion and inference through shards a few ahead of the workers.
    """
    chunks, shards = -(-stars // chunk), -(-stars // shard)
    return {
        "ingest": shards,
        "fit (a pass)": chunks + chunks // 7 + 1,
        "fit (all passes)": passes * (chunks + chunks // 7 + 1),
        "embed": chunks,
        "infer": shards,
        "largest graph at once": chunks + chunks // 7 + 1,
    }


async def _measure(workers: int, tasks: int, submit: str, seconds_per_task: float) -> dict[str, float]:
    import psutil
    from distributed import Client, Scheduler, Worker

    process = psutil.Process()
    async with Scheduler(dashboard=False, host=None, protocol="inproc://", port=0) as scheduler:
        pool = [
            Worker(scheduler.address, nthreads=1, dashboard=False, heartbeat_interval="60s", memory_limit=0, nanny=None)
            for _ in range(workers)
        ]
        await asyncio.gather(*pool)
        async with Client(scheduler.address, asynchronous=True) as client:
            await client.gather(client.map(_nothing, range(workers), pure=False))
            before = process.memory_info().rss
            cpu, begun = time.process_time(), time.perf_counter()
            if submit == "shards":
                await _bounded(client, tasks, workers, seconds_per_task)
            else:
                await _graph(client, tasks)
            wall, used = time.perf_counter() - begun, time.process_time() - cpu
            memory = process.memory_info().rss - before
        await asyncio.gather(*(w.close(nanny=False, executor_wait=False) for w in pool))
    return {"seconds": wall, "cpu_seconds": used, "tasks_per_s": tasks / wall, "memory_bytes": max(0, memory)}


def _nothing(x: Any) -> Any:
    return None


async def _bounded(client: Any, tasks: int, workers: int, seconds: float) -> None:
    """As :func:`~chemscale.runtime.shards.map_shards` submits: a few more in flight than there are threads."""
    from distributed import as_completed

    window = max(1, int(workers * AHEAD))
    numbers = iter(range(tasks))
    first = [client.submit(_nothing, i, pure=False) for i, _ in zip(numbers, range(window))]
    ended = as_completed(first)
    async for future in ended:
        future.release()
        number = next(numbers, None)
        if number is not None:
            ended.add(client.submit(_nothing, number, pure=False))


async def _graph(client: Any, tasks: int) -> None:
    """As a pass of the fit: independent blocks reduced by a tree of eight."""
    import dask

    leaves = [dask.delayed(_nothing, pure=False)(i) for i in range(tasks * 7 // 8)]
    while len(leaves) > 1:
        leaves = [dask.delayed(_nothing, pure=False)(leaves[i : i + 8]) for i in range(0, len(leaves), 8)]
    await client.compute(leaves[0], optimize_graph=False)


def measure(workers: list[int], tasks: int = 5000, report: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Tasks a second the scheduler sustains with `workers` simulated workers, for shard lists and graphs.

    Returns
    -------
    dict
        `rows`: workers, submit ('shards' or 'graph'), tasks, tasks_per_s, cpu_us_per_task (scheduler, client
        and all workers in one process: an upper bound), bytes_per_task.
    """
    import dask
    import distributed  # noqa: F401  before config.set, which it would otherwise override

    rows = []
    quiet = {"distributed.scheduler.work-stealing": True, "distributed.admin.tick.limit": "1h"}
    with dask.config.set(quiet):
        for n in workers:
            for submit in ("shards", "graph"):
                m = asyncio.run(_measure(n, tasks, submit, 0.0))
                rows.append({
                    "workers": n, "submit": submit, "tasks": tasks, "tasks_per_s": m["tasks_per_s"],
                    "cpu_us_per_task": 1e6 * m["cpu_seconds"] / tasks, "bytes_per_task": m["memory_bytes"] / tasks,
                })  # fmt: skip
                report(f"{n} workers, {submit}: {m['tasks_per_s']:.0f} tasks/s")
    return {"scheduler": rows} | provenance()


def busy_fraction(stars_per_s_worker: float, workers: int, us_per_task: float, stars_per_task: int) -> float:
    """Share of its time a scheduler spends when `workers` work at their full rate."""
    return stars_per_s_worker * workers / stars_per_task * us_per_task * 1e-6
