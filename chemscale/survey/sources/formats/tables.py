"""Arrays of one table-like file, read by rows: NPZ, HDF5, FITS, Zarr.

Every backend answers the same three questions (names, shape, rows) without holding the
spectra. Nothing is unpickled.
"""

from __future__ import annotations

import os
from typing import Any, Protocol

import numpy as np

from chemscale.errors import InputError, MissingExtra
from chemscale.survey.sources.formats.fits_file import FitsFile
from chemscale.survey.sources.formats.npz import NpzFile
from chemscale.survey.sources.formats.paths import GZIP, first_bytes, is_remote, printable
from chemscale.survey.sources.formats.values import as_text


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

    def note(self, key: str) -> str:
        """A text the file states for all of it (survey, medium, normalisation, frame), '' when none."""
        ...

    def rows(self, name: str, rows: np.ndarray | slice | None = None) -> np.ndarray:
        """Some rows of an array (all for None), native byte order; text as `str`; masked where undefined."""
        ...

    def left_out(self) -> dict[str, str]:
        """What of the file cannot be read, and why."""
        ...


def open_table(path: str) -> TableFile:
    """The backend for a file, by its first bytes and else by its name (.npz, .h5, .hdf5, .fits, .zarr).

    Raises
    ------
    InputError
        No such file, unknown kind, damaged file, or a missing optional package.
    """
    lower = path.rstrip("/").lower()
    if not is_remote(path) and not os.path.exists(path):
        raise InputError(f"no such file: {printable(path)}", "check the path")
    if lower.endswith(".zarr") or os.path.isdir(path):
        return ZarrFile(path)
    try:
        head = first_bytes(path)
    except OSError as error:
        raise InputError(f"{printable(path)}: cannot be read: {error}", "check the path") from error
    if head.startswith(b"PK") or lower.endswith(".npz"):
        return NpzFile(path)
    if head.startswith(b"\x89HDF") or lower.endswith((".h5", ".hdf5", ".hdf")):
        return Hdf5File(path)
    if head.startswith((b"SIMPLE  =", GZIP)) or lower.endswith((".fits", ".fit", ".fits.gz")):
        return FitsFile(path)
    raise InputError(f"{printable(path)}: unknown kind of table", "use .npz, .h5, .fits or .zarr")


class Hdf5File:
    """HDF5 datasets, nested groups joined by ``/``; needs the optional package h5py."""

    def __init__(self, path: str):
        self.path = path
        with self._open() as root:
            self._shapes: dict[str, tuple[int, ...]] = {}
            self._units: dict[str, str] = {}
            self._left_out: dict[str, str] = {}
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

    def left_out(self) -> dict[str, str]:
        return dict(self._left_out)

    def medium(self, name: str) -> str:
        with self._open() as root:
            return str(root[name].attrs.get("medium", ""))

    def note(self, key: str) -> str:
        with self._open() as root:
            value = root.attrs.get(key, "")
            return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)

    def rows(self, name: str, rows: np.ndarray | slice | None = None) -> np.ndarray:
        with self._open() as root:
            data = root[name]
            if rows is None or not data.shape:
                return as_text(np.asarray(data[()]))
            if isinstance(rows, slice):
                return as_text(np.asarray(data[rows]))
            unique, back = np.unique(rows, return_inverse=True)  # h5py wants increasing indices
            return as_text(np.asarray(data[unique])[back])


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

    def left_out(self) -> dict[str, str]:
        return {}

    def note(self, key: str) -> str:
        return str(self._group.attrs.get(key, ""))

    def rows(self, name: str, rows: np.ndarray | slice | None = None) -> np.ndarray:
        array = self._names[name]
        if rows is None or not array.shape:
            return as_text(np.asarray(array[...]))
        if isinstance(rows, slice):
            return as_text(np.asarray(array[rows]))
        return as_text(np.asarray(array.oindex[rows]))
