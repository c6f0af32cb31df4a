"""Workers on this machine: loopback and TLS."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chemscale.runtime import credentials
from chemscale.runtime.backends.common import client_of, free_directory, quietly
from chemscale.runtime.settings import ClusterSettings, LocalSettings

if TYPE_CHECKING:
    from distributed import Client, Security

logger = logging.getLogger(__name__)

#: Least memory a worker process is given when the machine decides (imports alone take a third of it).
MIN_WORKER_MEMORY = 1_500_000_000


@dataclass(frozen=True)
class Shape:
    """Workers, threads and memory of a local cluster."""

    workers: int
    threads: int
    memory: int


def local_shape(settings: ClusterSettings, cores: int | None = None, memory: int | None = None) -> Shape:
    """Processes and threads for this machine: a process a core up to 16, then two threads a process.

    Processes rather than threads because reading, unpacking and small linear algebra hold
    the interpreter lock for part of the time; one BLAS thread each. Fewer processes where
    memory would leave one less than 1.5 GB. Limits of the container or batch job count, not
    those of the hardware.
    """
    from dask.system import CPU_COUNT
    from dask.utils import parse_bytes
    from distributed.system import MEMORY_LIMIT

    cores = cores or CPU_COUNT
    memory = memory or MEMORY_LIMIT
    threads = settings.threads or (1 if cores <= 16 or settings.workers else 2)
    workers = settings.workers or max(1, cores // threads)
    if settings.memory is None and settings.workers is None:
        workers = max(1, min(workers, memory // MIN_WORKER_MEMORY))
    each = parse_bytes(settings.memory) if settings.memory else int(memory * 0.9) // workers
    if each * workers > memory:
        logger.warning("%d workers of %.1f GB are more than this machine's %.1f GB", workers, each / 1e9, memory / 1e9)
    return Shape(workers, threads, each)


def local_security(settings: ClusterSettings) -> Security | None:
    """Credentials of a cluster whose processes are all on this machine; None (and a warning) without TLS."""
    if settings.tls is False:
        return None
    if isinstance(settings.tls, str):
        return credentials.read(settings.tls)
    if credentials.available():
        return credentials.in_memory()
    logger.warning(
        "no TLS between local processes (the package cryptography is missing): "
        "other users of this machine could reach the scheduler; pip install cryptography"
    )
    return None


@contextmanager
def local_client(settings: LocalSettings) -> Iterator[Client]:
    """Nannies and workers of this machine."""
    from distributed import LocalCluster, Security

    shape = local_shape(settings)
    security = local_security(settings)
    options: dict[str, Any] = {
        "n_workers": shape.workers,
        "threads_per_worker": shape.threads,
        "memory_limit": shape.memory,
        "processes": True,
        "host": "127.0.0.1",
        "dashboard_address": settings.dashboard,
        # None would bind a worker's health page to the address it listens on: loopback as well
        "silence_logs": logging.ERROR,
        "security": security or Security(),
        "protocol": "tls://" if security else "tcp://",
    }
    lifetime = {"lifetime": settings.lifetime, "lifetime_stagger": settings.lifetime_stagger}
    options |= {k: v for k, v in lifetime.items() if v is not None}
    with ExitStack() as stack:
        options["local_directory"] = free_directory(settings, stack)
        cluster = quietly(lambda: LocalCluster(**options))
        yield stack.enter_context(client_of(cluster, security, settings, shape.workers))
