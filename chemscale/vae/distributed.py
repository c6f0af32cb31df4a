"""Data-parallel training with torch.distributed: processes on this machine, or Dask workers.

Every process holds the model and its part of each batch; gradients are summed in one
message a step (gloo on CPUs, nccl on GPUs). Batch statistics see the whole batch, so the
loss curve is that of one process, to rounding.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from chemscale.errors import ClusterError, InputError
from chemscale.vae.objective import Parallel

if TYPE_CHECKING:
    from distributed import Client


def join_group(rank: int, world: int, rendezvous: str) -> Parallel:
    """Become process `rank` of `world`; `rendezvous` is a ``file://`` or ``tcp://`` URL all of them know."""
    import torch.distributed as dist

    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(rank % torch.cuda.device_count())
    dist.init_process_group(backend, init_method=rendezvous, rank=rank, world_size=world)
    return Parallel(rank, world)


def leave_group() -> None:
    """Take the process out of its group."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def _entry(
    rank: int, function: Callable[..., Any], world: int, rendezvous: str, threads: int, arguments: tuple[Any, ...]
) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(threads)
    parallel = join_group(rank, world, rendezvous)
    try:
        function(parallel, *arguments)
    finally:
        leave_group()


def run_processes(function: Callable[..., Any], world: int, arguments: tuple[Any, ...] = ()) -> None:
    """``function(parallel, *arguments)`` in `world` new processes of this machine, until all are done.

    The processes meet through a file in a private temporary directory: no port is opened
    beyond gloo's own on the loopback interface.
    """
    if world < 2:
        raise InputError(f"{world} processes", "two or more; one process needs no group")
    import torch.multiprocessing as mp

    threads = max(1, (os.cpu_count() or 1) // world)
    with tempfile.TemporaryDirectory(prefix="chemscale-vae-") as folder:
        rendezvous = (Path(folder) / "rendezvous").as_uri()
        mp.spawn(_entry, args=(function, world, rendezvous, threads, arguments), nprocs=world, join=True)


def _free_port() -> tuple[str, int]:
    host = _own_address()
    with socket.socket() as s:
        s.bind((host, 0))
        return host, int(s.getsockname()[1])


def _own_address() -> str:
    """Address other workers reach this one under: that of its Dask worker."""
    from distributed import get_worker

    return str(get_worker().address).split("://")[-1].rsplit(":", 1)[0].strip("[]")


def _on_worker(rank: int, function: Callable[..., Any], world: int, rendezvous: str, arguments: tuple[Any, ...]) -> Any:
    parallel = join_group(rank, world, rendezvous)
    try:
        return function(parallel, *arguments)
    finally:
        leave_group()


def run_on_workers(client: Client, function: Callable[..., Any], arguments: tuple[Any, ...] = ()) -> list[Any]:
    """``function(parallel, *arguments)`` on every worker of a Dask cluster at once; their results by rank.

    GPU workers only (resource ``GPU``) where there are any.

    Raises
    ------
    ClusterError
        Fewer than two workers, or one of them was lost: training then resumes from its checkpoint.
    """
    workers = client.scheduler_info(n_workers=-1)["workers"]
    gpus = [a for a, w in workers.items() if "GPU" in (w.get("resources") or {})]
    chosen = sorted(gpus or workers)
    if len(chosen) < 2:
        raise ClusterError(f"{len(chosen)} worker(s)", "data-parallel training needs two; or train in one process")
    host, port = client.submit(_free_port, workers=[chosen[0]], pure=False).result()
    rendezvous = f"tcp://{host}:{port}"
    futures = [
        client.submit(
            _on_worker,
            rank,
            function,
            len(chosen),
            rendezvous,
            arguments,
            workers=[address],
            allow_other_workers=False,
            pure=False,
            retries=0,
        )
        for rank, address in enumerate(chosen)
    ]
    try:
        return list(client.gather(futures))
    except ChildProcessError as err:  # pragma: no cover - depends on which worker dies first
        raise ClusterError(f"a training worker was lost: {err}", "run again with --resume") from err
    finally:
        client.cancel(futures)
