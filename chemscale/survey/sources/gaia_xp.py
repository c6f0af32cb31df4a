"""Gaia XP sampled mean spectra: low-resolution spectra (R 20 to 100) of a great many stars, in one CSV or Parquet file.

Forms, after the Gaia DR3 data model and GaiaXPy's documentation (no real file was at hand):

* bulk files ``XpSampledMeanSpectrum_*.csv.gz`` (ECSV): a row a star, `source_id`, `ra`, `dec`, `flux` and `flux_error`
  as arrays "[...]" of 343 values on 336, 338, ..., 1020 nm;
* GaiaXPy's ``calibrate`` output: `source_id`, `flux`, `flux_error` as arrays "(...)" , its sampling in a file
  ``*_sampling.csv`` beside it (column `pos`, nm);
* DataLink files ``XP_SAMPLED-Gaia DR3 <source_id>.csv``: a row a pixel, `wavelength` (nm), `flux`, `flux_error`;
* Parquet with list columns.

Wavelengths are vacuum. Flux is in W m-2 nm-1 and always normalised. At this resolution no velocity matters: spectra
stay in the observed frame (3000 km/s are a few pixels, a star's 100 km/s a tenth of one).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from chemscale.catalogues.missing import gaia_id, measured, numbers, whole_identifiers
from chemscale.catalogues.opening import open_catalogue
from chemscale.catalogues.units import converter
from chemscale.errors import InputError
from chemscale.formats.catalogue import Catalogue
from chemscale.formats.paths import printable
from chemscale.survey.sources.base import Item, Rejection, StarBlock, SurveyPlan
from chemscale.survey.sources.blocks import Batch, read_in_batches
from chemscale.survey.sources.file_names import GAIA_XP_SAMPLING, GAIA_XP_SINGLE, is_table, other_survey
from chemscale.survey.sources.files import find_files, id_problem
from chemscale.survey.sources.folders import FolderSource
from chemscale.survey.sources.labels import contract_labels
from chemscale.survey.sources.normalising import divide_by

#: nm, of the archive's sampled spectra.
SAMPLING = np.arange(336.0, 1021.0, 2.0)
CONTINUA = ("running-quantile", "median")
#: Rows of a text file that are parsed at once: arrays of 343 numbers are kilobytes of text.
_ROWS = 2000


class GaiaXpSource(FolderSource):
    """Gaia XP sampled spectra.

    Parameters
    ----------
    spectra : str or sequence of str
        Files, or folders with ``*.csv``, ``*.csv.gz`` or ``*.parquet`` of sampled spectra.
    continuum : {"running-quantile", "median"}
        What spectra are divided by: the running quantile follows broad shapes (temperature, dust), the median
        keeps them.
    window : float
        Of the running quantile, Angstrom.
    **joins
        Labels and members, as for :class:`~chemscale.survey.sources.folders.JoiningSource`, keyed by `source_id` or by
        coordinates.

    Notes
    -----
    Files are read forwards: a task that begins in the middle of a text file passes over what stands before.
    """

    name = "gaia-xp"
    title = "Gaia XP sampled mean spectra (DR3)"
    default_member_key = "source_id"
    read_stars = 256

    def __init__(
        self,
        spectra: str | Sequence[str],
        labels: str | Sequence[str] = (),
        members: str | None = None,
        *,
        continuum: str = "running-quantile",
        window: float = 1500.0,
        **joins: Any,
    ):
        if continuum not in CONTINUA:
            raise InputError(f"continuum is {continuum!r}", f"use one of {', '.join(CONTINUA)}")
        super().__init__(spectra, labels=labels, members=members, **joins)
        self.continuum, self.window = continuum, float(window)
        self._reading = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_reading"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._reading = threading.local()

    def _rows(self, path: str) -> _Rows:
        """The file at `path`, where this thread has come to in it."""
        rows = getattr(self._reading, "rows", None)
        if rows is None or rows.path != path:
            self._reading.rows = rows = _Rows(path)
        return rows

    def plan(self) -> SurveyPlan:
        """List the stars: one pass over identifiers and positions, no spectrum."""
        rejected: list[Rejection] = []
        items: list[Item] = []
        seen: dict[str, str] = {}
        samplings: dict[str, np.ndarray] = {}
        n_files = 0
        ignored: set[str] = set()
        for root in self.spectra:
            for path, relative in find_files(root, is_table, broken=rejected):
                if path.endswith(GAIA_XP_SAMPLING):
                    samplings[path] = _read_sampling(path)
                    continue
                n_files += 1
                try:
                    listed, unused = _list_stars(path)
                    ignored |= unused
                except InputError as problem:
                    rejected.append(Rejection(printable(path), problem.message, stage="plan"))
                    continue
                for star, row, labels in listed:
                    problem_of = id_problem(star) or (
                        f"duplicate: already found in {seen[star]}" if star in seen else ""
                    )
                    if problem_of:
                        rejected.append(Rejection(printable(f"{path}#{row}"), problem_of, star_id=star, stage="plan"))
                        continue
                    seen[star] = printable(relative)
                    labels["gaia_source_id"] = gaia_id(star)
                    items.append(Item(star, f"{path}#{row}", labels | {"source_file": printable(relative)}))
        if not items:
            reasons = "".join(f"; {r.path}: {r.reason}" for r in rejected[:3])
            raise InputError(
                f"no XP spectra under {', '.join(map(printable, self.spectra))}{reasons}",
                "expected CSV or Parquet files with source_id, flux and flux_error"
                + other_survey(self.spectra, self.name),
            )
        sampling = _one_sampling(samplings)
        attrs = {
            "survey": "Gaia XP",
            "resolution": 50,
            "frame": "observed (no velocity matters at this resolution)",
            "normalisation": {
                "running-quantile": f"running quantile of means in narrow bins over {self.window:g} Angstrom",
                "median": "divided by the median of each star's usable pixels",
            }[self.continuum],
            "interstellar_windows": [],
            "files": n_files,
            "assumed": _assumed(items, samplings),
            "ignored": sorted(ignored),
        }
        labels_of = contract_labels(("ra", "dec", "gaia_source_id", "source_file"))
        plan = SurveyPlan(self.name, sampling * 10.0, "vacuum", items, (), labels_of, attrs, rejected)
        return self._complete(plan, self._keys(items, {"source_id": lambda: [item.star_id for item in items]}))

    def read(self, items: Sequence[Item], wavelength: np.ndarray, elements: Sequence[str]) -> StarBlock:
        """Read rows and normalise them; a row of another length than the grid is rejected."""
        return read_in_batches(items, elements, lambda part: self._read_batch(part, np.asarray(wavelength, float)))

    def _read_batch(self, items: Sequence[Item], grid: np.ndarray) -> Batch:
        flux, ivar = np.zeros((len(items), len(grid))), np.zeros((len(items), len(grid)))
        kept: list[Item] = []
        rejected: list[Rejection] = []
        for item in items:
            path, _, row = item.path.rpartition("#")
            try:
                one, error = self._rows(path).row(int(row), grid / 10.0)
                if len(one) != len(grid) or len(error) != len(grid):
                    raise ValueError(f"{len(one)} values of flux and {len(error)} of its error for {len(grid)} pixels")
            except (InputError, ValueError, OSError) as problem:
                reason = getattr(problem, "message", str(problem))
                rejected.append(Rejection(printable(item.path), reason, item.star_id))
                continue
            with np.errstate(all="ignore"):
                weight = np.where(error > 0, 1.0 / np.square(error), 0.0)
            good = np.isfinite(one) & np.isfinite(weight)
            flux[len(kept)], ivar[len(kept)] = np.where(good, one, 0.0), np.where(good, weight, 0.0)
            kept.append(item)
        n = len(kept)
        flags = np.zeros((n, len(grid)), np.uint8)
        out_flux, out_ivar = divide_by(self.continuum, grid, flux[:n], ivar[:n], flags, self.window)
        return Batch(kept, [{}] * n, out_flux, out_ivar, flags, rejected)


def _read_sampling(path: str) -> np.ndarray:
    """GaiaXPy's sampling, nm."""
    table = open_catalogue(path)
    column = table.find("pos") or table.columns[0]
    values = table.read([column])[column]
    grid = parse_array(values[0]) if len(values) == 1 else numbers(values)
    if len(grid) < 2 or not np.all(np.diff(grid) > 0):
        raise InputError(f"{printable(path)}: not an increasing sampling", "give that of GaiaXPy's calibrate")
    return grid


