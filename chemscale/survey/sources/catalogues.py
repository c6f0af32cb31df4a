"""Catalogues in whatever form they come: FITS, CSV (``,`` ``|`` ``;`` tab), Parquet, VOTable, ECSV, IPAC, MRT, STILTS'.

Numbers with decimal commas are read where fields are divided by ``;``.

Columns are read by blocks of rows, so that a catalogue of 10^7 rows needs the memory of the rows that are kept.
What is not FITS, CSV or Parquet is read whole through :mod:`astropy.table`.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from chemscale.errors import InputError, MissingExtra
from chemscale.survey.sources.formats.fits_header import FitsError
from chemscale.survey.sources.formats.fits_tables import first_table, iter_table
from chemscale.survey.sources.formats.paths import GZIP, open_raw, printable
from chemscale.survey.sources.formats.values import concatenate

#: Rows read at once.
ROWS = 200_000
_DELIMITERS = ",|\t;"
_DECIMAL_COMMA = re.compile(r"\s*[+-]?\d+,\d+(?:[eE][+-]?\d+)?\s*")


@dataclass
class Catalogue:
    """A table on disk: its columns, and their values block by block."""

    path: str
    columns: tuple[str, ...]
    units: dict[str, str] = field(default_factory=dict)
    #: columns that cannot be read, and why
    left_out: dict[str, str] = field(default_factory=dict)
    #: what the file says of its columns, where astropy reads it
    descriptions: dict[str, str] = field(default_factory=dict)
    #: whether the file tells numbers from text: where not, all columns are text
    typed: ClassVar[bool] = True

    def find(self, name: str) -> str | None:
        """A column by its name, without regard to case; None where there is none."""
        wanted = name.strip().lower()
        return next((c for c in self.columns if c.lower() == wanted), None)

    def need(self, name: str, remedy: str) -> str:
        """As :meth:`find`.

        Raises
        ------
        InputError
            There is no such column; the message lists those there are.
        """
        found = self.find(name)
        if found is None:
            listed = ", ".join(self.columns[:40]) + (", ..." if len(self.columns) > 40 else "")
            raise InputError(f"{printable(self.path)}: no column {name!r}; it has {listed}", remedy)
        return found

    def blocks(self, columns: Iterable[str], rows: int = ROWS) -> Iterator[dict[str, np.ndarray]]:
        """Blocks of rows of `columns` (in the file's own spelling): numbers, or text; masked where undefined."""
        raise NotImplementedError

    def read(self, columns: Iterable[str]) -> dict[str, Any]:
        """Whole columns."""
        wanted = list(columns)
        blocks = list(self.blocks(wanted))
        if not blocks:
            return {c: np.array([], dtype=str) for c in wanted}
        return {c: concatenate([b[c] for b in blocks]) for c in wanted}


class _Fits(Catalogue):
    hdu = 1

    def blocks(self, columns: Iterable[str], rows: int = ROWS) -> Iterator[dict[str, np.ndarray]]:
        try:
            yield from iter_table(self.path, list(columns), hdu=self.hdu, rows=rows)
        except FitsError as error:
            raise InputError(f"{printable(self.path)}: {error}", "give a whole FITS table") from error


class _Parquet(Catalogue):
    #: column -> the column of its mask, where astropy wrote the file
    masks: Mapping[str, str] = MappingProxyType({})

    def blocks(self, columns: Iterable[str], rows: int = ROWS) -> Iterator[dict[str, np.ndarray]]:
        wanted = list(columns)
        stored = [*wanted, *(self.masks[c] for c in wanted if c in self.masks)]
        with open_raw(self.path) as stream:
            for batch in _parquet(stream).iter_batches(batch_size=rows, columns=stored):
                read = {c: _from_arrow(batch.column(i)) for i, c in enumerate(batch.schema.names)}
                for column in self.masks.keys() & set(wanted):
                    read[column] = np.ma.array(read[column], mask=read[self.masks[column]])
                yield {c: read[c] for c in wanted}


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


class _InMemory(Catalogue):
    table: Any = None

    def blocks(self, columns: Iterable[str], rows: int = ROWS) -> Iterator[dict[str, np.ndarray]]:
        yield {c: plain_values(self.table[c]) for c in columns}


def plain_values(column: Any) -> np.ndarray:
    """A column of any table as an array, its mask kept."""
    if hasattr(column, "unmasked"):  # a masked quantity
        return np.ma.array(np.asarray(column.unmasked), mask=np.asarray(column.mask))
    if hasattr(column, "to_value"):  # a quantity
        return np.asarray(column.value)
    if isinstance(column, np.ma.MaskedArray):
        return np.ma.array(np.asarray(column.data), mask=np.ma.getmaskarray(column))
    return np.asarray(column)


def open_catalogue(path: str, remedy: str = "give a readable table: FITS, CSV, Parquet, VOTable or ECSV") -> Catalogue:
    """A table by its content, whatever it is called.

    Raises
    ------
    InputError
        Unreadable, empty, or no table.
    """
    try:
        with _bytes(path) as stream:
            head = stream.read(1 << 16)
    except (OSError, EOFError) as error:
        raise InputError(f"{printable(path)}: cannot be read: {error}", remedy) from error
    if not head.strip():
        raise InputError(f"{printable(path)}: empty table", remedy)
    if head.startswith(b"SIMPLE  ="):
        return _open_fits(path, remedy)
    if head.startswith(b"PAR1"):
        return _open_parquet(path)
    if path.lower().removesuffix(".gz").endswith((".fits", ".fit")):
        raise InputError(f"{printable(path)}: not a FITS file (does not start with SIMPLE)", remedy)
    if head.startswith((b"\x89HDF", b"PK", b"\x93NUMPY")) or b"\x00" in head[:4096]:
        raise InputError(f"{printable(path)}: not a table that can be read here", remedy)
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"<") and b"VOTABLE" in head.upper():
        return _by_astropy(path, "votable", remedy)
    if start.startswith(b"# %ECSV") and b"delimiter: ','" not in head:
        return _by_astropy(path, "ascii.ecsv", remedy)
    if b"Byte-by-byte Description" in head:
        return _by_astropy(path, "ascii.mrt", remedy)
    if start.startswith((b"|", b"\\", b"+-")):
        return _open_ruled(path, start, remedy)
    return _open_text(path, remedy)


