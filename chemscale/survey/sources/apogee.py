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

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from chemscale.errors import InputError
from chemscale.schema import APOGEE_ELEMENTS
from chemscale.survey.sources import apogee_labels as labelling
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
from chemscale.survey.sources.files import find_files, id_problem, other_survey
from chemscale.survey.sources.folders import FolderSource
from chemscale.survey.sources.formats.fits import read_bytes, scan
from chemscale.survey.sources.formats.fits_header import FitsError
from chemscale.survey.sources.formats.kernels import REASONS
from chemscale.survey.sources.formats.paths import printable
from chemscale.survey.sources.labels import RowLabels, contract_labels
from chemscale.survey.sources.members import Membership
from chemscale.survey.sources.missing import measured_one

PRODUCTS = ("aspcapStar", "apStar")

_NAME = re.compile(
    r"^(?P<product>aspcapStar|ap1mStar|apStar|asStar)-(?P<apred>[A-Za-z0-9.]+)"
    r"(?:-(?P<aspcap>l\d[A-Za-z0-9.]*))?(?:-(?:apo25m|lco25m|apo1m))?-(?P<id>.+?)(?:\.fits|\.fits\.gz)$",
    re.DOTALL,
)


class ApogeeSource(FolderSource):
    """APOGEE spectra of one release.

    Parameters
    ----------
    spectra : str or sequence of str
        Folder(s) holding the files at any depth; fsspec URLs work.
    allstar : str, optional
        The release's allStar file. Without it labels come from each file's own table.
    members : str, optional
        Membership table, FITS or CSV. Stars in it above `min_probability` get its cluster.
    member_key, member_column : str
        Columns with the identifier and the cluster.
    probability_column : str, optional
        Column with the membership probability; ``CG_PROB`` where the table has it.
    min_probability : float, optional
        Default 0.8 (paper, section 4.1) when there is a probability column.
    product : {"aspcapStar", "apStar"}
        apStar spectra are not continuum normalised: a running quantile is applied chip by chip.

    Notes
    -----
    One pass over the directory tree and one over allStar for :meth:`plan`; each spectrum is
    read once by :meth:`read`.
    """

    name = "apogee"

    def __init__(
        self,
        spectra: str | Sequence[str],
        allstar: str | None = None,
        members: str | None = None,
        *,
        member_key: str = "APOGEE_ID",
        member_column: str = "CLUSTER",
        probability_column: str | None = None,
        min_probability: float | None = None,
        product: str = "aspcapStar",
    ):
        if product not in PRODUCTS:
            raise InputError(f"product is {product!r}", f"use one of {', '.join(PRODUCTS)}")
        super().__init__(
            spectra,
            members,
            member_key=member_key,
            member_column=member_column,
            probability_column=probability_column,
            min_probability=min_probability,
        )
        self.allstar = str(allstar) if allstar else None
        self.product = product

    # ------------------------------------------------------------------ plan

    def plan(self) -> SurveyPlan:
        """List the stars; read catalogues, and of the spectra only those needed to settle duplicates."""
        rejected: list[Rejection] = []
        files = self._files(rejected)
        membership = self._membership()
        if self.allstar:
            items, elements, names, notes = self._items_from_catalogue(files, membership, rejected)
        else:
            items, elements, names, notes = self._items_from_files(files, membership, rejected)
        catalogued = notes.pop("catalogue_ids", ())
        rejected += self._absent(membership, {item.star_id for item in items}, catalogued)
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
            "membership": {
                "rows": membership.n_rows,
                "below_minimum": membership.n_below,
                "repeated": membership.n_repeated,
                "probability_column": membership.probability_column,
            },
            **notes,
        }
        labels = contract_labels([*names, "source_file", "abundance", "abundance_error", "cluster_probability"])
        return SurveyPlan("apogee", wavelength_grid(), "vacuum", items, tuple(elements), labels, attrs, rejected)

    def _files(self, rejected: list[Rejection]) -> dict[str, list[tuple[str, str]]]:
        """Star id -> [(full path, path relative to the release), ...]."""
        prefixes = ("aspcapStar-",) if self.product == "aspcapStar" else ("apStar-", "asStar-", "ap1mStar-")

        def accept(name: str) -> bool:
            return name.startswith(prefixes) and name.endswith((".fits", ".fits.gz"))

        files: dict[str, list[tuple[str, str]]] = {}
        for root in self.spectra:
            for path, relative in find_files(root, accept, broken=rejected):
                star = star_id_of(relative.rsplit("/", 1)[-1])
                problem = id_problem(star) if star else "file name does not follow <product>-<version>-<id>.fits"
                if problem:
                    rejected.append(Rejection(printable(path), problem, star_id=printable(star), stage="plan"))
                else:
                    files.setdefault(star, []).append((path, relative))
        if not files:
            raise InputError(
                f"no {self.product} files under {', '.join(map(printable, self.spectra))}"
                + (f" ({len(rejected)} unusable names)" if rejected else ""),
                f"expected names like {prefixes[0]}<version>-<id>.fits, at any depth"
                + other_survey(self.spectra, "apogee"),
            )
        return files

    def _probability(self) -> tuple[str | None, float | None]:
        column, minimum = super()._probability()
        if column is None and self.members:
            column = labelling.default_probability_column(self.members)
        return column, 0.8 if minimum is None and column else minimum

    def _items_from_catalogue(
        self, files: dict[str, list[tuple[str, str]]], membership: Membership, rejected: list[Rejection]
    ) -> tuple[list[Item], tuple[str, ...], list[str], dict[str, Any]]:
        catalogue = labelling.read_allstar(str(self.allstar))
        items: list[Item] = []
        absent = 0
        for star, rows in catalogue.rows.items():  # rows of a star: best S/N first
            found = files.get(star)
            if not found:
                absent += 1
                continue
            row, (path, relative) = _match(catalogue, rows, found)
            extra = membership.labels(star) | {"source_file": printable(relative)}
            items.append(Item(star, path, RowLabels(catalogue.columns, row, extra)))
            for other, _ in found:
                if other != path:
                    reason = "duplicate: another file of this star belongs to the allStar entry of highest S/N"
                    rejected.append(Rejection(printable(other), reason, star_id=star, stage="plan"))
        unlisted = sorted(files.keys() - catalogue.rows.keys())
        for star in unlisted:
            # a spectrum without catalogue entry keeps the labels of its own table
            path, relative = self._best_file(star, files[star], rejected)
            items.append(Item(star, path, membership.labels(star) | {"source_file": printable(relative)}))
        notes = {
            "allstar_rows": catalogue.n_rows,
            "allstar_repeated": catalogue.n_rows - len(catalogue.rows),
            "allstar_without_spectrum": absent,
            "spectra_without_allstar": len(unlisted),
            "catalogue_ids": catalogue.rows.keys(),
        }
        return items, catalogue.elements, list(catalogue.columns), notes

    def _items_from_files(
        self, files: dict[str, list[tuple[str, str]]], membership: Membership, rejected: list[Rejection]
    ) -> tuple[list[Item], tuple[str, ...], list[str], dict[str, Any]]:
        items = []
        for star, found in files.items():
            path, relative = self._best_file(star, found, rejected)
            items.append(Item(star, path, membership.labels(star) | {"source_file": printable(relative)}))
        elements: tuple[str, ...] = APOGEE_ELEMENTS
        for item in items[:20]:  # the first readable table tells which release this is
            try:
                unit = labelling.table_unit(scan(read_bytes(item.path)))
                named = labelling.species_of(unit.layout(), unit.table()) if unit is not None else ()
            except (FitsError, InputError):
                continue  # read() will say what is wrong with this file
            if named:
                elements = named
                break
        return items, elements, list(labelling.FILE_LABELS), {}

    def _best_file(self, star: str, found: list[tuple[str, str]], rejected: list[Rejection]) -> tuple[str, str]:
        """The file of highest S/N among those of one star (read only when there is a choice)."""
        if len(found) == 1:
            return found[0]
        ranked = sorted(found, key=lambda f: (-_signal_to_noise(f[0]), f[1]))
        for path, _ in ranked[1:]:
            reason = f"duplicate of {printable(ranked[0][1])}, which has the higher S/N"
            rejected.append(Rejection(printable(path), reason, star_id=star, stage="plan"))
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
                said = None if "teff" in item.labels else labelling.FileLabels.of(units)
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


