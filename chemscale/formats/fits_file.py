"""A FITS file as named arrays read by rows: columns of its tables, images by their EXTNAME.

What stands in the file as plain bytes is memory-mapped and converted row by row, columns of variable length too (of
these astropy scales the first row alone, and cuts it to integers). Compressed images go through astropy.
"""

from __future__ import annotations

import io
import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from chemscale.errors import InputError
from chemscale.formats import fits
from chemscale.formats.fits_columns import Column
from chemscale.formats.fits_header import FitsError, Header
from chemscale.formats.fits_tables import scan_mapped
from chemscale.formats.paths import is_gzip, is_remote, printable
from chemscale.formats.values import MAX_LOADED, as_text, concatenate

#: Bytes of a mapped file that are looked at before it is mapped anew: a column of numbers touches the whole table.
_MAPPED = 64 * 2**20


#: what a file states for all of it -> keyword of the primary header
NOTES = {
    "survey": "SURVEY",
    "medium": "MEDIUM",
    "normalisation": "NORMALIS",
    "frame": "FRAME",
    "cleaned": "CLEANED",
}


@dataclass(frozen=True)
class _Place:
    """Where an array stands in a FITS file: rows of `dtype` from `offset` on; one column of them, or an image."""

    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int
    unit: str
    column: Column | None = None
    #: BSCALE, BZERO, BLANK of an image
    scaling: tuple[float, float, int | None] = (1.0, 0.0, None)

    @property
    def full_shape(self) -> tuple[int, ...]:
        return (*self.shape, *self.column.dtype.shape) if self.column else self.shape

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape[1:])

    def read(self, buffer: Any, rows: np.ndarray | slice) -> np.ndarray:
        """Physical values of some rows."""
        whole = np.ndarray(self.shape, self.dtype, buffer, self.offset)
        if self.column is not None:
            return self.column.physical(np.array(whole[self.column.name][rows]))
        return fits.pixels(np.array(whole[rows]), *self.scaling)


@dataclass(frozen=True)
class _Heap:
    """A column of variable length whose rows are all of one length: where each of them stands in the file."""

    starts: np.ndarray
    full_shape: tuple[int, int]
    unit: str
    column: Column
    dtype: np.dtype

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * self.full_shape[1]

    def read(self, buffer: Any, rows: np.ndarray | slice) -> np.ndarray:
        """Physical values of some rows."""
        dtype = self.dtype
        stored = np.empty((len(self.starts[rows]), self.full_shape[1]), dtype)
        for out, start in zip(stored, self.starts[rows].tolist()):
            out[:] = np.frombuffer(buffer, dtype, len(out), start)
        return self.column.physical(stored)


@dataclass(frozen=True)
class _Compressed:
    """A compressed image, which astropy reads."""

    hdu: int
    full_shape: tuple[int, ...]
    unit: str


_Source = _Place | _Heap | _Compressed


def _medium(header: Header) -> str:
    """The medium of wavelengths by the keywords of surveys, AIRORVAC or VACUUM; '' where neither says."""
    stated = {"air": "air", "vac": "vacuum"}.get(header.text("AIRORVAC").lower()[:3], "")
    return stated or {True: "vacuum", False: "air"}.get(header.get("VACUUM"), "")


