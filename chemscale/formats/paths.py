"""Paths of strangers: which are URLs, what a file's first bytes say, and paths as text that can be shown."""

from __future__ import annotations

import os
from typing import Any

#: First bytes of a gzip stream.
GZIP = b"\x1f\x8b"


def is_remote(path: str) -> bool:
    """True for an fsspec URL such as ``s3://bucket/key`` (a plain path has no scheme)."""
    return "://" in path


def printable(path: str) -> str:
    """`path` as text that can be stored and shown: undecodable bytes and control characters escaped."""
    if path.isascii() and path.isprintable():
        return path
    text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def open_raw(path: str) -> Any:
    """A file or URL opened for reading bytes."""
    if not is_remote(path):
        return open(path, "rb")
    import fsspec

    return fsspec.open(path, "rb").open()


def first_bytes(path: str, n: int = 16) -> bytes:
    """The first `n` bytes of a file or URL; empty for a directory.

    Names lie: archives and browsers pack and unpack on the way, so what a file is stands in its first bytes.
    """
    if not is_remote(path) and os.path.isdir(path):
        return b""
    with open_raw(path) as stream:
        return bytes(stream.read(n))


def is_gzip(path: str) -> bool:
    """Whether the content, not the name, is gzip."""
    return first_bytes(path, 2) == GZIP
