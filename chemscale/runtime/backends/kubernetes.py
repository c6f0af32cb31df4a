"""Pods started by the Dask operator of Kubernetes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from chemscale.errors import ClusterError
from chemscale.runtime.backends.common import client_of, missing
from chemscale.runtime.settings import KubernetesSettings

if TYPE_CHECKING:
    from distributed import Client


@contextmanager
def kubernetes_client(settings: KubernetesSettings) -> Iterator[Client]:
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
    with client_of(cluster, None, settings, minimum) as client:
        yield client


def kubernetes_spec(settings: KubernetesSettings) -> dict[str, Any]:
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
