"""A scheduler that is running already."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from chemscale.errors import ClusterError
from chemscale.runtime import credentials
from chemscale.runtime.backends.common import wait_for_workers
from chemscale.runtime.settings import AddressSettings, is_loopback

if TYPE_CHECKING:
    from distributed import Client, Security

logger = logging.getLogger(__name__)


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
