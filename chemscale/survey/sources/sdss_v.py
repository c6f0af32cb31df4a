"""SDSS-V Milky Way Mapper (DR19, DR20): ``mwmStar`` and ``mwmVisit`` spectra of APOGEE or BOSS.

Written from the code that makes the files (Astra, https://github.com/sdss/astra, ``products``); no real file was at
hand. What it says:

* ``mwmStar-<v_astra>-<sdss_id>.fits``: HDU0 header with the source's keywords; HDU1 BOSS/APO, HDU2 BOSS/LCO,
  HDU3 APOGEE/APO, HDU4 APOGEE/LCO, each a table of no or some rows with vectors `flux`, `ivar`, `pixel_flags`,
  `wavelength`, `continuum`, and scalars `telescope`, `snr`, `v_rad`, `n_good_visits`, ... Rest frame, vacuum.
* ``mwmVisit-...``: the same, a row a visit, without `wavelength`: ``CRVAL``, ``CDELT``, ``NPIXELS`` (log10) of the
  header say it; APOGEE 4.179 + 6e-6 i (8575), BOSS 3.5523 + 1e-4 i (4648).
* ``astraStar<PIPELINE>-...`` hold models and labels but neither flux nor ivar: they are left aside.
* summary catalogues (``astraAllStar<PIPELINE>``: HDU1 BOSS, HDU2 APOGEE) with one row a spectrum: a source may have
  several, told apart by `telescope` and `snr`; species are columns such as `mg_h`, `c_1_h` (C I), `ti_2_h` (Ti II).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from chemscale.errors import InputError
from chemscale.formats.fits import read_bytes, scan
from chemscale.formats.fits_header import FitsError
from chemscale.formats.paths import printable
from chemscale.formats.pixels import usable
from chemscale.schema import Flag
from chemscale.survey.continuum import running_quantile
from chemscale.survey.sources import apogee_pixels as apogee
from chemscale.survey.sources.base import Item, Rejection, StarBlock, SurveyPlan
from chemscale.survey.sources.blocks import Batch, read_in_batches
from chemscale.survey.sources.file_names import SDSS_V, other_survey
from chemscale.survey.sources.files import find_files, id_problem
from chemscale.survey.sources.folders import FolderSource
from chemscale.survey.sources.labels import RowLabels, contract_labels
from chemscale.survey.sources.normalising import over_continuum
from chemscale.survey.sources.sdss_v_files import (
    ROW_LABELS,
    VECTORS,
    Summary,
    list_spectra,
    read_spectrum,
    read_summary,
)

#: instrument -> (HDUs, log10 start, step, pixels, resolution)
_INSTRUMENTS = {
    "apogee": ((3, 4), apogee.LOG_START, apogee.LOG_STEP, apogee.N_PIXELS, 22500),
    "boss": ((1, 2), 3.5523, 1e-4, 4648, 1800),
}
_PRODUCTS = ("mwmStar", "mwmVisit")


class SdssVSource(FolderSource):
    """Milky Way Mapper star-level spectra.

    Parameters
    ----------
    spectra : str or sequence of str
        Folder(s) with ``mwmStar-*.fits`` at any depth.
    catalogue : str, optional
        Summary table keyed by `sdss_id`. Of several rows of a source that of the spectrum's telescope and S/N counts;
        where none agrees the star is refused.
    instrument : {"apogee", "boss"}
        Stars without a spectrum of it are rejected. Of two observatories the better S/N counts.
    continuum : {"survey", "running-quantile"}
        ``survey`` divides by the file's `continuum` vector.
    product : {"mwmStar", "mwmVisit"}
        Co-added spectra, one star a file; or visits, named ``<sdss_id>-<telescope>-<mjd>``.
    **joins
        Labels and members, as for :class:`~chemscale.survey.sources.folders.JoiningSource`, keyed by `sdss_id`.
    """

    name = "sdss-v"
    title = "SDSS-V Milky Way Mapper (DR19, DR20)"
    default_member_key = "sdss_id"

    def __init__(
        self,
        spectra: str | Sequence[str],
        catalogue: str | None = None,
        members: str | None = None,
        *,
        instrument: str = "apogee",
        continuum: str = "survey",
        product: str = "mwmStar",
        **joins: Any,
    ):
        for name, value, known in (
            ("instrument", instrument, tuple(_INSTRUMENTS)),
            ("continuum", continuum, ("survey", "running-quantile")),
            ("product", product, _PRODUCTS),
        ):
            if value not in known:
                raise InputError(f"{name} is {value!r}", f"use one of {', '.join(known)}")
        super().__init__(spectra, members=members, **joins)
        self.product = product
        self.catalogue = str(catalogue) if catalogue else None
        self.instrument, self.continuum = instrument, continuum
        hdus = "".join(map(str, _INSTRUMENTS[instrument][0]))
        read = "|".join(sorted({*VECTORS, *ROW_LABELS.values(), "telescope", "mjd"}))
        self.uses = (rf"#[{hdus}]\.({read})",)

    def wavelength_grid(self) -> np.ndarray:
        """The instrument's grid, vacuum Angstrom."""
        _, start, step, pixels, _ = _INSTRUMENTS[self.instrument]
        return 10.0 ** (start + step * np.arange(pixels))

    def plan(self) -> SurveyPlan:
        """List the stars and join the catalogue; reads spectra only of visits and of sources listed more than once."""
        rejected: list[Rejection] = []
        catalogue = read_summary(self.catalogue, self.instrument, self.extra) if self.catalogue else None
        items: list[Item] = []
        seen: dict[str, str] = {}
        for root in self.spectra:
            for path, relative in find_files(root, self._accept, broken=rejected):
                match = SDSS_V.match(relative.rsplit("/", 1)[-1])
                star = match["id"] if match else ""
                expected = f"file name does not follow {self.product}-<version>-<sdss_id>.fits"
                problem = id_problem(star) if star else expected
                if star in seen:
                    problem = f"duplicate: this star was already found as {printable(seen[star])}"
                if problem:
                    rejected.append(Rejection(printable(path), problem, star_id=printable(star), stage="plan"))
                    continue
                seen[star] = path
                items += self._items_of(star, path, {"source_file": printable(relative)}, catalogue, rejected)
        if not items:
            where = ", ".join(map(printable, self.spectra))
            reasons = "".join(f"; {r.path}: {r.reason}" for r in rejected[:3])
            raise InputError(
                f"no {self.product} files under {where} can be used{reasons}",
                f"expected {self.product}-<version>-<sdss_id>.fits" + other_survey(self.spectra, "sdss-v"),
            )
        elements = catalogue.elements if catalogue else ()
        attrs: dict[str, Any] = {
            "survey": f"SDSS-V MWM {self.instrument.upper()}",
            "product": self.product,
            "resolution": _INSTRUMENTS[self.instrument][4],
            "frame": "rest (the survey's own radial velocities)",
            "normalisation": "the survey's continuum model" if self.continuum == "survey" else "running quantile",
        }
        if catalogue:
            attrs["catalogue_without_spectrum"] = len(catalogue.rows.keys() - seen.keys())
            attrs["ignored"] = [f"{c} of {printable(str(self.catalogue))}" for c in catalogue.ignored]
        if self.instrument == "apogee":
            attrs["interstellar_windows"] = [list(w) for w in apogee.INTERSTELLAR_WINDOWS]
        names = [*(catalogue.columns if catalogue else ()), *ROW_LABELS, "ra", "dec", "source_file"]
        labels = contract_labels([n for n in names if elements or not n.startswith("abundance")])
        plan = SurveyPlan(self.name, self.wavelength_grid(), "vacuum", items, elements, labels, attrs, rejected)
        ids = {"sdss_id": lambda: [item.path.partition("#")[0].rsplit("-", 1)[-1].partition(".")[0] for item in items]}
        return self._complete(plan, self._keys(items, ids))

    def _accept(self, name: str) -> bool:
        return name.startswith(f"{self.product}-") and name.endswith((".fits", ".fits.gz"))

    def _items_of(
        self, star: str, path: str, extra: dict[str, Any], catalogue: Summary | None, rejected: list[Rejection]
    ) -> list[Item]:
        """One item a file, or one a visit; with the catalogue's row of the same observation."""
        rows = catalogue.rows.get(star, []) if catalogue else []
        if self.product == "mwmStar" and len(rows) < 2:
            if catalogue is None or not rows:
                return [Item(star, path, extra)]
            extra["telescope"] = str(catalogue.telescope[rows[0]])  # read() takes the spectrum of this telescope
            return [Item(star, path, RowLabels(catalogue.columns, rows[0], extra))]
        try:
            spectra = list_spectra(scan(read_bytes(path)), _INSTRUMENTS[self.instrument][0])
        except FitsError as problem:
            rejected.append(Rejection(printable(path), str(problem), star, "plan"))
            return []
        if not spectra:
            return self._refuse(path, star, "no spectrum of this instrument in the file", rejected)
        if self.product == "mwmVisit":
            return [Item(f"{star}-{v.name}", f"{path}#{v.hdu}:{v.row}", extra | {"visits": v.mjd}) for v in spectra]
        assert catalogue is not None
        best = max(spectra, key=lambda v: v.snr)
        row = catalogue.row_of(star, best.telescope, best.snr)
        if row is None:
            said = f"telescope ({best.telescope or 'not said'}) nor S/N ({best.snr:.1f})"
            reason = (
                f"the catalogue has {len(rows)} rows of this source, and neither {said} says which is this spectrum's"
            )
            return self._refuse(path, star, reason, rejected)
        return [Item(star, f"{path}#{best.hdu}:{best.row}", RowLabels(catalogue.columns, row, extra))]

    def _refuse(self, path: str, star: str, reason: str, rejected: list[Rejection]) -> list[Item]:
        rejected.append(Rejection(printable(path), reason, star, "plan"))
        return []

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
                path, _, place = item.path.partition("#")
                units = scan(read_bytes(path))
                claimed = units[0].header.text("SDSS_ID")
                expected = item.star_id.partition("-")[0]
                if claimed and claimed != expected:
                    raise FitsError(f"file name says {expected!r}, its SDSS_ID says {printable(claimed)!r}")
                where = _INSTRUMENTS[self.instrument][0]
                vectors, labels = read_spectrum(units, where, grid, place, str(item.labels.get("telescope", "")))
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
        flags = flags[:n]
        return Batch(kept, own, *over_continuum(flux[:n], ivar[:n], flags, continuum[:n]), flags, rejected)
