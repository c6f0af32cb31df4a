"""A run's table as a file: FITS, VOTable, Parquet or CSV, a block of stars at a time.

FITS and VOTable hold the same rows of fixed width, big-endian; they are written as they come. Units, UCDs and
descriptions travel in each format's own way (TUNIT, TUCD and TCOMM; FIELD; field metadata). FITS knows no unit for
decades: such a column has none there, and its description ends with "(dex)".
"""

from __future__ import annotations

import base64
import csv
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any
from xml.sax.saxutils import quoteattr

import numpy as np

from chemscale._version import __version__
from chemscale.errors import DataError, InputError
from chemscale.results import catalogue
from chemscale.results.columns import Column, RunTable, gather
from chemscale.runtime.files import written_beside
from chemscale.runtime.run import Run
from chemscale.suggest import known_ending

_DTYPES = {"float32": ">f4", "float64": ">f8", "int64": ">i8", "bool": "S1"}
_FITS = {"float32": "E", "float64": "D", "int64": "K", "bool": "L"}
_VOTABLE = {"float32": "float", "float64": "double", "int64": "long", "bool": "boolean"}


def export(
    run: Run | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    features: int | None = None,
    join: str | os.PathLike[str] | None = None,
    key: str | None = None,
) -> RunTable:
    """Write one row a star of everything a run holds.

    Parameters
    ----------
    run : Run or path
    out : path
        ``.fits``, ``.vot`` (or ``.xml``), ``.parquet`` or ``.csv``; replaced whole when it is there. ``.parquet``
        needs the extra `parquet`.
    features : int, optional
        RSCA features at most; by default those that tell clusters apart.
    join, key : optional
        A catalogue of one's own, and its column of identifiers: its columns come along as ``x_NAME``
        (:func:`chemscale.results.catalogue.add`).

    Returns
    -------
    RunTable
        The columns written, and what was left out with the reason.

    Raises
    ------
    InputError
        An unknown ending.
    DataError
        Text that the format cannot hold.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    target = known_ending(out, WRITERS)
    table = gather(run, features=features)
    if join is not None:
        matched = catalogue.add(table, join, key=key)
        if matched < table.n_stars:
            table.left_out.append(f"columns of {join} for {table.n_stars - matched:,} stars that it does not have")
    with written_beside(target) as beside:
        WRITERS[target.suffix](table, beside)
    return table


def _row_type(table: RunTable) -> np.dtype:
    return np.dtype([(c.name, f"S{c.width}" if c.kind == "text" else _DTYPES[c.kind]) for c in table.columns])


def _records(table: RunTable, what: str, ahead: int = 0) -> Iterator[np.ndarray]:
    """Rows as bytes (n, row size), each after `ahead` zero bytes."""
    row = _row_type(table)
    for block in table.blocks():
        records = np.empty(len(block[table.columns[0].name]), row)
        for column in table.columns:
            records[column.name] = _encoded(column, block[column.name], what)
        raw = records.view(np.uint8).reshape(len(records), row.itemsize)
        yield np.concatenate([np.zeros((len(raw), ahead), np.uint8), raw], axis=1) if ahead else raw


def _encoded(column: Column, values: np.ndarray, what: str) -> np.ndarray:
    if column.kind == "bool":
        return np.where(values, b"T", b"F")
    if column.kind != "text":
        return values
    try:
        return values.astype(f"S{column.width}")
    except UnicodeEncodeError as err:
        raise DataError(
            f"column {column.name}: {err.object!r} has characters that {what} cannot hold",
            "write Parquet or CSV instead",
        ) from err


def _write_fits(table: RunTable, path: Path) -> None:
    from astropy.io import fits

    columns = [
        fits.Column(c.name, f"{c.width}A" if c.kind == "text" else _FITS[c.kind], unit=_fits_unit(c))
        for c in table.columns
    ]
    header = fits.BinTableHDU.from_columns(columns, nrows=0).header
    header["NAXIS2"] = table.n_stars
    header["EXTNAME"] = "STARS"
    for k, c in enumerate(table.columns, start=1):
        header[f"TCOMM{k}"] = c.description if c.unit != "dex" else f"{c.description} (dex)"
        if c.ucd:
            header[f"TUCD{k}"] = c.ucd
    primary = fits.PrimaryHDU()
    primary.header["CREATOR"] = f"chemscale {__version__}"
    with path.open("wb") as file:
        file.write(primary.header.tostring().encode("ascii"))
        file.write(header.tostring().encode("ascii"))
        size = 0
        for raw in _records(table, "FITS"):
            file.write(raw.tobytes())
            size += raw.size
        file.write(b"\0" * (-size % 2880))


def _fits_unit(column: Column) -> str | None:
    """The unit as the FITS standard allows it: it has none for decades, which the description then says."""
    return column.unit if column.unit and column.unit != "dex" else None


def votable_header(table: RunTable) -> str:
    """The fields of the table in VOTable's words, up to where its data begin."""
    fields = []
    for c in table.columns:
        kind = f'datatype="char" arraysize="{c.width}"' if c.kind == "text" else f'datatype="{_VOTABLE[c.kind]}"'
        extra = "".join(f" {key}={quoteattr(v)}" for key, v in (("unit", c.unit), ("ucd", c.ucd)) if v)
        told = c.description.replace("&", "&amp;").replace("<", "&lt;")
        fields.append(f"<FIELD name={quoteattr(c.name)} {kind}{extra}><DESCRIPTION>{told}</DESCRIPTION></FIELD>")
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<VOTABLE version="1.4" xmlns="http://www.ivoa.net/xml/VOTable/v1.3">\n<RESOURCE type="results">\n'
        f'<INFO name="creator" value="chemscale {__version__}"/>\n<TABLE nrows="{table.n_stars}">\n'
        + "\n".join(fields)
        + "\n"
    )


