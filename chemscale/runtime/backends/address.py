"""A scheduler that is running already."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from chemscale.errors import ClusterError
from chemscale.runtime import credentials
from chemscale.runtime.backends.common import wait_for_workers
from chemscale.runtime.settings import AddressSettings, is_loopback

if TYPE_CHECKING:
    from distributed import Client, Security

logger = logging.getLogger(__name__)

#: Seconds within which a scheduler's file must be there, or its address answer: no command waits longer for nobody.
REACH = 8.0


@contextmanager
def address_client(settings: AddressSettings) -> Iterator[Client]:
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
    _reach(address or _address_in(str(settings.scheduler_file)))
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


def _address_in(file: str) -> str:
    """The address a scheduler left in its file."""
    path, until = Path(file).expanduser(), time.monotonic() + REACH
    while True:
        try:
            return str(json.loads(path.read_text(encoding="utf-8"))["address"])
        except (OSError, ValueError, KeyError, TypeError) as err:
            if time.monotonic() > until:
                raise ClusterError(
                    f"no scheduler has written {path}: {err}",
                    "start one with `chemscale cluster scheduler --scheduler-file FILE`, on a disk both see",
                ) from err
            time.sleep(0.2)


def _reach(address: str) -> None:
    """Raise where nobody listens at an address; Dask itself would try for minutes."""
    there = urlsplit(address if "://" in address else f"tcp://{address}")
    if there.scheme not in ("tcp", "tls") or there.hostname is None or there.port is None:
        return
    try:
        socket.create_connection((there.hostname, there.port), timeout=REACH).close()
    except OSError as err:
        raise ClusterError(
            f"no scheduler answers at {address}: {err}",
            "is it running, and does this machine reach its network? `chemscale doctor --cluster SPEC` tells more",
        ) from err
