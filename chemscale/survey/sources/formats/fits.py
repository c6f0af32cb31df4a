"""A small FITS reader for small spectra: fast, strict, and bounded in memory.

A release is hundreds of thousands of files of a hundred kilobytes, and a general reader
spends most of its time on header objects nobody asks for. This one reads a file whole,
finds the header blocks, and hands out arrays as views of the bytes just read.

Nothing a header claims is believed before it is compared with the bytes at hand: an array
is never larger than the file (or, for gzip, than `max_bytes`), so a hostile ``NAXIS1``
cannot make it allocate. Supported: primary and IMAGE extensions, BINTABLE with fixed-width
columns, gzip (several members too). Not supported, with a clear error: random groups,
tile-compressed images, variable-length columns (they may be present, but not read).
Every array equals the one of :mod:`astropy.io.fits` (tested on all real files).
"""

from __future__ import annotations

import errno
import math
import os
import re
import stat
import zlib
from functools import lru_cache
from typing import Any

import numpy as np

BLOCK = 2880
CARD = 80
#: A star's file is kilobytes; anything beyond this is not a spectrum file.
MAX_BYTES = 256 * 2**20
MAX_HDUS = 1000
_PASSING = {
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.EAGAIN, errno.EINTR),
    *(errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.ENOTCONN),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EPIPE),
}
IMAGE_DTYPES = {8: ">u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
_COLUMN_DTYPES = {"L": "S1", "B": "u1", "I": ">i2", "J": ">i4", "K": ">i8", "E": ">f4", "D": ">f8"}
_TFORM = re.compile(r"^(\d*)([LXBIJKAEDCMPQ])")
_NO_DATA = b"NAXIS   =                    0"
END_CARD = b"END" + b" " * 77


class FitsError(ValueError):
    """The bytes are not the FITS file they should be; the message says how."""


def is_remote(path: str) -> bool:
    """True for an fsspec URL such as ``s3://bucket/key`` (a plain path has no scheme)."""
    return "://" in path


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
    return gunzip(raw, max_bytes) if raw[:2] == b"\x1f\x8b" else raw


def _passing(error: OSError, path: str) -> bool:
    """Whether the trouble is the machine's or the network's rather than this file's."""
    own = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
    return error.errno in _PASSING or (is_remote(path) and not isinstance(error, own))


def gunzip(raw: bytes, max_bytes: int = MAX_BYTES) -> bytes:
    """Decompress gzip `raw`, stopping at `max_bytes` of output (a gzip bomb is refused)."""
    parts, size = [], 0
    while raw[:2] == b"\x1f\x8b":
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


class Header:
    """Read-only view of one header; values are parsed when asked for."""

    __slots__ = ("_cards", "raw")

    def __init__(self, raw: bytes):
        self.raw = raw
        self._cards: dict[bytes, int] | None = None

    def _index(self) -> dict[bytes, int]:
        if self._cards is None:
            raw = self.raw
            # reversed: of a repeated keyword the first card counts, as in astropy
            self._cards = {raw[i : i + 8]: i for i in range(len(raw) - CARD, -1, -CARD)}
        return self._cards

    def get(self, key: str, default: Any = None) -> Any:
        """Value of `key` (bool, int, float, str) or `default`; unreadable values count as absent."""
        name = key.encode("ascii").ljust(8)
        at = self._find(name) if self._cards is None else self._cards.get(name, -1)
        if at < 0 or self.raw[at + 8 : at + 10] != b"= ":
            return default
        value = _card_value(self.raw[at + 10 : at + CARD])
        return default if value is None else value

    def _find(self, name: bytes) -> int:
        """First card that starts with `name`, -1 where there is none: quicker than an index for a keyword or two."""
        at = self.raw.find(name)
        while at % CARD and at >= 0:
            at = self.raw.find(name, at + 1)
        return at

    def number(self, key: str, default: float = math.nan) -> float:
        """Finite number stored under `key`, else `default`."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return default
        return float(value)

    def text(self, key: str, default: str = "") -> str:
        """Text stored under `key`, stripped, else `default`; numbers are written out."""
        value = self.get(key)
        return default if value is None else str(value).strip()

    def keys(self) -> list[str]:
        """Keywords in the order of the header, without the blank and commentary ones."""
        ordered = sorted(self._index().items(), key=lambda item: item[1])
        return [k.decode("ascii", "replace").rstrip() for k, at in ordered if self.raw[at + 8 : at + 10] == b"= "]


def _card_value(field: bytes) -> Any:
    text = field.decode("latin-1").strip()
    if text.startswith("'"):
        match = re.match(r"'((?:[^']|'')*)'", text)
        return match.group(1).replace("''", "'").rstrip() if match else None
    text = text.split("/", 1)[0].strip()
    if text in {"T", "F"}:
        return text == "T"
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text.replace("D", "E").replace("d", "e"))
    except ValueError:
        return None


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
        """The image as a native-endian array, ``BSCALE``/``BZERO`` applied where present."""
        if self.kind != "IMAGE" or not self.shape:
            raise FitsError(f"HDU {self.index} holds no image")
        dtype, scale, zero = _pixel_format(self.header.raw)
        count = math.prod(self.shape)
        data = np.frombuffer(self.buffer, dtype, count, self.offset).reshape(self.shape)
        if scale != 1.0 or zero != 0.0:
            return data * scale + zero
        return data.astype(data.dtype.newbyteorder("="))

    def table(self) -> np.ndarray:
        """The table as a structured array with the file's (big-endian) columns, no copy.

        Columns of a kind this reader does not know are left out of the dtype's names.
        """
        if self.kind != "BINTABLE":
            raise FitsError(f"HDU {self.index} holds no table")
        rows, width = self.shape
        return np.frombuffer(self.buffer, table_dtype(self.header, width), rows, self.offset)


@lru_cache(maxsize=256)
def _pixel_format(raw: bytes) -> tuple[np.dtype, float, float]:
    """Type of an image's stored values, BSCALE and BZERO."""
    header = Header(raw)
    dtype = np.dtype(IMAGE_DTYPES[int(header.get("BITPIX"))])
    return dtype, header.number("BSCALE", 1.0), header.number("BZERO", 0.0)


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


def table_dtype(header: Header, width: int) -> np.dtype:
    """Structured dtype of a BINTABLE row of `width` bytes."""
    return _table_dtype(header.raw, width)


@lru_cache(maxsize=64)  # the files of one release share a few table layouts
def _table_dtype(raw: bytes, width: int) -> np.dtype:
    header = Header(raw)
    fields = header.get("TFIELDS")
    if isinstance(fields, bool) or not isinstance(fields, int) or not 0 <= fields <= 999:
        raise FitsError(f"TFIELDS is {fields!r}")
    names, formats, offsets, at = [], [], [], 0
    for i in range(1, fields + 1):
        name, form = header.text(f"TTYPE{i}") or f"col{i}", header.text(f"TFORM{i}").upper()
        match = _TFORM.match(form)
        if not match:
            raise FitsError(f"column {name!r} has format {form!r}")
        count, code = int(match[1] or 1), match[2]
        if code in "PQ":  # descriptor of a variable-length column: skipped, not read
            at += count * (8 if code == "P" else 16)
            continue
        item = {"A": 1, "X": 0, "C": 8, "M": 16}.get(code)
        if code == "X":
            nbytes = (count + 7) // 8
        else:
            nbytes = count * (item if item else np.dtype(_COLUMN_DTYPES[code]).itemsize)
        usable = code not in "XCM" and count > 0 and name not in names
        # an unsigned or scaled column needs its TSCAL/TZERO, which no label column here has
        if usable and header.number(f"TSCAL{i}", 1.0) == 1.0 and header.number(f"TZERO{i}", 0.0) == 0.0:
            names.append(name)
            offsets.append(at)
            formats.append(f"S{count}" if code == "A" else (_COLUMN_DTYPES[code], (count,) if count > 1 else ()))
        at += nbytes
        if at > width:
            raise FitsError(f"columns need {at} bytes and more, a row has {width}")
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": width})


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


def native(values: np.ndarray) -> np.ndarray:
    """`values` in native byte order; text columns as stripped `str`."""
    if values.dtype.kind == "S":
        return np.char.strip(np.char.decode(values, "utf-8", "replace"))
    return values.astype(values.dtype.newbyteorder("="))
