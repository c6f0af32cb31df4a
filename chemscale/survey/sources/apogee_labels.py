"""Labels of APOGEE stars: from allStar, or from the one-row table of each file."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from chemscale.catalogues.missing import extra_names, extra_numbers, gaia_ids, measured, measured_one, words
from chemscale.catalogues.units import converter
from chemscale.errors import InputError
from chemscale.formats.fits import HDU
from chemscale.formats.fits_columns import TableLayout
from chemscale.formats.fits_header import FitsError, Header
from chemscale.formats.fits_tables import iter_table, table_columns, table_units
from chemscale.formats.values import concatenate
from chemscale.schema import APOGEE_ELEMENTS, VARIABLES

#: DR17's 20 species (HDU3 `ELEM_SYMBOL` of allStar-dr17).
DR17_ELEMENTS = tuple(e for e in APOGEE_ELEMENTS if e not in {"P", "Cu", "Ge", "Rb", "Nd", "Yb"})

#: contract name -> allStar columns, the first present wins.
_COLUMNS = {
    "ra": ("RA",),
    "dec": ("DEC",),
    "teff": ("TEFF",),
    "logg": ("LOGG",),
    "fe_h": ("FE_H",),
    "alpha_m": ("ALPHA_M",),
    "vmicro": ("VMICRO",),
    "snr": ("SNR",),
    "radial_velocity": ("VHELIO_AVG", "VHELIO"),
    "velocity_scatter": ("VSCATTER",),
    "extinction": ("AK_TARG",),
    "reddening": ("SFD_EBV",),
    "n_visits": ("NVISITS",),
}
#: Gaia's identifier, by release
_GAIA = ("GAIAEDR3_SOURCE_ID", "GAIA_SOURCE_ID")
#: what a file's own table and header can tell
FILE_LABELS = (*_COLUMNS, "quality", "visits", "mjd", "fibre")
#: One of APOGEE's visits: reduction, plate, modified Julian date, fibre.
_VISIT = re.compile(r"[^-,]*-\d+-(\d{5})-(\d{1,3})(?=,|$)")


@dataclass
class AllStar:
    """The columns chemscale needs of an allStar file.

    `rows[id]` lists the rows of a star, highest S/N first.
    """

    columns: dict[str, np.ndarray]
    ids: np.ndarray
    rows: dict[str, list[int]]
    elements: tuple[str, ...]
    telescope: np.ndarray
    field: np.ndarray
    location: np.ndarray
    n_rows: int
    #: columns that are not needed, or cannot be read
    ignored: tuple[str, ...] = ()

    def place(self, row: int) -> tuple[str, tuple[str, ...]]:
        """Telescope and the names of the field (FIELD, LOCATION_ID) of a row; empty where not said."""
        names = (self.field.item(row), self.location.item(row))
        return self.telescope.item(row), tuple(n for n in names if n)

    def rows_of(self, row: int) -> list[int]:
        """All rows of the star that a row is of."""
        return self.rows[self.ids.item(row)]

    def places(self) -> frozenset[str]:
        """Names of all fields: what a folder may be called."""
        return frozenset(np.unique(self.field).tolist()) | frozenset(np.unique(self.location).tolist()) - {""}


def read_allstar(path: str, extra: Sequence[str] = ()) -> AllStar:
    """Read an allStar file, DR13 to DR17: one pass, needed columns only, and those of `extra` that it has.

    Sentinels (-9999, -9999.99, -999.99) become NaN. `fe_h` is X_H of Fe where FE_H is absent.

    Raises
    ------
    InputError
        Not a FITS table, no APOGEE_ID, or an X_H array whose species nobody names.
    """
    wanted = ["APOGEE_ID", "TELESCOPE", "FIELD", "LOCATION_ID", "ASPCAPFLAG", "VISITS", "X_H", "X_H_ERR"]
    wanted += [*_GAIA, *(name for names in _COLUMNS.values() for name in names), *(e.upper() for e in extra)]
    try:
        blocks = list(iter_table(path, wanted))
    except FitsError as error:
        raise InputError(f"{path}: {error}", "give the release's allStar file") from error
    if not blocks or "APOGEE_ID" not in blocks[0]:
        raise InputError(f"{path}: no APOGEE_ID column or no rows", "give the release's allStar file")
    raw = {name: concatenate([b.pop(name) for b in blocks]) for name in list(blocks[0])}
    ids = np.array(words(raw["APOGEE_ID"]), str)
    columns = _labels(raw, table_units(path), path)
    columns |= {o: extra_numbers(e, raw[e.upper()], path) for e, o in extra_names(extra).items() if e.upper() in raw}
    elements: tuple[str, ...] = ()
    if "X_H" in raw:
        raw["X_H"] = raw["X_H"].reshape(len(ids), -1)
        count = raw["X_H"].shape[1]
        elements = _symbols(path, count) or known_elements(count)
        if not elements:
            raise InputError(
                f"{path}: X_H has {count} entries, and no ELEM_SYMBOL of the file names them",
                "add a table with ELEM_SYMBOL, or drop X_H",
            )
        columns |= _abundances(raw, elements)
    snr = columns["snr"] if "snr" in columns else np.zeros(len(ids))
    order = np.argsort(-np.nan_to_num(snr, nan=-np.inf), kind="stable")
    # ties keep the catalogue's order; the stars themselves too
    rows: dict[str, list[int]] = {star: [] for star in ids.tolist() if star}
    for row in order.tolist():
        if ids[row]:
            rows[str(ids[row])].append(row)
    blank = np.full(len(ids), "")
    place = [np.array(words(raw[c]), str) if c in raw else blank for c in ("TELESCOPE", "FIELD", "LOCATION_ID")]
    ignored = tuple(c for c in table_columns(path) if c.upper() not in wanted)
    return AllStar(columns, ids, rows, elements, place[0], place[1], place[2], len(ids), ignored)


def _labels(raw: dict[str, np.ndarray], units: Mapping[str, str], path: str) -> dict[str, np.ndarray]:
    out: dict[str, np.ndarray] = {}
    for name, sources in _COLUMNS.items():
        source = next((s for s in sources if s in raw), None)
        if source is not None:
            kind = np.float64 if name in {"ra", "dec"} else np.float32
            unit = converter(name, units.get(source, ""), path)
            out[name] = measured(name, raw[source], unit).astype(kind)
    gaia = next((raw[g] for g in _GAIA if g in raw), None)
    if gaia is not None and (ids := gaia_ids(gaia)) is not None:
        out["gaia_source_id"] = ids
    if "ASPCAPFLAG" in raw:
        out["quality"] = np.ma.filled(raw["ASPCAPFLAG"], 0).astype(np.int64)
    if "VISITS" in raw:
        out["visits"] = np.array(words(raw["VISITS"]), str)
        out |= visit_means(out["visits"].tolist())
    return out


def visit_means(visits: Sequence[str]) -> dict[str, np.ndarray]:
    """Mean date and fibre of each star's visits, ``reduction-plate-mjd-fibre,...``; NaN where a text says neither."""
    means = np.full((len(visits), 2), np.nan)
    for row, text in enumerate(visits):
        if found := _VISIT.findall(text):
            means[row] = [sum(map(int, numbers)) / len(found) for numbers in zip(*found, strict=True)]
    return {"mjd": means[:, 0], "fibre": means[:, 1].astype(np.float32)}


