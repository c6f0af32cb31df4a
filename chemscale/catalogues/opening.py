"""Catalogues in whatever form they come: FITS, Parquet, text of many kinds, VOTable, ECSV.

Columns are read by blocks of rows, so that a catalogue of 10^7 rows needs the memory of the rows that are kept.
What is not FITS, CSV or Parquet is read whole through :mod:`astropy.table`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from chemscale.errors import InputError, MissingExtra
from chemscale.formats.catalogue import ROWS, Catalogue, by_astropy, unpacked
from chemscale.formats.fits_header import FitsError
from chemscale.formats.fits_tables import first_table, iter_table
from chemscale.formats.paths import open_raw, printable
from chemscale.formats.text_tables import open_barred, open_text


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


def open_catalogue(path: str, remedy: str = "give a readable table: FITS, CSV, Parquet, VOTable or ECSV") -> Catalogue:
    """A table by its content, whatever it is called.

    Raises
    ------
    InputError
        Unreadable, empty, or no table.
    """
    try:
        with unpacked(path) as stream:
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
        return by_astropy(path, "votable", remedy)
    if start.startswith(b"# %ECSV") and b"delimiter: ','" not in head:
        return by_astropy(path, "ascii.ecsv", remedy)
    if b"Byte-by-byte Description" in head:
        return by_astropy(path, "ascii.mrt", remedy)
    if start.startswith((b"|", b"\\", b"+-")):
        return open_barred(path, start, remedy)
    return open_text(path, remedy)


def _open_fits(path: str, remedy: str) -> Catalogue:
    try:
        index, layout = first_table(path)
    except FitsError as error:
        if "ASCII table" in str(error):
            return by_astropy(path, "fits", remedy)
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
