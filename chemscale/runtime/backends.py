"""How each kind of cluster is started. :func:`chemscale.runtime.cluster.connect` is the way in."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chemscale.errors import ClusterError
from chemscale.runtime import credentials, managed
from chemscale.runtime.cluster import BATCH_SYSTEMS, ClusterSettings, free_directory, is_loopback
from chemscale.runtime.managed import missing, quietly

if TYPE_CHECKING:
    from distributed import Client, Security

logger = logging.getLogger(__name__)

#: Least memory a worker process is given when the machine decides (imports alone take a third of it).
MIN_WORKER_MEMORY = 1_500_000_000


@contextmanager
def start(settings: ClusterSettings) -> Iterator[Client]:
    """Start or join the cluster that `settings` describe; everything is taken down at the end of the block."""
    import dask
    import distributed  # noqa: F401  before config.set: it adds its defaults to what is set now, for good

    with ExitStack() as stack:
        stack.enter_context(dask.config.set(_dask_config(settings)))
        if settings.kind == "address":
            yield stack.enter_context(_address(settings))
            return
        if settings.kind == "local":
            cluster, security, expected = _local(settings, stack)
        elif settings.kind == "gpu":
            cluster, security, expected = _gpu(settings, stack)
        elif settings.kind in BATCH_SYSTEMS:
            cluster, security, expected = managed.batch(settings, stack)
        else:
            cluster, security, expected = managed.kubernetes(settings, stack)
        yield stack.enter_context(_client(cluster, security, settings, expected))


def _dask_config(settings: ClusterSettings) -> dict[str, Any]:
    """Dask settings of every cluster: BLAS threads of the workers, loopback dashboards, bounded retries."""
    blas = str(settings.blas_threads)
    # Dask closes a lost worker for good unless it is back at one certain moment. A nanny that starts its worker again
    # needs no such help: work that killed its workers at that moment, one after the other, left a cluster without any.
    # (The job of a batch system may be gone, and another has to take its place.)
    nannies = settings.kind in ("local", "gpu")
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    return {
        "distributed.nanny.pre-spawn-environ": dict.fromkeys(names, blas) | {"MALLOC_TRIM_THRESHOLD_": "65536"},
        "distributed.dashboard.link": "http://{host}:{port}/status",
        # watching itself costs an idle worker 2.6 % of a core by default, with these 0.6 %
        "distributed.worker.profile.interval": "100ms",
        "distributed.worker.profile.cycle": "10s",
        "distributed.admin.tick.interval": "200ms",
        "distributed.admin.system-monitor.interval": "2s",
        # how long a worker that stopped answering is waited for before its tasks go elsewhere
        "distributed.scheduler.worker-ttl": "120s",
        **({"distributed.deploy.lost-worker-timeout": "30 days"} if nannies else {}),
        # a pass's tasks go to workers that are idle, none waits at a busy one: lots last long beside the trip (with
        # the default 1.1 two workers shared sixteen lots as nine and seven)
        "distributed.scheduler.worker-saturation": 1.0,
    }


@contextmanager
def _client(cluster: Any, security: Security | None, settings: ClusterSettings, expected: int) -> Iterator[Client]:
    from distributed import Client

    # on one machine results need no detour through the scheduler, which would unpack and pack them again
    direct = settings.kind in ("local", "gpu")
    try:
        client = Client(cluster, security=security, timeout=settings.timeout, direct_to_workers=direct)
    except BaseException:
        cluster.close()
        raise
    try:
        if expected:
            wait_for_workers(client, 1, settings.timeout)
        yield client
    finally:
        _close(client, cluster)


def _close(client: Client, cluster: Any) -> None:
    """Close both; a scheduler that is gone already must not hide the error that ended the run."""
    for thing in (client, cluster):
        try:
            thing.close(timeout=10) if thing is client else thing.close()
        except Exception as err:
            logger.debug("closing %r: %s", thing, err)


def wait_for_workers(client: Client, n: int, timeout: float) -> None:
    """Block until `n` workers are there.

    Raises
    ------
    ClusterError
        They are not, `timeout` seconds later.
    """
    try:
        client.wait_for_workers(n, timeout=timeout)
    except TimeoutError:
        raise ClusterError(
            f"no worker joined the cluster within {timeout:.0f} s",
            "look at the workers' logs (log_directory) or the queue; `timeout` in [cluster] waits longer",
        ) from None


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


def _local_security(settings: ClusterSettings) -> Security | None:
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


def _local(settings: ClusterSettings, stack: ExitStack) -> tuple[Any, Security | None, int]:
    from distributed import LocalCluster, Security

    shape = local_shape(settings)
    security = _local_security(settings)
    options: dict[str, Any] = {
        "n_workers": shape.workers,
        "threads_per_worker": shape.threads,
        "memory_limit": shape.memory,
        "processes": True,
        "host": "127.0.0.1",
        "dashboard_address": settings.dashboard,
        # None would bind a worker's health page to the address it listens on: loopback as well
        "local_directory": free_directory(settings, stack),
        "silence_logs": logging.ERROR,
        "security": security or Security(),
        "protocol": "tls://" if security else "tcp://",
    }
    options |= {k: v for k, v in _lifetime(settings).items() if v is not None}
    return quietly(lambda: LocalCluster(**options)), security, shape.workers


def _lifetime(settings: ClusterSettings) -> dict[str, str | None]:
    return {"lifetime": settings.lifetime, "lifetime_stagger": settings.lifetime_stagger}


@contextmanager
def _address(settings: ClusterSettings) -> Iterator[Client]:
    """Join a running scheduler. TLS files: `tls = DIRECTORY`, or Dask's own configuration."""
    from distributed import Client, Security

    address = settings.address
    if not address and not settings.scheduler_file:
        raise ClusterError("kind = 'address' needs `address` or `scheduler_file`", 'address = "tls://head:8786"')
    security: Security | None = None
    if isinstance(settings.tls, str):
        security = credentials.read(settings.tls)
    elif address and address.startswith("tls://"):
        security = Security(require_encryption=True)
        if not getattr(security, "tls_ca_file", None):
            raise ClusterError(
                f"{address} asks for TLS, and no credentials are given",
                "set tls = DIRECTORY (cert.pem, key.pem) in [cluster], or Dask's distributed.comm.tls settings",
            )
    if address and security is None and not is_loopback(address):
        logger.warning("%s is not encrypted: whoever reaches it can run code as its owner", address)
    try:
        client = Client(address, scheduler_file=settings.scheduler_file, security=security, timeout=settings.timeout)
    except (OSError, ValueError, TimeoutError, TypeError) as err:
        where = address or settings.scheduler_file
        raise ClusterError(
            f"no scheduler answers at {where}: {err}", "is it running, and are the TLS files its own?"
        ) from err
    try:
        wait_for_workers(client, 1, settings.timeout)
        yield client
    finally:
        client.close(timeout=10)


