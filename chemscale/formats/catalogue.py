"""A catalogue on disk: its columns by blocks of rows, and reading one whole through :mod:`astropy.table`."""

from __future__ import annotations

import gzip
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from chemscale.errors import InputError
from chemscale.formats.paths import GZIP, open_raw, printable
from chemscale.formats.values import concatenate

#: Rows read at once.
ROWS = 200_000


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


class InMemory(Catalogue):
    """A catalogue whose columns lie in memory: one block."""

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


def by_astropy(path: str, kind: str, remedy: str, **options: Any) -> Catalogue:
    """A catalogue of a format (`kind`) that ``astropy.table`` reads, whole, with its masks and units."""
    from astropy.table import Table

    try:
        with unpacked(path) as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            source: Any = stream
            if kind.startswith("ascii"):
                source = decoded(stream.read()).splitlines()
            if "delimiter" in options:  # bars at both ends of a line, and a frame of +---+ around all
                source = [
                    line.strip().removeprefix("|").removesuffix("|") for line in source if not line.startswith("+-")
                ]
            table = Table.read(source, format=kind, **options)
    except Exception as error:
        raise InputError(f"{printable(path)}: cannot be read as {kind}: {error}", remedy) from error
    kinds = {c: type(table[c]).__name__ for c in table.colnames}
    plain = tuple(c for c in table.colnames if hasattr(table[c], "dtype") and table[c].ndim)
    units = {c: str(table[c].unit or "") for c in plain}
    found = InMemory(path, plain, units, {c: f"a {kind}" for c, kind in kinds.items() if c not in plain})
    found.table = table
    found.descriptions = {c: str(table[c].info.description or "") for c in plain}
    return found


def unpacked(path: str) -> Any:
    """The content of a file or URL, gunzipped where it is gzip."""
    stream = open_raw(path)
    packed = stream.read(2) == GZIP
    stream.seek(0)
    return gzip.GzipFile(fileobj=stream) if packed else stream


def decoded(content: bytes) -> str:
    """Text of a file: UTF-8, with or without its mark, else Latin-1."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")
