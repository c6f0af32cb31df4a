"""LAMOST low-resolution spectra (LRS), all three layouts, on one rest-frame vacuum grid.

* DR1: primary image (5, N): flux, ivar, *sub-continuum* (not a wavelength), and-mask, or-mask;
* DR2-DR8: the same with the wavelength in the third row;
* DR10: empty primary, HDU1 ``COADD``, one row of vectors FLUX, IVAR, WAVELENGTH, ANDMASK,
  ORMASK, NORMALIZATION.

Wavelengths always come from ``COEFF0``/``COEFF1`` (vacuum, heliocentric), never from the
third row. Spectra are divided by 1 + z (header ``Z``, or `z` of the label table), rebinned
with conservation of flux onto a log-linear grid, and normalised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from chemscale.errors import InputError
from chemscale.schema import Flag
from chemscale.survey.continuum import divide, running_quantile
from chemscale.survey.resample import Rebinner
from chemscale.survey.sources.arms import INTERSTELLAR_WINDOWS, MAX_REDSHIFT, TELLURIC_WINDOWS
from chemscale.survey.sources.base import Item, Rejection, StarBlock, SurveyPlan
from chemscale.survey.sources.blocks import Batch, read_in_batches
from chemscale.survey.sources.folders import FolderSource, header_texts
from chemscale.survey.sources.formats.fits import HDU, read_bytes, scan
from chemscale.survey.sources.formats.fits_header import FitsError, Header
from chemscale.survey.sources.formats.paths import printable
from chemscale.survey.sources.labels import contract_labels
from chemscale.survey.sources.missing import measured_one, word
from chemscale.survey.sources.normalising import implied_continuum
from chemscale.survey.sources.star_keys import StarKeys
from chemscale.survey.sources.units import SPEED_OF_LIGHT

LOG_STEP = 1e-4
NORMALISATIONS = ("running-quantile", "survey")


class LamostSource(FolderSource):
    """LAMOST LRS spectra from one or more folders.

    Parameters
    ----------
    spectra : str or sequence of str
        Folders with ``spec-*.fits`` or ``spec-*.fits.gz`` at any depth; fsspec URLs work.
    wavelength_range : (float, float)
        Rest-frame ends of the grid, vacuum Angstrom.
    continuum : {"running-quantile", "survey"}
        ``survey`` divides by what DR10's NORMALIZATION column implies and rejects other layouts.
    bin_width, window, quantile : float
        Of :func:`~chemscale.survey.continuum.running_quantile`.
    **joins
        Labels and members, as for :class:`~chemscale.survey.sources.folders.JoiningSource`. Catalogues are keyed by
        `file` (with or without ``.gz``), `obsid`, or lmjd, planid, spid and fiberid, which make up a file's name;
        `z` becomes a radial velocity.

    Notes
    -----
    `star_id` is the file's stem, ``spec-<lmjd>-<plan>_sp<spectrograph>-<fibre>``: one a spectrum.
    Flags: SURVEY_BAD = and-mask or or-mask set; TELLURIC and INTERSTELLAR by observed wavelength,
    so that they move with each star's velocity.
    """

    name = "lamost"
    title = "LAMOST low resolution (DR1 to DR10)"
    file_names = (r"spec-.*_sp\d+-\d+\.fits",)
    uses = ("#0", r"#1\.(FLUX|IVAR|ANDMASK|ORMASK|NORMALIZATION)")
    default_member_key = "file"
    default_member_column = "group"

    def __init__(
        self,
        spectra: str | Sequence[str],
        labels: str | Sequence[str] = (),
        members: str | None = None,
        *,
        wavelength_range: tuple[float, float] = (4000.0, 8900.0),
        continuum: str = "running-quantile",
        bin_width: float = 10.0,
        window: float = 300.0,
        quantile: float = 0.8,
        **joins: Any,
    ):
        low, high = (float(w) for w in wavelength_range)
        if not 3000 < low < high < 12000:
            raise InputError(f"wavelength range is {wavelength_range}", "give two rest wavelengths in Angstrom")
        if continuum not in NORMALISATIONS:
            raise InputError(f"continuum is {continuum!r}", f"use one of {', '.join(NORMALISATIONS)}")
        super().__init__(spectra, labels=labels, members=members, **joins)
        self.wavelength_range = (low, high)
        self.continuum = continuum
        self.bin_width, self.window, self.quantile = bin_width, window, quantile

    def wavelength_grid(self) -> np.ndarray:
        """Rest-frame vacuum grid, log10 step 1e-4, on whole multiples of the step."""
        first, last = (round(math.log10(w) / LOG_STEP) for w in self.wavelength_range)
        return 10.0 ** (np.arange(first, last + 1) * LOG_STEP)

    # ------------------------------------------------------------------ plan

    def plan(self) -> SurveyPlan:
        """List the spectra and join labels and members; reads tables, no spectrum."""
        rejected: list[Rejection] = []
        found = self._spectra(_accept, rejected, expected="spec-*.fits or spec-*.fits.gz")
        items = [Item(star, path, {"source_file": printable(relative)}) for star, path, relative in found]
        names = ["ra", "dec", "snr", "radial_velocity", "spectral_class", "source_file", "visits", "quality"]
        attrs = {
            "survey": "LAMOST LRS",
            "resolution": 1800,
            "frame": "rest (divided by 1 + z of the file header, else of the label table)",
            "normalisation": self._normalisation(),
            "telluric_windows": [list(w) for w in TELLURIC_WINDOWS],
            "interstellar_windows": [],  # set by the reader, star by star, in the observed frame
            "interstellar_windows_observed": [list(w) for w in INTERSTELLAR_WINDOWS],
            "extinction": "none given by the survey",
            "quality": "FIB_MASK / FIBERMAS: fibre bits of SDSS spPixMask, -1 = not known",
        }
        grid = self.wavelength_grid()
        plan = SurveyPlan("lamost", grid, "vacuum", items, (), contract_labels(names), attrs, rejected)
        return self._complete(plan, lamost_keys(self, items, "spec"))

    def _normalisation(self) -> str:
        if self.continuum == "survey":
            return "the survey's own (NORMALIZATION column)"
        return (
            f"running quantile: {self.quantile:.0%} of inverse-variance weighted {self.bin_width:g}-Angstrom"
            f" means over {self.window:g} Angstrom, smoothed twice"
        )

    # ------------------------------------------------------------------ read

    def read(self, items: Sequence[Item], wavelength: np.ndarray, elements: Sequence[str]) -> StarBlock:
        """Read spectra, shift to rest, rebin onto `wavelength`, normalise. One read a file."""
        grid = np.asarray(wavelength, np.float64)
        return read_in_batches(items, (), lambda part: self._read_batch(part, grid))

    def _read_batch(self, items: Sequence[Item], grid: np.ndarray) -> Batch:
        shape = (len(items), len(grid))
        flux, ivar, flags = np.zeros(shape), np.zeros(shape), np.zeros(shape, np.uint8)
        continuum = np.full(shape, np.nan)
        kept: list[Item] = []
        own: list[dict[str, Any]] = []
        rejected: list[Rejection] = []
        for item in items:
            row = len(kept)
            try:
                spectrum = _Spectrum(scan(read_bytes(item.path)))
                redshift = _redshift(spectrum.header, item)
                rebinner = Rebinner(spectrum.wavelength / (1.0 + redshift), grid)
                flux[row], ivar[row], flags[row] = rebinner(spectrum.flux, spectrum.ivar, spectrum.flags())
                if not np.any(ivar[row] > 0):
                    raise FitsError("no usable pixel on the common grid")
                if self.continuum == "survey":
                    continuum[row] = _survey_continuum(spectrum, rebinner, flux[row])
            except FitsError as problem:
                rejected.append(Rejection(printable(item.path), str(problem), item.star_id))
                continue
            flags[row][ivar[row] <= 0] |= np.uint8(Flag.GAP)
            own.append(_header_labels(spectrum.header, redshift))
            kept.append(item)
        n = len(kept)
        flux, ivar, flags, continuum = flux[:n], ivar[:n], flags[:n], continuum[:n]
        if self.continuum == "running-quantile":
            continuum = self._continuum(grid, flux, ivar, flags)
        out_flux, out_ivar = divide(flux, ivar, continuum)
        with np.errstate(invalid="ignore"):
            absurd = ~(np.abs(out_flux) <= 1e3)  # the continuum is 1
        out_ivar[absurd] = 0.0
        flags[absurd | ((out_ivar <= 0) & (ivar > 0))] |= np.uint8(Flag.SURVEY_BAD)
        return Batch(kept, own, out_flux, out_ivar, flags, rejected)

    def _continuum(self, grid: np.ndarray, flux: np.ndarray, ivar: np.ndarray, flags: np.ndarray) -> np.ndarray:
        # tellurics and bad pixels must not shape the continuum
        trusted = np.where(flags == 0, ivar, 0.0)
        return running_quantile(
            grid, flux, trusted, bin_width=self.bin_width, window=self.window, quantile=self.quantile
        )[2]


def lamost_keys(source: FolderSource, items: Sequence[Item], prefix: str) -> StarKeys:
    """What LAMOST's catalogues call a spectrum: by obsid, or by the numbers its file name is made of."""

    def name_of(lmjd: str, planid: str, spid: str, fiberid: str) -> str:
        return f"{prefix}-{lmjd}-{planid}_sp{spid.zfill(2)}-{fiberid.zfill(3)}"

    return source._keys(
        items,
        {
            "file": lambda: [item.star_id for item in items],
            "obsid": lambda: header_texts(items, "OBSID"),
        },
        composed={("lmjd", "planid", "spid", "fiberid"): ("file", name_of)},
        redshift="z",
    )


