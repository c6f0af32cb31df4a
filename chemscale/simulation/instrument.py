"""What an instrument and the sky do to a spectrum, and how well it is measured.

Effects of the ``full`` instrument on the H-band grid, in the star's rest frame:

* line spread: its width changes smoothly with the fibre, differently on each chip, and from plate
  to plate; applied as a three-tap convolution that adds (or removes) the difference in variance,
  together with a small velocity error;
* telluric residuals of CO2, CH4 and H2O: fixed for the observer, so in the rest frame they move
  with the star's velocity relative to the Earth;
* sky emission (OH): larger errors and residuals at its lines, moving likewise;
* diffuse interstellar bands: growing with A_K, at the velocity of the gas;
* continuum: a low-order tilt on each chip left by the normalisation;
* chips: flux exactly 0 and no information between them; bad columns and cosmic rays with error 1e10;
* noise by the star's signal-to-noise ratio and a floor, errors that follow throughput and sky.

Amplitudes are of the size seen in combined APOGEE spectra: tellurics corrected to about 2 %,
continuum to about 0.5 %, line widths alike to a few per cent (Nidever et al. 2015; Holtzman et al. 2015).
``noise`` adds only white noise of 1/SNR; ``none`` adds nothing. On the low-resolution grid ``full``
leaves out tellurics and chips.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chemscale.errors import InputError
from chemscale.schema import Flag
from chemscale.simulation.artefacts import add_artefacts
from chemscale.simulation.atomic import LIGHT_KM_S, rows, vacuum_to_air
from chemscale.simulation.lines import Grid
from chemscale.simulation.population import SimulatedStars

LEVELS = ("none", "noise", "full")
#: First and last + 1 pixel of the three detector chips on the apStar grid.
CHIPS = ((246, 3274), (3585, 6080), (6344, 8335))
BAD_ERROR = 1e10
#: A_V / A_K (Cardelli, Clayton & Mathis 1989).
AV_OVER_AK = 8.55
_PAD = 200  # pixels of templates beyond both ends: velocities up to 800 km/s


@dataclass
class Observed:
    """Spectra as observed: flux, error (1e10 = no information), bad pixels of n stars, each (n, P)."""

    flux: np.ndarray
    error: np.ndarray
    bad: np.ndarray


class Instrument:
    """The instrument of one survey.

    Parameters
    ----------
    grid : Grid
        Wavelength grid.
    level : {"full", "noise", "none"}
        Which effects to apply.
    hits : float
        Fraction of pixels with an unflagged hit or bad sky line, on top of the few that ``full`` has anyway.
    """

    def __init__(self, grid: Grid, level: str = "full", hits: float = 0.0):
        if level not in LEVELS:
            raise InputError(f"no instrument level {level!r}", f"choose one of {', '.join(LEVELS)}")
        self.grid, self.level, self.hits = grid, level, hits
        self.n_pixels = grid.wavelength.size
        self.chips = CHIPS if grid.name == "hband" else ((0, self.n_pixels),)
        self.gap = np.ones(self.n_pixels, bool)
        for a, b in self.chips:
            self.gap[a:b] = False
        if level == "full":
            self._prepare()

    # ------------------------------------------------------------------ fixed templates

    def _prepare(self) -> None:
        g, p = self.grid, self.n_pixels
        pixel = np.arange(-_PAD, p + _PAD)
        self._wide = g.wavelength[0] * np.exp(pixel * g.step / LIGHT_KM_S)
        self._tellurics = (
            telluric_depths(self._wide, g) if g.name == "hband" else np.zeros((0, self._wide.size), np.float32)
        )
        self._sky = sky_emission(self._wide, g) if g.name == "hband" else np.zeros(self._wide.size, np.float32)
        self._dibs = interstellar(self._wide, g)
        fixed = np.random.default_rng(20120501)  # the detector is the same in every survey
        bad = np.zeros(self._wide.size, bool)
        if g.name == "hband":
            start = fixed.integers(0, bad.size, 55)
            for s, w in zip(start, fixed.integers(1, 5, start.size), strict=True):
                bad[s : s + w] = True
        self._bad_columns = bad
        x = np.zeros(p)
        self._legendre = np.zeros((3 * len(self.chips), p), np.float32)
        throughput = np.ones(p)
        for i, (a, b) in enumerate(self.chips):
            x = np.linspace(-1, 1, b - a)
            self._legendre[3 * i : 3 * i + 3, a:b] = np.stack([np.ones_like(x), x, 1.5 * x**2 - 0.5])
            throughput[a:b] = 1.0 - 0.35 * x**4 - 0.10 * x
        self._shape = (throughput**-0.5).astype(np.float32)
        # line width across the slit: three smooth modes for each chip, in pixel^2 of extra variance
        slit = np.linspace(-1, 1, 301)
        modes = np.stack([slit, 1.5 * slit**2 - 0.5, np.sin(3 * slit + 0.4)])
        self._width = (fixed.normal(0, [0.09, 0.08, 0.06], (len(self.chips), 3)) @ modes).astype(np.float32)

    # --------------------------------------------------------------------------- observe

    def observe(self, flux: np.ndarray, stars: SimulatedStars, rng: np.random.Generator) -> Observed:
        """Observed spectra of noise-free ones, with unflagged artefacts at the rate `hits`.

        Parameters as in :meth:`measure`.
        """
        seen = self.measure(flux, stars, rng)
        if self.hits > 0:  # drawn last: without them a survey is the same
            add_artefacts(seen.flux, self.gap if self.level == "full" else np.zeros_like(self.gap), self.hits, rng)
        return seen

    def measure(self, flux: np.ndarray, stars: SimulatedStars, rng: np.random.Generator) -> Observed:
        """Observed spectra of noise-free ones.

        Parameters
        ----------
        flux : ndarray, shape (n, P), float32
            Noise-free, changed in place.
        stars : SimulatedStars
            Velocity, extinction, fibre and S/N are used.
        rng : Generator
            The block's stream.
        """
        n = len(flux)
        if self.level == "none":
            error = np.full(flux.shape, 1e-4, np.float32)
            return Observed(flux, error, np.zeros(flux.shape, bool))
        noise = rng.standard_normal(flux.shape, np.float32)
        inverse_snr = (1.0 / stars.snr).astype(np.float32)[:, None]
        if self.level == "noise":
            error = np.broadcast_to(inverse_snr, flux.shape).copy()
            noise *= error
            flux += noise
            return Observed(flux, error, np.zeros(flux.shape, bool))
        hband = self.grid.name == "hband"
        self._line_spread(flux, stars, rng)
        seen = stars.velocity - stars.barycentric  # towards the observer, km/s
        shift = seen / self.grid.step
        gas = (stars.velocity - stars.ism_velocity) / self.grid.step
        a_v = (stars.extinction * AV_OVER_AK).astype(np.float32)
        residual = (
            rng.normal(0, [0.035, 0.025, 0.03], (n, 3)).astype(np.float32) if hband else np.zeros((n, 0), np.float32)
        )
        sky_residual = rng.normal(0, 0.30, n)
        tilt = self._tilts(rng, n) @ self._legendre
        error = np.empty_like(flux)
        bad = np.zeros(flux.shape, bool)
        for i in range(n):
            row = flux[i]
            row *= 1.0 - a_v[i] * self._shifted(self._dibs, gas[i])
            if hband:
                row *= 1.0 + residual[i] @ self._shifted(self._tellurics, shift[i])
                sky = self._shifted(self._sky, shift[i])
                error[i] = self._shape * (1.0 + 3.0 * sky)
                row += np.float32(sky_residual[i] / stars.snr[i]) * sky
                bad[i] = self._shifted_mask(self._bad_columns, shift[i])
            else:
                error[i] = self._shape
        flux *= 1.0 + tilt
        error *= inverse_snr
        noise *= error
        flux += noise
        # what the reduction reports: photon noise and a floor for what it cannot correct
        np.sqrt(error * error + np.float32(0.0025**2), out=error)
        self._hits(flux, bad, rng)
        error[bad] = BAD_ERROR
        flux[:, self.gap] = 0.0
        error[:, self.gap] = BAD_ERROR
        bad[:, self.gap] = False
        return Observed(flux, error, bad)

    def _line_spread(self, flux: np.ndarray, stars: SimulatedStars, rng: np.random.Generator) -> None:
        """Three-tap convolution: variance from the fibre and the plate's focus, shift from a velocity error."""
        n = len(flux)
        plates, index = np.unique(stars.plate, return_inverse=True)
        focus = np.array([np.random.default_rng([int(p), 77]).normal(0, 0.05) for p in plates])[index]
        scale = 1.0 if self.grid.name == "hband" else 0.35
        velocity_error = rng.normal(0, 0.10 + 6.0 / stars.snr) / self.grid.step
        own = rng.normal(0, 0.14, n)  # macroturbulence and rotation differ by about 0.4 km/s
        half = 0.5 * velocity_error.astype(np.float32)[:, None]
        for i, (a, b) in enumerate(self.chips):
            extra = (self._width[i, stars.fibre] + focus + own) * scale
            tap = (0.5 * extra).astype(np.float32)[:, None]
            part = flux[:, a:b]
            middle = part[:, 1:-1]
            right, left = part[:, 2:], part[:, :-2]
            change = tap * (right + left - 2 * middle) + half * (right - left)
            middle += change

    def _tilts(self, rng: np.random.Generator, n: int) -> np.ndarray:
        size = np.tile([0.0020, 0.0050, 0.0030], len(self.chips))
        return rng.normal(0, size, (n, size.size)).astype(np.float32)

    def _shifted(self, template: np.ndarray, shift: float) -> np.ndarray:
        """A template (..., P + 2 pad) fixed for the observer, seen from a frame moving by `shift` pixels."""
        # light received at observed pixel x + shift has rest pixel x
        at = _PAD + float(np.clip(shift, 2 - _PAD, _PAD - 2))
        k = int(np.floor(at))
        f = np.float32(at - k)
        return template[..., k : k + self.n_pixels] * (1 - f) + template[..., k + 1 : k + 1 + self.n_pixels] * f

    def _shifted_mask(self, mask: np.ndarray, shift: float) -> np.ndarray:
        k = _PAD + round(float(np.clip(shift, 2 - _PAD, _PAD - 2)))
        return mask[k : k + self.n_pixels]

    def _hits(self, flux: np.ndarray, bad: np.ndarray, rng: np.random.Generator) -> None:
        """Cosmic rays: most are recognised (error 1e10), a few slip through as outliers."""
        n = len(flux)
        where = np.repeat(np.arange(n), rng.poisson(6.0, n))
        pixel = rng.integers(0, self.n_pixels - 2, where.size)
        height = rng.exponential(0.25, where.size).astype(np.float32)
        flux[where, pixel] += height
        caught = rng.random(where.size) < 0.85
        for extra in (0, 1):
            bad[where[caught], pixel[caught] + extra] = True

    # ------------------------------------------------------------------------------- store

    def to_store(self, seen: Observed) -> tuple[np.ndarray, np.ndarray]:
        """(ivar, flags) the way a reader of the survey's files would give them."""
        informative = seen.error < 0.5 * BAD_ERROR
        ivar = np.zeros_like(seen.error)
        np.divide(1.0, seen.error * seen.error, out=ivar, where=informative)
        flags = np.zeros(seen.flux.shape, np.uint8)
        flags[seen.bad] = int(Flag.SURVEY_BAD)
        if self.level == "full":
            flags[:, self.gap] = int(Flag.GAP)
        return ivar, flags


