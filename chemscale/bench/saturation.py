"""The scheduler alone: real graphs and shard lists with tasks that do nothing, on many simulated workers.

The scheduler has a process of its own, and its processor time for each task is what counts:
it does not depend on what else the machine does. Simulated workers are Dask workers with one
thread, a hundred in a process, reached through TLS on loopback as in a real cluster.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import psutil

from chemscale.bench.scaling import provenance
from chemscale.errors import ClusterError
from chemscale.runtime.blocks import group_size
from chemscale.runtime.shards import map_shards

#: Ways to give a scheduler its work: shards whose results stay with the workers, shards with results, a graph (a tree).
SUBMIT = ("shards", "results", "graph")
#: Simulated workers in one process.
WORKERS_PER_PROCESS = 100
#: Stars for APOGEE's 7,514 pixels: in a block (the memory of a task), and in a shard of an ingestion.
BLOCK_STARS, SHARD_STARS = 1024, 4608
#: Blocks in a shard of inference at least, and its shards at most (:mod:`chemscale.vae.inference`).
INFER_BLOCKS, INFER_SHARDS = 8, 8192
#: Blocks of the subsample of a fit, and passes over it at most (:mod:`chemscale.statistics.ppca`).
SAMPLE_BLOCKS, SAMPLE_PASSES = 14, 8
#: Tasks of a pass of the fit for each group of blocks: the group, and its share of a tree of fan-in four.
TASKS_PER_GROUP = 4 / 3


def graph_tasks(stars: int, passes: int = 6, block: int = BLOCK_STARS, shard: int = SHARD_STARS) -> dict[str, int]:
    """Tasks of each stage for `stars` stars, and the most that are in the scheduler at once.

    Passes of a fit follow each other, a graph each, of groups of blocks (:mod:`chemscale.runtime.blocks`).
    Ingestion, embedding and inference go through their shards, a few ahead of the workers: what is in the
    scheduler does not grow with the survey.
    """
    blocks, shards = -(-stars // block), -(-stars // shard)
    parts = -(-blocks // group_size(blocks))
    one_pass = int(parts * TASKS_PER_GROUP) + 3  # the tree's incomplete branches, and what the groups share
    # the first keeps its groups, asks each for its counts, and joins their pieces of the subsample
    first_pass = parts + one_pass + SAMPLE_BLOCKS
    return {
        "stars in a group": group_size(blocks) * block,
        "ingest": shards,
        "fit (a pass)": one_pass,
        "fit (the first pass)": first_pass,
        "fit (all passes)": first_pass + (passes - 1) * one_pass + SAMPLE_PASSES * (int(SAMPLE_BLOCKS * 4 / 3) + 3),
        "embed": parts,
        "infer": -(-blocks // max(INFER_BLOCKS, -(-blocks // INFER_SHARDS))),
        "largest graph at once": first_pass,
    }


async def _measure(workers: int, tasks: int, submit: str, tls: str) -> dict[str, float]:
    """The scheduler in this process, workers and client in others: its processor time is its own."""
    from distributed import Scheduler

    from chemscale.runtime import credentials

    security = credentials.read(tls)
    code = "import sys; from chemscale.bench import saturation; saturation.child(sys.argv[1:])"
    children: list[asyncio.subprocess.Process] = []

    async def spawn(*arguments: str) -> asyncio.subprocess.Process:
        command = [sys.executable, "-c", code, scheduler.address, tls, *arguments]
        child = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        children.append(child)
        return child

    options: dict[str, Any] = {"host": "127.0.0.1", "protocol": "tls://", "security": security, "port": 0}
    async with Scheduler(dashboard_address="127.0.0.1:0", dashboard=False, **options) as scheduler:
        try:
            for start in range(0, workers, WORKERS_PER_PROCESS):
                await spawn("workers", str(min(WORKERS_PER_PROCESS, workers - start)))
            deadline = time.monotonic() + 120
            while len(scheduler.workers) < workers:
                if time.monotonic() > deadline:
                    raise ClusterError(f"{len(scheduler.workers)} of {workers} simulated workers came within 120 s")
                await asyncio.sleep(0.1)
            client = await spawn("client", submit, str(tasks), str(workers))
            assert client.stdout is not None
            await client.stdout.readline()  # it is connected and has warmed the workers up
            memory = psutil.Process().memory_info().rss
            cpu, begun = time.process_time(), time.perf_counter()
            most = 0
            waiting = asyncio.ensure_future(client.wait())
            while not waiting.done():
                await asyncio.wait([waiting], timeout=0.25)
                most = max(most, psutil.Process().memory_info().rss - memory)
            wall, used = time.perf_counter() - begun, time.process_time() - cpu
            if client.returncode:
                raise ClusterError(f"the client of the measurement ended with status {client.returncode}")
        finally:
            for child in children:
                if child.returncode is None:
                    child.kill()
                await child.wait()
    return {"seconds": wall, "cpu_seconds": used, "tasks_per_s": tasks / wall, "memory_bytes": most}


def child(arguments: list[str]) -> None:
    """A process of simulated workers, or the client of a measurement."""
    import distributed  # noqa: F401  sets up its loggers, which are then quietened

    address, tls, role, *rest = arguments
    logging.getLogger("distributed").setLevel(logging.ERROR)
    if role == "workers":
        asyncio.run(_workers(address, tls, int(rest[0])))
    else:
        submit, tasks, workers = rest[0], int(rest[1]), int(rest[2])
        if submit != "graph":
            _shards(address, tls, tasks, workers, submit == "results")
        else:
            asyncio.run(_client(address, tls, tasks, workers))


async def _workers(address: str, tls: str, n: int) -> None:
    from distributed import Worker

    from chemscale.runtime import credentials

    security = credentials.read(tls)
    options: dict[str, Any] = {"nthreads": 1, "host": "127.0.0.1", "protocol": "tls://", "memory_limit": 0}
    with tempfile.TemporaryDirectory(prefix="chemscale-") as scratch:
        pool = [Worker(address, security=security, local_directory=scratch, **options) for _ in range(n)]
        await asyncio.gather(*pool)
        await asyncio.gather(*(w.finished() for w in pool))


async def _client(address: str, tls: str, tasks: int, workers: int) -> None:
    """A graph: see :func:`_graph`."""
    from distributed import Client

    from chemscale.runtime import credentials

    async with Client(address, asynchronous=True, security=credentials.read(tls)) as client:
        await client.gather(client.map(_nothing, range(workers), pure=False))
        _ready()
        await _graph(client, tasks)


def _shards(address: str, tls: str, tasks: int, workers: int, results: bool) -> None:
    """A list of shards, as embedding and inference work through theirs; ingestion fetches their results."""
    from distributed import Client

    from chemscale.runtime import credentials

    with Client(address, security=credentials.read(tls)) as client:
        client.gather(client.map(_nothing, range(workers), pure=False))
        _ready()
        map_shards(_nothing, range(tasks), client, results=results, show=False).raise_for_failures()


def _ready() -> None:
    sys.stdout.write("ready\n")
    sys.stdout.flush()


def _nothing(x: Any) -> Any:
    return None


async def _graph(client: Any, tasks: int) -> None:
    """As a pass of the fit: independent groups, their sums added by a tree of four."""
    import dask

    leaves = [dask.delayed(_nothing, pure=False)(i) for i in range(tasks * 3 // 4)]
    while len(leaves) > 1:
        leaves = [dask.delayed(_nothing, pure=False)(leaves[i : i + 4]) for i in range(0, len(leaves), 4)]
    await client.compute(leaves[0], optimize_graph=False)


def measure(workers: list[int], tasks: int = 5000, report: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Tasks a second the scheduler sustains with `workers` simulated workers, for shard lists and graphs.

    Returns
    -------
    dict
        `scheduler`: rows with workers, submit (of `SUBMIT`), tasks, tasks_per_s (of this machine, which
        runs the simulated workers too), scheduler_cpu_us_per_task, scheduler_busy, bytes_per_task.
    """
    import distributed  # noqa: F401  sets up its loggers, which are then quietened

    from chemscale.runtime import credentials

    rows = []
    level = logging.getLogger("distributed").level
    logging.getLogger("distributed").setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory(prefix="chemscale-") as scratch:
            tls = str(credentials.temporary(scratch))
            for n in workers:
                for submit in SUBMIT:
                    m = asyncio.run(_measure(n, tasks, submit, tls))
                    rows.append({
                        "workers": n, "submit": submit, "tasks": tasks, "tasks_per_s": m["tasks_per_s"],
                        "scheduler_cpu_us_per_task": 1e6 * m["cpu_seconds"] / tasks,
                        "scheduler_busy": m["cpu_seconds"] / m["seconds"], "bytes_per_task": m["memory_bytes"] / tasks,
                    })  # fmt: skip
                    report(f"{n} workers, {submit}: {m['tasks_per_s']:.0f} tasks/s, "
                           f"{1e6 * m['cpu_seconds'] / tasks:.0f} us of the scheduler each")  # fmt: skip
    finally:
        logging.getLogger("distributed").setLevel(level)
    return {"scheduler": rows} | provenance()