def _open_fits(path: str, remedy: str) -> Catalogue:
    try:
        index, layout = first_table(path)
    except FitsError as error:
        if "ASCII table" in str(error):
            return _by_astropy(path, "fits", remedy)
        raise InputError(f"{printable(path)}: {error}", remedy) from error
    names = tuple(layout.dtype.names or ())
    bad = {c.name: c.why_not for c in layout.columns.values() if c.why_not}
    found = _Fits(path, names, {c: layout.columns[c].unit for c in names}, bad)
    found.hdu = index
    return found


def _parquet(stream: Any) -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra("reading Parquet", "pyarrow", "parquet") from error
    return pyarrow.parquet.ParquetFile(stream)


def _open_parquet(path: str) -> Catalogue:
    with open_raw(path) as stream:
        try:
            schema = _parquet(stream).schema_arrow
        except (OSError, ValueError) as error:
            raise InputError(f"{printable(path)}: not a readable Parquet file: {error}", "check the file") from error
    units = {f.name: (f.metadata or {}).get(b"unit", b"").decode() for f in schema}
    nested = {f.name: f"nested ({f.type})" for f in schema if str(f.type).startswith(("struct", "map"))}
    masks: dict[str, str] = {}
    if said := (schema.metadata or {}).get(b"table_meta_yaml"):
        from astropy.table import meta

        units |= {
            c["name"]: str(c.get("unit", "")) for c in meta.get_header_from_yaml(said.decode().splitlines())["datatype"]
        }
        masks = {n: f"{n}.mask" for n in schema.names if f"{n}.mask" in schema.names}
    hidden = {*nested, *masks.values()}
    found = _Parquet(path, tuple(n for n in schema.names if n not in hidden), units, nested)
    found.masks = masks
    return found


def _from_arrow(column: Any) -> np.ndarray:
    if column.null_count and str(column.type).startswith(("int", "uint", "bool")):
        fill = False if str(column.type) == "bool" else 0
        hidden = column.is_null().to_numpy(zero_copy_only=False)
        return np.ma.array(column.fill_null(fill).to_numpy(zero_copy_only=False), mask=hidden)
    return np.asarray(column.to_numpy(zero_copy_only=False))