# --------------------------------------------------------------------- templates of the sky


def _gauss(wave: np.ndarray, centres: np.ndarray, depths: np.ndarray, sigma_km_s: float) -> np.ndarray:
    """Sum of Gaussians of one velocity width on a log-linear grid."""
    out = np.zeros(wave.size)
    step = LIGHT_KM_S * np.log(wave[1] / wave[0])
    at = LIGHT_KM_S * np.log(centres / wave[0]) / step
    half = int(np.ceil(5 * sigma_km_s / step))
    for c, d in zip(at, depths, strict=True):
        a, b = max(int(c) - half, 0), min(int(c) + half + 2, wave.size)
        if b > a:
            out[a:b] += d * np.exp(-0.5 * ((np.arange(a, b) - c) * step / sigma_km_s) ** 2)
    return out


def telluric_depths(wave: np.ndarray, grid: Grid) -> np.ndarray:
    """Depth of the atmosphere's CO2, CH4 and H2O lines on the observer's grid, shape (3, n), float32.

    CO2 and CH4 come from rotational constants and band origins; the H2O lines are a few of the
    stronger ones at the ends of the window (approximate).
    """
    temperature, sigma = 260.0, LIGHT_KM_S / grid.resolution / 2.3548
    kt = 0.695 * temperature
    co2 = np.zeros(wave.size)
    for origin, upper, strength in (
        (6347.85, 0.38714, 1.0),
        (6227.92, 0.38640, 1.0),
        (6503.08, 0.38720, 0.25),
        (6075.98, 0.38640, 0.30),
    ):
        j = np.arange(0, 62, 2.0)
        energy = 0.39022 * j * (j + 1)
        population = (2 * j + 1) * np.exp(-energy / kt) / 400.0
        for ju, hl in ((j + 1, (j + 1) / (2 * j + 1)), (j - 1, j / (2 * j + 1))):
            line = origin + upper * ju * (ju + 1) - energy
            co2 += _gauss(wave, 1e8 / line, 9.0 * strength * hl * population, sigma)
    j = np.arange(0, 13.0)
    population = (2 * j + 1) ** 2 * np.exp(-5.241 * j * (j + 1) / kt) / 900.0
    ch4 = _gauss(wave, 1e8 / (6004.86 + 10.3 * (j + 1) - 0.06 * (j + 1) ** 2), 2.2 * population, 1.3 * sigma)
    ch4 += _gauss(wave, 1e8 / (6004.86 - 10.6 * j[1:] - 0.06 * j[1:] ** 2), 2.2 * population[1:], 1.3 * sigma)
    ch4 += _gauss(wave, 1e8 / (6004.86 - 0.09 * j * (j + 1)), 2.2 * population, 1.3 * sigma)
    water = np.array(
        [
            15145.3,
            15163.9,
            15180.2,
            15192.6,
            15208.8,
            15229.1,
            15257.7,
            15279.6,
            15315.2,
            16835.1,
            16871.8,
            16901.6,
            16922.3,
        ]
    )
    h2o = _gauss(
        wave, water, np.array([0.2, 0.12, 0.15, 0.1, 0.08, 0.1, 0.06, 0.05, 0.05, 0.05, 0.07, 0.1, 0.12]), sigma
    )
    return np.clip(np.stack([co2, ch4, h2o]), 0, 0.6).astype(np.float32)


def sky_emission(wave: np.ndarray, grid: Grid) -> np.ndarray:
    """Airglow of OH on the observer's grid, brightest line = 1, shape (n,), float32."""
    table = rows("airglow.csv")
    centres, brightness = (np.array([float(r[k]) for r in table]) for k in ("wavelength", "brightness"))
    return _gauss(wave, centres, brightness, LIGHT_KM_S / grid.resolution / 2.3548).astype(np.float32)


def interstellar(wave: np.ndarray, grid: Grid) -> np.ndarray:
    """Depth of the diffuse interstellar bands for A_V = 1 mag, shape (n,), float32."""
    out = np.zeros(wave.size)
    for r in rows("interstellar.csv"):
        if r["grid"] == grid.name:
            vacuum = np.array(float(r["wavelength"]))
            centre = float(vacuum if grid.medium == "vacuum" else vacuum_to_air(vacuum))
            sigma = float(np.hypot(float(r["sigma"]), centre / grid.resolution / 2.3548))
            out += float(r["width"]) / (sigma * np.sqrt(2 * np.pi)) * np.exp(-0.5 * ((wave - centre) / sigma) ** 2)
    return out.astype(np.float32)