def _gpu(settings: ClusterSettings, stack: ExitStack) -> tuple[Any, Security | None, int]:
    """A worker for each GPU (resource ``GPU=1``) and, with `workers`, CPU workers (``CPU=1``) beside them.

    GPU-only clusters are dask-cuda's; the mixed one is built from the same parts, a process
    a device with CUDA_VISIBLE_DEVICES set, because dask-cuda has no CPU workers.
    """
    from distributed import Security

    security = _local_security(settings)
    devices = list(settings.devices) if settings.devices is not None else visible_devices()
    if not devices:
        raise ClusterError("no GPU is visible here", "`chemscale doctor` shows what is; use kind = 'local' without one")
    scratch = free_directory(settings, stack)
    if not settings.workers:
        try:
            from dask_cuda import LocalCUDACluster
        except Exception as err:  # dask-cuda raises driver errors of its own while it is imported
            raise missing("dask-cuda", "gpu", err) from err
        options: dict[str, Any] = {
            "CUDA_VISIBLE_DEVICES": devices,
            "threads_per_worker": settings.threads or 1,
            "memory_limit": settings.memory or "auto",
            "host": "127.0.0.1",
            "dashboard_address": settings.dashboard,
            "local_directory": scratch,
            "resources": {"GPU": 1},
            "security": security or Security(),
            "protocol": "tls" if security else "tcp",
        }
        return quietly(lambda: LocalCUDACluster(**options)), security, len(devices)
    return _mixed(settings, devices, security, scratch)


def mixed_workers(
    settings: ClusterSettings, devices: list[int], security: Security | None, scratch: str
) -> dict[str, Any]:
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
        specs[f"gpu-{device}"] = {"cls": Nanny, "options": common | options}
    for i in range(settings.workers or 0):
        options = {"env": {"CUDA_VISIBLE_DEVICES": ""}, "resources": {"CPU": 1}}
        specs[f"cpu-{i}"] = {"cls": Nanny, "options": common | options}
    return specs


def _mixed(
    settings: ClusterSettings, devices: list[int], security: Security | None, scratch: str
) -> tuple[Any, Security | None, int]:
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
    return quietly(make), security, len(specs)


def visible_devices() -> list[int]:
    """Indices of the GPUs torch can use."""
    import torch

    return list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []


def describe(client: Client) -> dict[str, Any]:
    """What the cluster is made of: address, workers, threads, memory, hosts, resources."""
    info = client.scheduler_info(n_workers=-1)
    workers = list(info["workers"].values())
    return {
        "scheduler": info["address"],
        "encrypted": info["address"].startswith("tls://"),
        "workers": len(workers),
        "threads": sum(w["nthreads"] for w in workers),
        "memory_bytes": sum(w["memory_limit"] or 0 for w in workers),
        "hosts": sorted({w["host"] for w in workers}),
        "gpu_workers": sum("GPU" in (w.get("resources") or {}) for w in workers),
        "time": time.time(),
        "pid": os.getpid(),
    }
