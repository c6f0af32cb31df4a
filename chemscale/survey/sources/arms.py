"""Spectra of one or several arms brought onto one rest-frame grid: what LAMOST, BOSS, DESI and GALAH readers share.

A reader says what a star's file holds (:class:`Arm`, observed frame) and its velocity; here the arms are shifted to
rest, rebinned with conservation of flux onto the survey's grid, added up where they overlap, and normalised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from chemscale.catalogues.missing import measured_one
from chemscale.catalogues.star_keys import StarKeys
from chemscale.catalogues.units import SPEED_OF_LIGHT
from chemscale.errors import InputError
from chemscale.formats.fits import HDU
from chemscale.formats.fits_header import FitsError
from chemscale.formats.paths import printable
from chemscale.schema import Flag
from chemscale.survey.continuum import running_quantile
from chemscale.survey.resample import Rebinner
from chemscale.survey.sources.base import Item, Rejection, StarBlock, SurveyPlan
from chemscale.survey.sources.blocks import Batch, read_in_batches
from chemscale.survey.sources.folders import FolderSource
from chemscale.survey.sources.labels import contract_labels
from chemscale.survey.sources.normalising import implied_continuum, over_continuum

#: Beyond this |z| a "star" is a galaxy or a failed fit: no bound star moves at 3000 km/s.
MAX_REDSHIFT = 0.01
#: ZWARNING bits with which a star's redshift can still be trusted: MANY_OUTLIERS (set for spectra of high S/N, which no
#: template fits to their noise) and NEGATIVE_EMISSION (of lines that stars do not have).
HARMLESS_ZWARNING = (1 << 4) | (1 << 6)
#: Strong telluric absorption, O2 (gamma, B, A) and H2O, and the 5577 A airglow line; observed
#: frame, vacuum Angstrom, with margin for the heliocentric shift (30 km/s) and the resolution.
TELLURIC_WINDOWS = (
    (5571.0, 5587.0),
    (6272.0, 6318.0),
    (6862.0, 6967.0),
    (7160.0, 7345.0),
    (7590.0, 7710.0),
    (8125.0, 8355.0),
    (8930.0, 9900.0),
)
#: Interstellar Na D (vacuum 5891.6, 5897.6), observed frame, +- 300 km/s and the resolution.
#: The night-sky sodium lines fall into it too.
INTERSTELLAR_WINDOWS = ((5882.0, 5907.0),)


@dataclass
class Arm:
    """One arm of a spectrum on its own grid, observed frame: wavelength in Angstrom, flux, ivar, bad pixels, (P,)."""

    wavelength: np.ndarray
    flux: np.ndarray
    ivar: np.ndarray
    bad: np.ndarray
    #: flux over the survey's own continuum, where the file has it
    normalised: np.ndarray | None = None

    def flags(self, telluric: Sequence[tuple[float, float]], interstellar: Sequence[tuple[float, float]]) -> np.ndarray:
        """The survey's verdict and the windows of the observed frame, as flags."""
        flags = np.where(self.bad, np.uint8(Flag.SURVEY_BAD), np.uint8(0))
        for windows, bit in ((telluric, Flag.TELLURIC), (interstellar, Flag.INTERSTELLAR)):
            for low, high in windows:
                start, stop = np.searchsorted(self.wavelength, (low, high))
                flags[start:stop] |= np.uint8(bit)
        return flags


@dataclass
class Spectrum:
    """What a file says of a star: its arms, its redshift (NaN where it is not known there), its labels."""

    arms: list[Arm]
    redshift: float = math.nan
    labels: dict[str, Any] = field(default_factory=dict)
    #: why a redshift that stands in the file does not count, for the message of a refusal
    doubt: str = ""


def clean_arm(arm: Arm, most: float = 1e36) -> Arm:
    """`arm` in float64, without weight where a value is damage rather than photons.

    Parameters
    ----------
    arm : Arm
    most : float
        No inverse variance is so large in the survey's unit of flux.

    Raises
    ------
    FitsError
        Nothing in it can be used, or its wavelengths are none.
    """
    wavelength = checked_wavelength(np.asarray(arm.wavelength, np.float64), len(arm.flux))
    with np.errstate(invalid="ignore", over="ignore"):
        flux, ivar = np.asarray(arm.flux, np.float64), np.asarray(arm.ivar, np.float64)
        wild = ~(np.abs(flux) < 1e15) | ~(np.abs(ivar) < most)
        ivar = np.where(wild | ~(ivar > 0), 0.0, ivar)
    if not np.isfinite(flux).any():
        raise FitsError("flux is not finite in any pixel")
    if not (ivar > 0).any():
        raise FitsError("no pixel has both a flux and a positive inverse variance")
    return Arm(wavelength, flux, ivar, np.asarray(arm.bad, bool), arm.normalised)