def _one_sampling(samplings: Mapping[str, np.ndarray]) -> np.ndarray:
    """The sampling of all files, nm: GaiaXPy's where it is given, else the archive's."""
    first = next(iter(samplings), "")
    for path, grid in samplings.items():
        if not np.array_equal(grid, samplings[first]):
            raise InputError(
                f"{printable(path)} is another sampling than {printable(first)}", "ingest them into stores of their own"
            )
    return samplings[first] if first else SAMPLING


def _assumed(items: Sequence[Item], samplings: Mapping[str, np.ndarray]) -> list[str]:
    """That spectra stand on the archive's sampling, where neither their files' names nor a sampling file say so."""
    own = all(os.path.basename(i.path).startswith(("XpSampledMeanSpectrum", "XP_SAMPLED")) for i in items)
    return [] if samplings or own else ["sampling is 336, 338, ..., 1020 nm: there is no *_sampling.csv"]


def _list_stars(path: str) -> tuple[list[tuple[str, int, dict[str, Any]]], set[str]]:
    """(source_id, row, labels) of the spectra of a file, and its columns that are not read."""
    single = GAIA_XP_SINGLE.match(os.path.basename(path))
    table = open_catalogue(path)
    if single:
        table.need("wavelength", "a DataLink file has wavelength, flux and flux_error")
        return [(single[1], -1, {})], {
            c for c in table.columns if c.lower() not in ("wavelength", "flux", "flux_error")
        }
    key = table.need("source_id", "give sampled spectra with source_id, flux and flux_error")
    for name in ("flux", "flux_error"):
        table.need(name, "continuous spectra (coefficients) have to be sampled by GaiaXPy first")
    position = [c for c in (table.find("ra"), table.find("dec")) if c]
    out: list[tuple[str, int, dict[str, Any]]] = []
    for block in table.blocks([key, *position]):
        ids = whole_identifiers(block[key], f"{printable(path)}: source_id")
        columns = {
            name: measured(name, block[c], converter(name, table.units.get(c, ""), printable(path))).tolist()
            for name, c in zip(("ra", "dec"), position)
        }
        for i, star in enumerate(ids):
            out.append((star, len(out), {name: values[i] for name, values in columns.items()}))
    used = {key, *position, table.find("flux"), table.find("flux_error")}
    return out, {*(set(table.columns) - used), *(f"{c} ({why})" for c, why in table.left_out.items())}


