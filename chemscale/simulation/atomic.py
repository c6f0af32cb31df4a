"""Atomic data of the built-in spectra: elements, line lists, air and vacuum wavelengths."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np

LIGHT_KM_S = 299792.458


def rows(name: str) -> list[dict[str, str]]:
    """Rows of a CSV file in ``data/``; lines starting with # are comments."""
    text = resources.files(__package__).joinpath("data", name).read_text(encoding="utf-8")
    return list(csv.DictReader(line for line in text.splitlines() if line and not line.startswith("#")))


@dataclass(frozen=True)
class Element:
    """One element: solar abundance (log eps), first ionisation energy (eV), partition functions."""

    symbol: str
    number: int
    solar: float
    ionisation: float
    neutral: tuple[float, float]
    ion: tuple[float, float]

    def log_partition(self, theta: np.ndarray, stage: int) -> np.ndarray:
        """log10 U at ``theta`` = 5040/T, linear between the tabulated theta = 1.0 and 0.5."""
        cool, hot = self.neutral if stage == 0 else self.ion
        return cool + (hot - cool) * np.clip((1.0 - theta) / 0.5, -0.8, 1.2)


@cache
def elements() -> dict[str, Element]:
    """Element data by symbol."""
    return {
        r["symbol"]: Element(
            r["symbol"],
            int(r["z"]),
            float(r["solar"]),
            float(r["ionisation"]),
            (float(r["u0_cool"]), float(r["u0_hot"])),
            (float(r["u1_cool"]), float(r["u1_hot"])),
        )
        for r in rows("elements.csv")
    }


def air_to_vacuum(air: np.ndarray) -> np.ndarray:
    """Vacuum wavelength (Angstrom) of an air wavelength (Ciddor 1996, two-term form)."""
    air = np.asarray(air, float)
    vacuum = air
    for _ in range(3):
        vacuum = air * refraction(vacuum)
    return vacuum


def vacuum_to_air(vacuum: np.ndarray) -> np.ndarray:
    """Air wavelength (Angstrom) of a vacuum wavelength."""
    vacuum = np.asarray(vacuum, float)
    return vacuum / refraction(vacuum)


def refraction(vacuum: np.ndarray) -> np.ndarray:
    """Refractive index of standard air at a vacuum wavelength (Angstrom)."""
    s2 = (1e4 / np.asarray(vacuum, float)) ** 2
    return 1.0 + 0.05792105 / (238.0185 - s2) + 0.00167917 / (57.362 - s2)


@dataclass(frozen=True)
class AtomicLines:
    """A line list: element symbols, ionisation stages (0, 1), vacuum wavelengths, levels, log gf."""

    element: list[str]
    stage: np.ndarray
    wavelength: np.ndarray
    excitation: np.ndarray
    loggf: np.ndarray


@cache
def atomic_lines(name: str) -> AtomicLines:
    """Lines of ``data/<name>.csv`` (``lines_hband`` or ``lines_optical``), sorted by wavelength."""
    table = sorted(rows(f"{name}.csv"), key=lambda r: float(r["wavelength"]))
    species = [r["species"].split() for r in table]
    return AtomicLines(
        [s[0] for s in species],
        np.array([0 if s[1] == "I" else 1 for s in species]),
        air_to_vacuum(np.array([float(r["wavelength"]) for r in table])),
        np.array([float(r["excitation"]) for r in table]),
        np.array([float(r["loggf"]) for r in table]),
    )


def unresolved_lines() -> AtomicLines:
    """A stand-in for the thousands of weak metal lines that only veil a low-resolution spectrum.

    Not real lines: places, levels and strengths are drawn once, denser in the blue as the lines of
    the iron group are.
    """
    rng = np.random.default_rng(5040)
    n = 2600
    edges = 1.0 / (3900.0**-2 - rng.random(n) * (3900.0**-2 - 10500.0**-2))
    wave = np.sort(np.sqrt(edges))
    excitation = rng.uniform(0.5, 5.0, n)
    element = rng.choice(["Fe", "Fe", "Fe", "Fe", "Ti", "Cr", "Ni"], n).tolist()
    scale = {"Fe": -3.1, "Ti": -1.8, "Cr": -2.0, "Ni": -2.3}
    loggf = np.array([scale[e] for e in element]) + 0.85 * (excitation - 2.0) - rng.exponential(0.45, n) + 0.4
    return AtomicLines(element, np.zeros(n, int), wave, excitation, loggf)


def hydrogen_lines(low: float, high: float) -> AtomicLines:
    """Hydrogen lines with vacuum wavelengths between ``low`` and ``high`` Angstrom.

    Wavelengths from the Rydberg formula, oscillator strengths from Kramers' formula.
    """
    wave, excitation, loggf = [], [], []
    rydberg = 109677.58
    for n in range(2, 5):
        for m in range(n + 1, 25):
            w = 1e8 / (rydberg * (1 / n**2 - 1 / m**2))
            if low <= w <= high:
                f = 32 / (3 * np.pi * np.sqrt(3)) * n**-5 * m**-3 * (n**-2 - m**-2) ** -3
                wave.append(w)
                excitation.append(13.598 * (1 - 1 / n**2))
                loggf.append(np.log10(2 * n**2 * f))
    n_lines = len(wave)
    return AtomicLines(["H"] * n_lines, np.zeros(n_lines, int), np.array(wave), np.array(excitation), np.array(loggf))
