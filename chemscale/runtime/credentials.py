"""TLS credentials for a Dask cluster: made for one run, readable by one user.

Whoever holds the key may run code in the cluster, and nobody else may: scheduler, workers
and clients all present the same certificate, which is its own authority. Keys live in
memory (one machine) or in files of mode 0600 in a directory of mode 0700 (several
machines with a shared file system); only their paths appear on command lines.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from chemscale.errors import ClusterError

if TYPE_CHECKING:
    from distributed import Security

CERT_FILE, KEY_FILE = "cert.pem", "key.pem"
#: Longer than any queue's walltime, short enough that a forgotten key is soon worthless.
VALID_DAYS = 30


def available() -> bool:
    """Whether credentials can be made here (the package `cryptography` is installed)."""
    try:
        import cryptography  # noqa: F401
    except ImportError:
        return False
    return True


def make_pair() -> tuple[str, str]:
    """A new self-signed certificate and its private key, PEM text.

    Raises
    ------
    ClusterError
        `cryptography` is not installed.
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID
    except ImportError:
        raise ClusterError(
            "TLS credentials cannot be made: the package cryptography is missing", "pip install cryptography"
        ) from None
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "chemscale-cluster")])
    now = datetime.now(UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("chemscale-cluster")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=VALID_DAYS))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain).decode()
    return cert.public_bytes(pem).decode(), secret


def _security(cert: str, key: str, ca: str | None = None) -> Security:
    from distributed import Security

    roles = {f"tls_{role}_{kind}": value for role in _ROLES for kind, value in (("cert", cert), ("key", key))}
    return Security(require_encryption=True, tls_ca_file=ca or cert, **roles)


_ROLES = ("client", "scheduler", "worker")


def in_memory() -> Security:
    """Credentials that never touch a disk: for a cluster whose processes are all children of this one."""
    return _security(*make_pair())


def write(directory: str | os.PathLike[str]) -> Path:
    """Write a new pair into `directory` (made with mode 0700) and return it.

    Raises
    ------
    ClusterError
        The directory exists and others may read it, or already holds a key.
    """
    target = Path(directory).expanduser()
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_private(target)
    if (target / KEY_FILE).exists():
        raise ClusterError(f"{target} already holds a key", "use it, or remove the directory and make a new one")
    cert, key = make_pair()
    for name, text in ((CERT_FILE, cert), (KEY_FILE, key)):
        descriptor = os.open(target / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as f:
            f.write(text)
    return target


def temporary(parent: str | os.PathLike[str]) -> Path:
    """Credentials in a new 0700 directory below `parent`; remove it with :func:`discard`."""
    parent = Path(parent).expanduser()
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return write(tempfile.mkdtemp(prefix="tls-", dir=parent))


def discard(directory: Path) -> None:
    """Remove a directory made by :func:`temporary`."""
    shutil.rmtree(directory, ignore_errors=True)


def read(directory: str | os.PathLike[str]) -> Security:
    """Credentials from a directory with cert.pem and key.pem (and ca.pem where the authority is another).

    Raises
    ------
    ClusterError
        A file is missing, or the key can be read by others.
    """
    source = Path(directory).expanduser()
    cert, key, ca = (source / name for name in (CERT_FILE, KEY_FILE, "ca.pem"))
    missing = [f.name for f in (cert, key) if not f.is_file()]
    if missing:
        raise ClusterError(
            f"no TLS credentials in {source} ({', '.join(missing)} missing)",
            f"`chemscale cluster credentials {source}` makes a pair",
        )
    _check_private(key)
    return _security(str(cert), str(key), str(ca) if ca.is_file() else None)


def _check_private(path: Path) -> None:
    info = path.stat()
    if stat.S_IMODE(info.st_mode) & 0o077:
        mode = "700" if path.is_dir() else "600"
        raise ClusterError(f"{path} can be read by others", f"chmod {mode} {path}")
