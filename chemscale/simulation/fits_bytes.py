"""FITS files as bytes: headers and binary tables made once, data packed by NumPy.

Writing 20,000 small files through astropy takes longer than simulating them. The formats needed
here are few (image extensions of one size, tables of plain columns), so their headers are laid out
once and only values change. astropy reads and verifies the result in the tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

BLOCK = 2880


def card(key: str, value: object, comment: str = "") -> str:
    """One 80-character header card in fixed format."""
    if isinstance(value, bool):
        text = f"{'T' if value else 'F':>20}"
    elif isinstance(value, (int, np.integer)):
        text = f"{int(value):>20d}"
    elif isinstance(value, (float, np.floating)):
        text = f"{float(value):.11G}"
        text = f"{text if '.' in text or 'E' in text else text + '.0':>20}"
    else:
        quoted = "'" + str(value).replace("'", "''").ljust(8) + "'"
        text = f"{quoted:<20}"
    line = f"{key:<8}= {text}" + (f" / {comment}" if comment else "")
    if len(line) > 80 and comment:
        line = line[:80]
    if len(line) > 80:
        raise ValueError(f"card too long: {line!r}")
    return line.ljust(80)


def header(cards: Sequence[str]) -> bytes:
    """Cards, END and padding."""
    text = "".join(cards) + "END".ljust(80)
    return text.ljust(-(-len(text) // BLOCK) * BLOCK).encode("ascii")


def padded(data: bytes) -> bytes:
    """Data filled with zeros to whole blocks."""
    return data + b"\0" * (-len(data) % BLOCK)


def primary(cards: Sequence[str] = ()) -> bytes:
    """A primary HDU without data."""
    start = [
        card("SIMPLE", True, "FITS standard"),
        card("BITPIX", 8),
        card("NAXIS", 0),
        card("EXTEND", True),
    ]
    return header([*start, *cards])


def image_header(n_pixels: int, cards: Sequence[str] = ()) -> bytes:
    """Header of a 1-D float32 image extension."""
    start = [
        card("XTENSION", "IMAGE"),
        card("BITPIX", -32),
        card("NAXIS", 1),
        card("NAXIS1", n_pixels),
        card("PCOUNT", 0),
        card("GCOUNT", 1),
    ]
    return header([*start, *cards])


#: NumPy kind and size -> letter of a binary table column.
_LETTER = {"i2": "I", "i4": "J", "i8": "K", "f4": "E", "f8": "D"}


class BinaryTable:
    """A binary table of fixed columns.

    Parameters
    ----------
    columns : mapping of str to str
        Column name -> NumPy format: ``"f4"``, ``"26f4"`` (a vector), ``"S18"`` (text).
    name : str
        EXTNAME; none when empty.
    """

    def __init__(self, columns: Mapping[str, str], name: str = ""):
        fields: list[tuple] = []
        self._cards: list[str] = []
        for i, (column, code) in enumerate(columns.items(), 1):
            repeat, kind = _split(code)
            if kind.startswith("S"):
                fields.append((column, kind))
                form = f"{kind[1:]}A"
            else:
                fields.append((column, f">{kind}", (repeat,)) if repeat > 1 else (column, f">{kind}"))
                form = f"{repeat if repeat > 1 else ''}{_LETTER[kind]}"
            self._cards += [card(f"TTYPE{i}", column), card(f"TFORM{i}", form)]
        self.dtype = np.dtype(fields)
        if name:
            self._cards.append(card("EXTNAME", name))
        self._n_fields = len(fields)

    def rows(self, n: int) -> np.ndarray:
        """An empty record array to fill."""
        return np.zeros(n, self.dtype)

    def header(self, n: int) -> bytes:
        """The extension's header for n rows."""
        start = [
            card("XTENSION", "BINTABLE"),
            card("BITPIX", 8),
            card("NAXIS", 2),
            card("NAXIS1", self.dtype.itemsize),
            card("NAXIS2", n),
            card("PCOUNT", 0),
            card("GCOUNT", 1),
            card("TFIELDS", self._n_fields),
        ]
        return header(start + self._cards)


def _split(code: str) -> tuple[int, str]:
    digits = len(code) - len(code.lstrip("0123456789"))
    return (int(code[:digits]) if digits else 1), code[digits:]