def _abundances(raw: dict[str, np.ndarray], elements: tuple[str, ...]) -> dict[str, np.ndarray]:
    out = {"abundance": measured("abundance", raw["X_H"]).astype(np.float32)}
    if "X_H_ERR" in raw and raw["X_H_ERR"].size == raw["X_H"].size:
        raw["X_H_ERR"] = raw["X_H_ERR"].reshape(raw["X_H"].shape)
        out["abundance_error"] = measured("abundance_error", raw["X_H_ERR"]).astype(np.float32)
    if "FE_H" not in raw and "Fe" in elements:
        out["fe_h"] = out["abundance"][..., elements.index("Fe")]
    return out


def known_elements(count: int) -> tuple[str, ...]:
    """Names of `count` X_H entries where the file does not name them; () for a number no release has."""
    known = (APOGEE_ELEMENTS, (*APOGEE_ELEMENTS, "C13"), DR17_ELEMENTS)
    return next((names for names in known if len(names) == count), ())


def species_of(layout: TableLayout, table: np.ndarray) -> tuple[str, ...]:
    """Names of the X_H entries of a file's own label rows: its ELEM_SYMBOL, else known from their number; else ()."""
    if "X_H" not in (layout.dtype.names or ()):
        return ()
    count = math.prod(layout.dtype["X_H"].shape)
    if (named := layout.find("ELEM_SYMBOL")) is not None and len(table):
        symbols = split_symbols(layout.values(table[:1], named))
        if len(symbols) == count:
            return symbols
    return known_elements(count)


