"""Columns of FITS binary tables: how values are stored, and what they mean (FITS 4.0, section 7.3).

A stored value becomes a physical one by TSCAL, TZERO (unsigned integers exactly), TNULL (undefined integers are
masked), TDIM (shape), and 'T'/'F' for logicals. Images have BSCALE, BZERO and BLANK to the same effect.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from chemscale.formats.fits_header import FitsError, Header

IMAGE_DTYPES = {8: ">u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
_NUMBERS = {"B": "u1", "I": ">i2", "J": ">i4", "K": ">i8", "E": ">f4", "D": ">f8"}
_WIDTHS = {"L": 1, "A": 1, "B": 1, "I": 2, "J": 4, "K": 8, "E": 4, "D": 8, "C": 8, "M": 16, "P": 8, "Q": 16}
_TFORM = re.compile(r"^(\d*)([LXBIJKAEDCMPQ])(.*)$")
#: stored type and TZERO -> the integer type that is meant
_SHIFTED = {
    ("u1", -128): np.int8,
    ("i2", 2**15): np.uint16,
    ("i4", 2**31): np.uint32,
    ("i8", 2**63): np.uint64,
}
#: kinds of column that are listed, not read by rows, and what is said of them
_OTHERS = {"X": "bit array", "C": "complex numbers", "M": "complex numbers", "P": "", "Q": ""}


@dataclass(frozen=True)
class Column:
    """One column of a binary table: where it stands in a row and how to read it."""

    name: str
    code: str
    offset: int
    #: of the stored values of one row, with their shape
    dtype: np.dtype
    scale: float = 1.0
    zero: float = 0.0
    null: int | None = None
    unit: str = ""
    #: stored type of one value of a variable-length column, None for kinds that are not read
    element: np.dtype | None = None

    @property
    def why_not(self) -> str:
        """Why the column cannot be read by rows; '' when it can."""
        if self.code in "PQ":
            return "variable-length array"
        return _OTHERS.get(self.code, "") or ("empty" if self.dtype.itemsize == 0 else "")

    def physical(self, stored: np.ndarray) -> np.ndarray:
        """Physical values of `stored` in native byte order; a masked array where some are undefined."""
        if self.code == "A":
            return text(stored)
        if self.code == "L" or stored.dtype == "S1":
            return _logical(stored)
        return physical(stored, self.scale, self.zero, self.null)


def text(stored: np.ndarray) -> np.ndarray:
    """Bytes as `str`, without the padding."""
    return np.char.strip(np.char.decode(stored, "utf-8", "replace"))


def _logical(stored: np.ndarray) -> np.ndarray:
    letters = np.ascontiguousarray(stored).view(np.uint8).reshape(stored.shape)
    true = letters == ord("T")
    undefined = ~true & (letters != ord("F"))
    return np.ma.array(true, mask=undefined) if undefined.any() else true


def physical(stored: np.ndarray, scale: float, zero: float, null: int | None) -> np.ndarray:
    """``scale * stored + zero``; unsigned integers stay integers, undefined ones are masked (or NaN once scaled)."""
    kind = stored.dtype.kind
    undefined = (stored == null) if null is not None and kind in "iu" else None
    if undefined is not None and not undefined.any():
        undefined = None
    shifted = _SHIFTED.get((stored.dtype.str.lstrip("<>|="), int(zero))) if scale == 1.0 and zero else None
    if shifted is not None:
        # adding 2**(n-1) to an n-bit number is flipping its highest bit
        native = stored.astype(stored.dtype.newbyteorder("="))
        high = native.dtype.type(np.iinfo(native.dtype).min if kind == "i" else 128)
        values: Any = (native ^ high).view(shifted)
    elif scale == 1.0 and zero == 0.0:
        values = stored.astype(stored.dtype.newbyteorder("="))
    else:
        values = stored.astype(np.float64) * scale + zero
        if undefined is not None:
            values[undefined] = np.nan
        return values
    return values if undefined is None else np.ma.array(values, mask=undefined)


@dataclass(frozen=True)
class TableLayout:
    """How the rows of a binary table are laid out."""

    #: structured, with every column that can be read by rows; `itemsize` is that of a row
    dtype: np.dtype
    columns: dict[str, Column]

    def values(self, table: np.ndarray, name: str) -> np.ndarray:
        """Physical values of a column of rows of this layout, by its exact name."""
        return self.columns[name].physical(table[name])

    def find(self, name: str) -> str | None:
        """The name of a readable column in the file's own spelling, None where there is none."""
        wanted = name.upper()
        return next((n for n in self.dtype.names or () if n.upper() == wanted), None)


