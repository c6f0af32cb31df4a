"""NumPy archives read by rows: memory-mapped where they are stored plainly, streamed where they are compressed."""

from __future__ import annotations

import lzma
import math
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from chemscale.errors import InputError
from chemscale.formats.paths import is_remote, printable
from chemscale.formats.values import MAX_LOADED, as_text

#: what zipfile, zlib and NumPy raise on damaged archives (NotImplementedError: unknown compression;
#: RuntimeError: encrypted; TypeError, OverflowError, SyntaxError: nonsense in an array header)
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, OSError, EOFError, KeyError),
    *(ValueError, TypeError, OverflowError, SyntaxError, NotImplementedError, RuntimeError, MemoryError),
)
#: Bytes decompressed at a time while rows are skipped.
_SKIP = 1 << 20


@dataclass(frozen=True)
class _Member:
    """One array of the archive. `offset` is that of its values in the file; -1 where it is compressed."""

    file: str
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype
    header: int
    offset: int


class NpzFile:
    """A NumPy archive.

    Plain members (``np.savez``) are memory-mapped. Compressed ones (``np.savez_compressed``) are decompressed
    forwards as rows are asked for, and never held; asking for earlier rows starts again. Only a compressed array
    in Fortran order has to be held whole, up to :data:`~chemscale.formats.values.MAX_LOADED`.
    Arrays of Python objects would have to be unpickled: they are listed, and an error where they are needed.
    """

    def __init__(self, path: str):
        if is_remote(path):
            raise InputError(f"{path}: an NPZ cannot be read by rows from a URL", "copy it, or convert it to Zarr")
        self.path = path
        self._streams: dict[str, _Stream] = {}
        self._held: dict[str, np.ndarray] = {}
        try:
            with zipfile.ZipFile(path) as archive:
                infos = [i for i in archive.infolist() if i.filename.endswith(".npy")]
                self._members = {i.filename.removesuffix(".npy"): self._member(archive, i) for i in infos}
        except _DAMAGED as error:
            raise InputError(
                f"{printable(path)}: not a readable NPZ: {error}", "write it again with np.savez"
            ) from error

    def _member(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
        with archive.open(info) as stream:
            version = np.lib.format.read_magic(stream)
            reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = reader(stream)
            at = stream.tell()
        size = math.prod(shape) * dtype.itemsize if not dtype.hasobject else 0
        if at + size > info.file_size:
            raise ValueError(f"{info.filename} declares {size} bytes, holds {info.file_size - at}")
        offset = -1
        if info.compress_type == zipfile.ZIP_STORED:
            with open(self.path, "rb") as raw:
                raw.seek(info.header_offset + 26)
                lengths = np.frombuffer(raw.read(4), "<u2")
            offset = info.header_offset + 30 + int(lengths.sum()) + at
        return _Member(info.filename, shape, fortran, dtype, at, offset)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: member.shape for name, member in self._members.items()}

    def units(self, name: str) -> str:
        return ""

    def medium(self, name: str) -> str:
        return ""

    def left_out(self) -> dict[str, str]:
        return {}

    def again(self, name: str) -> list[str]:
        return []

    def note(self, key: str) -> str:
        return ""

    def rows(self, name: str, rows: np.ndarray | slice | None = None) -> np.ndarray:
        member = self._members[name]
        if member.dtype.hasobject:
            raise InputError(
                f"{printable(self.path)}: {name} holds Python objects, which would have to be unpickled",
                "store a plain array; text as np.array(list_of_str), with '' for None",
            )
        if not member.shape or 0 in member.shape or rows is None:
            return as_text(self._whole(name, member))
        if member.offset >= 0:
            order: Any = "F" if member.fortran else "C"
            return as_text(np.array(np.memmap(self.path, member.dtype, "r", member.offset, member.shape, order)[rows]))
        if member.fortran and len(member.shape) > 1:
            if name not in self._held:
                self._held[name] = self._whole(name, member)
            return as_text(np.array(self._held[name][rows]))
        wanted = np.arange(member.shape[0])[rows]
        if name not in self._streams:
            self._streams[name] = _Stream(self.path, member)
        try:
            return as_text(self._streams[name].read(wanted))
        except _DAMAGED as error:
            raise self._broken(name, error) from error

    def _whole(self, name: str, member: _Member) -> np.ndarray:
        size = math.prod(member.shape) * member.dtype.itemsize
        if size > MAX_LOADED:
            raise InputError(
                f"{printable(self.path)}: {name} would take {size / 2**30:.1f} GiB of memory",
                "write it in C order (np.ascontiguousarray), so that it can be read by rows",
            )
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                return np.asarray(archive[name])
        except _DAMAGED as error:
            raise self._broken(name, error) from error

    def _broken(self, name: str, error: BaseException) -> InputError:
        return InputError(f"{printable(self.path)}: {name} cannot be read: {error}", "write the file again")


class _Stream:
    """Rows of a compressed array, decompressed in the order in which they are asked for."""

    def __init__(self, path: str, member: _Member):
        self._path, self._member = path, member
        self._row_bytes = math.prod(member.shape[1:]) * member.dtype.itemsize
        self._archive: zipfile.ZipFile | None = None
        self._file: IO[bytes] | None = None
        self._at = 0

    def read(self, wanted: np.ndarray) -> np.ndarray:
        """Rows by number."""
        order = np.argsort(wanted, kind="stable")
        out = np.empty((len(wanted), *self._member.shape[1:]), self._member.dtype)
        last, previous = -1, -1
        for place in order.tolist():
            row = int(wanted[place])
            if row == last:
                out[place] = out[previous]
            else:
                content = self._row(row)
                out[place] = np.frombuffer(content, self._member.dtype).reshape(self._member.shape[1:])
            last, previous = row, place
        return out

    def _row(self, row: int) -> bytes:
        if self._file is None or row < self._at:
            self._open()
        assert self._file is not None
        skip = (row - self._at) * self._row_bytes
        while skip:
            skip -= len(self._take(min(skip, _SKIP)))
        content = self._take(self._row_bytes)
        self._at = row + 1
        return content

    def _open(self) -> None:
        self.close()
        self._archive = zipfile.ZipFile(self._path)
        self._file = self._archive.open(self._member.file)
        self._at = 0
        self._take(self._member.header)

    def _take(self, n: int) -> bytes:
        assert self._file is not None
        content = self._file.read(n)
        while len(content) < n:
            more = self._file.read(n - len(content))
            if not more:
                raise EOFError("the data stop early")
            content += more
        return content

    def close(self) -> None:
        """Close the file."""
        for thing in (self._file, self._archive):
            if thing is not None:
                thing.close()
        self._file = self._archive = None

    def __del__(self) -> None:
        self.close()
