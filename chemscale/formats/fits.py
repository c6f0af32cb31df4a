"""A small FITS reader for small spectra: fast, strict, and bounded in memory.

A release is hundreds of thousands of files of a hundred kilobytes, and a general reader
spends most of its time on header objects nobody asks for. This one reads a file whole,
finds the header blocks, and hands out arrays as views of the bytes just read.

Nothing a header claims is believed before it is compared with the bytes at hand: an array
is never larger than the file (or, for gzip, than `max_bytes`), so a hostile ``NAXIS1``
cannot make it allocate. Supported: primary and IMAGE extensions, BINTABLE with fixed-width
columns, gzip (several members too). Random groups are refused; tile-compressed images and
variable-length columns may be present, and are read through astropy by the ``table`` source.
Every array equals the one of :mod:`astropy.io.fits` (tested on all real files).
"""

from __future__ import annotations

import errno
import math
import os
import stat
import zlib
from functools import lru_cache

import numpy as np

from chemscale.formats.fits_columns import (
    IMAGE_DTYPES,
    TableLayout,
    layout_of,
    physical,
)
from chemscale.formats.fits_header import CARD, FitsError, Header
from chemscale.formats.paths import GZIP, is_remote

BLOCK = 2880
#: A star's file is kilobytes; anything beyond this is not a spectrum file.
MAX_BYTES = 256 * 2**20
MAX_HDUS = 1000
_PASSING = {
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.EAGAIN, errno.EINTR),
    *(errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.ENOTCONN),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EPIPE),
}
_NO_DATA = b"NAXIS   =                    0"
END_CARD = b"END" + b" " * 77


def read_bytes(path: str, max_bytes: int = MAX_BYTES) -> bytes:
    """Content of a file or fsspec URL, gunzipped if need be, never more than `max_bytes`.

    Raises
    ------
    FitsError
        Not a regular file, unreadable, empty, too large, or a damaged gzip stream.
    OSError
        Too many open files, a stale mount, a lost connection: no verdict on the file, which
        must not be quarantined for it; the shard fails and is tried again.
    """
    try:
        if is_remote(path):
            import fsspec

            with fsspec.open(path, "rb") as stream:
                raw = stream.read(max_bytes + 1)
        else:
            # O_NONBLOCK: opening a FIFO somebody named like a spectrum must not hang a worker
            handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
            try:
                info = os.fstat(handle)
                if not stat.S_ISREG(info.st_mode):
                    raise FitsError("not a regular file")
                if info.st_size > max_bytes:
                    raise FitsError(f"file has {info.st_size} bytes, more than the limit of {max_bytes}")
                raw = os.read(handle, info.st_size)
                while len(raw) < info.st_size and (more := os.read(handle, info.st_size - len(raw))):
                    raw += more  # a network file system may give less than it was asked for
            finally:
                os.close(handle)
    except OSError as error:
        if _passing(error, path):
            raise
        raise FitsError(f"cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # e.g. an embedded NUL in the name
        if isinstance(error, FitsError):
            raise
        raise FitsError(f"cannot be read: {error}") from error
    if not raw:
        raise FitsError("file is empty")
    if len(raw) > max_bytes:
        raise FitsError(f"more than the limit of {max_bytes} bytes")
    return gunzip(raw, max_bytes) if raw[:2] == GZIP else raw


def _passing(error: OSError, path: str) -> bool:
    """Whether the trouble is the machine's or the network's rather than this file's."""
    own = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
    return error.errno in _PASSING or (is_remote(path) and not isinstance(error, own))


def gunzip(raw: bytes, max_bytes: int = MAX_BYTES) -> bytes:
    """Decompress gzip `raw`, stopping at `max_bytes` of output (a gzip bomb is refused)."""
    parts, size = [], 0
    while raw[:2] == GZIP:
        stream = zlib.decompressobj(wbits=31)
        try:
            part = stream.decompress(raw, max_bytes - size + 1)
        except zlib.error as error:
            raise FitsError(f"damaged gzip stream: {error}") from error
        size += len(part)
        if size > max_bytes:
            raise FitsError(f"expands to more than the limit of {max_bytes} bytes")
        if not stream.eof:
            raise FitsError("truncated gzip stream")
        parts.append(part)
        raw = stream.unused_data
    return parts[0] if len(parts) == 1 else b"".join(parts)


class HDU:
    """One header-data unit of a file held in memory."""

    __slots__ = ("buffer", "header", "index", "kind", "offset", "shape", "size")

    def __init__(
        self,
        index: int,
        header: Header,
        buffer: bytes,
        offset: int,
        described: tuple[str, tuple[int, ...], int] | None = None,
    ):
        self.index, self.header, self.buffer, self.offset = index, header, buffer, offset
        self.kind, self.shape, self.size = described or describe(index, header)

    def image(self) -> np.ndarray:
        """The image as a native-endian array of physical values.

        Unsigned integers stay integers; BSCALE and BZERO make floats, and so does an undefined (BLANK) pixel: NaN.
        """
        if self.kind != "IMAGE" or not self.shape:
            raise FitsError(f"HDU {self.index} holds no image")
        count = math.prod(self.shape)
        dtype, scale, zero, blank = pixel_format(self.header.raw)
        return pixels(np.frombuffer(self.buffer, dtype, count, self.offset).reshape(self.shape), scale, zero, blank)

    def layout(self) -> TableLayout:
        """How the rows of the table are laid out."""
        if self.kind != "BINTABLE":
            raise FitsError(f"HDU {self.index} holds no table")
        return layout_of(self.header, self.shape[1])

    def table(self) -> np.ndarray:
        """The table as a structured array of *stored* (big-endian) values, no copy; see :meth:`column`."""
        return np.frombuffer(self.buffer, self.layout().dtype, self.shape[0], self.offset)

    def column(self, name: str) -> np.ndarray | None:
        """Physical values of a column (case does not matter), masked where undefined; None where there is none."""
        layout = self.layout()
        found = layout.find(name)
        return None if found is None else layout.values(self.table(), found)


@lru_cache(maxsize=256)
def pixel_format(raw: bytes) -> tuple[np.dtype, float, float, int | None]:
    """Type of an image's stored values, BSCALE, BZERO and BLANK, from its raw header."""
    header = Header(raw)
    dtype = np.dtype(IMAGE_DTYPES[int(header.get("BITPIX"))])
    blank = header.get("BLANK") if dtype.kind in "iu" else None
    blank = blank if isinstance(blank, int) and not isinstance(blank, bool) else None
    return dtype, header.number("BSCALE", 1.0), header.number("BZERO", 0.0), blank


def pixels(stored: np.ndarray, scale: float, zero: float, blank: int | None) -> np.ndarray:
    """Physical values of stored pixels; NaN where they are undefined."""
    values = physical(stored, scale, zero, blank)
    return np.ma.filled(values.astype(np.float64), np.nan) if isinstance(values, np.ma.MaskedArray) else values


def describe(index: int, header: Header) -> tuple[str, tuple[int, ...], int]:
    """Kind, shape and size in bytes of the data a header declares; nothing is trusted yet."""
    raw = header.raw
    if index == 0 and raw[160:190] == _NO_DATA and b"GROUPS  =" not in raw:
        raw = raw[:240]  # a primary header without data: all that counts stands in its first three cards
    return _describe(index, raw)


@lru_cache(maxsize=256)  # the image headers of one release are the same bytes over and over
def _describe(index: int, raw: bytes) -> tuple[str, tuple[int, ...], int]:
    header = Header(raw)
    kind = "IMAGE" if index == 0 else header.text("XTENSION").upper()
    bitpix, naxis = header.get("BITPIX"), header.get("NAXIS")
    if bitpix not in IMAGE_DTYPES or isinstance(bitpix, bool):
        raise FitsError(f"HDU {index}: BITPIX is {bitpix!r}")
    if isinstance(naxis, bool) or not isinstance(naxis, int) or not 0 <= naxis <= 999:
        raise FitsError(f"HDU {index}: NAXIS is {naxis!r}")
    axes = []
    for i in range(naxis):
        length = header.get(f"NAXIS{i + 1}")
        if isinstance(length, bool) or not isinstance(length, int) or length < 0:
            raise FitsError(f"HDU {index}: NAXIS{i + 1} is {length!r}")
        axes.append(length)
    if index == 0 and header.get("GROUPS") is True:
        raise FitsError("random groups are not supported")
    pcount, gcount = (header.get(k, d) if index else d for k, d in (("PCOUNT", 0), ("GCOUNT", 1)))
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in (pcount, gcount)):
        raise FitsError(f"HDU {index}: PCOUNT, GCOUNT are {pcount!r}, {gcount!r}")
    size = abs(bitpix) // 8 * gcount * (pcount + math.prod(axes)) if axes else 0
    if kind == "BINTABLE" and len(axes) != 2:
        raise FitsError(f"HDU {index}: a table with {len(axes)} axes")
    return kind, tuple(reversed(axes)), size


