"""Settings of a cluster: the ``[cluster]`` table of a settings file, one class a kind with the keys it has."""

from __future__ import annotations

import difflib
import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any
from urllib.parse import urlsplit

from chemscale.config import load_toml
from chemscale.errors import InputError

#: Batch systems dask-jobqueue knows, all with the same keys.
BATCH_SYSTEMS = ("slurm", "pbs", "sge", "lsf", "htcondor", "oar", "moab")


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """Keys of every kind of cluster.

    Attributes
    ----------
    kind : str
        ``local``, ``address``, ``gpu``, ``kubernetes``, or a batch system (``slurm``, ``pbs``, ...).
    workers : int, optional
        Worker processes (local, gpu: CPU workers beside the GPU ones), jobs (batch), pods (kubernetes).
    threads : int, optional
        Threads of each worker: 1, or 2 where it has a GPU, so that one shard is decoded while another is computed.
    memory : str, optional
        Memory of each worker (each job on a batch system), such as ``"8 GiB"``.
    blas_threads : int
        Threads NumPy may use inside one task. 1, so that workers do not fight over cores.
    tls : bool or str
        True: credentials made for this run. A directory: cert.pem and key.pem in it.
        False: none (refused for anything that listens beyond loopback, except ``address``).
    dashboard : str
        Where the dashboard listens.
    local_directory : str, optional
        Scratch for spilled data; a temporary directory by default.
    timeout : float
        Seconds to wait for the scheduler and the first worker.
    """

    kind: str
    workers: int | None = None
    threads: int | None = None
    memory: str | None = None
    blas_threads: int = 1
    tls: bool | str = True
    dashboard: str = "127.0.0.1:0"
    local_directory: str | None = None
    timeout: float = 120.0

    def __post_init__(self) -> None:
        for key in ("workers", "threads", "blas_threads", "cores", "processes", "maximum"):
            value = getattr(self, key, None)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                if key == "workers" and value == 0 and (getattr(self, "maximum", None) or self.kind == "gpu"):
                    continue
                raise InputError(f"cluster {key} = {value!r}: must be a whole number above zero")
        if self.memory is not None:
            from dask.utils import parse_bytes

            try:
                parse_bytes(self.memory)
            except ValueError:
                raise InputError(f"cluster memory = {self.memory!r} is not a size", 'for example "8 GiB"') from None


@dataclass(frozen=True, kw_only=True)
class LocalSettings(ClusterSettings):
    """Workers on this machine.

    Attributes
    ----------
    lifetime, lifetime_stagger : str, optional
        Workers leave in good order after this long, not all at once.
    """

    kind: str = "local"
    lifetime: str | None = None
    lifetime_stagger: str | None = None


@dataclass(frozen=True, kw_only=True)
class AddressSettings(ClusterSettings):
    """A scheduler that is running: its `address`, or the `scheduler_file` it wrote."""

    kind: str = "address"
    address: str | None = None
    scheduler_file: str | None = None


@dataclass(frozen=True, kw_only=True)
class GpuSettings(ClusterSettings):
    """A worker a GPU of this machine.

    Attributes
    ----------
    devices : tuple of int, optional
        GPUs to use; all visible ones by default. Their workers have the resource ``GPU=1``.
    """

    kind: str = "gpu"
    devices: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class BatchSettings(ClusterSettings):
    """Jobs of a batch system.

    Attributes
    ----------
    maximum : int, optional
        Grow up to this many jobs on demand (`workers` is then the minimum).
    interface, host : str, optional
        Network interface (``ib0``) or address the scheduler listens on.
    shared_directory : str
        Directory every node sees, for credentials made for one run.
    lifetime, lifetime_stagger : str, optional
        Workers leave in good order after this long (walltime less a few minutes), not all at once.
    death_timeout : float
        A worker that has lost the scheduler for so many seconds ends (its supervisor starts another).
    queue, account, walltime, cores, processes, directives, prologue, log_directory, python
        Partition, account, ``"02:00:00"``, cores and processes a job, extra directives and shell lines of the job
        script, where job output goes, interpreter on the nodes.
    """

    kind: str = "slurm"
    maximum: int | None = None
    interface: str | None = None
    host: str | None = None
    shared_directory: str = "~/.chemscale"
    lifetime: str | None = None
    lifetime_stagger: str | None = None
    death_timeout: float = 120.0
    queue: str | None = None
    account: str | None = None
    walltime: str | None = None
    cores: int | None = None
    processes: int | None = None
    directives: tuple[str, ...] = ()
    prologue: tuple[str, ...] = ()
    log_directory: str | None = None
    python: str | None = None


