"""Arrays of one table-like file, read by rows: NPZ, HDF5, FITS, Zarr.

Every backend answers the same three questions (names, shape, rows) without holding the
spectra. Nothing is unpickled.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from chemscale.errors import InputError, MissingExtra
from chemscale.survey.sources.files import printable
from chemscale.survey.sources.formats import fits
from chemscale.survey.sources.formats.fits_tables import scan_mapped

#: What cannot be read by rows is held in memory, up to this size.
MAX_LOADED = 2 * 2**30
#: Bytes of a mapped file that are looked at before it is mapped anew: a column of numbers touches the whole table.
_MAPPED = 64 * 2**20


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
        from chemscale.survey.sources.formats.npz import NpzFile

        return NpzFile(path)
    if lower.endswith((".h5", ".hdf5", ".hdf")):
        return Hdf5File(path)
    if lower.endswith((".fits", ".fit", ".fits.gz")):
        return FitsFile(path)
    if lower.endswith(".zarr") or os.path.isdir(path):
        return ZarrFile(path)
    raise InputError(f"{printable(path)}: unknown kind of table", "use .npz, .h5, .fits or .zarr")


def as_text(values: np.ndarray) -> np.ndarray:
    """Native byte order; every kind of text as `str`."""
    if values.dtype.kind == "S":
        return np.char.strip(np.char.decode(values, "utf-8", "replace"))
    if values.dtype.kind == "T":  # variable-length text of Zarr
        return np.array(values.ravel().tolist(), dtype=str).reshape(values.shape)
    if values.dtype.kind == "O":
        return np.array([v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values.ravel()])
    return values.astype(values.dtype.newbyteorder("=")) if values.dtype.kind in "iufb" else values


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
            raise MissingExtra("reading HDF5", "h5py", "hdf5") from error
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
                return as_text(np.asarray(data[()]))
            if isinstance(rows, slice):
                return as_text(np.asarray(data[rows]))
            unique, back = np.unique(rows, return_inverse=True)  # h5py wants increasing indices
            return as_text(np.asarray(data[unique])[back])


@dataclass(frozen=True)
class _Place:
    """Where an array stands in a FITS file: values of `dtype` from `offset` on; `field` of them for a column."""

    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int
    unit: str
    field: str = ""

    def of(self, buffer: Any) -> np.ndarray:
        """The array as a view of the file's bytes."""
        whole = np.ndarray(self.shape, self.dtype, buffer, self.offset)
        return whole[self.field] if self.field else whole


class FitsFile:
    """Columns of the first binary table, and 1-D or 2-D images by their EXTNAME.

    Local uncompressed files are memory-mapped anew for every reading, so that what has been read does not count
    as memory of ours any more; others are read whole.
    """

    def __init__(self, path: str):
        self.path = path
        self._places: dict[str, _Place] = {}
        self._content: bytes | None = None
        try:
            if fits.is_remote(path) or path.endswith(".gz"):
                self._content = fits.read_bytes(path, MAX_LOADED)
                units = fits.scan(self._content)
            else:
                units = list(scan_mapped(path, os.path.getsize(path)))
            for unit in units:
                self._add(unit)
        except fits.FitsError as error:
            raise InputError(f"{printable(path)}: {error}", "give a FITS file with a binary table") from error

    def _add(self, unit: fits.HDU) -> None:
        header = unit.header
        if unit.kind == "BINTABLE" and unit.shape[0]:
            dtype = fits.table_dtype(header, unit.shape[1])
            for i in range(1, int(header.number("TFIELDS", 0)) + 1):
                name = header.text(f"TTYPE{i}")
                if name in (dtype.names or ()):
                    place = _Place(dtype, (unit.shape[0],), unit.offset, header.text(f"TUNIT{i}"), name)
                    self._places.setdefault(name, place)
        elif unit.kind == "IMAGE" and header.text("EXTNAME") and len(unit.shape) in (1, 2):
            dtype = np.dtype(fits.IMAGE_DTYPES[int(header.get("BITPIX"))])
            place = _Place(dtype, unit.shape, unit.offset, header.text("BUNIT"))
            self._places.setdefault(header.text("EXTNAME"), place)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {n: (*p.shape, *p.dtype[p.field].shape) if p.field else p.shape for n, p in self._places.items()}

    def units(self, name: str) -> str:
        return self._places[name].unit

    def medium(self, name: str) -> str:
        return ""

    def rows(self, name: str, rows: np.ndarray | slice | None = None) -> np.ndarray:
        if rows is not None:
            return as_text(self._part(name, rows))
        place = self._places[name]
        step = max(1, _MAPPED // max(1, place.dtype.itemsize * math.prod(place.shape[1:])))
        parts = [self._part(name, slice(i, i + step)) for i in range(0, max(1, place.shape[0]), step)]
        return as_text(parts[0] if len(parts) == 1 else np.concatenate(parts))

    def _part(self, name: str, rows: np.ndarray | slice) -> np.ndarray:
        buffer: Any = np.memmap(self.path, np.uint8, "r") if self._content is None else self._content
        return np.array(self._places[name].of(buffer)[rows])


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
            return as_text(np.asarray(array[...]))
        if isinstance(rows, slice):
            return as_text(np.asarray(array[rows]))
        return as_text(np.asarray(array.oindex[rows]))
