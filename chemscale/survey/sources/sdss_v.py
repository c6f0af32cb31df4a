"""SDSS-V Milky Way Mapper: ``mwmStar`` (and ``astraStar``) spectra of APOGEE or BOSS.

Written from the public data model (Astra, https://github.com/sdss/astra, and the loaders of
specutils); **no real file was at hand**, so expect to adjust a column name. What is assumed:

* ``mwmStar-<v_astra>-<sdss_id>.fits``: HDU0 header with the source's keywords; HDU1 BOSS/APO,
  HDU2 BOSS/LCO, HDU3 APOGEE/APO, HDU4 APOGEE/LCO, each a table of no or one row with vectors
  `flux`, `ivar`, `pixel_flags`, usually `wavelength` and `continuum`, and scalars `snr`,
  `v_rad`, `n_good_visits`, ... Rest frame, vacuum. ``astraStar<PIPELINE>-...`` adds `model_flux`.
* wavelengths: a vector `wavelength`, or ``CRVAL``, ``CDELT``, ``NPIXELS`` (log10) of the header;
  APOGEE 4.179 + 6e-6 i (8575), BOSS 3.5523 + 1e-4 i (4648).
* a summary catalogue (``astraAllStar...``) with one row an `sdss_id` and columns such as `teff`,
  `logg`, `fe_h`, `<element>_h`, `e_<element>_h`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from chemscale.errors import InputError
from chemscale.schema import APOGEE_ELEMENTS, Flag
from chemscale.survey.continuum import divide, running_quantile
from chemscale.survey.sources import apogee_pixels as apogee
from chemscale.survey.sources.base import Item, Rejection, StarBlock, SurveyPlan
from chemscale.survey.sources.blocks import Batch, read_in_batches
from chemscale.survey.sources.files import find_files, id_problem, other_survey
from chemscale.survey.sources.folders import FolderSource
from chemscale.survey.sources.formats.fits import HDU, read_bytes, scan
from chemscale.survey.sources.formats.fits_header import FitsError
from chemscale.survey.sources.formats.fits_tables import read_table
from chemscale.survey.sources.formats.paths import printable
from chemscale.survey.sources.formats.pixels import usable
from chemscale.survey.sources.labels import RowLabels, contract_labels
from chemscale.survey.sources.missing import measured, measured_one, numbers

#: instrument -> (HDUs, log10 start, step, pixels, resolution)
_INSTRUMENTS = {
    "apogee": ((3, 4), apogee.LOG_START, apogee.LOG_STEP, apogee.N_PIXELS, 22500),
    "boss": ((1, 2), 3.5523, 1e-4, 4648, 1800),
}
_NAME = re.compile(r"^(?:mwmStar|astraStar[A-Za-z0-9]*)-[A-Za-z0-9.]+-(?P<id>[^-]+)\.fits(?:\.gz)?$")
#: contract name -> columns of the summary catalogue, the first present wins
_CATALOGUE = {
    "ra": ("ra",),
    "dec": ("dec",),
    "teff": ("teff",),
    "logg": ("logg",),
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
_ROW = {"snr": "snr", "radial_velocity": "v_rad", "velocity_scatter": "std_v_rad", "n_visits": "n_good_visits"}


class SdssVSource(FolderSource):
    """Milky Way Mapper star-level spectra.

    Parameters
    ----------
    spectra : str or sequence of str
        Folder(s) with ``mwmStar-*.fits`` at any depth.
    catalogue : str, optional
        Summary table with one row an `sdss_id`.
    members : str, optional
        Membership table; `member_key` holds `sdss_id`.
    instrument : {"apogee", "boss"}
        Stars without a spectrum of it are rejected. Of two observatories the better S/N counts.
    continuum : {"survey", "running-quantile"}
        ``survey`` divides by the file's `continuum` vector.
    """

    name = "sdss-v"

    def __init__(
        self,
        spectra: str | Sequence[str],
        catalogue: str | None = None,
        members: str | None = None,
        *,
        member_key: str = "sdss_id",
        member_column: str = "cluster",
        probability_column: str | None = None,
        min_probability: float | None = None,
        instrument: str = "apogee",
        continuum: str = "survey",
    ):
        if instrument not in _INSTRUMENTS:
            raise InputError(f"instrument is {instrument!r}", "use 'apogee' or 'boss'")
        if continuum not in {"survey", "running-quantile"}:
            raise InputError(f"continuum is {continuum!r}", "use 'survey' or 'running-quantile'")
        super().__init__(
            spectra,
            members,
            member_key=member_key,
            member_column=member_column,
            probability_column=probability_column,
            min_probability=min_probability,
        )
        self.catalogue = str(catalogue) if catalogue else None
        self.instrument, self.continuum = instrument, continuum

    def wavelength_grid(self) -> np.ndarray:
        """The instrument's grid, vacuum Angstrom."""
        _, start, step, pixels, _ = _INSTRUMENTS[self.instrument]
        return 10.0 ** (start + step * np.arange(pixels))

    def plan(self) -> SurveyPlan:
        """List the stars and join the catalogue; reads no spectrum."""
        rejected: list[Rejection] = []
        columns, rows, elements = self._read_catalogue()
        membership = self._membership()
        items: list[Item] = []
        seen: dict[str, str] = {}
        for root in self.spectra:
            for path, relative in find_files(root, _accept, broken=rejected):
                match = _NAME.match(relative.rsplit("/", 1)[-1])
                star = match["id"] if match else ""
                problem = id_problem(star) if star else "file name does not follow mwmStar-<version>-<sdss_id>.fits"
                if star in seen:
                    problem = f"duplicate: this star was already found as {printable(seen[star])}"
                if problem:
                    rejected.append(Rejection(printable(path), problem, star_id=printable(star), stage="plan"))
                    continue
                seen[star] = path
                extra = membership.labels(star) | {"source_file": printable(relative)}
                items.append(Item(star, path, RowLabels(columns, rows[star], extra) if star in rows else extra))
        if not items:
            where = ", ".join(map(printable, self.spectra))
            raise InputError(
                f"no mwmStar files under {where}",
                "expected mwmStar-<version>-<sdss_id>.fits" + other_survey(self.spectra, "sdss-v"),
            )
        rejected += self._absent(membership, seen)
        attrs: dict[str, Any] = {
            "survey": f"SDSS-V MWM {self.instrument.upper()}",
            "resolution": _INSTRUMENTS[self.instrument][4],
            "frame": "rest (the survey's own radial velocities)",
            "normalisation": "the survey's continuum model" if self.continuum == "survey" else "running quantile",
            "catalogue_without_spectrum": len(rows.keys() - seen.keys()),
        }
        if self.instrument == "apogee":
            attrs["interstellar_windows"] = [list(w) for w in apogee.INTERSTELLAR_WINDOWS]
        names = [*columns, *_ROW, "ra", "dec", "source_file", *(["abundance", "abundance_error"] if elements else [])]
        labels = contract_labels(names)
        return SurveyPlan(self.name, self.wavelength_grid(), "vacuum", items, elements, labels, attrs, rejected)

    def _read_catalogue(self) -> tuple[dict[str, np.ndarray], dict[str, int], tuple[str, ...]]:
        if not self.catalogue:
            return {}, {}, ()
        wanted = ["sdss_id"] + [c for names in _CATALOGUE.values() for c in names]
        wanted += [f"{prefix}{e.lower()}_h" for e in APOGEE_ELEMENTS for prefix in ("", "e_")]
        table: dict[str, np.ndarray] = {}
        problem = "no table with a column sdss_id"
        for hdu in (1, 2):  # astraAllStar: BOSS first, APOGEE second; either may be empty
            try:
                found = read_table(self.catalogue, wanted, hdu=hdu)
            except FitsError as error:
                problem = str(error)
                continue
            if len(found.get("sdss_id", ())) > len(table.get("sdss_id", ())):
                table = found
        if "sdss_id" not in table:
            raise InputError(f"{printable(self.catalogue)}: {problem}", "give a summary table keyed by sdss_id")
        columns: dict[str, np.ndarray] = {}
        for name, sources in _CATALOGUE.items():
            source = next((s for s in sources if s in table), None)
            if source is not None:
                if name == "quality":
                    columns[name] = np.ma.filled(table[source], 0).astype(np.int64)
                else:
                    columns[name] = measured(name, table[source])
        elements = tuple(e for e in APOGEE_ELEMENTS if f"{e.lower()}_h" in table)
        if elements:
            blank = np.full(len(table["sdss_id"]), np.nan)
            columns["abundance"] = np.stack([measured("abundance", table[f"{e.lower()}_h"]) for e in elements], axis=1)
            errors = [measured("abundance_error", table.get(f"e_{e.lower()}_h", blank)) for e in elements]
            columns["abundance_error"] = np.stack(errors, axis=1)
        rows: dict[str, int] = {}
        for row, star in enumerate(table["sdss_id"].astype(str).tolist()):
            rows.setdefault(star, row)
        return columns, rows, elements

    def read(self, items: Sequence[Item], wavelength: np.ndarray, elements: Sequence[str]) -> StarBlock:
        """Read the spectra of `items`, one read a file, divided by their continuum."""
        grid = self.wavelength_grid()
        if len(wavelength) != len(grid) or not np.allclose(wavelength, grid, rtol=1e-7, atol=0):
            raise InputError("the store's wavelength grid is another instrument's", "use a store of its own")
        return read_in_batches(items, elements, lambda part: self._read_batch(part, grid))

    def _read_batch(self, items: Sequence[Item], grid: np.ndarray) -> Batch:
        shape = (len(items), len(grid))
        flux, ivar, continuum = np.zeros(shape, np.float32), np.zeros(shape, np.float32), np.full(shape, np.nan)
        flags = np.zeros(shape, np.uint8)
        kept: list[Item] = []
        own: list[dict[str, Any]] = []
        rejected: list[Rejection] = []
        for item in items:
            row = len(kept)
            try:
                units = scan(read_bytes(item.path))
                claimed = units[0].header.text("SDSS_ID")
                if claimed and claimed != item.star_id:
                    raise FitsError(f"file name says {item.star_id!r}, its SDSS_ID says {printable(claimed)!r}")
                vectors, labels = _best_spectrum(units, _INSTRUMENTS[self.instrument][0], grid)
                flux[row], ivar[row] = vectors["flux"], vectors["ivar"]
                usable(flux[row], np.where(ivar[row] > 0, 1.0, np.nan))
                if self.continuum == "survey":
                    if "continuum" not in vectors:
                        raise FitsError("no `continuum` vector (use continuum='running-quantile')")
                    continuum[row] = vectors["continuum"]
                bad = vectors.get("pixel_flags", np.zeros(len(grid), np.int64)).astype(np.int64)
                mask = apogee.BAD_PIXMASK if self.instrument == "apogee" else -1
                flags[row] = np.where((bad & mask) != 0, Flag.SURVEY_BAD, 0)
            except FitsError as problem:
                flags[row] = 0
                rejected.append(Rejection(printable(item.path), str(problem), item.star_id))
                continue
            flags[row][~(ivar[row] > 0)] |= np.uint8(Flag.GAP)
            own.append(labels)
            kept.append(item)
        n = len(kept)
        ivar[~(np.isfinite(ivar) & (ivar > 0))] = 0.0
        if self.continuum == "running-quantile":
            trusted = np.where(flags[:n] == 0, ivar[:n], 0.0)
            # windows of the same number of resolution elements for both instruments
            window = 100.0 if self.instrument == "apogee" else 300.0
            continuum = running_quantile(grid, flux[:n], trusted, window=window)[2]
        out_flux, out_ivar = divide(flux[:n], ivar[:n], continuum[:n])
        with np.errstate(invalid="ignore"):
            absurd = ~(np.abs(out_flux) <= 1e3)  # the continuum is 1
        out_ivar[absurd] = 0.0
        flags[:n][absurd] |= np.uint8(Flag.SURVEY_BAD)
        return Batch(kept, own, out_flux, out_ivar, flags[:n], rejected)


