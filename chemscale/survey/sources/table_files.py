"""Arrays of one table-like file, read by rows: NPZ, HDF5, FITS, Zarr.

Every backend answers the same three questions (names, shape, rows) without holding the
spectra. Nothing is unpickled.
"""

from __future__ import annotations

import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from chemscale.errors import InputError
from chemscale.survey.sources import fits
from chemscale.survey.sources.files import printable
from chemscale.survey.sources.fits_tables import scan_mapped

#: A compressed array cannot be read by rows: it is held in memory, up to this size.
MAX_LOADED = 2 * 2**30
#: what zipfile, zlib and NumPy raise on damaged archives (NotImplementedError: unknown compression;
#: RuntimeError: encrypted; TypeError, OverflowError, SyntaxError: nonsense in an array header)
_DAMAGED_ZIP = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, OSError, EOFError, KeyError),
    *(ValueError, TypeError, OverflowError, SyntaxError, NotImplementedError, RuntimeError, MemoryError),
)


class TableFile(Protocol):
    """Named arrays whose first axis is the star (or, for `wavelength`, the pixel)."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every array."""
        ...

    def units(self, name: str) -> str:
        """Unit the file states for `name`, '' when none."""
        ...

    def medium(self, name: str) -> str:
        """Attribute `medium` of the wavelengths, '' when none."""
        ...

    def rows(self, name: str, rows: np.ndarray | slice | None = None) -> np.ndarray:
        """Some rows of an array (all for None), native byte order; text as `str`."""
        ...


def open_table(path: str) -> TableFile:
    """The backend for a file, by its name (.npz, .h5, .hdf5, .fits, .fits.gz, .zarr).

    Raises
    ------
    InputError
        No such file, unknown suffix, damaged file, or a missing optional package.
    """
    lower = path.rstrip("/").lower()
    if not fits.is_remote(path) and not os.path.exists(path):
        raise InputError(f"no such file: {printable(path)}", "check the path")
    if lower.endswith(".npz"):
        return NpzFile(path)
    if lower.endswith((".h5", ".hdf5", ".hdf")):
        return Hdf5File(path)
    if lower.endswith((".fits", ".fit", ".fits.gz")):
        return FitsFile(path)
    if lower.endswith(".zarr") or os.path.isdir(path):
        return ZarrFile(path)
    raise InputError(f"{printable(path)}: unknown kind of table", "use .npz, .h5, .fits or .zarr")


def _text(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "S":
        return np.char.strip(np.char.decode(values, "utf-8", "replace"))
    if values.dtype.kind == "T":  # variable-length text of Zarr
        return np.array(values.ravel().tolist(), dtype=str).reshape(values.shape)
    if values.dtype.kind == "O":
        return np.array([v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values.ravel()])
    return values.astype(values.dtype.newbyteorder("=")) if values.dtype.kind in "iufb" else values


class NpzFile:
    """NumPy archive. Uncompressed members (``np.savez``) are memory-mapped; compressed ones
    (``np.savez_compressed``) are loaded whole, once a process, up to :data:`MAX_LOADED`."""

    def __init__(self, path: str):
        if fits.is_remote(path):
            raise InputError(f"{path}: an NPZ cannot be read by rows from a URL", "copy it, or convert it to Zarr")
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                members = {
                    i.filename.removesuffix(".npy"): i for i in archive.infolist() if i.filename.endswith(".npy")
                }
                self._headers = {name: self._header(archive, info) for name, info in members.items()}
        except _DAMAGED_ZIP as error:
            raise InputError(
                f"{printable(path)}: not a readable NPZ: {error}", "write it again with np.savez"
            ) from error
        for name, (_, _, dtype, _, _) in self._headers.items():
            if dtype.hasobject:
                raise InputError(
                    f"{printable(path)}: {name} holds Python objects, which would have to be unpickled",
                    "store plain arrays; text as a fixed-width string array",
                )

    def _header(
        self, archive: zipfile.ZipFile, info: zipfile.ZipInfo
    ) -> tuple[tuple[int, ...], bool, np.dtype, int, bool]:
        with archive.open(info) as stream:
            version = np.lib.format.read_magic(stream)
            reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = reader(stream)
            at = stream.tell()
        stored = info.compress_type == zipfile.ZIP_STORED
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize if not dtype.hasobject else 0
        if at + size > info.file_size:
            raise ValueError(f"{info.filename} declares {size} bytes, holds {info.file_size - at}")
        if not stored:
            return shape, fortran, dtype, -1, False
        with open(self.path, "rb") as raw:
            raw.seek(info.header_offset + 26)
            lengths = np.frombuffer(raw.read(4), "<u2")
        return shape, fortran, dtype, info.header_offset + 30 + int(lengths.sum()) + at, True

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: header[0] for name, header in self._headers.items()}

    def units(self, name: str) -> str:
        return ""

    def medium(self, name: str) -> str:
        return ""

    def compressed(self, name: str) -> bool:
        """Whether reading any row of `name` loads all of it."""
        return not self._headers[name][4]

    def rows(self, name: str, rows: np.ndarray | slice | None = None) -> np.ndarray:
        shape, fortran, dtype, offset, stored = self._headers[name]
        whole: np.ndarray
        if stored and shape and 0 not in shape:
            whole = np.memmap(self.path, dtype, "r", offset, shape, "F" if fortran else "C")
        else:
            size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            if size > MAX_LOADED:
                raise InputError(
                    f"{printable(self.path)}: {name} is compressed and {size / 2**30:.1f} GiB: no reading by rows",
                    "write the file with np.savez (uncompressed), or as Zarr",
                )
            whole = _load_member(self.path, name, os.stat(self.path).st_mtime_ns)
        part = whole if rows is None or not shape else whole[rows]
        return _text(np.array(part))