@dataclass(frozen=True, kw_only=True)
class KubernetesSettings(ClusterSettings):
    """Pods started by the Dask operator.

    Attributes
    ----------
    maximum : int, optional
        Grow up to this many pods on demand (`workers` is then the minimum).
    name, namespace, image, environment
        Name of the cluster, namespace, container image, variables of the pods.
    """

    kind: str = "kubernetes"
    maximum: int | None = None
    name: str = "chemscale"
    namespace: str | None = None
    image: str = "chemscale:latest"
    environment: Mapping[str, str] = field(default_factory=dict)


CLASSES: dict[str, type[ClusterSettings]] = {
    "local": LocalSettings,
    "address": AddressSettings,
    "gpu": GpuSettings,
    "kubernetes": KubernetesSettings,
    **dict.fromkeys(BATCH_SYSTEMS, BatchSettings),
}
KINDS = tuple(CLASSES)


def from_mapping(table: Mapping[str, Any], source: str = "[cluster]") -> ClusterSettings:
    """Settings from a TOML table.

    Raises
    ------
    InputError
        An unknown kind or key (the message names the nearest known one, or the kinds that have it), or a value out
        of range.
    """
    table = {k.replace("-", "_"): tuple(v) if isinstance(v, list) else v for k, v in table.items()}
    kind = table.get("kind", "local")
    if kind not in KINDS:
        raise InputError(f"cluster kind {kind!r} is not known", f"one of {', '.join(KINDS)}")
    for key in table:
        _check_key(key, kind, source)
    return CLASSES[kind](**{"kind": kind, **table})


def _check_key(key: str, kind: str, source: str) -> None:
    known = [f.name for f in fields(CLASSES[kind])]
    if key in known:
        return
    others = [k for k, cls in CLASSES.items() if key in {f.name for f in fields(cls)}]
    if others:
        raise InputError(
            f"{source}: a cluster of kind {kind!r} has no key {key!r}", f"it belongs to kind {', '.join(others)}"
        )
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    raise InputError(f"{source}: unknown cluster key {key!r}", f"did you mean {near[0]!r}?")


def settings_for(
    spec: str | os.PathLike[str] | Mapping[str, Any] | ClusterSettings | None = "local", **overrides: Any
) -> ClusterSettings:
    """Settings from what ``--cluster`` takes: a kind, an address, a TOML file, a scheduler file, a table.

    `overrides` (workers, threads, memory, tls, ...) win over the file where they are not None.
    """
    settings = spec if isinstance(spec, ClusterSettings) else _read(spec)
    given = {k: v for k, v in overrides.items() if v is not None}
    for key in given:
        _check_key(key, settings.kind, "cluster")
    return replace(settings, **given) if given else settings


def _read(spec: str | os.PathLike[str] | Mapping[str, Any] | None) -> ClusterSettings:
    if spec is None:
        return LocalSettings()
    if isinstance(spec, Mapping):
        return from_mapping(spec)
    text = os.fspath(spec)
    if text in KINDS:
        return CLASSES[text](kind=text)
    if "://" in text:
        return AddressSettings(address=text)
    if text.endswith(".json"):
        return AddressSettings(scheduler_file=text)
    if text.endswith(".toml"):
        tree = load_toml(text)
        table = tree.get("cluster", tree)
        if not isinstance(table, Mapping):
            raise InputError(f"{text}: `cluster` is not a table", "write it as [cluster]")
        return from_mapping(table, source=text)
    raise InputError(
        f"--cluster {text!r} is neither a kind, an address (tls://host:port) nor a .toml file",
        f"kinds: {', '.join(KINDS)}",
    )


def is_loopback(host: str) -> bool:
    """Whether `host` (a name or an address, with or without a port) stays on this machine."""
    name = urlsplit(host if "://" in host else f"//{host}").hostname or ""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