def layout_of(header: Header, width: int) -> TableLayout:
    """Layout of a BINTABLE whose rows have `width` bytes.

    Raises
    ------
    FitsError
        The header contradicts itself.
    """
    return _layout(header.raw, width)


@lru_cache(maxsize=64)  # the files of one release share a few table layouts
def _layout(raw: bytes, width: int) -> TableLayout:
    header = Header(raw)
    fields = header.get("TFIELDS")
    if isinstance(fields, bool) or not isinstance(fields, int) or not 0 <= fields <= 999:
        raise FitsError(f"TFIELDS is {fields!r}")
    columns: dict[str, Column] = {}
    at = 0
    for i in range(1, fields + 1):
        name, form = header.text(f"TTYPE{i}") or f"col{i}", header.text(f"TFORM{i}").upper()
        match = _TFORM.match(form)
        if not match:
            raise FitsError(f"column {name!r} has format {form!r}")
        count, code = int(match[1] or 1), match[2]
        nbytes = (count + 7) // 8 if code == "X" else count * _WIDTHS[code]
        if name not in columns:
            null = header.get(f"TNULL{i}")
            columns[name] = Column(
                name,
                code,
                at,
                _stored_type(code, count, _dimensions(header.get(f"TDIM{i}"))),
                header.number(f"TSCAL{i}", 1.0),
                header.number(f"TZERO{i}", 0.0),
                null if isinstance(null, int) and not isinstance(null, bool) else None,
                header.text(f"TUNIT{i}"),
                _element(match[3]) if code in "PQ" else None,
            )
        at += nbytes
        if at > width:
            raise FitsError(f"columns need {at} bytes and more, a row has {width}")
    read = [c for c in columns.values() if not c.why_not]
    fields_of: Any = {
        "names": [c.name for c in read],
        "formats": [c.dtype for c in read],
        "offsets": [c.offset for c in read],
        "itemsize": width,
    }
    return TableLayout(np.dtype(fields_of), columns)


def _dimensions(given: Any) -> tuple[int, ...]:
    """Shape that TDIM states, first axis slowest; () where it says nothing that can be understood."""
    match = re.fullmatch(r"\(\s*(\d+(?:\s*,\s*\d+)*)\s*\)", str(given).strip()) if given is not None else None
    return tuple(int(n) for n in reversed(match[1].split(","))) if match else ()


def _element(form: str) -> np.dtype | None:
    """Stored type of the values of a variable-length column, from what stands behind P or Q in its TFORM."""
    kind = "S1" if form[:1] == "L" else _NUMBERS.get(form[:1])
    return np.dtype(kind) if kind else None


def _stored_type(code: str, count: int, shape: Sequence[int]) -> np.dtype:
    """Type of the stored values of one row."""
    if code == "A":
        length = shape[-1] if shape and math.prod(shape) == count and shape[-1] else count
        return np.dtype((f"S{length}", tuple(shape[:-1]) if length < count else ()))
    kind = "S1" if code == "L" else _NUMBERS.get(code, f"V{_WIDTHS.get(code, 1)}")
    stated = tuple(shape) if len(shape) > 1 and math.prod(shape) == count else ()
    return np.dtype((kind, stated or ((count,) if count != 1 else ())))