def checked_wavelength(wavelength: np.ndarray, n_pixels: int) -> np.ndarray:
    """Wavelengths of `n_pixels` pixels; FitsError where they are not finite, increasing and in Angstrom."""
    if wavelength.shape != (n_pixels,) or n_pixels < 2:
        raise FitsError(f"{wavelength.size} wavelengths for {n_pixels} pixels")
    if not np.isfinite(wavelength).all():
        raise FitsError(f"wavelength is not finite at pixel {int(np.argmin(np.isfinite(wavelength)))}")
    rising = np.diff(wavelength) > 0
    if not rising.all():
        raise FitsError(f"wavelength does not increase at pixel {int(np.argmin(rising)) + 1}")
    if wavelength[0] < 900.0 or wavelength[-1] > 3e5:
        raise FitsError(f"wavelengths from {wavelength[0]:g} to {wavelength[-1]:g} are not in Angstrom")
    return wavelength


def pixel_column(unit: HDU, name: str) -> np.ndarray | None:
    """A vector of pixels out of a table; undefined ones are NaN, of masks set; None where there is no such column."""
    column = unit.column(name)
    if not isinstance(column, np.ma.MaskedArray):
        return column
    if name.upper().endswith("MASK"):
        return np.ma.filled(column, 1)
    return np.ma.filled(column.astype(np.float64), np.nan)


def log_grid(low: float, high: float, step: float) -> np.ndarray:
    """Wavelengths on whole multiples of `step` in log10."""
    first, last = (round(math.log10(w) / step) for w in (low, high))
    return 10.0 ** (np.arange(first, last + 1) * step)


def linear_grid(low: float, high: float, step: float) -> np.ndarray:
    """Wavelengths on whole multiples of `step` Angstrom."""
    return np.arange(round(low / step), round(high / step) + 1) * step