class FitsFile:
    """Columns of a file's binary tables, and its 1-D or 2-D images by their EXTNAME.

    Local uncompressed files are memory-mapped anew for every reading, so that what has been read does not count
    as memory of ours any more; others are read whole. Of a name that occurs twice the first counts; the others,
    and what cannot be read, are told by :meth:`left_out`.
    """

    def __init__(self, path: str):
        self.path = path
        self._places: dict[str, _Source] = {}
        #: of names that occur before, by the key that `columns_of` gives them
        self._repeated: dict[str, _Source] = {}
        self._tables: dict[str, dict[str, str]] = {}
        self._left_out: dict[str, str] = {}
        self._notes: dict[str, str] = {}
        self._content: bytes | None = None
        self._held: dict[str, np.ndarray] = {}
        try:
            if is_remote(path) or is_gzip(path):
                self._content = fits.read_bytes(path, MAX_LOADED)
                units = fits.scan(self._content)
            else:
                units = list(scan_mapped(path, os.path.getsize(path)))
            self._notes = {name: units[0].header.text(key) for name, key in NOTES.items()}
            media = (_medium(unit.header) for unit in units)
            self._notes["medium"] = self._notes["medium"] or next(filter(None, media), "")
            for unit in units:
                self._add(unit)
        except FitsError as error:
            raise InputError(f"{printable(path)}: {error}", "give a FITS file with a binary table") from error

    def _add(self, unit: fits.HDU) -> None:
        header = unit.header
        name = header.text("EXTNAME")
        label = name or f"HDU {unit.index}"
        if unit.kind == "BINTABLE" and header.get("ZIMAGE") is True:
            self._add_compressed(unit, name, label)
        elif unit.kind == "BINTABLE":
            layout = unit.layout()
            for column in layout.columns.values():
                if not unit.shape[0]:
                    self._left_out.setdefault(column.name, f"the table {label} has no rows")
                elif column.code in "PQ":
                    self._add_variable(unit, column)
                elif column.why_not:
                    self._left_out.setdefault(column.name, column.why_not)
                else:
                    place = _Place(layout.dtype, (unit.shape[0],), unit.offset, column.unit, column)
                    self._put(column.name, place, label)
        elif unit.kind == "IMAGE" and unit.size:
            if not name and unit.index:
                self._left_out[label] = "an image without a name (EXTNAME)"
            elif len(unit.shape) not in (1, 2) or not name:
                self._left_out[label] = f"an image of {len(unit.shape)} dimensions" if name else "the primary image"
            else:
                dtype, scale, zero, blank = fits.pixel_format(header.raw)
                place = _Place(dtype, unit.shape, unit.offset, header.text("BUNIT"), scaling=(scale, zero, blank))
                self._put(name, place, label)
        elif unit.kind not in ("IMAGE", "BINTABLE"):
            self._left_out[label] = f"a {unit.kind} extension" if unit.kind != "TABLE" else "an ASCII table"

    def _put(self, name: str, place: _Source, label: str) -> None:
        key = name
        if name in self._places:
            key = f"{name} of {label}"
            self._left_out.setdefault(key, "the name occurs before")
            self._repeated.setdefault(key, place)
        else:
            self._places[name] = place
        self._tables.setdefault(label, {}).setdefault(name, key)

    def _add_compressed(self, unit: fits.HDU, name: str, label: str) -> None:
        header: Header = unit.header
        axes = [header.get(f"ZNAXIS{i}") for i in range(int(header.number("ZNAXIS", 0)), 0, -1)]
        shape = tuple(int(n) for n in axes if isinstance(n, int))
        if not name or len(shape) not in (1, 2) or len(shape) != len(axes):
            self._left_out[label] = f"a compressed image of {len(axes)} dimensions" if name else "a nameless image"
        else:
            self._put(name, _Compressed(unit.index, shape, header.text("BUNIT")), label)

    def _add_variable(self, unit: fits.HDU, column: Column) -> None:
        """A column of variable length whose rows are all of one length is as good as any other."""
        dtype, (n, step) = np.dtype(">i4" if column.code == "P" else ">i8"), unit.shape
        at = unit.offset + column.offset
        lengths, offsets = np.ndarray((n, 2), dtype, self._buffer(), at, (step, dtype.itemsize)).T
        least, most = int(lengths.min()), int(lengths.max())
        starts = unit.offset + int(unit.header.number("THEAP", n * step)) + offsets.astype(np.int64)
        ends = starts + most * (column.element.itemsize if column.element else 0)
        if column.element is None or least != most or least < 1:
            self._left_out[column.name] = f"variable-length array, {least} to {most} values a row"
        elif starts.min() < unit.offset or ends.max() > unit.offset + unit.size:
            self._left_out[column.name] = "variable-length array that points beyond its table"
        else:
            self._put(column.name, _Heap(starts, (n, least), column.unit, column, column.element), column.name)

    def columns_of(self, table: str) -> dict[str, str]:
        """Column -> what :meth:`rows` calls it, of the table of this EXTNAME."""
        return dict(self._tables.get(table, {}))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: place.full_shape for name, place in self._places.items()}

    def units(self, name: str) -> str:
        return self._places[name].unit

    def medium(self, name: str) -> str:
        return ""

    def note(self, key: str) -> str:
        return self._notes.get(key, "")

    def left_out(self) -> dict[str, str]:
        return dict(self._left_out)

    def again(self, name: str) -> list[str]:
        return [key for key in self._repeated if key.startswith(f"{name} of ")]

    def rows(self, name: str, rows: np.ndarray | slice | None = None) -> np.ndarray:
        place = self._places[name] if name in self._places else self._repeated[name]
        if isinstance(place, _Compressed):
            return as_text(self._decompressed(name, place, slice(None) if rows is None else rows))
        if rows is not None:
            return as_text(place.read(self._buffer(), rows))
        step = max(1, _MAPPED // max(1, place.row_bytes))
        starts = range(0, max(1, place.full_shape[0] if place.full_shape else 1), step)
        return as_text(concatenate([place.read(self._buffer(), slice(i, i + step)) for i in starts]))

    def _buffer(self) -> Any:
        return np.memmap(self.path, np.uint8, "r") if self._content is None else self._content

    def _decompressed(self, name: str, place: _Compressed, rows: np.ndarray | slice) -> np.ndarray:
        from astropy.io import fits as astropy_fits

        if name in self._held:
            return self._held[name][rows]
        source: Any = self.path if self._content is None else io.BytesIO(self._content)
        try:
            with astropy_fits.open(source, memmap=False, lazy_load_hdus=True) as units:
                if isinstance(rows, slice) and len(place.full_shape) == 2:
                    return np.array(units[place.hdu].section[rows])  # only the tiles of these rows
                if math.prod(place.full_shape) * 8 > MAX_LOADED:
                    raise InputError(
                        f"{printable(self.path)}: {name} would take {math.prod(place.full_shape) * 8 / 2**30:.1f} GiB",
                        "write it as a plain image",
                    )
                values = np.array(units[place.hdu].data)
        except (OSError, ValueError, TypeError, IndexError, KeyError) as error:
            raise InputError(f"{printable(self.path)}: {name} cannot be read: {error}", "write it anew") from error
        self._held[name] = values
        return values[rows]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_held": {}}
