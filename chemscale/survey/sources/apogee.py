"""APOGEE: aspcapStar and apStar spectra, allStar labels, OCCAM or any other membership table.

Layouts (SDSS data model; the repository's tests read real DR13 files and DR16 tables):

* ``aspcapStar-<apred>[-<aspcap>]-<id>.fits``: HDU1 pseudo-continuum-normalised flux, HDU2
  error, HDU3 best model, HDU4 a one-row table of labels; 8575 pixels,
  ``log10(lambda) = 4.179 + 6e-6 i``, vacuum, rest frame. No mask: error >= 1e10 is bad.
* ``apStar-<apred>[-<telescope>]-<id>.fits`` (``asStar-`` in the south): HDU1 flux, HDU2
  error, HDU3 APOGEE_PIXMASK; with more than one visit the first row is the combination.
* ``allStar``: HDU1, one row a star and field; 26 abundances up to DR16, 20 in DR17 (named in
  HDU3 ``ELEM_SYMBOL`` where the file has it).

DR17's allStar has no VISITS column; `visits` is then empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from chemscale.errors import InputError
from chemscale.formats.fits import read_bytes, scan
from chemscale.formats.fits_header import FitsError
from chemscale.formats.kernels import REASONS
from chemscale.formats.paths import printable
from chemscale.schema import APOGEE_ELEMENTS
from chemscale.survey.sources import apogee_labels as labelling
from chemscale.survey.sources.apogee_match import Found, agrees, check_row, match_star, signal_to_noise
from chemscale.survey.sources.apogee_pixels import (
    BAD_PIXMASK,
    CHIPS,
    INTERSTELLAR_WINDOWS,
    N_PIXELS,
    check_identity,
    copy_spectrum,
    finish,
    wavelength_grid,
)
from chemscale.survey.sources.base import Item, Rejection, StarBlock, SurveyPlan
from chemscale.survey.sources.blocks import Batch, read_in_batches
from chemscale.survey.sources.file_names import APOGEE, APOGEE_PRODUCTS, other_products, other_survey
from chemscale.survey.sources.files import find_files, id_problem
from chemscale.survey.sources.folders import FolderSource
from chemscale.survey.sources.labels import RowLabels, contract_labels


class ApogeeSource(FolderSource):
    """APOGEE spectra of one release.

    Parameters
    ----------
    spectra : str or sequence of str
        Folder(s) holding the files at any depth; fsspec URLs work.
    allstar : str, optional
        The release's allStar file. Without it labels come from each file's own table.
    product : {"aspcapStar", "apStar"}
        apStar spectra are not continuum normalised: a running quantile is applied chip by chip.
    **joins
        Labels and members, as for :class:`~chemscale.survey.sources.folders.JoiningSource`.

    Notes
    -----
    One pass over the directory tree and one over allStar for :meth:`plan`; each spectrum is
    read once by :meth:`read`.
    """

    name = "apogee"
    title = "APOGEE (DR13 to DR17)"
    uses: tuple[str, ...] = ("#1", "#2", r".*\..*")  # what of the label table is not stored is told with its species
    default_member_key = "APOGEE_ID"
    default_member_column = "CLUSTER"

    def __init__(
        self,
        spectra: str | Sequence[str],
        allstar: str | None = None,
        members: str | None = None,
        *,
        product: str = "aspcapStar",
        **joins: Any,
    ):
        if product not in APOGEE_PRODUCTS:
            raise InputError(f"product is {product!r}", f"use one of {', '.join(APOGEE_PRODUCTS)}")
        super().__init__(spectra, members=members, **joins)
        self.allstar = str(allstar) if allstar else None
        self.product = product
        if product == "apStar":
            self.uses = (*self.uses, "#3")

    # ------------------------------------------------------------------ plan

    def plan(self) -> SurveyPlan:
        """List the stars; read catalogues, and of the spectra only those needed to settle duplicates."""
        rejected: list[Rejection] = []
        files = self._files(rejected)
        if self.allstar:
            items, elements, names, notes = self._items_from_catalogue(files, rejected)
        else:
            items, elements, names, notes = self._items_from_files(files, rejected)
        catalogued = notes.pop("catalogue_ids", ())
        attrs = {
            "survey": "APOGEE",
            "product": self.product,
            "resolution": 22500,
            "frame": "rest (the survey's own radial velocities)",
            "normalisation": _NORMALISATION[self.product],
            "gap_rule": "flux exactly 0 outside the three detectors' pixel ranges",
            "chips": [list(c) for c in CHIPS],
            "interstellar_windows": [list(w) for w in INTERSTELLAR_WINDOWS],
            "quality": "ASPCAPFLAG; bit 23 is STAR_BAD",
            **notes,
        }
        abundances = ("abundance", "abundance_error") if elements else ()
        names = [n for n in names if not n.startswith("abundance")]
        labels = contract_labels([*names, "source_file", *abundances])
        grid = wavelength_grid()
        plan = SurveyPlan("apogee", grid, "vacuum", items, tuple(elements), labels, attrs, rejected)
        ids = {"apogee_id": lambda: [item.star_id for item in items]}
        return self._complete(plan, self._keys(items, ids, catalogued=catalogued))

    def _files(self, rejected: list[Rejection]) -> dict[str, list[Found]]:
        """Star id -> its files."""
        prefixes = APOGEE_PRODUCTS[self.product]

        def accept(name: str) -> bool:
            return name.startswith(prefixes) and name.endswith((".fits", ".fits.gz"))

        files: dict[str, list[Found]] = {}
        for root in self.spectra:
            for path, relative in find_files(root, accept, broken=rejected):
                named = APOGEE.match(relative.rsplit("/", 1)[-1])
                star = named["id"] if named else ""
                problem = id_problem(star) if star else "file name does not follow <product>-<version>-<id>.fits"
                if problem:
                    rejected.append(Rejection(printable(path), problem, star_id=printable(star), stage="plan"))
                else:
                    files.setdefault(star, []).append(Found(path, relative, named["telescope"] if named else ""))
        if not files:
            raise InputError(
                f"no {self.product} files under {', '.join(map(printable, self.spectra))}"
                + (f" ({len(rejected)} unusable names)" if rejected else ""),
                f"expected names like {prefixes[0]}<version>-<id>.fits, at any depth"
                + other_products(self.spectra)
                + other_survey(self.spectra, "apogee"),
            )
        return files

    def _items_from_catalogue(
        self, files: dict[str, list[Found]], rejected: list[Rejection]
    ) -> tuple[list[Item], tuple[str, ...], list[str], dict[str, Any]]:
        catalogue = labelling.read_allstar(str(self.allstar), self.extra)
        places = catalogue.places()
        items: list[Item] = []
        absent = 0
        for star, rows in catalogue.rows.items():  # rows of a star: best S/N first
            found = files.get(star)
            if not found:
                absent += 1
                continue
            row, file, refused = match_star(catalogue, rows, found, places)
            rejected += [Rejection(printable(f.path), why, star_id=star, stage="plan") for f, why in refused]
            if file is not None:
                extra: dict[str, Any] = {"source_file": printable(file.relative)}
                if not agrees(catalogue, row, file):
                    extra["place_unknown"] = True  # then read() compares the S/N of file and row
                items.append(Item(star, file.path, RowLabels(catalogue.columns, row, extra)))
        unlisted = sorted(files.keys() - catalogue.rows.keys())
        for star in unlisted:
            # a spectrum without catalogue entry keeps the labels of its own table
            file = self._best_file(star, files[star], rejected)
            items.append(Item(star, file.path, {"source_file": printable(file.relative)}))
        notes = {
            "allstar_rows": catalogue.n_rows,
            "allstar_repeated": catalogue.n_rows - len(catalogue.rows),
            "allstar_without_spectrum": absent,
            "spectra_without_allstar": len(unlisted),
            "catalogue_ids": catalogue.rows.keys(),
            "ignored": [f"{c} of allStar" for c in catalogue.ignored],
        }
        return items, catalogue.elements, list(catalogue.columns), notes

    def _items_from_files(
        self, files: dict[str, list[Found]], rejected: list[Rejection]
    ) -> tuple[list[Item], tuple[str, ...], list[str], dict[str, Any]]:
        items = []
        for star, found in files.items():
            file = self._best_file(star, found, rejected)
            items.append(Item(star, file.path, {"source_file": printable(file.relative)}))
        elements: tuple[str, ...] = APOGEE_ELEMENTS
        notes: dict[str, Any] = {}
        for item in items[:20]:  # the first readable table tells which release this is
            try:
                unit = labelling.table_unit(scan(read_bytes(item.path)))
            except (FitsError, InputError):
                continue  # read() will say what is wrong with this file
            if unit is None:
                continue
            elements = labelling.species_of(unit.layout(), unit.table())
            notes["ignored"] = labelling.unused_columns(unit.layout(), elements)
            break
        return items, elements, list(labelling.FILE_LABELS), notes

    def _best_file(self, star: str, found: list[Found], rejected: list[Rejection]) -> Found:
        """The file of highest S/N among those of one star (read only when there is a choice)."""
        if len(found) == 1:
            return found[0]
        ranked = sorted(found, key=lambda f: (-signal_to_noise(f.path), f.relative))
        for other in ranked[1:]:
            reason = f"duplicate of {printable(ranked[0].relative)}, which has the higher S/N"
            rejected.append(Rejection(printable(other.path), reason, star_id=star, stage="plan"))
        return ranked[0]

    # ------------------------------------------------------------------ read

    def read(self, items: Sequence[Item], wavelength: np.ndarray, elements: Sequence[str]) -> StarBlock:
        """Read the spectra of `items`; each file is read once, whole.

        Returns
        -------
        StarBlock
            Flags hold GAP (between the chips) and SURVEY_BAD (error >= 1e10, flux 0 inside a
            chip, impossible values, APOGEE_PIXMASK for apStar).

        Raises
        ------
        InputError
            `wavelength` is not the apStar grid.
        """
        if len(wavelength) != N_PIXELS or not np.allclose(wavelength, wavelength_grid(), rtol=1e-7, atol=0):
            raise InputError("the store's wavelength grid is not APOGEE's", "ingest APOGEE into a store of its own")
        return read_in_batches(items, elements, lambda part: self._read_batch(part, elements))

    def _read_batch(self, items: Sequence[Item], elements: Sequence[str]) -> Batch:
        flux = np.empty((len(items), N_PIXELS), np.float32)
        error = np.empty_like(flux)
        bad = np.zeros(flux.shape if self.product == "apStar" else (0, 0), bool)
        mask = np.empty(N_PIXELS, np.int64)
        kept: list[Item] = []
        own: list[labelling.FileLabels | None] = []
        rejected: list[Rejection] = []
        for item in items:
            row = len(kept)
            try:
                units = scan(read_bytes(item.path))
                check_identity(units, item.star_id)
                with np.errstate(over="ignore", invalid="ignore"):  # doubles beyond float32 become infinite: flagged
                    copy_spectrum(units, 1, "flux", flux[row])
                    copy_spectrum(units, 2, "error", error[row])
                if len(bad):
                    copy_spectrum(units, 3, "mask", mask)
                    np.not_equal(mask & BAD_PIXMASK, 0, out=bad[row])
                # the catalogue's labels count; a file's own are read where it has none
                catalogued = self.allstar is not None and _catalogued(item)
                if catalogued and item.labels.get("place_unknown"):
                    check_row(units[0].header, item.labels)
                said = None if catalogued else labelling.FileLabels.of(units)
            except FitsError as problem:
                rejected.append(Rejection(printable(item.path), str(problem), item.star_id))
                continue
            kept.append(item)
            own.append(said)
        n = len(kept)
        flux, ivar, flags, verdict = finish(flux[:n], error[:n], bad[:n], normalise=self.product == "apStar")
        if verdict.any():
            for i in np.flatnonzero(verdict):
                rejected.append(Rejection(printable(kept[i].path), REASONS[verdict[i]], kept[i].star_id))
            good = np.flatnonzero(verdict == 0)
            flux, ivar, flags = flux[good], ivar[good], flags[good]
            kept, own = [kept[i] for i in good], [own[i] for i in good]
        return Batch(kept, labelling.file_labels(own, elements), flux, ivar, flags, rejected)


def _catalogued(item: Item) -> bool:
    """Whether a star's labels come from allStar rather than from its own file."""
    return isinstance(item.labels, RowLabels) and item.labels.row_known(("teff", "snr", "ra"))


_NORMALISATION = {
    "aspcapStar": "pseudo-continuum, as normalised by ASPCAP",
    "apStar": "running quantile of each detector: 90 % of 10-Angstrom means over 100 Angstrom",
}
