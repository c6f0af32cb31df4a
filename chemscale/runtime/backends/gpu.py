"""A worker for each GPU of this machine, and CPU workers beside them where asked for."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from chemscale.errors import ClusterError
from chemscale.runtime.backends.common import client_of, free_directory, missing, quietly
from chemscale.runtime.backends.local import local_security, local_shape
from chemscale.runtime.settings import GpuSettings

if TYPE_CHECKING:
    from distributed import Client, Security

#: Threads of a GPU's worker: one shard is decoded while another is computed.
THREADS = 2


@contextmanager
def gpu_client(settings: GpuSettings) -> Iterator[Client]:
    """A worker for each GPU (resource ``GPU=1``) and, with `workers`, CPU workers (``CPU=1``) beside them.

    GPU-only clusters are dask-cuda's; the mixed one is built from the same parts, a process
    a device with CUDA_VISIBLE_DEVICES set, because dask-cuda has no CPU workers.
    """
    security = local_security(settings)
    devices = list(settings.devices) if settings.devices is not None else visible_devices()
    if not devices:
        raise ClusterError("no GPU is visible here", "`chemscale doctor` shows what is; use kind = 'local' without one")
    with ExitStack() as stack:
        scratch = free_directory(settings, stack)
        make = _mixed if settings.workers else _gpu_only
        cluster, expected = make(settings, devices, security, scratch)
        yield stack.enter_context(client_of(cluster, security, settings, expected))


def _gpu_only(settings: GpuSettings, devices: list[int], security: Security | None, scratch: str) -> tuple[Any, int]:
    from distributed import Security

    try:
        from dask_cuda import LocalCUDACluster
    except Exception as err:  # dask-cuda raises driver errors of its own while it is imported
        raise missing("dask-cuda", "gpu", err) from err
    options: dict[str, Any] = {
        "CUDA_VISIBLE_DEVICES": devices,
        "threads_per_worker": settings.threads or THREADS,
        "memory_limit": settings.memory or "auto",
        "host": "127.0.0.1",
        "dashboard_address": settings.dashboard,
        "local_directory": scratch,
        "resources": {"GPU": 1},
        "security": security or Security(),
        "protocol": "tls" if security else "tcp",
    }
    return quietly(lambda: LocalCUDACluster(**options)), len(devices)


def mixed_workers(settings: GpuSettings, devices: list[int], security: Security | None, scratch: str) -> dict[str, Any]:
    """Specification of GPU workers and CPU workers side by side (for ``distributed.SpecCluster``)."""
    from distributed import Nanny

    shape = local_shape(settings)
    common: dict[str, Any] = {
        "host": "127.0.0.1",
        "security": security,
        "protocol": "tls://" if security else "tcp://",
        "local_directory": scratch,
        "nthreads": settings.threads or 1,
        "memory_limit": shape.memory,
    }
    specs: dict[str, Any] = {}
    for device in devices:
        options = {"env": {"CUDA_VISIBLE_DEVICES": str(device)}, "resources": {"GPU": 1}}
        options |= {"nthreads": settings.threads or THREADS}
        specs[f"gpu-{device}"] = {"cls": Nanny, "options": common | options}
    for i in range(settings.workers or 0):
        options = {"env": {"CUDA_VISIBLE_DEVICES": ""}, "resources": {"CPU": 1}}
        specs[f"cpu-{i}"] = {"cls": Nanny, "options": common | options}
    return specs


def _mixed(settings: GpuSettings, devices: list[int], security: Security | None, scratch: str) -> tuple[Any, int]:
    from distributed import Scheduler, SpecCluster

    scheduler = {
        "cls": Scheduler,
        "options": {
            "host": "127.0.0.1",
            "protocol": "tls://" if security else "tcp://",
            "security": security,
            "dashboard_address": settings.dashboard,
        },
    }
    specs = mixed_workers(settings, devices, security, scratch)
    make = lambda: SpecCluster(workers=specs, scheduler=scheduler, security=security, silence_logs=logging.ERROR)  # noqa: E731
    return quietly(make), len(specs)


def visible_devices() -> list[int]:
    """Indices of the GPUs torch can use."""
    import torch

    return list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
