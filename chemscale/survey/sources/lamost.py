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

from collections.abc import Sequence
from typing import Any

import numpy as np

from chemscale.catalogues.missing import measured_one, word
from chemscale.catalogues.star_keys import StarKeys
from chemscale.formats.fits import HDU, read_bytes, scan
from chemscale.formats.fits_header import FitsError, Header
from chemscale.formats.paths import printable
from chemscale.survey.sources.arms import Arm, ArmSource, Spectrum, clean_arm, log_grid, pixel_column
from chemscale.survey.sources.base import Item, Rejection, SurveyPlan
from chemscale.survey.sources.file_names import is_fits
from chemscale.survey.sources.folders import header_texts

LABELS = ("ra", "dec", "snr", "radial_velocity", "spectral_class", "source_file", "visits", "quality")
#: No count is so certain: beyond this an inverse variance is damage.
_MOST_IVAR = 1e15


class LamostFolder(ArmSource):
    """Spectra that LAMOST's catalogues name by file, by obsid, or by the numbers a file name is made of.

    Parameters
    ----------
    spectra, labels, members, **options
        As for :class:`~chemscale.survey.sources.arms.ArmSource`.
    """

    default_member_key = "file"
    default_member_column = "group"
    #: What names of files begin with.
    prefix: str

    def _star_keys(self, items: Sequence[Item]) -> StarKeys:
        """What the catalogues call each spectrum."""

        def name_of(lmjd: str, planid: str, spid: str, fiberid: str) -> str:
            return f"{self.prefix}-{lmjd}-{planid}_sp{spid.zfill(2)}-{fiberid.zfill(3)}"

        return self._keys(
            items,
            {
                "file": lambda: [item.star_id for item in items],
                "obsid": lambda: header_texts(items, "OBSID"),
            },
            composed={("lmjd", "planid", "spid", "fiberid"): ("file", name_of)},
            redshift="z",
        )


class LamostSource(LamostFolder):
    """LAMOST LRS spectra from one or more folders.

    Parameters
    ----------
    spectra : str or sequence of str
        Folders with ``spec-*.fits`` or ``spec-*.fits.gz`` at any depth; fsspec URLs work.
    wavelength_range : (float, float)
        Rest-frame ends of the grid, vacuum Angstrom.
    continuum : {"running-quantile", "survey"}
        ``survey`` divides by what DR10's NORMALIZATION column implies and rejects other layouts.
    frame : {"rest", "observed"}
        ``observed`` leaves spectra where they are; by default a star without a redshift is refused.
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
    survey = "LAMOST LRS"
    resolution = 1800
    velocity_of = "1 + z of the file header, else of the label table"
    file_first = True
    uses = ("#0", r"#1\.(FLUX|IVAR|ANDMASK|ORMASK|NORMALIZATION)")
    continua = ("running-quantile", "survey")
    prefix = "spec"

    def __init__(
        self,
        spectra: str | Sequence[str],
        labels: str | Sequence[str] = (),
        members: str | None = None,
        *,
        wavelength_range: tuple[float, float] = (4000.0, 8900.0),
        **options: Any,
    ):
        super().__init__(spectra, labels=labels, members=members, **options)
        self.wavelength_range = self._range(wavelength_range)

    def grids(self) -> list[np.ndarray]:
        return [log_grid(*self.wavelength_range, 1e-4)]

    def plan(self) -> SurveyPlan:
        """List the spectra and join labels and members; reads tables, no spectrum."""
        rejected: list[Rejection] = []
        found = self._spectra(is_fits, rejected, expected="spec-*.fits or spec-*.fits.gz")
        items = [Item(star, path, {"source_file": printable(relative)}) for star, path, relative in found]
        return self._planned(
            items,
            LABELS,
            rejected,
            self._star_keys(items),
            extinction="none given by the survey",
            quality="FIB_MASK / FIBERMAS: fibre bits of SDSS spPixMask, -1 = not known",
        )

    def spectrum(self, item: Item) -> Spectrum:
        units = scan(read_bytes(item.path))
        header = units[0].header
        arm = _from_image(units[0]) if units[0].shape and 0 not in units[0].shape else _from_table(units)
        return Spectrum([clean_arm(arm, _MOST_IVAR)], _redshift(header), _header_labels(header))


def _from_image(unit: HDU) -> Arm:
    """DR1 to DR8: rows of the primary image."""
    if len(unit.shape) != 2 or unit.shape[0] != 5:
        raise FitsError(f"primary image has shape {unit.shape}, expected (5, N)")
    if unit.header.get("BITPIX") not in (-32, -64):
        raise FitsError(f"primary image has BITPIX {unit.header.get('BITPIX')}, expected floats")
    rows = unit.image()
    return Arm(_wavelength(unit.header, unit.shape[1]), rows[0], rows[1], (rows[3] != 0) | (rows[4] != 0))


def _from_table(units: list[HDU]) -> Arm:
    """DR10: one row of vectors."""
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
        column = pixel_column(unit, name)
        if column is None:
            raise FitsError(f"COADD table has no column {name}")
        if column.ndim == 2 and len(column) > 1:
            raise FitsError(f"COADD table has {len(column)} rows, expected one spectrum a file")
        vectors[name] = np.ravel(column[0]) if column.ndim == 2 else column
        if vectors[name].dtype.kind not in "fiub":
            raise FitsError(f"column {name} holds {vectors[name].dtype}, expected numbers")
    lengths = {name: len(v) for name, v in vectors.items()}
    if len(set(lengths.values())) > 1:
        raise FitsError(f"columns differ in length: {lengths}")
    normalised = unit.column("NORMALIZATION")
    if normalised is not None:
        normalised = np.ravel(normalised[0])
        normalised = normalised if len(normalised) == len(vectors["FLUX"]) else None
    bad = (vectors["ANDMASK"] != 0) | (vectors["ORMASK"] != 0)
    wavelength = _wavelength(units[0].header, len(bad))
    stated = unit.column("WAVELENGTH")
    if stated is not None and (
        stated.size != len(bad) or not np.allclose(np.ravel(stated), wavelength, rtol=1e-4, atol=0)
    ):
        raise FitsError("WAVELENGTH is not the grid of COEFF0 and COEFF1: rebinned, or in air?")
    return Arm(wavelength, vectors["FLUX"], vectors["IVAR"], bad, normalised)


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


def _redshift(header: Header) -> float:
    """Redshift of the header; NaN where it says -9999 and the like: not measured."""
    z = header.number("Z")
    return z if z > -9.0 else np.nan


def _header_labels(header: Header) -> dict[str, Any]:
    labels: dict[str, Any] = {
        "ra": measured_one("ra", header.get("RA")),
        "dec": measured_one("dec", header.get("DEC")),
        "snr": measured_one("snr", header.get("SNRG", header.get("SN_G"))),
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