_NORMALISATION = {
    "aspcapStar": "pseudo-continuum, as normalised by ASPCAP",
    "apStar": "running quantile of each detector: 90 % of 10-Angstrom means over 100 Angstrom",
}


def star_id_of(name: str) -> str:
    """Star identifier in a file name; '' where the name does not follow the survey's pattern."""
    match = _NAME.match(name)
    return match["id"] if match else ""


def _match(
    catalogue: labelling.AllStar, rows: Sequence[int], found: list[tuple[str, str]]
) -> tuple[int, tuple[str, str]]:
    """The allStar row of highest S/N that has a spectrum, and that spectrum.

    Where the tree is `<telescope>/<field>/<file>` row and file must agree; in a flat folder
    any file of the star serves the best row.
    """
    for row in rows:
        telescope, field = catalogue.place(row)
        for path, relative in found:
            parts = relative.split("/")
            if telescope and field and parts[-3:-1] == [telescope, field]:
                return row, (path, relative)
    return rows[0], found[0]


def _signal_to_noise(path: str) -> float:
    try:
        units = scan(read_bytes(path))
        snr = measured_one("snr", units[0].header.get("SNR"))
        if snr != snr:
            snr = float(labelling.file_labels([labelling.FileLabels.of(units)], ()).get("snr", [np.nan])[0])
        return snr if snr == snr else -1.0
    except FitsError:
        return -np.inf