def unused_columns(layout: TableLayout, elements: Sequence[str]) -> list[str]:
    """Columns of a file's own table that become no label, with the reason where there is one."""
    used = {"PARAM", "ASPCAPFLAG", "VISITS", "FILE", "ELEM_SYMBOL", *(c for names in _COLUMNS.values() for c in names)}
    why = {c.name: c.why_not for c in layout.columns.values()}
    if elements:
        used |= {"X_H", "X_H_ERR"}
    else:
        why |= dict.fromkeys(("X_H", "X_H_ERR"), "its species are not named")
    return [f"{n} ({why[n]})" if why[n] else n for n in layout.columns if n not in used]


def split_symbols(values: np.ndarray) -> tuple[str, ...]:
    """Element symbols out of ELEM_SYMBOL, whether it is an array of words (TDIM) or one blank-separated text."""
    return tuple(" ".join(str(s) for s in np.ravel(values)).replace("\x00", " ").split())


def _symbols(path: str, count: int) -> tuple[str, ...]:
    """`count` names from an `ELEM_SYMBOL` column of any table of the file; () where none has so many."""
    for hdu in (3, 1, 2, 4, 5):
        try:
            block = next(iter_table(path, ["ELEM_SYMBOL"], hdu=hdu, rows=1), {})
        except FitsError:
            continue
        symbols = split_symbols(block["ELEM_SYMBOL"]) if "ELEM_SYMBOL" in block else ()
        if len(symbols) == count:
            return symbols
    return ()


def table_unit(units: list[HDU]) -> HDU | None:
    """The one-row label table of an aspcapStar file (HDU4), None when there is none."""
    for unit in units[3:6]:
        if unit.kind == "BINTABLE" and unit.shape[0] >= 1 and unit.shape[1] > 0:
            return unit
    return None


@dataclass(frozen=True)
class FileLabels:
    """What a star's own file says of it, copied out of the file: the row of its table, else its primary header."""

    header: Header
    row: bytes
    #: of `row`; None where the file has no table
    layout: TableLayout | None

    @classmethod
    def of(cls, units: list[HDU]) -> FileLabels:
        """From the units of a file; FitsError for a table that makes no sense."""
        unit = table_unit(units)
        if unit is None:
            return cls(units[0].header, b"", None)
        width = unit.shape[1]
        row = unit.buffer[unit.offset : unit.offset + width]
        if len(row) < width:
            raise FitsError(f"HDU {unit.index}: its table of labels stops early")
        return cls(unit.header, row, unit.layout())


def file_labels(files: Sequence[FileLabels | None], elements: Sequence[str]) -> dict[str, np.ndarray]:
    """Labels of stars from their own files.

    Parameters
    ----------
    files : sequence of FileLabels
        One a star; None where nothing is to be read.
    elements : sequence of str
        Species wanted in `abundance`; none for ().

    Returns
    -------
    dict of str to ndarray
        (n,) or (n, n_elements); missing = NaN, '' or 0.

    Notes
    -----
    The rows of files whose tables have one layout are put together and cleaned as columns. Releases up to DR14
    order the last four of their 26 abundances differently from DR16; for those (reduction ``r8`` and older)
    the last four stay undefined.
    """
    layouts: dict[int, list[int]] = {}  # by identity: equal headers share one layout
    parts: list[tuple[list[int], dict[str, np.ndarray]]] = []
    for at, file in enumerate(files):
        if file is None:
            continue
        if file.layout is None:
            parts.append(([at], _header_labels(file.header)))
        else:
            layouts.setdefault(id(file.layout), []).append(at)
    for rows in layouts.values():
        alike = [file for at in rows if (file := files[at]) is not None]
        layout = alike[0].layout
        assert layout is not None
        table = np.frombuffer(b"".join(file.row for file in alike), layout.dtype)
        parts.append((rows, _table_labels(layout, table, elements)))
    out: dict[str, np.ndarray] = {}
    for rows, columns in parts:
        for name, values in columns.items():
            if len(rows) == len(files):
                out[name] = values
                continue
            if name not in out:
                fill = "" if values.dtype == object else VARIABLES[name].fill
                out[name] = np.full((len(files), *values.shape[1:]), fill, values.dtype)
            out[name][rows] = values
    return out