def _by_astropy(path: str, kind: str, remedy: str, **options: Any) -> Catalogue:
    import warnings

    from astropy.table import Table

    try:
        with _bytes(path) as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            source: Any = stream
            if kind.startswith("ascii"):
                source = _decode(stream.read()).splitlines()
            if "delimiter" in options:  # bars at both ends of a line, and a frame of +---+ around all
                source = [line.strip().strip("|") for line in source if not line.startswith("+-")]
            table = Table.read(source, format=kind, **options)
    except Exception as error:
        raise InputError(f"{printable(path)}: cannot be read as {kind}: {error}", remedy) from error
    kinds = {c: type(table[c]).__name__ for c in table.colnames}
    plain = tuple(c for c in table.colnames if hasattr(table[c], "dtype") and table[c].ndim)
    units = {c: str(table[c].unit or "") for c in plain}
    found = _InMemory(path, plain, units, {c: f"a {kind}" for c, kind in kinds.items() if c not in plain})
    found.table = table
    found.descriptions = {c: str(table[c].info.description or "") for c in plain}
    return found


def _bytes(path: str) -> Any:
    """The content of a file or URL, gunzipped where it is gzip."""
    stream = open_raw(path)
    packed = stream.read(2) == GZIP
    stream.seek(0)
    return gzip.GzipFile(fileobj=stream) if packed else stream


def _text(path: str, encoding: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(_bytes(path), encoding=encoding, newline="")


def _decode(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _encoding(path: str) -> str:
    """UTF-8 where the whole file is; else Latin-1, in which old catalogues spell names."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with _bytes(path) as stream:
        try:
            while block := stream.read(1 << 22):
                decoder.decode(block)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return "latin-1"
    return "utf-8-sig"


def _open_text(path: str, remedy: str) -> Catalogue:
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
    names = [name.strip().strip('"') for name in split[delimiter]]
    if len(set(names)) < len(names):
        raise InputError(f"{printable(path)}: two columns have one name", "rename one of them in its header line")
    ruled = _ruled(behind)
    units = next(csv.reader([behind[0]], delimiter=delimiter)) if ruled == 2 else []
    found = _Csv(path, tuple(names), {n: u.strip() for n, u in zip(names, units)})
    found.delimiter, found.encoding, found.skip = delimiter, encoding, before
    found.ruled = ruled
    return found


def _open_ruled(path: str, start: bytes, remedy: str) -> Catalogue:
    """Columns between bars: an IPAC table, whose second line of bars holds types, or STILTS' text."""
    barred = [line for line in start.decode("latin-1").splitlines() if line.startswith("|")][:2]
    types = {word.strip().lower() for word in barred[-1].strip("| \r").split("|")} if barred else set()
    ipac = types <= {"int", "long", "i", "l", "double", "float", "real", "d", "f", "r", "char", "date", "c"}
    return _by_astropy(path, "ascii.ipac", remedy) if ipac else _by_astropy(path, "ascii.basic", remedy, delimiter="|")


def _ruled(lines: list[str]) -> int:
    """How many lines behind the header belong to it: VizieR writes units and a line of dashes under the names."""
    dashes = [i for i, line in enumerate(lines) if re.fullmatch(r"[-\s,;|]*-{3}[-\s,;|]*", line)]
    return dashes[0] + 1 if dashes else 0


def _open_blanks(path: str, header: str, comments: list[str], remedy: str) -> Catalogue:
    """Columns divided by blanks: the names stand in the first line, or behind the last '#' (STILTS' ascii)."""
    width = len(next(iter(_split(header))))
    behind = comments[-1].lstrip("# ").strip() if comments else ""
    commented = width > 1 and len(_split(behind)[0]) == width
    kind = "ascii.commented_header" if commented else "ascii.basic"
    if commented:
        return _by_astropy(path, kind, remedy, header_start=len(comments) - 1)
    return _by_astropy(path, kind, remedy)


def _split(line: str) -> list[list[str]]:
    return list(csv.reader([line.strip()], delimiter=" ", skipinitialspace=True)) or [[]]
