"""Arrays of one table-like file, read by rows: NPZ, HDF5, FITS, Zarr.

Every backend answers the same three questions (names, shape, rows) without holding the
spectra. Nothing is unpickled.
"""

from __future__ import annotations

import os
from typing import Any, Protocol

import numpy as np

from chemscale.errors import InputError, MissingExtra
from chemscale.formats.attributes import physical, text_of
from chemscale.formats.fits_file import FitsFile
from chemscale.formats.npz import NpzFile
from chemscale.formats.paths import GZIP, first_bytes, is_remote, printable
from chemscale.formats.values import as_text


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

    def again(self, name: str) -> list[str]:
        """Further arrays of this name, where a file of several tables repeats it; :meth:`rows` reads them."""
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
    """HDF5 datasets, nested groups joined by ``/``, links followed; needs the optional package h5py."""

    def __init__(self, path: str):
        self.path = path
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._left_out: dict[str, str] = {}
        with self._open() as root:
            self._visit(root, "", {root.id})

    def _open(self) -> Any:
        try:
            import h5py
        except ImportError as error:
            raise MissingExtra("reading HDF5", "h5py", "hdf5") from error
        try:
            return h5py.File(self.path, "r")
        except OSError as error:
            raise InputError(f"{printable(self.path)}: not a readable HDF5 file: {error}", "check the file") from error

    def _visit(self, group: Any, inside: str, seen: set[Any]) -> None:
        for key in group:
            name = inside + key
            try:
                node = group[key]
            except (KeyError, OSError) as error:
                self._left_out[name] = f"a link that leads nowhere: {error}"
                continue
            if hasattr(node, "keys"):
                if node.id not in seen:  # a link may lead back
                    self._visit(node, f"{name}/", seen | {node.id})
            elif getattr(node, "shape", None) is not None:
                self._shapes[name] = tuple(node.shape)
            else:
                self._left_out[name] = "it holds no values"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return dict(self._shapes)

    def units(self, name: str) -> str:
        with self._open() as root:
            attributes = root[name].attrs
            return text_of(attributes.get("units", attributes.get("unit")))

    def left_out(self) -> dict[str, str]:
        return dict(self._left_out)

    def again(self, name: str) -> list[str]:
        return []

    def medium(self, name: str) -> str:
        with self._open() as root:
            return text_of(root[name].attrs.get("medium"))

    def note(self, key: str) -> str:
        with self._open() as root:
            return text_of(root.attrs.get(key))

    def rows(self, name: str, rows: np.ndarray | slice | None = None) -> np.ndarray:
        with self._open() as root:
            data = root[name]
            if rows is None or not data.shape:
                values = data[()]
            elif isinstance(rows, slice):
                values = data[rows]
            else:
                unique, back = np.unique(rows, return_inverse=True)  # h5py wants increasing indices
                values = data[unique][back]
            return as_text(physical(np.asarray(values), data.attrs))


class ZarrFile:
    """Arrays of a Zarr group, local or by URL; nested groups joined by ``/``."""

    def __init__(self, path: str):
        import zarr

        try:
            self._group = zarr.open_group(path, mode="r")
            members = self._group.members(max_depth=None)
            self._names = {name: node for name, node in members if isinstance(node, zarr.Array)}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{printable(path)}: not a readable Zarr group: {error}", "check the path") from error

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(array.shape) for name, array in self._names.items()}

    def units(self, name: str) -> str:
        return text_of(self._names[name].attrs.get("units"))

    def medium(self, name: str) -> str:
        return text_of(self._names[name].attrs.get("medium"))

    def left_out(self) -> dict[str, str]:
        return {}

    def again(self, name: str) -> list[str]:
        return []

    def note(self, key: str) -> str:
        return text_of(self._group.attrs.get(key))

    def rows(self, name: str, rows: np.ndarray | slice | None = None) -> np.ndarray:
        array = self._names[name]
        if rows is None or not array.shape:
            values = array[...]
        else:
            values = array[rows] if isinstance(rows, slice) else array.oindex[rows]
        attributes = dict(array.attrs)
        if "_ARRAY_DIMENSIONS" in attributes:  # xarray keeps the fill value of Zarr v2 in the array
            attributes.setdefault("_FillValue", array.fill_value)
        return as_text(physical(np.asarray(values), attributes))