class ArmSource(FolderSource):
    """Base of sources whose spectra are rebinned onto a rest-frame grid.

    A subclass sets the class attributes, says its :meth:`grids`, lists stars in `plan` (which ends in :meth:`_planned`)
    and reads one in :meth:`spectrum`.

    Parameters
    ----------
    continuum : str
        One of the class's `continua`.
    frame : {"rest", "observed"}
        ``observed`` leaves spectra where they are; by default a star without a velocity is refused.
    bin_width, window, quantile : float
        Of :func:`~chemscale.survey.continuum.running_quantile`, applied to each of the :meth:`grids`.
    """

    #: the survey's name and resolving power, and its medium, as the store's attributes say them
    survey = ""
    resolution = 0
    medium = "vacuum"
    #: whose velocity brings a star to rest, in words
    velocity_of = ""
    #: whether the velocity in a star's file counts before that of a catalogue
    file_first = False
    #: shortest and longest wavelength that a grid may be asked for, Angstrom
    limits = (3000.0, 12000.0)
    continua: tuple[str, ...] = ("running-quantile",)
    telluric: tuple[tuple[float, float], ...] = TELLURIC_WINDOWS
    interstellar: tuple[tuple[float, float], ...] = INTERSTELLAR_WINDOWS
    #: a redshift beyond this is no star's
    max_redshift = MAX_REDSHIFT

    def __init__(
        self,
        spectra: str | Sequence[str],
        *,
        continuum: str | None = None,
        frame: str = "rest",
        bin_width: float = 10.0,
        window: float = 300.0,
        quantile: float = 0.8,
        **joins: Any,
    ):
        super().__init__(spectra, **joins)
        self.continuum = continuum or self.continua[0]
        if self.continuum not in self.continua:
            raise InputError(f"continuum is {continuum!r}", f"use one of {', '.join(self.continua)}")
        if frame not in ("rest", "observed"):
            raise InputError(f"frame is {frame!r}", "use 'rest' or 'observed'")
        self.frame = frame
        self.bin_width, self.window, self.quantile = float(bin_width), float(window), float(quantile)

    def grids(self) -> list[np.ndarray]:
        """Wavelengths of each range that arms cover without a gap; one after the other they are the grid."""
        raise NotImplementedError

    def spectrum(self, item: Item) -> Spectrum:
        """Read one star; FitsError where it cannot be."""
        raise NotImplementedError

    def reader(self, items: Sequence[Item]) -> Callable[[Item], Spectrum]:
        """What reads each of `items`: a source of many stars a file may read them together here."""
        return self.spectrum

    def wavelength_grid(self) -> np.ndarray:
        """The survey's rest-frame grid, Angstrom."""
        return np.concatenate(self.grids())

    def _range(self, given: tuple[float, float]) -> tuple[float, float]:
        """Ends of the grid that a user asks for, Angstrom."""
        low, high = (float(w) for w in given)
        if not self.limits[0] <= low < high <= self.limits[1]:
            raise InputError(
                f"wavelength range is {given}",
                f"give two increasing rest wavelengths from {self.limits[0]:g} to {self.limits[1]:g} Angstrom",
            )
        return low, high

    def _planned(
        self, items: list[Item], labels: Sequence[str], rejected: list[Rejection], keys: StarKeys, **attrs: Any
    ) -> SurveyPlan:
        """The plan of these stars, with what catalogues know of them; `attrs` are the store's besides those of all."""
        described = {
            "survey": self.survey,
            "resolution": self.resolution,
            "frame": f"rest (by {self.velocity_of})" if self.frame == "rest" else "observed, as in the files",
            "normalisation": self._normalisation(),
            "telluric_windows": [list(w) for w in self.telluric],
            "interstellar_windows": [],  # set by the reader, star by star, in the observed frame
            "interstellar_windows_observed": [list(w) for w in self.interstellar],
        }
        names = contract_labels(labels)
        grid = self.wavelength_grid()
        plan = SurveyPlan(self.name, grid, self.medium, items, (), names, described | attrs, rejected)
        return self._complete(plan, keys)

    def _normalisation(self) -> str:
        if self.continuum != "running-quantile":
            return "the survey's own"
        return (
            f"running quantile: {self.quantile:.0%} of inverse-variance weighted {self.bin_width:g}-Angstrom"
            f" means over {self.window:g} Angstrom, smoothed twice"
        )

    def read(self, items: Sequence[Item], wavelength: np.ndarray, elements: Sequence[str]) -> StarBlock:
        """Read spectra, shift to rest, rebin onto `wavelength`, normalise. One read a file."""
        grid = self.wavelength_grid()
        if len(wavelength) != len(grid) or not np.allclose(wavelength, grid, rtol=1e-9, atol=0):
            raise InputError("the store's wavelength grid is another one", "use a store of its own")
        return read_in_batches(items, elements, self._read_batch)

    def _read_batch(self, items: Sequence[Item]) -> Batch:
        grids = self.grids()
        shape = (len(items), sum(map(len, grids)))
        flux, ivar, flags = np.zeros(shape), np.zeros(shape), np.zeros(shape, np.uint8)
        continuum = np.full(shape, np.nan)
        kept: list[Item] = []
        own: list[dict[str, Any]] = []
        rejected: list[Rejection] = []
        spectrum_of = self.reader(items)
        for item in items:
            row = len(kept)
            try:
                found = spectrum_of(item)
                redshift = self._redshift(found, item)
                survey = self.continuum != "running-quantile"
                parts = [self._onto(found.arms, redshift, grid, survey) for grid in grids]
                flux[row], ivar[row], flags[row], continuum[row] = (
                    np.concatenate([part[k] for part in parts]) for k in range(4)
                )
                if not np.any(ivar[row] > 0):
                    raise FitsError("no usable pixel on the common grid")
            except FitsError as problem:
                flux[row], ivar[row], flags[row], continuum[row] = 0.0, 0.0, 0, np.nan
                rejected.append(Rejection(printable(item.path), str(problem), item.star_id))
                continue
            flags[row][ivar[row] <= 0] |= np.uint8(Flag.GAP)
            velocity = found.redshift if self.frame == "observed" else redshift
            own.append(found.labels | {"radial_velocity": velocity * SPEED_OF_LIGHT})
            kept.append(item)
        n = len(kept)
        flux, ivar, flags, continuum = flux[:n], ivar[:n], flags[:n], continuum[:n]
        if self.continuum == "running-quantile" and n:
            self._fit_continuum(grids, flux, ivar, flags, continuum)
        return Batch(kept, own, *over_continuum(flux, ivar, flags, continuum), flags, rejected)

    def _redshift(self, found: Spectrum, item: Item) -> float:
        """Redshift by the catalogues' radial velocity, else by the file; or the other way round.

        Raises
        ------
        FitsError
            Neither knows it, or it is no star's.
        """
        if self.frame == "observed":
            return 0.0
        labelled = measured_one("radial_velocity", item.labels.get("radial_velocity")) / SPEED_OF_LIGHT
        for value in (found.redshift, labelled) if self.file_first else (labelled, found.redshift):
            if value == value:
                if abs(value) > self.max_redshift:
                    raise FitsError(f"redshift {value:g} is no star's ({value * SPEED_OF_LIGHT:.0f} km/s)")
                return value
        raise FitsError(
            f"no velocity in the file{found.doubt} or a table: not brought to rest (give --labels with rv, or --frame "
            "observed)"
        )

    def _fit_continuum(
        self, grids: list[np.ndarray], flux: np.ndarray, ivar: np.ndarray, flags: np.ndarray, continuum: np.ndarray
    ) -> None:
        # tellurics and bad pixels must not shape the continuum
        trusted = np.where(flags == 0, ivar, 0.0)
        at = 0
        for grid in grids:
            part = slice(at, at + len(grid))
            continuum[:, part] = running_quantile(
                grid,
                flux[:, part],
                trusted[:, part],
                bin_width=self.bin_width,
                window=self.window,
                quantile=self.quantile,
            )[2]
            at += len(grid)

    def _onto(self, arms: Sequence[Arm], redshift: float, grid: np.ndarray, survey: bool) -> tuple[np.ndarray, ...]:
        """Flux, ivar, flags and (survey) continuum of a star on one of the grids."""
        done = []
        for arm in arms:
            rest = arm.wavelength / (1.0 + redshift)
            if rest[-1] < grid[0] or rest[0] > grid[-1]:
                continue
            rebinner = Rebinner(rest, grid)
            flux, ivar, flags = rebinner(arm.flux, arm.ivar, arm.flags(self.telluric, self.interstellar))
            done.append(
                (flux, ivar, flags, survey_continuum(arm, rebinner, flux) if survey else np.full(len(grid), np.nan))
            )
        if not done:
            blank = np.zeros(len(grid))
            return blank, blank, np.zeros(len(grid), np.uint8), np.full(len(grid), np.nan)
        return done[0] if len(done) == 1 else add_arms(done)


