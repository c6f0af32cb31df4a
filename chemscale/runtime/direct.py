"""Big local files past the page cache: written from, and read back into, memory of our own.

A shard written in the ordinary way is copied to the page cache, written out by the kernel when it sees fit, and
read back from the cache: three times the work, and the reading proves nothing about the disk. With ``O_DIRECT``
the disk takes the bytes from our buffer while the processor does something else, and what is read back comes from
the disk. Where a file system does not know it (some tmpfs and FUSE ones), everything goes the ordinary way.
"""

from __future__ import annotations

import errno
import io
import mmap
import os
from collections.abc import Callable, Iterator
from functools import partial

#: Bytes of a buffer: long enough that a disk is busy, short enough that three a writer are nothing.
BUFFER = 4 << 20
#: Lengths and offsets are multiples of this (of a page, which any block size divides).
_UNIT = 4096
_DIRECT = getattr(os, "O_DIRECT", 0)


class PlainFile:
    """A new file that grows piece by piece, through the page cache."""

    def __init__(self, path: str | os.PathLike[str]):
        self._file = io.FileIO(path, "xb")

    def write(self, data: bytes | memoryview) -> None:
        """Append `data`."""
        view = memoryview(data).cast("B")
        while view:  # an unbuffered write may take less than it was given
            view = view[self._file.write(view) :]

    def finish(self, *, sync: bool) -> None:
        """Close; `sync` waits until the disk has it all."""
        if sync:
            os.fsync(self._file.fileno())
        self._file.close()

    def close(self) -> None:
        """Close, whatever was written."""
        self._file.close()


class DirectFile:
    """The same past the page cache."""

    def __init__(self, path: str | os.PathLike[str]):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
        self._handle = _open(path, flags)
        self._buffer = mmap.mmap(-1, BUFFER)  # page-aligned, as the disk wants it
        self._held = self._written = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append `data`."""
        view = memoryview(data).cast("B")
        while view:
            n = min(len(view), BUFFER - self._held)
            self._buffer[self._held : self._held + n] = view[:n]
            self._held += n
            view = view[n:]
            if self._held == BUFFER:
                self._put(BUFFER)
                self._written += BUFFER
                self._held = 0

    def finish(self, *, sync: bool) -> None:
        """Write what is left, to the byte, and close; `sync` waits until the disk has it all."""
        if self._held:
            whole = _whole(self._held)
            self._buffer[self._held : whole] = bytes(whole - self._held)
            self._put(whole)
            os.ftruncate(self._handle, self._written + self._held)
        if sync:
            os.fsync(self._handle)
        self.close()

    def close(self) -> None:
        """Close, whatever was written; more than once is fine."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
            self._buffer.close()

    def _put(self, size: int) -> None:
        with memoryview(self._buffer) as whole:
            done = 0
            while done < size:
                with whole[done:size] as rest:
                    done += _or_not_direct(self._handle, partial(os.write, self._handle, rest))


def read_pieces(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """The content of a file, piece by piece, from the disk where it can be told from the page cache."""
    handle = _open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        size = os.fstat(handle).st_size
        with mmap.mmap(-1, max(_UNIT, min(BUFFER, _whole(size)))) as buffer:
            while n := _or_not_direct(handle, lambda: os.readv(handle, [buffer])):
                yield buffer[:n]
    finally:
        os.close(handle)


def _whole(size: int) -> int:
    """`size` rounded up to whole units."""
    return -(-size // _UNIT) * _UNIT


def _open(path: str | os.PathLike[str], flags: int) -> int:
    try:
        return os.open(path, flags | _DIRECT, 0o666)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not _DIRECT:
            raise
    # some file systems make the file before they find that they cannot
    return os.open(path, flags & ~os.O_EXCL, 0o666)


def _or_not_direct(handle: int, call: Callable[[], int]) -> int:
    """`call` on a file; the ordinary way from now on where the file system refuses the direct one."""
    try:
        return call()
    except OSError as error:
        if error.errno != errno.EINVAL or not _turn_off(handle):
            raise
    return call()


def _turn_off(handle: int) -> bool:
    """Direct access off; False where it was off already."""
    if not _DIRECT:
        return False
    import fcntl

    flags = fcntl.fcntl(handle, fcntl.F_GETFL)
    fcntl.fcntl(handle, fcntl.F_SETFL, flags & ~_DIRECT)
    return bool(flags & _DIRECT)
