"""How each kind of cluster is started, a file a kind. :func:`chemscale.runtime.cluster.connect` is the way in."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from chemscale.runtime.backends.address import address_client
from chemscale.runtime.backends.batch import batch_client
from chemscale.runtime.backends.gpu import gpu_client
from chemscale.runtime.backends.kubernetes import kubernetes_client
from chemscale.runtime.backends.local import local_client
from chemscale.runtime.settings import BATCH_SYSTEMS, ClusterSettings

if TYPE_CHECKING:
    from distributed import Client

#: Kind -> context manager that yields a client; everything it started is taken down at its end.
BACKENDS: dict[str, Callable[[Any], AbstractContextManager[Client]]] = {
    "local": local_client,
    "address": address_client,
    "gpu": gpu_client,
    "kubernetes": kubernetes_client,
    **dict.fromkeys(BATCH_SYSTEMS, batch_client),
}


@contextmanager
def start(settings: ClusterSettings) -> Iterator[Client]:
    """Start or join the cluster that `settings` describe; everything is taken down at the end of the block."""
    import dask
    import distributed  # noqa: F401  before config.set: it adds its defaults to what is set now, for good

    with dask.config.set(_dask_config(settings)), BACKENDS[settings.kind](settings) as client:
        yield client


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
        # a pass's tasks go to workers that are idle, none waits at a busy one: they last long beside the trip (with
        # the default 1.1 two workers shared sixteen as nine and seven)
        "distributed.scheduler.worker-saturation": 1.0,
    }


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