def _accept(name: str) -> bool:
    return name.startswith(("mwmStar-", "astraStar")) and name.endswith((".fits", ".fits.gz"))


def _best_spectrum(
    units: list[HDU], where: tuple[int, ...], grid: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Vectors and labels of the row of highest S/N among the instrument's HDUs."""
    best: tuple[float, HDU, int] | None = None
    for index in where:
        if index >= len(units) or units[index].kind != "BINTABLE" or not units[index].shape[0]:
            continue
        unit = units[index]
        if unit.column("flux") is None or unit.column("ivar") is None:
            raise FitsError(f"HDU {index} has no columns flux and ivar")
        given = unit.column("snr")
        snr = numbers(given).reshape(unit.shape[0], -1)[:, 0] if given is not None else np.zeros(unit.shape[0])
        snr = np.nan_to_num(snr, nan=-1.0)
        row = int(np.argmax(snr))
        if best is None or snr[row] > best[0]:
            best = (float(snr[row]), unit, row)
    if best is None:
        raise FitsError("no spectrum of this instrument in the file")
    _, unit, row = best
    vectors: dict[str, np.ndarray] = {}
    labels: dict[str, Any] = {}
    for name in unit.layout().dtype.names or ():
        key = name.lower()
        if key in {"flux", "ivar", "pixel_flags", "or_mask", "wavelength", "continuum"}:
            values = unit.column(name)
            assert values is not None
            vector = np.ravel(values[row])
            if vector.shape != grid.shape or vector.dtype.kind not in "fiu":
                raise FitsError(f"column {name} has {vector.shape[0]} values ({vector.dtype}), expected {len(grid)}")
            vectors["pixel_flags" if key == "or_mask" else key] = vector
        for label, column in _ROW.items():
            if key == column and (values := unit.column(name)) is not None and values.ndim == 1:
                labels[label] = float(measured(label, values[row : row + 1])[0])
    _check_grid(unit, vectors, grid)
    for label, column in (("ra", "RA"), ("dec", "DEC")):
        labels[label] = measured_one(label, units[0].header.get(column))
    return vectors, labels


def _check_grid(unit: HDU, vectors: dict[str, np.ndarray], grid: np.ndarray) -> None:
    if "wavelength" in vectors:
        found = vectors["wavelength"].astype(float)
    else:
        start, step, pixels = (
            unit.header.number(k, default) for k, default in zip(("CRVAL", "CDELT", "NPIXELS"), (0, 0, 0))
        )
        if int(pixels) != len(grid):
            raise FitsError(f"HDU {unit.index}: no wavelength column, and NPIXELS is {pixels:g}")
        with np.errstate(over="ignore"):
            found = 10.0 ** (start + step * np.arange(len(grid)))
    if not np.allclose(found, grid, rtol=2e-6, atol=0):
        raise FitsError(f"HDU {unit.index} is on another wavelength grid: starts at {found[0]:.3f}, not {grid[0]:.3f}")
