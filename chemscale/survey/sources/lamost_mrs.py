"""LAMOST medium-resolution spectra (MRS): ``med-*.fits``, the blue and the red arm on one rest-frame grid.

Layouts, after the release notes of DR7 to DR10 (no real file was at hand): HDU0 ``Information``; then a table an arm
and exposure, ``COADD_B``, ``COADD_R`` (co-added) and ``B-<lmjm>``, ``R-<lmjm>`` (single exposures). Since DR9 a table
has one row of vectors FLUX, IVAR, WAVELENGTH, PIXMASK or ANDMASK and ORMASK; before, a row a pixel with LOGLAM.
Wavelengths are vacuum, heliocentric. Velocities stand in RV, RV_BR0, RV_BR1, RV_B0, ... of the arms' headers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from chemscale.catalogues.missing import measured_one
from chemscale.catalogues.units import SPEED_OF_LIGHT
from chemscale.errors import InputError
from chemscale.formats.fits import HDU, read_bytes, scan
from chemscale.formats.fits_header import FitsError
from chemscale.formats.paths import printable
from chemscale.survey.sources.arms import Arm, Spectrum, clean_arm, log_grid, pixel_column
from chemscale.survey.sources.base import Item, Rejection, SurveyPlan
from chemscale.survey.sources.file_names import is_fits
from chemscale.survey.sources.lamost import LamostFolder

#: Rest-frame ends of the two arms, vacuum Angstrom: inside both by the largest shift of a star.
ARMS = ((4960.0, 5340.0), (6310.0, 6790.0))
PRODUCTS = ("coadd", "exposure")
_VELOCITIES = ("RV", "RV_BR1", "RV_BR0", "RV_B1", "RV_B0", "RV_R1", "RV_R0", "RV_LASP0", "RV_LASP1")
_MASKS = ("ANDMASK", "ORMASK", "PIXMASK")
_EXPOSURE = re.compile(r"^[BR]-(\d+)$")
LABELS = ("ra", "dec", "snr", "radial_velocity", "source_file", "visits")


class LamostMrsSource(LamostFolder):
    """LAMOST medium-resolution spectra from one or more folders.

    Parameters
    ----------
    spectra : str or sequence of str
        Folders with ``med-*.fits`` or ``med-*.fits.gz`` at any depth.
    product : {"coadd", "exposure"}
        Co-added arms, one star a file; or single exposures, one star each, named ``<file>:<lmjm>``.
    frame : {"rest", "observed"}
        ``observed`` leaves spectra where they are; by default a star without a velocity is refused.
    continuum : {"running-quantile"}
        Applied to each arm.
    **joins
        Labels and members, as for :class:`~chemscale.survey.sources.folders.JoiningSource`, keyed by `file`, `obsid`,
        or lmjd, planid, spid and fiberid.

    Notes
    -----
    The spectrum is shifted by the velocity of a label table where it has one (`rv`, `z`), else by that of the arms'
    headers; a star with neither is refused. A star of which only one arm can be read keeps that arm.
    """

    name = "lamost-mrs"
    title = "LAMOST medium resolution (DR7 to DR10)"
    survey = "LAMOST MRS"
    resolution = 7500
    velocity_of = "the velocity of the label table, else of the arms' headers"
    uses = (r"COADD_[BR]\.(FLUX|IVAR|WAVELENGTH|LOGLAM|ANDMASK|ORMASK|PIXMASK)",)
    prefix = "med"

    def __init__(
        self,
        spectra: str | Sequence[str],
        labels: str | Sequence[str] = (),
        members: str | None = None,
        *,
        product: str = "coadd",
        bin_width: float = 2.0,
        window: float = 60.0,
        quantile: float = 0.9,
        **options: Any,
    ):
        if product not in PRODUCTS:
            raise InputError(f"product is {product!r}", f"use one of {', '.join(PRODUCTS)}")
        options |= {"bin_width": bin_width, "window": window, "quantile": quantile}
        super().__init__(spectra, labels=labels, members=members, **options)
        self.product = product
        if product == "exposure":
            self.uses = (self.uses[0].replace("COADD_[BR]", r"[BR]-\d+"),)

    def grids(self) -> list[np.ndarray]:
        return [log_grid(low, high, 1e-5) for low, high in ARMS]

    def plan(self) -> SurveyPlan:
        """List the spectra and join labels and members; reads files only to list their exposures."""
        rejected: list[Rejection] = []
        items: list[Item] = []
        for star, path, relative in self._spectra(is_fits, rejected, expected="med-*.fits or med-*.fits.gz"):
            extra = {"source_file": printable(relative)}
            if self.product == "coadd":
                items.append(Item(star, path, extra))
            else:
                items += _exposures(star, path, extra, rejected)
        if not items:
            raise InputError(
                f"no single exposures in {len(rejected)} files", "ingest the co-added spectra: --product coadd"
            )
        keys = self._star_keys(items)
        keys.names = {**keys.names, "file": lambda: [item.star_id.partition(":")[0] for item in items]}
        return self._planned(items, LABELS, rejected, keys, arms=[list(a) for a in ARMS], product=self.product)

    def spectrum(self, item: Item) -> Spectrum:
        path, _, exposure = item.path.partition("#")
        units = scan(read_bytes(path))
        names = (f"B-{exposure}", f"R-{exposure}") if exposure else ("COADD_B", "COADD_R")
        found = [u for u in units if u.header.text("EXTNAME") in names and u.kind == "BINTABLE" and u.shape[0]]
        if not found:
            raise FitsError(f"no table {names[0]} or {names[1]}: not a LAMOST medium-resolution file")
        arms, problems = [], []
        for unit in found:
            try:
                arms.append(clean_arm(_arm(unit)))
            except FitsError as problem:
                problems.append(f"{unit.header.text('EXTNAME')}: {problem}")
        if not arms:
            raise FitsError("; ".join(problems))
        header = units[0].header
        labels: dict[str, Any] = {name: measured_one(name, header.get(name.upper())) for name in ("ra", "dec")}
        labels["snr"] = measured_one("snr", found[0].header.get("SNR"))
        return Spectrum(arms, _velocity(found) / SPEED_OF_LIGHT, labels)


def _exposures(star: str, path: str, extra: dict[str, Any], rejected: list[Rejection]) -> list[Item]:
    try:
        units = scan(read_bytes(path))
    except FitsError as problem:
        rejected.append(Rejection(printable(path), str(problem), star, "plan"))
        return []
    found = [_EXPOSURE.match(u.header.text("EXTNAME")) for u in units]
    nights = dict.fromkeys(m[1] for m in found if m)
    if not nights:
        rejected.append(Rejection(printable(path), "no single exposures in the file", star, "plan"))
    return [Item(f"{star}:{night}", f"{path}#{night}", extra | {"visits": night}) for night in nights]


def _arm(unit: HDU) -> Arm:
    columns = {name: pixel_column(unit, name) for name in ("FLUX", "IVAR", "WAVELENGTH", "LOGLAM", *_MASKS)}
    vectors = {n: np.ravel(v) for n, v in columns.items() if v is not None}
    for name in ("FLUX", "IVAR"):
        if name not in vectors:
            raise FitsError(f"no column {name}")
    n = len(vectors["FLUX"])
    wavelength: np.ndarray
    if "WAVELENGTH" in vectors:
        wavelength = vectors["WAVELENGTH"].astype(np.float64)
    elif "LOGLAM" in vectors:
        wavelength = 10.0 ** vectors["LOGLAM"].astype(np.float64)
    else:
        start, step = unit.header.number("COEFF0"), unit.header.number("COEFF1")
        wavelength = 10.0 ** (start + step * np.arange(n))
    lengths = {name: len(v) for name, v in vectors.items()}
    if len(set(lengths.values())) > 1 or n < 100:
        raise FitsError(f"columns differ in length, or are too short: {lengths}")
    increasing = np.isfinite(wavelength).all() and np.all(np.diff(wavelength) > 0)
    if not increasing or not 4000 < wavelength[0] < wavelength[-1] < 8000:
        raise FitsError("wavelengths are not those of a medium-resolution arm")
    bad = np.zeros(n, bool)
    for name in _MASKS:
        if name in vectors:
            bad |= vectors[name] != 0
    return Arm(wavelength, vectors["FLUX"], vectors["IVAR"], bad)


def _velocity(units: Sequence[HDU]) -> float:
    """Radial velocity of the arms' headers, km/s; NaN where none knows it."""
    for key in _VELOCITIES:
        for unit in units:
            value = measured_one("radial_velocity", unit.header.get(key))
            if value == value:
                return value
    return float("nan")
