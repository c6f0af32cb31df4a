"""Built-in spectra: line strengths from physics, a curve of growth, and one matrix product.

A spectrum is ``exp(-sum_k W_k P_k)``: ``P_k`` is the profile of line group k at the spectrograph's
resolution (unit area for each line), ``W_k`` its equivalent width. Groups are single atomic lines, or
molecular lines of nearly the same lower level and strength. For n stars and K groups the widths cost
n x K curve-of-growth look-ups and the spectra matrix products, piece by piece of the grid with the
groups that have lines there.

The equivalent width follows from the ratio of line to continuous opacity at the line's centre,

    eta = N_X / N_H x gf / U x 10^(-theta chi) x 0.01497 lambda / v_D x (1 - exp(-h nu / kT)) / kappa_c

through ``W = lambda v_D / c x limit x F(eta, a)`` with the Minnaert-type absorption depth
``F = int eta H(a, v) / (1 + eta H(a, v)) dv`` over the Voigt function H. ``limit`` is the depth of a fully
saturated line, set by how much the source function falls outwards. Lines therefore respond to
abundance, temperature, gravity and microturbulence together, as in nature.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from scipy.special import voigt_profile, wofz

from chemscale.simulation import atmosphere
from chemscale.simulation.atomic import (
    LIGHT_KM_S,
    AtomicLines,
    atomic_lines,
    hydrogen_lines,
    unresolved_lines,
    vacuum_to_air,
)
from chemscale.simulation.bands import band_lines

#: Temperature of the layer where each kind of line forms, in units of the effective temperature. The H band is
#: seen through the minimum of the H- opacity, from deeper, hotter layers than the optical.
LAYERS = {
    "hband": {"atoms": 1.00, "H": 0.98, "CO": 0.88, "OH": 0.92, "CN": 0.97},
    "lowres": {"atoms": 0.90, "H": 0.98, "CN": 0.86, "CH": 0.86, "C2": 0.86, "MgH": 0.84},
}
#: log10 factor on the opacity of atomic lines. One layer shows less of a line than a real atmosphere, where the
#: strong ones form higher up: more opacity and a lower limit together follow model spectra of giants best.
ATOMIC_OFFSET = 0.25
#: Pixels of the grid worked on at once: few enough that most groups have no line among them.
_PIECE = 400
_ATOMIC_MASS = {"H": 1, "C": 12, "N": 14, "O": 16, "Na": 23, "Mg": 24, "Al": 27, "Si": 28, "P": 31, "S": 32, "K": 39}


@dataclass(frozen=True)
class Grid:
    """A wavelength grid and the resolution at which spectra are seen on it.

    Attributes
    ----------
    wavelength : ndarray, shape (P,)
        Angstrom, increasing; in the stated medium.
    broadening : float
        Gaussian sigma of instrument and macroturbulence, km/s.
    """

    name: str
    wavelength: np.ndarray
    medium: str
    resolution: float
    macroturbulence: float
    lists: tuple[str, ...]
    bands: tuple[str, ...]
    limit: float
    survey: str
    normalisation: str = "pseudo-continuum"

    @property
    def broadening(self) -> float:
        """Standard deviation of a line, km/s: instrument and macroturbulence."""
        instrument = LIGHT_KM_S / self.resolution / 2.3548
        return float(np.hypot(instrument, self.macroturbulence))

    @property
    def step(self) -> float:
        """Pixel in km/s."""
        return float(LIGHT_KM_S * np.log(self.wavelength[1] / self.wavelength[0]))


@cache
def grid(name: str) -> Grid:
    """The grid ``hband`` (apStar, vacuum, R 22500) or ``lowres`` (4000-10400 Angstrom, air, R 2200)."""
    if name == "hband":
        wave = 10 ** (4.179 + 6e-6 * np.arange(8575))
        return Grid(name, wave, "vacuum", 22500.0, 3.5, ("lines_hband",), ("CO", "OH", "CN"), 0.32, "apogee-simulated")
    if name == "lowres":
        wave = 10 ** (np.log10(4000.0) + 1e-4 * np.arange(4150))
        return Grid(
            name, wave, "air", 2200.0, 3.5, ("lines_optical",), ("CH", "CN", "CNv", "C2", "MgH"), 0.62,
            "lowres-simulated", "continuum",
        )  # fmt: skip
    raise KeyError(f"no grid {name!r}; known grids: hband, lowres")


# ------------------------------------------------------------------------- curve of growth

_LOG_ETA = np.linspace(-5.0, 7.0, 241)
_LOG_A = np.linspace(-4.0, 0.0, 17)


@cache
def _growth_table() -> np.ndarray:
    """log F(eta, a) on the regular grid, shape (n_a, n_eta), float32."""
    v = np.concatenate([np.linspace(0, 12, 600), np.geomspace(12.02, 3e4, 500)])
    table = np.empty((_LOG_A.size, _LOG_ETA.size))
    for i, a in enumerate(10**_LOG_A):
        h = wofz(v + 1j * a).real
        x = 10 ** _LOG_ETA[:, None] * h
        table[i] = np.log(2 * np.trapezoid(x / (1 + x), v, axis=1))
    return table.astype(np.float32)


def curve_of_growth(log_eta: np.ndarray, log_a: np.ndarray) -> np.ndarray:
    """F(eta, a): bilinear in the logarithms; inputs broadcast against each other.

    Linear for weak lines (F = sqrt(pi) eta), flat near eta = 30, then growing as sqrt(eta a).
    """
    table = _growth_table()
    x = np.clip((log_eta - _LOG_ETA[0]) / (_LOG_ETA[1] - _LOG_ETA[0]), 0, _LOG_ETA.size - 1.001)
    y = np.clip((log_a - _LOG_A[0]) / (_LOG_A[1] - _LOG_A[0]), 0, _LOG_A.size - 1.001)
    i, j = x.astype(np.int32), y.astype(np.int32)
    fx, fy = (x - i).astype(np.float32), (y - j).astype(np.float32)
    flat = table.ravel()
    at = j * table.shape[1] + i
    lower = flat[at] * (1 - fx) + flat[at + 1] * fx
    at = at + table.shape[1]
    upper = flat[at] * (1 - fx) + flat[at + 1] * fx
    value = np.exp(lower * (1 - fy) + upper * fy)
    # below the table the curve is linear; its clipped value would be a floor of 1e-5
    return np.where(log_eta < _LOG_ETA[0], 0, value)


# ----------------------------------------------------------------------------- line groups


@dataclass
class _Groups:
    """Groups of one kind of line: everything that does not depend on the star."""

    kind: str  # key of a grid's LAYERS
    symbol: list[str]
    stage: np.ndarray
    wavelength: np.ndarray
    excitation: np.ndarray
    loggf: np.ndarray
    damping: np.ndarray
    mass: float
    core: np.ndarray
    wing: np.ndarray
    wing_of: np.ndarray = field(default_factory=lambda: np.empty(0, int))


class LineSpectra:
    """Spectra of any stars on one grid from the built-in line lists.

    Parameters
    ----------
    grid : Grid
        Wavelengths and resolution; see :func:`grid`.

    Attributes
    ----------
    n_groups : int
        Columns of the matrix product.
    """

    def __init__(self, grid: Grid):
        self.grid = grid
        low, high = grid.wavelength[0] - 30.0, grid.wavelength[-1] + 30.0
        self._groups = [self._atoms(atomic_lines(name), "atoms") for name in grid.lists]
        self._groups.append(self._atoms(hydrogen_lines(low, high), "H"))
        self._groups += [self._molecule(name, low, high) for name in grid.bands]
        if grid.name == "lowres":
            self._groups += self._veil()
        self.n_groups = sum(len(g.core) + len(g.wing) for g in self._groups)
        self._pieces = self._cut(np.concatenate([np.concatenate([g.core, g.wing]) for g in self._groups]))
        for g in self._groups:  # kept once, in the pieces
            g.core, g.wing = g.core[:0], g.wing[:0]

    def _cut(self, basis: np.ndarray) -> list[tuple[slice, np.ndarray, np.ndarray]]:
        """The basis in pieces of the grid, each with the groups that have lines there."""
        out = []
        for start in range(0, basis.shape[1], _PIECE):
            at = slice(start, min(start + _PIECE, basis.shape[1]))
            used = np.flatnonzero(basis[:, at].any(axis=1))
            out.append((at, used, np.ascontiguousarray(basis[used, at])))
        return out

    # ---- profiles

    def _position(self, vacuum: np.ndarray) -> np.ndarray:
        return vacuum if self.grid.medium == "vacuum" else vacuum_to_air(vacuum)

    def _profile(self, wavelength: float, lorentz: float = 0.0, reach: float = 6.0) -> tuple[slice, np.ndarray]:
        """Unit-area profile (1/Angstrom) around a line; ``lorentz`` = half width of the wings, km/s."""
        g = self.grid
        centre = np.log(wavelength / g.wavelength[0]) * LIGHT_KM_S / g.step
        half = int(np.ceil((reach * g.broadening + 25 * lorentz) / g.step))
        a, b = max(int(centre) - half, 0), min(int(centre) + half + 2, g.wavelength.size)
        if b <= a:
            return slice(0, 0), np.empty(0)
        v = (np.arange(a, b) - centre) * g.step
        return slice(a, b), voigt_profile(v, g.broadening, lorentz) * LIGHT_KM_S / wavelength

    def _atoms(self, table: AtomicLines, kind: str) -> _Groups:
        n = table.wavelength.size
        core = np.zeros((n, self.grid.wavelength.size), np.float32)
        position = self._position(table.wavelength)
        # log of the damping parameter for the Sun-like layer: van der Waals widths grow with the level
        damping = np.where(table.excitation > 5.0, -0.75, -1.15) + (0.0 if kind == "atoms" else 0.75)
        reference = atmosphere.layer(
            np.array([4700.0]), np.array([2.5]), {"Fe": np.zeros(1)}, LAYERS[self.grid.name][kind]
        )
        offset = ATOMIC_OFFSET if kind == "atoms" else -0.5
        groups = _Groups(
            kind, table.element, table.stage, table.wavelength, table.excitation, table.loggf + offset, damping,
            1.0 if kind == "H" else 45.0, core, core[:0],
        )  # fmt: skip
        log_eta = self._log_eta(groups, reference)[0]
        strong = np.flatnonzero((log_eta > 1.0) | (kind == "H"))
        wing = np.zeros((strong.size, core.shape[1]), np.float32)
        for i in range(n):
            at, p = self._profile(position[i])
            core[i, at] = p
        for row, i in enumerate(strong.tolist()):
            # width at which eta a / (sqrt(pi) v^2) = 1, in Doppler units: where the wings become thin
            thin = np.sqrt(10 ** (log_eta[i] + damping[i]) / np.sqrt(np.pi))
            lorentz = float(np.clip(1.2 * thin * 2.0, 6.0, 400.0)) if kind == "atoms" else 220.0
            at, p = self._profile(position[i], lorentz)
            wing[row, at] = p
        groups.wing, groups.wing_of = wing, strong
        return groups

    def _molecule(self, name: str, low: float, high: float) -> _Groups:
        table = band_lines(name, low, high)
        mass = sum(_ATOMIC_MASS[a] for a in table.atoms)
        kind = "CN" if name == "CNv" else name
        return self._grouped(kind, table.wavelength, table.excitation, table.loggf, "".join(table.atoms), mass)

    def _veil(self) -> list[_Groups]:
        table = unresolved_lines()
        element = np.array(table.element)
        return [
            self._grouped("atoms", table.wavelength[s], table.excitation[s], table.loggf[s], str(e), 45.0)
            for e in np.unique(element)
            for s in [element == e]
        ]

    def _grouped(
        self, kind: str, wave: np.ndarray, excitation: np.ndarray, loggf: np.ndarray, symbol: str, mass: float
    ) -> _Groups:
        """Lines of one species in groups of nearly the same level, strength and continuum."""
        strength = loggf + np.log10(wave)
        cool = strength - 5040 / 3600 * excitation
        keep = cool > cool.max() - 3.0  # the rest would not show even in a cool star
        wave, excitation, strength = wave[keep], excitation[keep], strength[keep]
        region = np.floor(np.log(wave) / 0.12).astype(int)
        level = np.round(excitation / 0.12).astype(int)
        bins = np.round((strength - strength.min()) / 0.3).astype(int)
        _, index = np.unique((region * 1000 + level) * 1000 + bins, return_inverse=True)
        count = np.bincount(index).astype(float)

        def mean(x: np.ndarray) -> np.ndarray:
            return np.bincount(index, weights=x) / count

        centre = mean(wave)
        core = np.zeros((count.size, self.grid.wavelength.size), np.float32)
        for w, k in zip(wave, index, strict=True):
            at, p = self._profile(float(self._position(np.array(w))))
            core[k, at] += p * w / centre[k]
        return _Groups(
            kind, [symbol] * count.size, np.zeros(count.size, int), centre, mean(excitation),
            mean(strength) - np.log10(centre), np.full(count.size, -3.0), mass, core, core[:0],
        )  # fmt: skip

    # ---- strengths

    def _doppler(self, groups: _Groups, state: atmosphere.Layer) -> np.ndarray:
        """Doppler velocity (km/s), shape (n,)."""
        return np.sqrt(state.microturbulence**2 + 0.0166 * state.temperature / groups.mass)

    def _log_eta(self, groups: _Groups, state: atmosphere.Layer) -> np.ndarray:
        """log10 of line over continuous opacity at the centre, shape (n, K)."""
        theta = state.theta[:, None]
        w = groups.wavelength
        log_n = np.empty((state.temperature.size, w.size))
        if groups.kind in ("atoms", "H"):
            for species in set(zip(groups.symbol, groups.stage.tolist(), strict=True)):
                where = [
                    i for i, s in enumerate(zip(groups.symbol, groups.stage.tolist(), strict=True)) if s == species
                ]
                column = atmosphere.log_stage_over_partition(*species, state) + np.log10(state.abundance[species[0]])
                log_n[:, where] = column[:, None]
        else:
            molecule = groups.kind
            _, _, _, b, omega, weight = atmosphere.MOLECULES[molecule]
            number = np.log10(np.maximum(atmosphere.molecules(state)[molecule], 1e-30))
            log_n[:] = (number - np.log10(atmosphere.partition(b, omega, weight, state.temperature)))[:, None]
        # continuum varies slowly: three knots a grid are enough
        knots = np.linspace(np.log(w.min()), np.log(w.max()) + 1e-6, 7)
        kappa = atmosphere.log_continuum(np.exp(knots), state)
        x = (np.log(w) - knots[0]) / (knots[1] - knots[0])
        k = np.clip(x.astype(int), 0, 5)
        log_kappa = kappa[:, k] * (1 - (x - k)) + kappa[:, k + 1] * (x - k)
        stimulated = np.log10(1 - 10 ** (-theta * 12398.42 / w))
        velocity = np.log10(self._doppler(groups, state) * 1e5)[:, None]
        return (
            log_n + groups.loggf - theta * groups.excitation + np.log10(0.01497 * w * 1e-8) - velocity + stimulated
            - log_kappa
        )  # fmt: skip

    def widths(self, labels: Mapping[str, np.ndarray], abundances: Mapping[str, np.ndarray]) -> np.ndarray:
        """Equivalent widths of all groups (Angstrom), shape (n, n_groups), float32.

        Parameters
        ----------
        labels : mapping
            ``teff`` (K) and ``logg``, each (n,).
        abundances : mapping of str to ndarray
            [X/H] (n,) by symbol; elements left out follow Fe.
        """
        teff = np.asarray(labels["teff"], float)
        logg = np.asarray(labels["logg"], float)
        states: dict[float, atmosphere.Layer] = {}
        out = []
        for g in self._groups:
            fraction = LAYERS[self.grid.name][g.kind]
            if fraction not in states:
                states[fraction] = atmosphere.layer(teff, logg, abundances, fraction)
            state = states[fraction]
            eta = self._log_eta(g, state)
            # pressure broadening grows with gas pressure; log a is tabulated for log P = 4.2
            log_a = g.damping + 0.8 * (state.log_gas - 4.2)[:, None]
            scale = (self._doppler(g, state) / LIGHT_KM_S)[:, None] * g.wavelength * self.grid.limit
            total = curve_of_growth(eta, log_a) * scale
            if g.wing_of.size:
                core = curve_of_growth(eta[:, g.wing_of], np.array(-3.0)) * scale[:, g.wing_of]
                wing = np.maximum(total[:, g.wing_of] - core, 0)
                total[:, g.wing_of] -= wing
                out += [total, wing]
            else:
                out.append(total)
        return np.concatenate(out, axis=1).astype(np.float32)

    def flux(self, labels: Mapping[str, np.ndarray], abundances: Mapping[str, np.ndarray]) -> np.ndarray:
        """Continuum-normalised spectra without noise, shape (n, P), float32."""
        widths = -self.widths(labels, abundances)
        out = np.empty((len(widths), self.grid.wavelength.size), np.float32)
        for at, used, basis in self._pieces:
            np.exp(widths[:, used] @ basis, out=out[:, at])
        return out


__all__ = ["Grid", "LineSpectra", "curve_of_growth", "grid"]