def _table_labels(layout: TableLayout, table: np.ndarray, elements: Sequence[str]) -> dict[str, np.ndarray]:
    """Labels of rows of one table layout, (n,) or (n, n_elements)."""
    dtype = table.dtype
    names = dtype.names or ()
    out: dict[str, np.ndarray] = {}
    if "PARAM" in names and dtype["PARAM"].base.kind == "f" and math.prod(dtype["PARAM"].shape) >= 7:
        # ASPCAP parameter order: Teff, log g, log10 vmicro, [M/H], [C/M], [N/M], [alpha/M], ...
        param = layout.values(table, "PARAM").reshape(len(table), -1).astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            vmicro = np.where((param[:, 2] > -50) & (param[:, 2] < 3), 10.0 ** param[:, 2], np.nan)
        values = {"teff": param[:, 0], "logg": param[:, 1], "vmicro": vmicro, "alpha_m": param[:, 6]}
        out = {name: measured(name, value) for name, value in values.items()}
    for name, sources in _COLUMNS.items():
        source = next((s for s in sources if s in names and dtype[s].shape == ()), None)
        if source is not None:
            out[name] = measured(name, layout.values(table, source))
    if "ASPCAPFLAG" in names and dtype["ASPCAPFLAG"].kind == "i":
        out["quality"] = np.ma.filled(layout.values(table, "ASPCAPFLAG"), 0).astype(np.int64)
    if "VISITS" in names and dtype["VISITS"].kind == "S":
        out["visits"] = np.array(words(layout.values(table, "VISITS")), object)
        out |= visit_means(out["visits"].tolist())
    if elements and "X_H" in names and dtype["X_H"].base.kind == "f":
        out |= _file_abundances(layout, table, elements)
    return out


def _header_labels(header: Header) -> dict[str, np.ndarray]:
    keys = {"snr": "SNR", "radial_velocity": "VHELIO", "velocity_scatter": "VSCATTER", "n_visits": "NVISITS"}
    keys |= {"extinction": "AKTARG", "ra": "RA", "dec": "DEC", "reddening": "SFD_EBV"}
    found = {name: header.get(key) for name, key in keys.items()}
    return {name: np.array([measured_one(name, value)]) for name, value in found.items() if value is not None}


def _file_abundances(layout: TableLayout, table: np.ndarray, elements: Sequence[str]) -> dict[str, np.ndarray]:
    names, n = table.dtype.names or (), len(table)
    values = layout.values(table, "X_H").reshape(n, -1)
    species = species_of(layout, table)
    columns = [species.index(e) if e in species else -1 for e in elements]
    out = {"abundance": _pick(measured("abundance", values), columns)}
    if "X_H_ERR" in names and table.dtype["X_H_ERR"].base.kind == "f":
        errors = layout.values(table, "X_H_ERR").reshape(n, -1)
        if errors.shape == values.shape:
            out["abundance_error"] = _pick(measured("abundance_error", errors), columns)
    if species == APOGEE_ELEMENTS and "FILE" in names and table.dtype["FILE"].kind == "S":
        old = [f.decode("latin-1").split("-")[1:2] in _OLD_REDUCTIONS for f in table["FILE"].tolist()]
        moved = [k for k, e in enumerate(elements) if e in APOGEE_ELEMENTS[22:]]
        for name in ("abundance", "abundance_error"):
            if name in out and any(old):
                out[name][np.ix_(old, moved)] = np.nan
    if not any(s in names for s in _COLUMNS["fe_h"]) and "Fe" in elements:
        out["fe_h"] = out["abundance"][:, list(elements).index("Fe")].astype(np.float64)
    return out


_OLD_REDUCTIONS = (["r5"], ["r6"], ["r7"], ["r8"])


def _pick(values: np.ndarray, columns: list[int]) -> np.ndarray:
    blank = np.full((len(values), 1), np.nan)
    picked = np.concatenate([values, blank], axis=1)[:, columns]  # -1 is the NaN at the end
    return picked.astype(np.float32)