class _Spectrum:
    """One file's vectors on its own, observed-frame vacuum grid."""

    def __init__(self, units: list[HDU]):
        self.header = units[0].header
        self.flux = self.ivar = self.and_mask = self.or_mask = np.empty(0)
        self.normalisation: np.ndarray | None = None
        if units[0].shape and 0 not in units[0].shape:
            self._from_image(units[0])
        else:
            self._from_table(units)
        self.wavelength = _wavelength(self.header, len(self.flux))
        if not np.isfinite(self.flux).any():
            raise FitsError("flux is not finite in any pixel")
        with np.errstate(invalid="ignore"):
            if not np.any(np.isfinite(self.flux) & (self.ivar > 0)):
                raise FitsError("no pixel has both a flux and a positive inverse variance")
        # beyond this float32 sums overflow; such values are damage, not photons
        wild = ~(np.abs(self.flux) < 1e15) | ~(self.ivar < 1e15)
        self.ivar = np.where(wild, 0.0, self.ivar)

    def _from_image(self, unit: HDU) -> None:
        if len(unit.shape) != 2 or unit.shape[0] != 5:
            raise FitsError(f"primary image has shape {unit.shape}, expected (5, N)")
        if unit.header.get("BITPIX") not in (-32, -64):
            raise FitsError(f"primary image has BITPIX {unit.header.get('BITPIX')}, expected floats")
        rows = unit.image()
        self.flux, self.ivar, self.and_mask, self.or_mask = rows[0], rows[1], rows[3], rows[4]

    def _from_table(self, units: list[HDU]) -> None:
        unit = next((u for u in units[1:] if u.kind == "BINTABLE" and u.shape[1]), None)
        if unit is None:
            raise FitsError("neither a (5, N) primary image nor a COADD table")
        if unit.layout().find("LOGLAM") and unit.shape[0] > 1 and not unit.header.text("EXTNAME").startswith("COADD_"):
            raise FitsError("an SDSS/BOSS spec file, one row a pixel: use `chemscale ingest boss`")
        if unit.header.text("EXTNAME").startswith(("COADD_", "B-", "R-")):
            raise FitsError("a LAMOST medium-resolution file: use `chemscale ingest lamost-mrs`")
        if unit.shape[0] < 1:
            raise FitsError("COADD table has no rows")
        vectors = {}
        for name in ("FLUX", "IVAR", "ANDMASK", "ORMASK"):
            column = unit.column(name)
            if column is None:
                raise FitsError(f"COADD table has no column {name}")
            column = np.ma.filled(column, 1 if name.endswith("MASK") else 0)  # an undefined pixel is not good
            vectors[name] = np.ravel(column[0]) if column.ndim == 2 else column
            if vectors[name].dtype.kind not in "fiub":
                raise FitsError(f"column {name} holds {vectors[name].dtype}, expected numbers")
        lengths = {name: len(v) for name, v in vectors.items()}
        if len(set(lengths.values())) > 1:
            raise FitsError(f"columns differ in length: {lengths}")
        self.flux, self.ivar = vectors["FLUX"], vectors["IVAR"]
        self.and_mask, self.or_mask = vectors["ANDMASK"], vectors["ORMASK"]
        normalised = unit.column("NORMALIZATION")
        if normalised is not None:
            normalisation = np.ravel(normalised[0])
            self.normalisation = normalisation if len(normalisation) == len(self.flux) else None

    def flags(self) -> np.ndarray:
        """Reader's flags on the observed grid."""
        bad = (self.and_mask != 0) | (self.or_mask != 0)
        flags = np.where(bad, Flag.SURVEY_BAD, 0).astype(np.uint8)
        for windows, bit in ((TELLURIC_WINDOWS, Flag.TELLURIC), (INTERSTELLAR_WINDOWS, Flag.INTERSTELLAR)):
            for low, high in windows:
                start, stop = np.searchsorted(self.wavelength, (low, high))
                flags[start:stop] |= np.uint8(bit)
        return flags


