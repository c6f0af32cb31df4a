"""One way to get a Dask client: this machine, an address, a batch system, Kubernetes, GPUs.

Whoever can talk to a Dask scheduler can run code as its owner, so the rule is: loopback
and TLS. Only what a cluster of several machines needs listens elsewhere, with TLS, after
a warning. Dashboards (plain HTTP, no password) stay on loopback everywhere.

    with connect("local") as client: ...
    with connect("cluster.toml") as client: ...        # its [cluster] table
    with connect("tls://head:8786", tls="~/tls") as client: ...

SIGTERM and Ctrl-C end the block by an exception, so that every shard that was written is
kept and workers and batch jobs are taken down before the process goes.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from chemscale.config import load_toml
from chemscale.errors import ClusterError, InputError

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)

#: Batch systems dask-jobqueue knows, all with the same keys.
BATCH_SYSTEMS = ("slurm", "pbs", "sge", "lsf", "htcondor", "oar", "moab")
KINDS = ("local", "address", "gpu", "kubernetes", *BATCH_SYSTEMS)


@dataclass(frozen=True)
class ClusterSettings:
    """The `[cluster]` table of a settings file. Unknown keys are errors.

    Attributes
    ----------
    kind : str
        ``local``, ``address``, ``gpu``, ``kubernetes``, or a batch system (``slurm``, ``pbs``, ...).
    workers : int, optional
        Worker processes (local, gpu: CPU workers beside the GPU ones), jobs (batch), pods (kubernetes).
    threads : int, optional
        Threads of each worker.
    memory : str, optional
        Memory of each worker (each job on a batch system), such as ``"8 GiB"``.
    maximum : int, optional
        Batch systems and Kubernetes: grow up to this many workers on demand (`workers` is then the minimum).
    blas_threads : int
        Threads NumPy may use inside one task. 1, so that workers do not fight over cores.
    tls : bool or str
        True: credentials made for this run. A directory: cert.pem and key.pem in it.
        False: none (refused for anything that listens beyond loopback, except ``address``).
    address, scheduler_file : str, optional
        Of a running scheduler (kind ``address``).
    interface, host : str, optional
        Network interface (``ib0``) or address the scheduler listens on (batch systems).
    dashboard : str
        Where the dashboard listens.
    local_directory : str, optional
        Scratch for spilled data; a temporary directory by default.
    shared_directory : str
        Directory every node sees, for credentials made for one run (batch systems).
    lifetime, lifetime_stagger : str, optional
        Workers leave in good order after this long (walltime less a few minutes), not all at once.
    death_timeout : float
        A worker that has lost the scheduler for so many seconds ends (its supervisor starts another).
    timeout : float
        Seconds to wait for the scheduler and the first worker.
    queue, account, walltime, cores, processes, directives, prologue, log_directory, python
        Batch systems: partition, account, ``"02:00:00"``, cores and processes a job, extra
        directives and shell lines of the job script, where job output goes, interpreter on the nodes.
    devices : list of int, optional
        GPUs to use (kind ``gpu``); all visible ones by default. Their workers have the resource ``GPU=1``.
    name, namespace, image, environment, tls_secret
        Kubernetes: name of the cluster, namespace, container image, variables of the pods and
        the secret (cert.pem, key.pem) mounted into them.
    """

    kind: str = "local"
    workers: int | None = None
    threads: int | None = None
    memory: str | None = None
    maximum: int | None = None
    blas_threads: int = 1
    tls: bool | str = True
    address: str | None = None
    scheduler_file: str | None = None
    interface: str | None = None
    host: str | None = None
    dashboard: str = "127.0.0.1:0"
    local_directory: str | None = None
    shared_directory: str = "~/.chemscale"
    lifetime: str | None = None
    lifetime_stagger: str | None = None
    death_timeout: float = 120.0
    timeout: float = 120.0
    queue: str | None = None
    account: str | None = None
    walltime: str | None = None
    cores: int | None = None
    processes: int | None = None
    directives: tuple[str, ...] = ()
    prologue: tuple[str, ...] = ()
    log_directory: str | None = None
    python: str | None = None
    devices: tuple[int, ...] | None = None
    name: str = "chemscale"
    namespace: str | None = None
    image: str = "chemscale:latest"
    environment: Mapping[str, str] = field(default_factory=dict)
    tls_secret: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"cluster kind {self.kind!r} is not known", f"one of {', '.join(KINDS)}")
        for key in ("workers", "threads", "blas_threads", "cores", "processes", "maximum"):
            value = getattr(self, key)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                if key == "workers" and value == 0 and (self.maximum or self.kind == "gpu"):
                    continue
                raise InputError(f"cluster {key} = {value!r}: must be a whole number above zero")
        if self.memory is not None:
            from dask.utils import parse_bytes

            try:
                parse_bytes(self.memory)
            except ValueError:
                raise InputError(f"cluster memory = {self.memory!r} is not a size", 'for example "8 GiB"') from None

    @classmethod
    def from_mapping(cls, table: Mapping[str, Any], source: str = "[cluster]") -> ClusterSettings:
        """Settings from a TOML table.

        Raises
        ------
        InputError
            An unknown key (the message names the nearest known one) or a value out of range.
        """
        import difflib

        table = {k.replace("-", "_"): v for k, v in table.items()}
        known = [f.name for f in fields(cls)]
        for key in table:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
                raise InputError(f"{source}: unknown cluster key {key!r}", f"did you mean {near[0]!r}?")
        lists = {k: tuple(v) for k, v in table.items() if isinstance(v, list)}
        return cls(**(table | lists))


def settings_for(spec: str | os.PathLike[str] | Mapping[str, Any] | ClusterSettings | None = "local", **overrides: Any):
    """Settings from what ``--cluster`` takes: a kind, an address, a TOML file, a scheduler file, a table.

    `overrides` (workers, threads, memory, tls, ...) win over the file where they are not None.
    """
    if spec is None:
        settings = ClusterSettings()
    elif isinstance(spec, ClusterSettings):
        settings = spec
    elif isinstance(spec, Mapping):
        settings = ClusterSettings.from_mapping(spec)
    else:
        text = os.fspath(spec)
        if text in KINDS:
            settings = ClusterSettings(kind=text)
        elif "://" in text:
            settings = ClusterSettings(kind="address", address=text)
        elif text.endswith(".json"):
            settings = ClusterSettings(kind="address", scheduler_file=text)
        elif text.endswith(".toml"):
            tree = load_toml(text)
            table = tree.get("cluster", tree)
            if not isinstance(table, Mapping):
                raise InputError(f"{text}: `cluster` is not a table", "write it as [cluster]")
            settings = ClusterSettings.from_mapping(table, source=text)
        else:
            raise InputError(
                f"--cluster {text!r} is neither a kind, an address (tls://host:port) nor a .toml file",
                f"kinds: {', '.join(KINDS)}",
            )
    given = {k: v for k, v in overrides.items() if v is not None}
    return replace(settings, **given) if given else settings


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived (walltime, scancel, a container stopping). Ends the run in good order."""


