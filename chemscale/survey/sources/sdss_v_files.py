"""Files of SDSS-V's Milky Way Mapper: rows of spectra tables, and summary catalogues with several rows a source."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chemscale.catalogues.missing import (
    extra_names,
    extra_numbers,
    gaia_ids,
    identifiers,
    measured,
    measured_one,
    numbers,
    words,
)
from chemscale.catalogues.species import abundances, species_columns
from chemscale.catalogues.units import converter
from chemscale.errors import InputError
from chemscale.formats.fits import HDU
from chemscale.formats.fits_header import FitsError
from chemscale.formats.fits_tables import read_table, table_columns, table_units
from chemscale.formats.paths import printable

#: contract name -> columns of a summary catalogue, the first present wins
_CATALOGUE = {
    "ra": ("ra",),
    "dec": ("dec",),
    "teff": ("teff",),
    "teff_error": ("e_teff",),
    "logg": ("logg",),
    "logg_error": ("e_logg",),
    "fe_h": ("fe_h", "m_h_atm"),
    "alpha_m": ("alpha_m_atm", "alpha_fe"),
    "vmicro": ("v_micro",),
    "snr": ("snr",),
    "radial_velocity": ("v_rad",),
    "velocity_scatter": ("std_v_rad",),
    "reddening": ("ebv",),
    "n_visits": ("n_good_visits", "n_visits"),
    "quality": ("result_flags",),
}
#: Gaia's identifier, by release
_GAIA = ("gaia_dr3_source_id", "gaia_dr2_source_id")
#: contract name -> column of a row of a spectra table
ROW_LABELS = {"snr": "snr", "radial_velocity": "v_rad", "velocity_scatter": "std_v_rad", "n_visits": "n_good_visits"}
#: vectors of a row that are read
VECTORS = {"flux", "ivar", "pixel_flags", "or_mask", "wavelength", "continuum"}
#: S/N of a spectrum and of its row in a catalogue agree to this.
_SAME_SNR = 0.02


@dataclass
class Summary:
    """A summary catalogue: columns by contract name, and the rows of each source."""

    columns: dict[str, np.ndarray]
    rows: dict[str, list[int]]
    elements: tuple[str, ...]
    telescope: np.ndarray
    ignored: list[str]

    def row_of(self, star: str, telescope: str, snr: float) -> int | None:
        """The row of a source that is of this telescope and S/N; None where that cannot be said."""
        rows = self.rows.get(star, [])
        named = [r for r in rows if telescope and self.telescope[r] == telescope]
        rows = named or [r for r in rows if not self.telescope[r] or not telescope]
        if len(rows) == 1:
            return rows[0]
        known = self.columns.get("snr")
        alike = [r for r in rows if known is not None and snr > 0 and abs(known[r] / snr - 1) <= _SAME_SNR]
        return alike[0] if len(alike) == 1 else None


def read_summary(path: str, instrument: str, extra: Sequence[str] = ()) -> Summary:
    """Read a summary catalogue, from the HDU of the instrument where it has one for each (BOSS first, APOGEE second).

    Raises
    ------
    InputError
        No table with sdss_id.
    """
    table: dict[str, np.ndarray] = {}
    names: tuple[str, ...] = ()
    units: dict[str, str] = {}
    problem = "no table with a column sdss_id"
    for hdu in (2, 1) if instrument == "apogee" else (1, 2):
        try:
            names, units = table_columns(path, hdu=hdu), table_units(path, hdu=hdu)
            lower = {n.lower(): n for n in names}
            species = species_columns(names)
            wanted = ["sdss_id", "telescope", *_GAIA, *extra] + [c for options in _CATALOGUE.values() for c in options]
            wanted += [c for s in species for c in (s.column, s.error) if c]
            found = read_table(path, [lower[w.lower()] for w in wanted if w.lower() in lower], hdu=hdu)
        except FitsError as error:
            problem = str(error)
            continue
        table = {k if k in {s.column for s in species} else k.lower(): v for k, v in found.items()}
        if len(table.get("sdss_id", ())):
            break
    ids = identifiers(table["sdss_id"]) if "sdss_id" in table else None
    if ids is None:
        raise InputError(f"{printable(path)}: {problem}", "give a summary table keyed by sdss_id, as integers")
    columns: dict[str, np.ndarray] = {}
    for name, options in _CATALOGUE.items():
        source = next((o for o in options if o in table), None)
        if source is not None and name == "quality":
            columns[name] = np.ma.filled(table[source], 0).astype(np.int64)
        elif source is not None:
            columns[name] = measured(
                name, table[source], converter(name, units.get(source.upper(), ""), printable(path))
            )
    gaia = next((table[g] for g in _GAIA if g in table), None)
    if gaia is not None and (sources := gaia_ids(gaia)) is not None:
        columns["gaia_source_id"] = sources
    for name, own in extra_names(extra).items():
        if name.lower() in table:
            columns[own] = extra_numbers(name, table[name.lower()], printable(path))
    if species:
        columns |= abundances(species, {**found, **table}, len(ids))
    rows: dict[str, list[int]] = {}
    for row, star in enumerate(ids):
        rows.setdefault(star, []).append(row)
    telescope = np.array(words(table["telescope"]), str) if "telescope" in table else np.full(len(ids), "")
    ignored = [n for n in names if n not in found]
    return Summary(columns, rows, tuple(s.species for s in species), telescope, ignored)


@dataclass(frozen=True)
class Listed:
    """One spectrum of a file: where it stands and which observation it is."""

    hdu: int
    row: int
    snr: float
    telescope: str
    mjd: str

    @property
    def name(self) -> str:
        """Telescope and night, what a visit is called; its place in the file where it has neither."""
        return "-".join(p for p in (self.telescope, self.mjd) if p) or f"{self.hdu}-{self.row}"


def list_spectra(units: list[HDU], where: tuple[int, ...]) -> list[Listed]:
    """The spectra of an instrument in a file; rows without pixels are no spectra."""
    out = []
    for index in where:
        if index >= len(units) or units[index].kind != "BINTABLE" or not units[index].shape[0]:
            continue
        unit = units[index]
        flux, ivar = unit.column("flux"), unit.column("ivar")
        if flux is None or ivar is None:
            if "flux" in {n.lower() for n in unit.layout().columns}:
                continue  # its rows are empty vectors
            raise FitsError(f"HDU {index} has no columns flux and ivar")
        n = unit.shape[0]
        given, telescope, mjd = unit.column("snr"), unit.column("telescope"), unit.column("mjd")
        snr = numbers(given).reshape(n, -1)[:, 0] if given is not None else np.zeros(n)
        places = words(telescope) if telescope is not None else [""] * n
        nights = words(mjd) if mjd is not None else [""] * n
        ratios = np.nan_to_num(snr, nan=-1.0).tolist()
        out += [Listed(index, row, ratios[row], places[row], nights[row]) for row in range(n)]
    return out


def read_spectrum(
    units: list[HDU], where: tuple[int, ...], grid: np.ndarray, place: str = "", telescope: str = ""
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Vectors and labels of the row at `place` ("HDU:row"), else of that of highest S/N of the instrument's HDUs.

    With `telescope`, of the highest S/N of that telescope: its labels are known from a catalogue.

    Raises
    ------
    FitsError
        No such spectrum, vectors of another length, another wavelength grid.
    """
    if place:
        hdu, row = (int(part) for part in place.split(":"))
    else:
        listed = list_spectra(units, where)
        if not listed:
            raise FitsError("no spectrum of this instrument in the file")
        same = [s for s in listed if not telescope or not s.telescope or s.telescope == telescope]
        if not same:
            held = ", ".join(sorted({s.telescope for s in listed}))
            raise FitsError(f"the catalogue's row is of {telescope}, the spectra of the file are of {held}")
        best = max(same, key=lambda s: s.snr)
        hdu, row = best.hdu, best.row
    unit = units[hdu]
    vectors: dict[str, np.ndarray] = {}
    labels: dict[str, Any] = {}
    for name in unit.layout().dtype.names or ():
        key = name.lower()
        if key in VECTORS:
            values = unit.column(name)
            assert values is not None
            # an undefined flag is no good one
            vector = np.ravel(np.ma.filled(values[row], -1 if key in ("pixel_flags", "or_mask") else 0))
            if vector.shape != grid.shape or vector.dtype.kind not in "fiu":
                raise FitsError(f"column {name} has {vector.shape[0]} values ({vector.dtype}), expected {len(grid)}")
            vectors["pixel_flags" if key == "or_mask" else key] = vector
        for label, column in ROW_LABELS.items():
            if key == column and (values := unit.column(name)) is not None and values.ndim == 1:
                labels[label] = float(measured(label, values[row : row + 1])[0])
    _check_grid(unit, vectors, grid)
    for label, keyword in (("ra", "RA"), ("dec", "DEC")):
        labels[label] = measured_one(label, units[0].header.get(keyword))
    return vectors, labels


def _check_grid(unit: HDU, vectors: dict[str, np.ndarray], grid: np.ndarray) -> None:
    if "wavelength" in vectors:
        found = vectors["wavelength"].astype(float)
    else:
        start, step, pixels = (unit.header.number(k, math.nan) for k in ("CRVAL", "CDELT", "NPIXELS"))
        if pixels != len(grid):
            raise FitsError(f"HDU {unit.index}: no wavelength column, and NPIXELS is {pixels:g}")
        with np.errstate(over="ignore"):
            found = 10.0 ** (start + step * np.arange(len(grid)))
    if not np.allclose(found, grid, rtol=2e-6, atol=0):
        raise FitsError(f"HDU {unit.index} is on another wavelength grid: starts at {found[0]:.3f}, not {grid[0]:.3f}")
