"""What backends share: a client on a cluster that was started, its end, errors with remedies."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chemscale.errors import ClusterError
from chemscale.runtime.settings import ClusterSettings

if TYPE_CHECKING:
    from distributed import Client, Security

logger = logging.getLogger(__name__)

#: Seconds of silence after which a command says what it waits for.
TOLD_AFTER = 10.0


@contextmanager
def client_of(
    cluster: Any,
    security: Security | None,
    settings: ClusterSettings,
    expected: int,
    waiting: Callable[[], str] | None = None,
) -> Iterator[Client]:
    """A client of `cluster`, once the first of `expected` workers is there; both are closed at the end.

    `waiting` says what is waited for, see :func:`wait_for_workers`.
    """
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
            wait_for_workers(client, 1, settings.timeout, waiting)
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


def wait_for_workers(client: Client, n: int, timeout: float, waiting: Callable[[], str] | None = None) -> None:
    """Block until `n` workers are there; after ten seconds the log says what is being waited for.

    Parameters
    ----------
    waiting : callable, optional
        Says what stands between the cluster and its workers, such as "4 jobs queued".

    Raises
    ------
    ClusterError
        They are not, `timeout` seconds later.
    """
    until = time.monotonic() + timeout
    try:
        try:
            client.wait_for_workers(n, timeout=min(timeout, TOLD_AFTER))
        except TimeoutError:
            left = until - time.monotonic()
            if left <= 0:
                raise
            what = f"{waiting()}, " if waiting else ""
            logger.warning("%sno worker yet after %.0f s; waiting %.0f s more", what, TOLD_AFTER, left)
            client.wait_for_workers(n, timeout=left)
    except TimeoutError:
        raise ClusterError(
            f"no worker joined the cluster within {timeout:.0f} s" + (f" ({waiting()})" if waiting else ""),
            "look at the workers' logs (log_directory) or the queue; `timeout` in [cluster] waits longer",
        ) from None


def quietly(make: Callable[[], Any]) -> Any:
    """Start a cluster; its reasons for failing become a ClusterError."""
    try:
        return make()
    except (OSError, RuntimeError, ValueError, TimeoutError) as err:
        remedy = "`chemscale doctor` checks this machine; a script needs `if __name__ == '__main__':` around its work"
        raise ClusterError(f"the cluster did not start: {err}", remedy) from err


def missing(package: str, extra: str, err: Exception) -> ClusterError:
    """The error for a package that an extra of chemscale brings."""
    return ClusterError(f"{package} cannot be imported: {err}", f"pip install 'chemscale[{extra}]'")


def free_directory(settings: ClusterSettings, stack: ExitStack) -> str:
    """Scratch directory of the workers: the one asked for, or a temporary one gone with the cluster."""
    if settings.local_directory:
        path = Path(settings.local_directory).expanduser()
        path.mkdir(parents=True, exist_ok=True)
        return str(path)
    return stack.enter_context(tempfile.TemporaryDirectory(prefix="chemscale-", ignore_cleanup_errors=True))