@contextmanager
def graceful_signals() -> Iterator[None]:
    """Turn SIGTERM into :class:`Terminated`, once; a second one ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen = False

    def on_term(signum: int, frame: Any) -> None:
        nonlocal seen
        if seen:
            os._exit(128 + signum)
        seen = True
        raise Terminated("SIGTERM")

    before = signal.signal(signal.SIGTERM, on_term)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


def is_loopback(host: str) -> bool:
    """Whether `host` (a name or an address, with or without a port) stays on this machine."""
    name = urlsplit(host if "://" in host else f"//{host}").hostname or ""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def check_exposure(settings: ClusterSettings) -> None:
    """Refuse what must never listen in the open; warn about what listens beyond this machine.

    Raises
    ------
    ClusterError
        TLS switched off for a cluster of several machines, or a dashboard bound to every interface.
    """
    if not is_loopback(settings.dashboard):
        if urlsplit(f"//{settings.dashboard}").hostname in (None, "", "0.0.0.0", "::"):  # noqa: S104
            raise ClusterError(
                f"dashboard = {settings.dashboard!r} would listen on every interface, without a password",
                'leave it at "127.0.0.1:0" and reach it through `ssh -L`',
            )
        logger.warning("the dashboard listens on %s without a password", settings.dashboard)
    if settings.kind in BATCH_SYSTEMS:
        if settings.tls is False:
            raise ClusterError(
                f"a {settings.kind} cluster without TLS would let anybody on the network run code as you",
                "remove `tls = false` (credentials are made for each run)",
            )
        where = settings.host or settings.interface
        if where not in ("lo", "127.0.0.1", "localhost"):
            logger.warning("the scheduler listens on %s (TLS, one certificate)", where or "this machine's address")


@contextmanager
def connect(
    spec: str | os.PathLike[str] | Mapping[str, Any] | ClusterSettings | None = "local",
    *,
    workers: int | None = None,
    threads: int | None = None,
    memory: str | None = None,
    **overrides: Any,
) -> Iterator[Client]:
    """A Dask client for the block, and the cluster behind it unless it was there before.

    Parameters
    ----------
    spec : str, path, mapping or ClusterSettings
        A kind (``"local"``, ``"slurm"``, ...), an address (``"tls://head:8786"``), a TOML file
        with a ``[cluster]`` table, a scheduler file (.json), or the settings themselves.
    workers, threads, memory, **overrides
        Any key of :class:`ClusterSettings`; wins over `spec`.

    Yields
    ------
    distributed.Client

    Raises
    ------
    ClusterError
        The cluster cannot be reached, started or secured; names the missing package or file.
    InputError
        An unknown key or kind.
    """
    from chemscale.runtime import backends

    settings = settings_for(spec, workers=workers, threads=threads, memory=memory, **overrides)
    check_exposure(settings)
    with ExitStack() as stack:
        stack.enter_context(graceful_signals())
        yield stack.enter_context(backends.start(settings))


def current_client() -> Client | None:
    """The distributed client that is in use here; None where Dask works in this process."""
    import dask
    from distributed import Client

    if dask.config.get("scheduler", None) not in (None, "distributed", "dask.distributed"):
        return None
    try:
        return Client.current()
    except ValueError:
        return None


def free_directory(settings: ClusterSettings, stack: ExitStack) -> str:
    """Scratch directory of the workers: the one asked for, or a temporary one gone with the cluster."""
    import tempfile

    if settings.local_directory:
        path = Path(settings.local_directory).expanduser()
        path.mkdir(parents=True, exist_ok=True)
        return str(path)
    return stack.enter_context(tempfile.TemporaryDirectory(prefix="chemscale-", ignore_cleanup_errors=True))
