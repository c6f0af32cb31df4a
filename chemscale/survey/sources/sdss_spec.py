"""SDSS and BOSS optical spectra: ``spec-PLATE-MJD-FIBER.fits`` (and specLite), DR8 to SDSS-V's BOSS pipeline.

HDU1 ``COADD`` has a row a pixel: `flux` (1e-17 erg/s/cm2/A), `loglam` (log10 of vacuum Angstrom, heliocentric), `ivar`,
`and_mask`, `or_mask`. HDU2 (``SPECOBJ``/``SPALL``) has one row with the pipeline's labels: `Z`, `CLASS`, `SUBCLASS`,
`SN_MEDIAN_ALL`, ... SEGUE's stellar parameters come from a label table. Checked on a real file of DR8 (plate 266).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from chemscale.catalogues.missing import measured, measured_one, words
from chemscale.formats.fits import HDU, read_bytes, scan
from chemscale.formats.fits_header import FitsError
from chemscale.formats.paths import printable
from chemscale.survey.sources.arms import (
    HARMLESS_ZWARNING,
    TELLURIC_WINDOWS,
    Arm,
    ArmSource,
    Spectrum,
    clean_arm,
    log_grid,
)
from chemscale.survey.sources.base import Item, Rejection, SurveyPlan
from chemscale.survey.sources.file_names import SDSS_SPEC

#: AND_MASK bits (spPixMask) that make a pixel bad: NOPLUG, BADTRACE, BADFLAT, BADARC, MANYBADCOLUMNS, MANYREJECTED,
#: FULLREJECT, NOSKY, BRIGHTSKY, NODATA, COMBINEREJ, BADFLUXFACTOR, BADSKYCHI, REDMONSTER.
BAD_MASK = sum(1 << bit for bit in (0, 1, 2, 3, 4, 5, 18, 22, 23, 24, 25, 26, 27, 28))
LABELS = ("ra", "dec", "snr", "radial_velocity", "spectral_class", "reddening", "source_file", "visits", "quality")


class SdssSpecSource(ArmSource):
    """SDSS/BOSS ``spec-*.fits`` spectra of stars.

    Parameters
    ----------
    spectra : str or sequence of str
        Folders with ``spec-PLATE-MJD-FIBER.fits`` at any depth.
    tellurics : bool
        Flag windows of strong telluric absorption: the pipeline divides it out by standard stars of the same exposure,
        so that only its residuals remain.
    wavelength_range : (float, float)
        Rest-frame ends of the grid, vacuum Angstrom.
    frame : {"rest", "observed"}
        ``observed`` leaves spectra where they are; by default a star without a velocity is refused.
    continuum : {"running-quantile"}
        Flux is in physical units: it is always divided by a running quantile.
    bin_width, window, quantile : float
        Of :func:`~chemscale.survey.continuum.running_quantile`.
    **joins
        Labels and members, as for :class:`~chemscale.survey.sources.folders.JoiningSource`, keyed by `file`,
        `specobjid`, or plate, mjd and fiberid.

    Notes
    -----
    The spectrum is shifted by the velocity of a label table where it has one, else by `Z` of the file. `Z` counts for
    unknown where the pipeline doubts it: any bit of ZWARNING but MANY_OUTLIERS and NEGATIVE_EMISSION. Spectra that
    the pipeline calls GALAXY or QSO, and redshifts beyond 0.01, are refused.
    """

    name = "boss"
    title = "SDSS/BOSS (spec files of DR8 and later)"
    survey = "SDSS/BOSS"
    resolution = 1900
    velocity_of = "1 + z of the label table, else of the file"
    limits = (3000.0, 11000.0)
    uses = (
        r"#1\.(flux|loglam|ivar|and_mask)",
        r"#[23]\.(PLUG_RA|PLUG_DEC|SN_MEDIAN_ALL|SFD_EBV|CLASS|SUBCLASS|ZWARNING|Z|SPECOBJID)",
    )
    default_member_key = "file"

    def __init__(
        self,
        spectra: str | Sequence[str],
        labels: str | Sequence[str] = (),
        members: str | None = None,
        *,
        tellurics: bool = False,
        wavelength_range: tuple[float, float] = (3850.0, 9100.0),
        **options: Any,
    ):
        super().__init__(spectra, labels=labels, members=members, **options)
        self.telluric = TELLURIC_WINDOWS if tellurics else ()
        self.wavelength_range = self._range(wavelength_range)

    def grids(self) -> list[np.ndarray]:
        return [log_grid(*self.wavelength_range, 1e-4)]

    def plan(self) -> SurveyPlan:
        """List the spectra and join labels and members; reads tables, no spectrum."""
        rejected: list[Rejection] = []
        items: list[Item] = []
        for star, path, relative in self._spectra(SDSS_SPEC.match, rejected, expected="spec-PLATE-MJD-FIBER.fits"):
            match = SDSS_SPEC.match(relative.rsplit("/", 1)[-1])
            visits = f"{match['plate']}-{match['mjd']}" if match else ""
            items.append(Item(star, path, {"source_file": printable(relative), "visits": visits}))
        quality = "ZWARNING of the pipeline, -1 = not known"
        return self._planned(items, LABELS, rejected, self._spec_keys(items), quality=quality)

    def _spec_keys(self, items: Sequence[Item]) -> Any:
        def name_of(plate: str, mjd: str, fibre: str) -> str:
            return f"{int(plate)}-{int(mjd)}-{int(fibre)}" if (plate + mjd + fibre).isdigit() else ""

        def numbers_of() -> list[str]:
            found = [SDSS_SPEC.match(item.path.rsplit("/", 1)[-1]) for item in items]
            return [name_of(m["plate"], m["mjd"], m["fibre"]) if m else "" for m in found]

        return self._keys(
            items,
            {
                "file": lambda: [item.star_id for item in items],
                "specobjid": lambda: [_specobjid(item.path) for item in items],
                "plate-mjd-fiberid": numbers_of,
            },
            composed={
                ("plate", "mjd", "fiberid"): ("plate-mjd-fiberid", name_of),
                ("plate", "mjd", "fiber"): ("plate-mjd-fiberid", name_of),
            },
            redshift="z",
        )

    def spectrum(self, item: Item) -> Spectrum:
        units = scan(read_bytes(item.path))
        unit = next((u for u in units[1:] if u.kind == "BINTABLE" and u.layout().find("loglam")), None)
        if unit is None:
            raise FitsError("no COADD table with loglam: not an SDSS/BOSS spec file")
        columns = {name: unit.column(name) for name in ("flux", "loglam", "ivar", "and_mask")}
        absent = [name for name, values in columns.items() if values is None and name != "and_mask"]
        if absent:
            raise FitsError(f"COADD table has no column {absent[0]}")
        flux, loglam, ivar = (  # type: ignore[var-annotated]
            np.ravel(np.ma.filled(np.ma.asarray(columns[n]), np.nan)) for n in ("flux", "loglam", "ivar")
        )
        if len(loglam) < 100 or not (3.4 < loglam[0] < loglam[-1] < 4.1):
            raise FitsError(f"loglam of {len(loglam)} pixels is not that of an optical spectrum")
        mask = columns["and_mask"]
        bad = np.zeros(len(flux), bool)
        if mask is not None:
            bad = (np.ma.filled(mask, BAD_MASK).astype(np.int64) & BAD_MASK) != 0
        labels, redshift = _labels(units)
        warned = max(labels["quality"], 0) & ~HARMLESS_ZWARNING
        doubt = f" that counts (ZWARNING {labels['quality']}: the pipeline doubts its redshift)" if warned else ""
        header = units[0].header
        for name, keys in (("ra", ("PLUG_RA", "RA")), ("dec", ("PLUG_DEC", "DEC"))):
            known = [measured_one(name, header.get(k)) for k in keys]
            labels.setdefault(name, next((v for v in known if v == v), np.nan))
        arm = clean_arm(Arm(10.0 ** loglam.astype(np.float64), flux, ivar, bad))
        return Spectrum([arm], np.nan if warned else redshift, labels, doubt)


def _specobjid(path: str) -> str:
    try:
        units = scan(read_bytes(path))
    except FitsError:
        return ""
    row = _row(units, "SPECOBJID")
    return words(row)[0] if row is not None and row.ndim == 1 else ""


def _row(units: list[HDU], name: str) -> np.ndarray | None:
    """A column of the table with the pipeline's one row of labels."""
    for unit in units[2:4]:
        if unit.kind == "BINTABLE" and unit.shape[0] == 1:
            column = unit.column(name)
            if column is not None:
                return column
    return None


def _labels(units: list[HDU]) -> tuple[dict[str, Any], float]:
    labels: dict[str, Any] = {}
    kind = _row(units, "CLASS")
    if kind is not None and words(kind)[0] in ("GALAXY", "QSO"):
        raise FitsError(f"the pipeline calls it a {words(kind)[0]}, no star")
    for name, column in (("ra", "PLUG_RA"), ("dec", "PLUG_DEC"), ("snr", "SN_MEDIAN_ALL"), ("reddening", "SFD_EBV")):
        values = _row(units, column)
        if values is not None and values.ndim == 1:
            labels[name] = float(measured(name, values)[0])
    subclass, warning, z = _row(units, "SUBCLASS"), _row(units, "ZWARNING"), _row(units, "Z")
    if subclass is not None:
        labels["spectral_class"] = words(subclass)[0]
    labels["quality"] = int(np.ma.filled(warning, -1)[0]) if warning is not None else -1
    redshift = float(np.ma.filled(z.astype(float), np.nan)[0]) if z is not None else np.nan
    return labels, redshift if redshift > -9 else np.nan
