"""Molecular lines from spectroscopic constants.

Positions come from rotational and vibrational term values (Herzberg 1950, *Spectra of Diatomic
Molecules*), strengths from Hoenl-London factors and the band strengths in ``data/molecules.toml``.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from chemscale.simulation.atomic import air_to_vacuum, rows

#: wavelength (vacuum Angstrom), energy of the lower level (1/cm), strength
_Lines = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class BandLines:
    """Lines of one molecule: vacuum wavelength (Angstrom), lower level (eV), relative log10 gf."""

    molecule: str
    atoms: tuple[str, str]
    wavelength: np.ndarray
    excitation: np.ndarray
    loggf: np.ndarray


@cache
def constants() -> dict[str, Any]:
    """The molecules of ``data/molecules.toml``."""
    return tomllib.loads(resources.files(__package__).joinpath("data", "molecules.toml").read_text(encoding="utf-8"))


def _term(c: dict[str, float], v: int, j: np.ndarray, rho: float = 1.0) -> np.ndarray:
    """Energy (1/cm) above the v = 0, J = 0 level; ``rho`` scales to an isotope."""
    x = v + 0.5
    vibration = c["we"] * rho * x - c["wexe"] * rho**2 * x**2 + c.get("weye", 0.0) * rho**3 * x**3
    zero = c["we"] * rho * 0.5 - c["wexe"] * rho**2 * 0.25 + c.get("weye", 0.0) * rho**3 * 0.125
    b = c["be"] * rho**2 - c["ae"] * rho**3 * x
    return vibration - zero + b * j * (j + 1) - c["de"] * rho**4 * (j * (j + 1)) ** 2


def _branches(j: np.ndarray, q_branch: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """(upper J, Hoenl-London factor) of the P, R and, if wanted, Q branches from lower J."""
    out = [(j - 1, j * 1.0), (j + 1, j + 1.0)]
    if q_branch:
        out = [(u, 0.5 * s) for u, s in out] + [(j, j + 0.5)]
    return out


def band_lines(name: str, low: float, high: float) -> BandLines:
    """Lines of a molecule with vacuum wavelengths between ``low`` and ``high`` Angstrom."""
    c = constants()[name]
    make = {
        "vibration-rotation": _vibration_rotation,
        "list": _listed,
        "red-system": _red_system,
        "sigma-sigma": _electronic,
    }[c["kind"]]
    wave, energy, strength = (np.concatenate(x) for x in zip(*make(c), strict=True))
    keep = (wave > low) & (wave < high) & (strength > 0)
    order = np.argsort(wave[keep])
    wave, energy, strength = wave[keep][order], energy[keep][order], strength[keep][order]
    return BandLines(name, tuple(c["atoms"]), wave, energy / 8065.544, np.log10(strength) + c["scale"])


def _line(upper: np.ndarray, lower: np.ndarray, strength: np.ndarray) -> _Lines:
    wavenumber = upper - lower
    ok = wavenumber > 1000.0
    return 1e8 / wavenumber[ok], lower[ok], strength[ok]


def _vibration_rotation(c: dict[str, Any]) -> list[_Lines]:
    out = []
    variants = [(1.0, 1.0)]
    if "isotope" in c:
        mass_ratio, number = c["isotope"]
        variants.append((float(np.sqrt(mass_ratio)), number))
    j = np.arange(0, c["j_max"] + 1.0)
    for rho, number in variants:
        for upper, lower, strength in c["bands"]:
            start = _term(c, lower, j, rho)
            for ju, hl in _branches(j, False):
                end = _term(c, upper, ju, rho)
                ok = ju >= 0
                out.append(_line(end[ok], start[ok], strength * number * hl[ok]))
    return out


def _listed(c: dict[str, Any]) -> list[_Lines]:
    table = rows("lines_oh.csv")
    wave, energy, loggf = (np.array([float(r[k]) for r in table]) for k in ("wavelength", "excitation", "loggf"))
    return [(air_to_vacuum(wave), energy * 8065.544, 10**loggf)]


def _red_system(c: dict[str, Any]) -> list[_Lines]:
    """A 2Pi (spin components split by the spin-orbit constant) - X 2Sigma."""
    out = []
    j = np.arange(0.5, c["j_max"] + 1.0)
    for upper, lower, strength in c["bands"]:
        for spin in (-1, 1):  # N = J -/+ 1/2 of the lower state
            start = _term(c["lower"], lower, j + spin * 0.5)
            for component in (1, 2):
                for ju, hl in _branches(j, True):
                    rotation = _pi_rotation(c, upper, ju, component)
                    vibration = _term(c["upper"], upper, np.zeros(1))[0]
                    end = c["te"] + vibration + rotation
                    ok = ju >= (1.5 if component == 1 else 0.5)
                    out.append(_line(end[ok], start[ok], 0.5 * strength * hl[ok]))
    return out


def _pi_rotation(c: dict[str, Any], v: int, j: np.ndarray, component: int) -> np.ndarray:
    """Rotational energy (1/cm) of a 2Pi level: eigenvalues of B N^2 - D N^4 + A L.S.

    In the basis (3/2, 1/2), N^2 is [[z, -sqrt z], [-sqrt z, z + 2]] with z = (J + 1/2)^2 - 1.
    """
    b = c["upper"]["be"] - c["upper"]["ae"] * (v + 0.5)
    d, a = c["upper"]["de"], c["spin_orbit"]
    z = np.maximum((j + 0.5) ** 2 - 1, 0)
    h11 = b * z - d * (z**2 + z) + 0.5 * a
    h22 = b * (z + 2) - d * ((z + 2) ** 2 + z) - 0.5 * a
    h12 = -np.sqrt(z) * (b - d * (2 * z + 2))
    split = np.sqrt(0.25 * (h11 - h22) ** 2 + h12**2)
    return 0.5 * (h11 + h22) + (-split if component == 1 else split)


def _electronic(c: dict[str, Any]) -> list[_Lines]:
    out = []
    j = np.arange(0.0, c["j_max"] + 1.0)
    offset = 8065.544 * c.get("excitation", 0.0)
    for upper, lower, strength in c["bands"]:
        start = _term(c["lower"], lower, j)
        for ju, hl in _branches(j, c.get("q_branch", False)):
            ok = ju >= 0
            end = c["te"] + _term(c["upper"], upper, ju[ok])
            wave, low, s = _line(end, start[ok], strength * hl[ok] * 2)
            out.append((wave, low + offset, s))
    return out