def parse_array(value: Any) -> np.ndarray:
    """Numbers of one cell: a list of Parquet, or text such as "[1.0, 2.0]" or "(1.0, nan)"."""
    if value is None or value is np.ma.masked:
        return np.zeros(0)
    if isinstance(value, np.ma.MaskedArray):
        return np.ma.filled(value.astype(np.float64), np.nan)
    if not isinstance(value, (str, bytes)):
        return np.atleast_1d(np.asarray(value, np.float64))
    text = (value.decode() if isinstance(value, bytes) else value).strip().strip("[]()\"'").replace(",", " ")
    return np.array([_number(t) for t in text.split()], np.float64)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


class _Rows:
    """Spectra of one file by row, read forwards block by block."""

    def __init__(self, path: str):
        self.path = path
        self._table: Catalogue = open_catalogue(path)
        self._columns = [self._table.need(n, "sampled spectra have flux and its error") for n in ("flux", "flux_error")]
        self._blocks: Iterator[dict[str, np.ndarray]] | None = None
        self._block: dict[str, np.ndarray] = {}
        self._start = self._stop = 0

    def row(self, row: int, sampling: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Flux and error of a row; for -1 of the whole file, whose wavelengths have to be the `sampling` (nm)."""
        if row < 0:
            return self._whole(sampling)
        if self._blocks is None or row < self._start:
            self._blocks = self._table.blocks(self._columns, rows=_ROWS)
            self._start = self._stop = 0
        while row >= self._stop:
            self._block = next(self._blocks, {})
            if not self._block:
                raise InputError(f"{printable(self.path)}: no row {row}", "the file changed since it was listed")
            self._start, self._stop = self._stop, self._stop + len(self._block[self._columns[0]])
        at = row - self._start
        return parse_array(self._block[self._columns[0]][at]), parse_array(self._block[self._columns[1]][at])

    def _whole(self, sampling: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Flux and error of a file with a row a pixel, in the order of wavelength."""
        column = self._table.need("wavelength", "a DataLink file has wavelength, flux and flux_error")
        values = self._table.read([column, *self._columns])
        wavelength, flux, error = (numbers(values[c]) for c in (column, *self._columns))
        to_angstrom = converter("wavelength", self._table.units.get(column, "") or "nm", printable(self.path))
        wavelength = wavelength if to_angstrom is None else to_angstrom(wavelength)
        order = np.argsort(wavelength, kind="stable")
        if not len(order):
            raise ValueError("the file has no rows")
        if len(order) != len(sampling) or not np.allclose(wavelength[order], 10.0 * sampling, rtol=1e-6, atol=0):
            raise ValueError(
                f"wavelengths from {wavelength[order[0]] / 10:g} to {wavelength[order[-1]] / 10:g} nm ({len(order)})"
                f" are not the sampling from {sampling[0]:g} to {sampling[-1]:g} nm ({len(sampling)})"
            )
        return flux[order], error[order]
