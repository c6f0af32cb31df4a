"""Arrays of one table-like file, read by rows: NPZ, HDF5, FITS, Zarr.

Every backend answers the same three questions (names, shape, rows) without holding the
spectra. Nothing is unpickled.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from chemscale.errors import InputError, MissingExtra
from chemscale.survey.sources import fits
from chemscale.survey.sources.files import printable
from chemscale.survey.sources.fits_tables import scan_mapped

#: What cannot be read by rows is held in memory, up to this size.
MAX_LOADED = 2 * 2**30


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
        from chemscale.survey.sources.npz_files import NpzFile

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
        return as_text(np.array(array if rows is None else array[rows]))


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
