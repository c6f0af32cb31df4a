"""Jobs of a batch system, by dask-jobqueue."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from chemscale.runtime import credentials
from chemscale.runtime.backends.common import client_of, missing, quietly
from chemscale.runtime.settings import BatchSettings

if TYPE_CHECKING:
    from distributed import Client

#: Module the batch workers run: `dask worker` under a loop that starts it again.
SUPERVISOR = "chemscale.runtime.supervise"


@contextmanager
def batch_client(settings: BatchSettings) -> Iterator[Client]:
    """Jobs of a batch system through dask-jobqueue, their workers supervised, TLS throughout."""
    try:
        import dask_jobqueue
    except ImportError as err:
        raise missing("dask-jobqueue", "hpc", err) from err
    names = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "sge": "SGECluster", "lsf": "LSFCluster"}
    names |= {"htcondor": "HTCondorCluster", "oar": "OARCluster", "moab": "MoabCluster"}
    make = getattr(dask_jobqueue, names[settings.kind])
    with ExitStack() as stack:
        if isinstance(settings.tls, str):
            security = credentials.read(settings.tls)
        else:
            directory = credentials.temporary(settings.shared_directory)
            stack.callback(credentials.discard, directory)
            security = credentials.read(directory)
        options = batch_options(settings) | {"security": security}
        cluster = quietly(lambda: make(**options))
        minimum = settings.workers if settings.workers is not None else 1
        # adapt() rather than scale(): a job that is cancelled or runs out of walltime is replaced
        cluster.adapt(minimum_jobs=minimum, maximum_jobs=max(minimum, settings.maximum or minimum), interval="5s")
        yield stack.enter_context(client_of(cluster, security, settings, minimum))


def batch_options(settings: BatchSettings) -> dict[str, Any]:
    """Arguments of the dask-jobqueue cluster class for `settings` (without the credentials)."""
    processes = settings.processes or 1
    cores = settings.cores or processes * (settings.threads or 1)
    extra = ["--no-dashboard"]
    if settings.lifetime:
        # no spaces: dask-jobqueue joins the arguments into a line of shell
        stagger = (settings.lifetime_stagger or "2 minutes").replace(" ", "")
        extra += ["--lifetime", settings.lifetime.replace(" ", ""), "--lifetime-stagger", stagger]
    if processes > 1:
        extra += ["--nworkers", str(processes)]
    threads = {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"}
    scheduler: dict[str, Any] = {"dashboard_address": settings.dashboard}
    if settings.host:
        scheduler["host"] = settings.host
    options: dict[str, Any] = {
        "cores": cores,
        "memory": settings.memory or "4 GiB",
        "processes": processes,
        "protocol": "tls://",
        "python": settings.python or sys.executable,
        "worker_command": SUPERVISOR,
        "death_timeout": settings.death_timeout,
        "worker_extra_args": extra,
        "job_extra_directives": list(settings.directives),
        "job_script_prologue": [f"export {n}={settings.blas_threads}" for n in sorted(threads)]
        + list(settings.prologue),
        "scheduler_options": scheduler,
        "interface": settings.interface,
        "local_directory": settings.local_directory,
        "log_directory": settings.log_directory,
    }
    for key in ("queue", "account", "walltime"):
        if getattr(settings, key) is not None:
            options[key] = getattr(settings, key)
    return {k: v for k, v in options.items() if v is not None}