def survey_continuum(arm: Arm, rebinner: Rebinner, flux: np.ndarray) -> np.ndarray:
    """The continuum a file's normalised flux implies, on the grid; NaN where it implies none."""
    if arm.normalised is None:
        raise FitsError("the file holds no normalised flux (use --continuum running-quantile)")
    return implied_continuum(arm.normalised, arm.ivar, rebinner, flux)


def add_arms(arms: Sequence[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    """Inverse-variance weighted sum of arms on one grid; where a good pixel is to be had, a bad one does not count."""
    flux, ivar, flags, continuum = (np.stack([a[k] for a in arms]) for k in range(4))
    informed = ivar > 0
    good = informed & ((flags & np.uint8(Flag.SURVEY_BAD)) == 0)
    use = np.where(good.any(axis=0), good, informed)
    weight = np.where(use, ivar, 0.0)
    total = weight.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(total > 0, np.sum(np.where(use, flux, 0.0) * weight, axis=0) / total, 0.0)
        level = np.sum(np.where(use & np.isfinite(continuum), continuum * weight, 0.0), axis=0)
        known = np.sum(np.where(np.isfinite(continuum), weight, 0.0), axis=0)
        level = np.where(known > 0, level / known, np.nan)
    taken = np.where(use, flags, np.uint8(0))
    none = ~informed.any(axis=0)
    bits = np.bitwise_or.reduce(np.where(none, flags, taken), axis=0)
    return mean, total, bits, level