def _accept(name: str) -> bool:
    return name.endswith((".fits", ".fits.gz")) and not name.startswith(".")


def _wavelength(header: Header, n_pixels: int) -> np.ndarray:
    start = header.number("COEFF0", header.number("CRVAL1"))
    step = header.number("COEFF1", header.number("CD1_1"))
    if not (3.4 < start < 4.0 and 1e-5 < step < 1e-3):
        raise FitsError(f"no LAMOST wavelength solution: COEFF0 {start}, COEFF1 {step}")
    if not 100 <= n_pixels <= 20_000 or start + step * n_pixels > 4.1:
        raise FitsError(f"{n_pixels} pixels from COEFF0 {start} in steps of {step} are no LAMOST spectrum")
    if header.get("VACUUM") is False:
        raise FitsError("header says VACUUM = F: wavelengths in air are not LAMOST's")
    return 10.0 ** (start + step * np.arange(n_pixels))


def _redshift(header: Header, item: Item) -> float:
    for value in (
        header.number("Z"),
        measured_one("radial_velocity", item.labels.get("radial_velocity")) / SPEED_OF_LIGHT,
    ):
        if value == value and value > -9.0:  # -9999 and the like: not measured
            if abs(value) > MAX_REDSHIFT:
                raise FitsError(f"redshift {value:g} is no star's ({value * SPEED_OF_LIGHT:.0f} km/s)")
            return value
    raise FitsError("no redshift in the header (Z) or the label table: cannot go to the rest frame")


