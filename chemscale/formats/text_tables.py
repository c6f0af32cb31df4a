"""Catalogues as text: fields divided by ``,`` ``|`` ``;`` tabs or blanks, VizieR's, STILTS' and IPAC's.

Numbers with decimal commas are read where fields are divided by ``;``.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from chemscale.errors import InputError
from chemscale.formats.catalogue import ROWS, Catalogue, by_astropy, unpacked
from chemscale.formats.paths import printable

_DELIMITERS = ",|\t;"
_DECIMAL_COMMA = re.compile(r"\s*[+-]?\d+,\d+(?:[eE][+-]?\d+)?\s*")


class _Csv(Catalogue):
    typed = False
    delimiter = ","
    encoding = "utf-8-sig"
    #: lines before the header, and behind it up to a line of dashes
    skip = 0
    ruled = 0

    def blocks(self, columns: Iterable[str], rows: int = ROWS) -> Iterator[dict[str, np.ndarray]]:
        wanted = list(columns)
        width = len(self.columns)
        at = [self.columns.index(c) for c in wanted]
        with _text(self.path, self.encoding) as stream:
            for _ in range(self.skip + 1 + self.ruled):
                stream.readline()
            reader = csv.reader(stream, delimiter=self.delimiter, skipinitialspace=True)
            try:
                while block := list(itertools.islice(reader, rows)):
                    if set(map(len, block)) != {width}:
                        block = self._whole(block, reader.line_num - len(block) + self.skip + self.ruled + 2)
                    fields = list(zip(*block)) if block else [()] * width
                    read = _decimal_points if self.delimiter == ";" else list
                    yield {c: np.array(read(fields[i]), dtype=object) for c, i in zip(wanted, at)}
            except (csv.Error, EOFError, OSError) as error:
                raise InputError(
                    f"{printable(self.path)}: cannot be read as CSV: {error}", "repair or remove the line"
                ) from error

    def _whole(self, block: list[list[str]], first: int) -> list[list[str]]:
        """Rows of as many fields as the header has: empty lines and comments are passed over."""
        width = len(self.columns)
        out = []
        for i, row in enumerate(block):
            if not row or (row[0].startswith("#") and len(row) != width):
                continue
            if len(row) < width or any(field.strip() for field in row[width:]):
                raise InputError(
                    f"{printable(self.path)}, line {first + i}: {len(row)} fields, the header has {width}",
                    "repair or remove the line",
                )
            out.append(row[:width])
        return out


def _decimal_points(texts: Sequence[str]) -> list[str]:
    """Fields of one column of a file divided by ``;`` with decimal points, where each that has a comma is a number.

    A column that has points too is left as it is: its commas may divide thousands.
    """
    commas = [t for t in texts if "," in t]
    plain = not commas or any("." in t for t in texts) or not all(map(_DECIMAL_COMMA.fullmatch, commas))
    return list(texts) if plain else [t.replace(",", ".") for t in texts]


def _text(path: str, encoding: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(unpacked(path), encoding=encoding, newline="")


def _encoding(path: str) -> str:
    """UTF-8 where the whole file is; else Latin-1, in which old catalogues spell names."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with unpacked(path) as stream:
        try:
            while block := stream.read(1 << 22):
                decoder.decode(block)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return "latin-1"
    return "utf-8-sig"


def open_text(path: str, remedy: str) -> Catalogue:
    """A catalogue in a text file of any kind, told by its first lines: IPAC, MRT, ECSV, framed, VizieR or CSV."""
    try:
        encoding = _encoding(path)
    except (OSError, EOFError) as error:
        raise InputError(f"{printable(path)}: cannot be read: {error}", remedy) from error
    comments: list[str] = []
    header = ""
    before = 0  # lines before the header
    with _text(path, encoding) as stream:
        for line in stream:
            text = line.strip("\r\n")
            if text.startswith("#"):
                comments.append(text)
            elif text.strip():
                header = text
                break
            before += 1
        behind = list(itertools.islice(stream, 2))
    if not header:
        raise InputError(f"{printable(path)}: empty table", remedy)
    split = {d: next(csv.reader([header], delimiter=d, skipinitialspace=True)) for d in _DELIMITERS}
    delimiter = max(split, key=lambda d: len(split[d]))
    if len(split[delimiter]) == 1:
        return _open_blanks(path, header, comments, remedy)
    fields, before_it = split[delimiter], before
    commented = next(csv.reader([comments[-1].lstrip("# ")], delimiter=delimiter)) if comments else []
    if len(commented) == len(fields) and any(map(_is_number, fields)) and not any(map(_is_number, commented)):
        fields, before_it = commented, before - 1  # the names stand behind the last '#'
        behind = [header, *behind]
    names = [name.strip().strip('"') for name in fields]
    if len(set(names)) < len(names):
        raise InputError(f"{printable(path)}: two columns have one name", "rename one of them in its header line")
    ruled, units = _units(behind, delimiter, len(names))
    found = _Csv(path, tuple(names), dict(zip(names, units)))
    found.delimiter, found.encoding, found.skip = delimiter, encoding, before_it
    found.ruled = ruled
    return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def open_barred(path: str, start: bytes, remedy: str) -> Catalogue:
    """Columns between bars: an IPAC table, whose second line of bars holds types, or STILTS' text."""
    barred = [line for line in start.decode("latin-1").splitlines() if line.startswith("|")][:2]
    types = {word.strip().lower() for word in barred[-1].strip("| \r").split("|")} if barred else set()
    ipac = types <= {"int", "long", "i", "l", "double", "float", "real", "d", "f", "r", "char", "date", "c"}
    return by_astropy(path, "ascii.ipac", remedy) if ipac else by_astropy(path, "ascii.basic", remedy, delimiter="|")


def _units(lines: list[str], delimiter: str, width: int) -> tuple[int, list[str]]:
    """How many of the two lines behind the header belong to it, and the units they state.

    VizieR writes units and a line of dashes under the names; others units alone, above numbers.
    """
    dashes = [i for i, line in enumerate(lines) if re.fullmatch(r"[-\s,;|]*-{3}[-\s,;|]*", line)]
    first, second = ([*map(str.strip, next(csv.reader([line], delimiter=delimiter)))] for line in [*lines, "", ""][:2])
    if dashes:
        return dashes[0] + 1, first if dashes[0] == 1 else []
    over_numbers = [unit for unit, value in zip(first, second) if _is_number(value)]
    if len(first) == len(second) == width and any(over_numbers) and all(map(_is_unit, over_numbers)):
        return 1, first
    return 0, []


def _is_unit(text: str) -> bool:
    """Whether a text that is no number names a unit, or is empty."""
    if not text or _is_number(text):
        return not text
    from astropy.units import Unit

    try:
        Unit(text.strip("[]() "))
    except (ValueError, TypeError):
        return False
    return True


def _open_blanks(path: str, header: str, comments: list[str], remedy: str) -> Catalogue:
    """Columns divided by blanks: the names stand in the first line, or behind the last '#' (STILTS' ascii)."""
    width = len(next(iter(_split(header))))
    behind = comments[-1].lstrip("# ").strip() if comments else ""
    commented = width > 1 and len(_split(behind)[0]) == width
    kind = "ascii.commented_header" if commented else "ascii.basic"
    if commented:
        return by_astropy(path, kind, remedy, header_start=len(comments) - 1)
    return by_astropy(path, kind, remedy)


def _split(line: str) -> list[list[str]]:
    return list(csv.reader([line.strip()], delimiter=" ", skipinitialspace=True)) or [[]]
