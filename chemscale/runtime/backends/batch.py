"""Jobs of a batch system, by dask-jobqueue."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from chemscale.errors import ClusterError
from chemscale.runtime import credentials
from chemscale.runtime.backends.common import client_of, missing, quietly
from chemscale.runtime.settings import BatchSettings

if TYPE_CHECKING:
    from distributed import Client

#: Module the batch workers run: `dask worker` under a loop that starts it again.
SUPERVISOR = "chemscale.runtime.supervise"
#: Command that submits a job, by batch system.
SUBMIT = {
    "slurm": "sbatch",
    "pbs": "qsub",
    "sge": "qsub",
    "lsf": "bsub",
    "htcondor": "condor_submit",
    "oar": "oarsub",
    "moab": "msub",
}


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
    check(settings)
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
        waiting = partial(_queued, cluster, settings.kind)
        yield stack.enter_context(client_of(cluster, security, settings, minimum, waiting))


def check(settings: BatchSettings) -> None:
    """Refuse at once what would only fail after minutes in a queue.

    Raises
    ------
    ClusterError
        The batch system's command is not on the PATH, or this machine has no such network interface.
    """
    command = SUBMIT[settings.kind]
    if shutil.which(command) is None:
        raise ClusterError(
            f"{command} is not on the PATH: this machine cannot submit jobs of kind {settings.kind!r}",
            "run this on a login node, load the module of the batch system, or set another kind in [cluster]",
        )
    if settings.kind == "slurm" and shutil.which("scontrol"):
        _answers()
    interfaces = [name for _, name in socket.if_nameindex()]
    if settings.interface and settings.interface not in interfaces:
        raise ClusterError(
            f"this machine has no network interface {settings.interface!r}",
            f"set interface in [cluster] to one of {', '.join(interfaces)}, or leave it out",
        )


def _answers() -> None:
    """Raise where Slurm's controller does not answer within a few seconds; sbatch would try for minutes."""
    try:
        done = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=8)
        told = (done.stderr.strip() or done.stdout.strip()) if done.returncode else ""
    except subprocess.TimeoutExpired:
        told = "no answer within 8 s"
    if told:
        raise ClusterError(
            f"Slurm's controller cannot be reached: {told.splitlines()[-1]}",
            "try `scontrol ping` on a login node; or work on this machine with --workers N",
        )


def job_script(settings: BatchSettings) -> str:
    """The script that is submitted once for each of the `workers` jobs, as text; nothing is started."""
    try:
        from dask_jobqueue import slurm
    except ImportError as err:
        raise missing("dask-jobqueue", "hpc", err) from err
    if settings.kind != "slurm":
        raise ClusterError(f"scripts of kind {settings.kind!r} are not shown", 'kind = "slurm" in [cluster]')
    left_out = ("scheduler_options", "interface")
    options = {k: v for k, v in batch_options(settings).items() if k not in left_out}
    return str(slurm.SLURMJob("tls://SCHEDULER:8786", name="chemscale", **options).job_script())


def _queued(cluster: Any, kind: str) -> str:
    n = len(getattr(cluster, "workers", {})) or len(getattr(cluster, "worker_spec", {}))
    return f"{n} {kind} job{'s' if n != 1 else ''} queued"


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