def _header_labels(header: Header, redshift: float) -> dict[str, Any]:
    labels: dict[str, Any] = {
        "ra": measured_one("ra", header.get("RA")),
        "dec": measured_one("dec", header.get("DEC")),
        "snr": measured_one("snr", header.get("SNRG", header.get("SN_G"))),
        "radial_velocity": redshift * SPEED_OF_LIGHT,
        "spectral_class": word(header.text("SUBCLASS")),
    }
    # fibre mask (SDSS spPixMask bits 0-15); large shifts (64) are set for a third of all fibres
    mask = header.get("FIB_MASK", header.get("FIBERMAS"))
    if isinstance(mask, int) and not isinstance(mask, bool) and abs(mask) < 2**62:
        labels["quality"] = mask
    night, plan, plate = header.text("LMJD"), header.text("PLANID"), header.text("SPID")
    if night:
        labels["visits"] = "-".join(part for part in (night, plan, f"sp{plate.zfill(2)}" if plate else "") if part)
    return labels


def _survey_continuum(spectrum: _Spectrum, rebinner: Rebinner, flux: np.ndarray) -> np.ndarray:
    if spectrum.normalisation is None:
        raise FitsError("no NORMALIZATION column (only DR9 and later have one)")
    return implied_continuum(spectrum.normalisation, spectrum.ivar, rebinner, flux)
