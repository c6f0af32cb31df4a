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

import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from chemscale.errors import ClusterError
from chemscale.runtime import backends
from chemscale.runtime.settings import BatchSettings, ClusterSettings, is_loopback, settings_for

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)


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
    if isinstance(settings, BatchSettings):
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
        Any key of the kind (:mod:`chemscale.runtime.settings`); wins over `spec`.

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