def _write_votable(table: RunTable, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(votable_header(table) + '<DATA><BINARY2><STREAM encoding="base64">\n')
        _base64(_records(table, "VOTable", ahead=-(-len(table.columns) // 8)), file)
        file.write("</STREAM></BINARY2></DATA>\n</TABLE>\n</RESOURCE>\n</VOTABLE>\n")


def _base64(blocks: Iterator[np.ndarray], file: IO[str]) -> None:
    """Lines of base64 without padding before the end."""
    left = b""
    for raw in blocks:
        data = left + raw.tobytes()
        whole = len(data) - len(data) % 3
        file.write(base64.b64encode(data[:whole]).decode("ascii") + "\n")
        left = data[whole:]
    file.write(base64.b64encode(left).decode("ascii") + "\n")


def _write_parquet(table: RunTable, path: Path) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as err:
        raise InputError("Parquet needs pyarrow", "pip install 'chemscale[parquet]', or write .fits") from err
    kinds = {"text": pa.string(), "bool": pa.bool_(), "int64": pa.int64()}
    kinds |= {"float32": pa.float32(), "float64": pa.float64()}
    described = [
        pa.field(c.name, kinds[c.kind], metadata={"unit": c.unit, "ucd": c.ucd, "description": c.description})
        for c in table.columns
    ]
    # the convention TOPCAT reads: a VOTable without data, for units and UCDs
    header = votable_header(table) + "</TABLE>\n</RESOURCE>\n</VOTABLE>\n"
    meta = {"IVOA.VOTable-Parquet.version": "1.0", "IVOA.VOTable-Parquet.content": header}
    meta |= {f"table::len::{c.name}": str(c.width) for c in table.columns if c.width}  # astropy asks for these
    schema = pa.schema(described, metadata=meta)
    with pq.ParquetWriter(path, schema) as writer:
        for block in table.blocks():
            arrays = [pa.array(_plain(c, block[c.name]), type=kinds[c.kind]) for c in table.columns]
            writer.write_batch(pa.record_batch(arrays, schema=schema))


def _plain(column: Column, values: np.ndarray) -> Any:
    return values.astype(object) if column.kind == "text" else np.ascontiguousarray(values)


def _write_csv(table: RunTable, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([c.name for c in table.columns])
        for block in table.blocks():
            writer.writerows(zip(*(_cells(c, block[c.name]) for c in table.columns)))


def _cells(column: Column, values: np.ndarray) -> list[Any]:
    """Values of a CSV column: NaN is empty, numbers have the digits that their type can tell apart."""
    if column.kind == "bool":
        return values.astype(int).tolist()
    if column.kind not in ("float32", "float64"):
        return values.tolist()
    digits = "%.9g" if column.kind == "float32" else "%.17g"
    return [digits % v if v == v else "" for v in values.tolist()]


#: Writers by ending.
WRITERS: dict[str, Callable[[RunTable, Path], None]] = {
    ".fits": _write_fits,
    ".vot": _write_votable,
    ".xml": _write_votable,
    ".parquet": _write_parquet,
    ".csv": _write_csv,
}
