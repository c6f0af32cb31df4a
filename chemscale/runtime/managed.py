"""Clusters whose workers a batch system or Kubernetes starts: jobs by dask-jobqueue, pods by the Dask operator."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from chemscale.errors import ClusterError
from chemscale.runtime import credentials
from chemscale.runtime.cluster import ClusterSettings

if TYPE_CHECKING:
    from distributed import Security

#: Module the batch workers run: `dask worker` under a loop that starts it again.
SUPERVISOR = "chemscale.runtime.supervise"


def quietly(make: Any) -> Any:
    """Start a cluster; its reasons for failing become a ClusterError."""
    try:
        return make()
    except (OSError, RuntimeError, ValueError, TimeoutError) as err:
        remedy = "`chemscale doctor` checks this machine; a script needs `if __name__ == '__main__':` around its work"
        raise ClusterError(f"the cluster did not start: {err}", remedy) from err


def missing(package: str, extra: str, err: Exception) -> ClusterError:
    """The error for a package that an extra of chemscale brings."""
    return ClusterError(f"{package} cannot be imported: {err}", f"pip install 'chemscale[{extra}]'")


def batch(settings: ClusterSettings, stack: ExitStack) -> tuple[Any, Security | None, int]:
    """Jobs of a batch system through dask-jobqueue, their workers supervised, TLS throughout."""
    try:
        import dask_jobqueue
    except ImportError as err:
        raise missing("dask-jobqueue", "hpc", err) from err
    names = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "sge": "SGECluster", "lsf": "LSFCluster"}
    names |= {"htcondor": "HTCondorCluster", "oar": "OARCluster", "moab": "MoabCluster"}
    make = getattr(dask_jobqueue, names[settings.kind])
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
    return cluster, security, minimum


def batch_options(settings: ClusterSettings) -> dict[str, Any]:
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


def kubernetes(settings: ClusterSettings, stack: ExitStack) -> tuple[Any, Security | None, int]:
    """A DaskCluster through the Dask operator, reached by a port forwarded to loopback.

    Traffic between the pods is kept in by a NetworkPolicy (deploy/kubernetes), and the
    credentials of the Kubernetes API guard the way in. For TLS between pods run the pipeline
    as a Job (deploy/kubernetes/base): the operator's own client speaks plain TCP.
    """
    try:
        from dask_kubernetes.operator import KubeCluster
    except ImportError as err:
        raise missing("dask-kubernetes", "k8s", err) from err
    spec = kubernetes_spec(settings)
    try:
        cluster = KubeCluster(custom_cluster_spec=spec, namespace=settings.namespace, quiet=True)
    except Exception as err:  # no API server, no operator, no rights: each has an error class of its own
        raise ClusterError(
            f"the Kubernetes cluster did not start: {type(err).__name__}: {err}",
            "`kubectl get daskclusters` must work; install the Dask operator (deploy/kubernetes/README.md)",
        ) from err
    minimum = settings.workers if settings.workers is not None else 1
    if settings.maximum:
        cluster.adapt(minimum=minimum, maximum=settings.maximum)
    return cluster, None, minimum


def kubernetes_spec(settings: ClusterSettings) -> dict[str, Any]:
    """The DaskCluster resource for `settings`: ClusterIP only, not root, nothing writable but scratch."""
    from dask_kubernetes.operator import make_cluster_spec

    threads, memory = settings.threads or 1, (settings.memory or "4Gi").replace(" ", "").removesuffix("B")
    resources: Mapping[str, Mapping[str, str]] = {
        "requests": {"cpu": str(threads), "memory": memory},
        "limits": {"cpu": str(threads), "memory": memory},
    }
    env = {n: str(settings.blas_threads) for n in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    spec = make_cluster_spec(
        name=settings.name,
        image=settings.image,
        n_workers=settings.workers if settings.workers is not None else 1,
        resources=resources,
        env=env | dict(settings.environment),
        worker_command=["dask", "worker", "--nthreads", str(threads), "--memory-limit", memory, "--no-dashboard"],
        scheduler_service_type="ClusterIP",
    )
    for part in ("worker", "scheduler"):
        pod = spec["spec"][part]["spec"]
        pod["securityContext"] = {"runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 1000}
        for container in pod["containers"]:
            container["securityContext"] = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container = spec["spec"]["worker"]["spec"]["containers"][0]
    # make_cluster_spec publishes a dashboard of each worker; nobody asked for one
    container["args"] = [a for a in container["args"] if a not in ("--dashboard", "--dashboard-address", "8788")]
    container.pop("ports", None)
    return spec