def header_at(buffer: bytes, offset: int, index: int) -> tuple[Header, int]:
    """The header of HDU `index` that starts at `offset`, and where its data start."""
    first = buffer[offset : offset + 9]
    if index == 0 and first != b"SIMPLE  =":
        raise FitsError("not a FITS file (does not start with SIMPLE)")
    at = offset
    while True:
        end = buffer.find(END_CARD, at)
        if end < 0:
            raise FitsError(f"HDU {index}: header has no END (file cut off?)")
        if (end - offset) % CARD == 0:
            break
        at = end + 1
    stop = offset + -(-(end + CARD - offset) // BLOCK) * BLOCK
    return Header(buffer[offset:end]), stop


def scan(buffer: bytes) -> list[HDU]:
    """All header-data units of a file's bytes.

    Raises
    ------
    FitsError
        Not FITS, a header without END, impossible sizes, or data that stop early. Bytes
        after the last complete unit that do not start an extension are ignored, as the
        standard asks for.
    """
    units: list[HDU] = []
    offset = 0
    size = len(buffer)
    while offset < size and len(units) < MAX_HDUS:
        if units and buffer[offset : offset + 8] != b"XTENSION":
            break
        index = len(units)
        known = _SEEN.get(index)
        if known is not None and buffer.startswith(known[0], offset):
            # the very bytes of an extension header met before: what they say is known
            _, header, length, described = known
            start = offset + length
            unit = HDU(index, header, buffer, start, described)
        else:
            header, start = header_at(buffer, offset, index)
            unit = HDU(index, header, buffer, start)
            if 0 < index < _MOST_SEEN and len(header.raw) < 2**16:
                raw = header.raw + END_CARD
                _SEEN[index] = (raw, header, start - offset, (unit.kind, unit.shape, unit.size))
        offset = start
        if offset + unit.size > size:
            have = max(size - offset, 0)
            raise FitsError(f"HDU {unit.index}: header declares {unit.size} bytes of data, the file has {have}")
        units.append(unit)
        offset += -(-unit.size // BLOCK) * BLOCK
    return units


#: HDU index -> (header up to END, parsed, bytes with padding, description) of the file read last: the files of
#: a release differ in their primary headers only. Entries are replaced whole, so threads may share them.
_SEEN: dict[int, tuple[bytes, Header, int, tuple[str, tuple[int, ...], int]]] = {}
_MOST_SEEN = 16