@lru_cache(maxsize=2)
def _load_member(path: str, name: str, _modified: int) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return np.asarray(archive[name])
    except _DAMAGED_ZIP as error:
        raise InputError(f"{printable(path)}: {name} cannot be read: {error}", "write the file again") from error


class Hdf5File:
    """HDF5 datasets, nested groups joined by ``/``; needs the optional package h5py."""

    def __init__(self, path: str):
        self.path = path
        with self._open() as root:
            self._shapes: dict[str, tuple[int, ...]] = {}
            self._units: dict[str, str] = {}
            root.visititems(self._visit)

    def _open(self) -> Any:
        try:
            import h5py
        except ImportError as error:
            raise InputError("reading HDF5 needs the package h5py", "pip install h5py") from error
        try:
            return h5py.File(self.path, "r")
        except OSError as error:
            raise InputError(f"{printable(self.path)}: not a readable HDF5 file: {error}", "check the file") from error

    def _visit(self, name: str, node: Any) -> None:
        if hasattr(node, "shape") and node.shape is not None:
            self._shapes[name] = tuple(node.shape)
            unit = node.attrs.get("units", node.attrs.get("unit", ""))
            self._units[name] = unit.decode() if isinstance(unit, bytes) else str(unit)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return dict(self._shapes)

    def units(self, name: str) -> str:
        return self._units[name]

    def medium(self, name: str) -> str:
        with self._open() as root:
            return str(root[name].attrs.get("medium", ""))

    def rows(self, name: str, rows: np.ndarray | slice | None = None) -> np.ndarray:
        with self._open() as root:
            data = root[name]
            if rows is None or not data.shape:
                return _text(np.asarray(data[()]))
            if isinstance(rows, slice):
                return _text(np.asarray(data[rows]))
            unique, back = np.unique(rows, return_inverse=True)  # h5py wants increasing indices
            return _text(np.asarray(data[unique])[back])


class FitsFile:
    """Columns of the first binary table, and 1-D or 2-D images by their EXTNAME.

    Local uncompressed files are memory-mapped; others are read whole.
    """

    def __init__(self, path: str):
        self.path = path
        self._arrays: dict[str, np.ndarray] = {}
        self._units: dict[str, str] = {}
        try:
            for unit, buffer in self._each_unit():
                self._add(unit, buffer)
        except fits.FitsError as error:
            raise InputError(f"{printable(path)}: {error}", "give a FITS file with a binary table") from error

    def _each_unit(self) -> Iterator[tuple[fits.HDU, Any]]:
        if fits.is_remote(self.path) or self.path.endswith(".gz"):
            content = fits.read_bytes(self.path, MAX_LOADED)
            yield from ((unit, content) for unit in fits.scan(content))
            return
        mapped = np.memmap(self.path, np.uint8, "r") if os.path.getsize(self.path) else np.zeros(0, np.uint8)
        yield from ((unit, mapped) for unit in scan_mapped(self.path, len(mapped)))

    def _add(self, unit: fits.HDU, buffer: Any) -> None:
        if unit.kind == "BINTABLE" and unit.shape[0]:
            dtype = fits.table_dtype(unit.header, unit.shape[1])
            table = np.ndarray(unit.shape[0], dtype, buffer, unit.offset)
            for i in range(1, int(unit.header.number("TFIELDS", 0)) + 1):
                name = unit.header.text(f"TTYPE{i}")
                if name in (dtype.names or ()) and name not in self._arrays:
                    self._arrays[name], self._units[name] = table[name], unit.header.text(f"TUNIT{i}")
        elif unit.kind == "IMAGE" and unit.header.text("EXTNAME") and len(unit.shape) in (1, 2):
            name = unit.header.text("EXTNAME")
            dtype = np.dtype(fits.IMAGE_DTYPES[int(unit.header.get("BITPIX"))])
            self._arrays.setdefault(name, np.ndarray(unit.shape, dtype, buffer, unit.offset))
            self._units.setdefault(name, unit.header.text("BUNIT"))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: array.shape for name, array in self._arrays.items()}

    def units(self, name: str) -> str:
        return self._units[name]

    def medium(self, name: str) -> str:
        return ""

    def rows(self, name: str, rows: np.ndarray | slice | None = None) -> np.ndarray:
        array = self._arrays[name]
        return _text(np.array(array if rows is None else array[rows]))


class ZarrFile:
    """Arrays of a Zarr group, local or by URL."""

    def __init__(self, path: str):
        import zarr

        try:
            self._group = zarr.open_group(path, mode="r")
            self._names = dict(self._group.arrays())
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{printable(path)}: not a readable Zarr group: {error}", "check the path") from error

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(array.shape) for name, array in self._names.items()}

    def units(self, name: str) -> str:
        return str(self._names[name].attrs.get("units", ""))

    def medium(self, name: str) -> str:
        return str(self._names[name].attrs.get("medium", ""))

    def rows(self, name: str, rows: np.ndarray | slice | None = None) -> np.ndarray:
        array = self._names[name]
        if rows is None or not array.shape:
            return _text(np.asarray(array[...]))
        if isinstance(rows, slice):
            return _text(np.asarray(array[rows]))
        return _text(np.asarray(array.oindex[rows]))
