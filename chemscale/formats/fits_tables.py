"""Big FITS tables and files, read in pieces: catalogues of 10^5..10^7 rows, memory-mapped spectra."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from chemscale.formats.fits import BLOCK, END_CARD, HDU, MAX_HDUS, describe, header_at
from chemscale.formats.fits_columns import TableLayout, layout_of
from chemscale.formats.fits_header import CARD, FitsError, Header
from chemscale.formats.paths import GZIP, open_raw
from chemscale.formats.values import concatenate

_MAX_HEADER = 8 * 2**20


def iter_table(path: str, columns: list[str], *, hdu: int = 1, rows: int = 20_000) -> Iterator[dict[str, np.ndarray]]:
    """Blocks of `rows` rows of a big table, only `columns` (case-insensitive; absent ones left out).

    Values are physical (TSCAL, TZERO, TNULL applied); a column with undefined values is a masked array.

    One pass over the file; holds one block of whole rows. A DR17 allStar is 4 GB on disk,
    the columns chemscale needs are 0.3 GB.
    """
    with _Opened(path) as stream:
        header, shape = _seek_hdu(stream, hdu)
        layout = layout_of(header, shape[1])
        lookup = {name.upper(): name for name in reversed(layout.dtype.names or ())}
        wanted = {c: lookup[c.upper()] for c in columns if c.upper() in lookup}
        left = shape[0]
        while left:
            raw = stream.read(min(rows, left) * shape[1])
            got = len(raw) // shape[1] if shape[1] else 0
            if not got or len(raw) % shape[1]:
                raise FitsError(f"table stops {left - got} rows early")
            block = np.frombuffer(raw, layout.dtype, got)
            yield {c: layout.values(block, name) for c, name in wanted.items()}
            left -= got


def read_table(path: str, columns: list[str] | None = None, *, hdu: int = 1) -> dict[str, np.ndarray]:
    """Columns of a table in memory: all of them, or those of `columns` that exist."""
    if columns is None:
        columns = list(table_columns(path, hdu=hdu))
    blocks = list(iter_table(path, columns, hdu=hdu))
    if not blocks:
        return {}
    return {c: concatenate([b[c] for b in blocks]) for c in blocks[0]}


def table_columns(path: str, *, hdu: int = 1) -> tuple[str, ...]:
    """Names of a table's readable columns."""
    with _Opened(path) as stream:
        header, shape = _seek_hdu(stream, hdu)
        return tuple(layout_of(header, shape[1]).dtype.names or ())


def table_units(path: str, *, hdu: int = 1) -> dict[str, str]:
    """Units that a table states: upper-case name of a column -> TUNIT, '' where it has none."""
    with _Opened(path) as stream:
        header, shape = _seek_hdu(stream, hdu)
        return {name.upper(): c.unit for name, c in layout_of(header, shape[1]).columns.items()}


def first_table(path: str) -> tuple[int, TableLayout]:
    """Number and layout of the first binary table that has rows (of the first one where none has).

    Raises
    ------
    FitsError
        No FITS file, or one without binary tables.
    """
    first: tuple[int, TableLayout] | None = None
    ascii_table = False
    with _Opened(path) as stream:
        for index in range(MAX_HDUS):
            try:
                raw = _read_header(stream, index)
            except FitsError:
                if index == 0:
                    raise
                break
            if index and not raw.startswith(b"XTENSION"):
                break
            header, _ = header_at(raw, 0, index)
            kind, shape, size = describe(index, header)
            ascii_table |= kind == "TABLE"
            if kind == "BINTABLE" and header.get("ZIMAGE") is not True:
                found = index, layout_of(header, shape[1])
                if shape[0]:
                    return found
                first = first or found
            stream.seek(-(-size // BLOCK) * BLOCK, 1)
    if first is None:
        raise FitsError("it holds an ASCII table only" if ascii_table else "no HDU holds a binary table")
    return first


def scan_mapped(path: str, n_bytes: int) -> list[HDU]:
    """Units of a large local file of `n_bytes`: only headers are read, data stay on disk.

    The units' :meth:`~chemscale.formats.fits.HDU.image` and ``table`` cannot be used;
    `offset` and `shape` say where the data are.
    """
    units: list[HDU] = []
    offset = 0
    with open(path, "rb") as stream:
        while offset < n_bytes and len(units) < MAX_HDUS:
            stream.seek(offset)
            raw = _read_header(stream, len(units))
            if units and raw[:8] != b"XTENSION":
                break
            header, length = header_at(raw, 0, len(units))
            unit = HDU(len(units), header, b"", offset + length)
            if unit.offset + unit.size > n_bytes:
                have = max(n_bytes - unit.offset, 0)
                raise FitsError(f"HDU {unit.index}: header declares {unit.size} bytes of data, the file has {have}")
            units.append(unit)
            offset = unit.offset + -(-unit.size // BLOCK) * BLOCK
    if not units:
        raise FitsError("file is empty")
    return units


class _Opened:
    """A file or URL, gunzipped where its content is gzip; reading errors become FitsError."""

    def __init__(self, path: str):
        self._path = path
        self._streams: list[Any] = []

    def __enter__(self) -> BinaryIO:
        try:
            stream = open_raw(self._path)
            self._streams.append(stream)
            packed = stream.read(2) == GZIP
            stream.seek(0)
        except OSError as error:
            self._close()
            raise FitsError(f"cannot be read: {error}") from error
        if packed:
            self._streams.append(gzip.GzipFile(fileobj=stream))
        return self._streams[-1]

    def _close(self) -> None:
        while self._streams:
            self._streams.pop().close()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self._close()
        if isinstance(error, (OSError, EOFError, zlib.error)):
            raise FitsError(f"cannot be read: {error}") from error


def _read_header(stream: BinaryIO, index: int) -> bytes:
    raw = b""
    while True:
        block = stream.read(BLOCK)
        if index == 0 and not raw and not block.startswith(b"SIMPLE  ="):
            raise FitsError("not a FITS file (does not start with SIMPLE)" if block else "file is empty")
        if len(block) < BLOCK:
            raise FitsError(f"HDU {index}: header has no END (file cut off?)" if raw else f"no HDU {index}")
        raw += block
        if index and not raw.startswith(b"XTENSION"):
            return raw
        if any(block[i : i + CARD] == END_CARD for i in range(0, BLOCK, CARD)):
            return raw
        if len(raw) > _MAX_HEADER:
            raise FitsError(f"HDU {index}: header has no END")


def _seek_hdu(stream: BinaryIO, wanted: int) -> tuple[Header, tuple[int, ...]]:
    for index in range(wanted + 1):
        raw = _read_header(stream, index)
        if index and not raw.startswith(b"XTENSION"):
            break
        header, _ = header_at(raw, 0, index)
        kind, shape, size = describe(index, header)
        if index == wanted:
            if kind != "BINTABLE":
                raise FitsError(f"HDU {wanted} holds no table")
            return header, shape
        stream.seek(-(-size // BLOCK) * BLOCK, 1)
    raise FitsError(f"no HDU {wanted}")
