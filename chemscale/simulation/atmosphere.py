"""The line-forming layer: pressures, ionisation, molecules and continuous opacity.

One layer a star, at a fraction of the effective temperature, is a crude atmosphere, but it keeps
what matters for chemical likeness: neutral and ionised lines, low and high levels, atoms and
molecules answer differently to temperature, gravity and abundance, and so partly imitate each other.

Sources: Saha and Boltzmann equations and the free-free H- opacity as in Gray (2005, *The
Observation and Analysis of Stellar Photospheres*, chapters 1 and 8); molecular equilibrium by the
law of mass action (Gurvich-type partition functions of a rigid rotor and harmonic oscillator).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from chemscale.simulation.atomic import elements

#: Elements that give electrons below 7000 K.
_DONORS = ("H", "C", "Na", "Mg", "Al", "Si", "K", "Ca", "Fe", "Ni")
_HELIUM = 0.085


@dataclass
class Layer:
    """State of the line-forming layer of n stars; every array has shape (n,).

    Pressures are in dyn/cm2; ``abundance[X]`` is the number of nuclei of X per hydrogen nucleus.
    """

    temperature: np.ndarray
    log_gas: np.ndarray
    log_electron: np.ndarray
    abundance: dict[str, np.ndarray]
    microturbulence: np.ndarray

    @property
    def theta(self) -> np.ndarray:
        """5040 / T."""
        return 5040.0 / self.temperature


def microturbulence(teff: np.ndarray, logg: np.ndarray) -> np.ndarray:
    """Microturbulence in km/s: the APOGEE DR13 relation for giants, held flat above logg 3.5."""
    g = np.clip(logg, 0.0, 3.5)
    giant = 10 ** (0.226 - 0.0228 * g + 0.0297 * g**2 - 0.0113 * g**3)
    return np.maximum(giant, 0.8 + 1.5e-4 * np.clip(teff - 5000.0, 0, None))


def layer(teff: np.ndarray, logg: np.ndarray, abundances: Mapping[str, np.ndarray], fraction: float = 0.9) -> Layer:
    """Line-forming layer of n stars.

    Parameters
    ----------
    teff, logg : ndarray, shape (n,)
        Effective temperature (K) and log10 surface gravity (cgs).
    abundances : mapping of str to ndarray, shape (n,)
        [X/H] in dex by symbol; elements left out follow Fe.
    fraction : float
        Temperature of the layer in units of `teff`.

    Notes
    -----
    Gas pressure follows model atmospheres near optical depth 0.3 within about 0.2 dex
    (log P = 4.1 for 4500 K, log g 2.5; 4.9 for the Sun). The electron pressure solves charge
    conservation for ten donors.
    """
    teff, logg = np.asarray(teff, float), np.asarray(logg, float)
    fe = np.asarray(abundances["Fe"], float)
    eps = {
        s: 10 ** (e.solar - 12.0 + (np.asarray(abundances[s], float) if s in abundances else fe))
        for s, e in elements().items()
        if s != "H"
    }
    eps["H"] = np.ones_like(teff)
    temperature = fraction * teff
    log_gas = 4.1 + 0.6 * (logg - 2.5) - 0.3 * fe - 3.0e-4 * (teff - 4500.0)
    result = Layer(temperature, log_gas, log_gas - 4.5, eps, microturbulence(teff, logg))
    nuclei = 10**log_gas / (1.0 + _HELIUM)
    saha = {s: 10 ** _log_saha(s, result.theta, temperature) for s in _DONORS}
    low, high = np.full_like(teff, -6.0), log_gas.copy()
    for _ in range(26):  # bisection in log Pe: monotone, so it cannot fail
        middle = 0.5 * (low + high)
        pe = 10**middle
        charge = sum(nuclei * eps[s] * saha[s] / (saha[s] + pe) for s in _DONORS)
        more = charge > pe
        low, high = np.where(more, middle, low), np.where(more, high, middle)
    result.log_electron = 0.5 * (low + high)
    return result


def _log_saha(symbol: str, theta: np.ndarray, temperature: np.ndarray) -> np.ndarray:
    """log10 of (ions / neutrals) x electron pressure."""
    e = elements()[symbol]
    ratio = e.log_partition(theta, 1) - e.log_partition(theta, 0)
    return 2.5 * np.log10(temperature) - 0.1762 + ratio - theta * e.ionisation


def log_stage_over_partition(symbol: str, stage: int, state: Layer) -> np.ndarray:
    """log10 (fraction of the element in this stage / partition function), shape (n,)."""
    phi = _log_saha(symbol, state.theta, state.temperature) - state.log_electron
    fraction = -np.log10(1 + 10**phi) if stage == 0 else -np.log10(1 + 10 ** (-phi))
    return fraction - elements()[symbol].log_partition(state.theta, stage)


def log_continuum(wavelength: np.ndarray, state: Layer) -> np.ndarray:
    """log10 of the continuous opacity (cm2 per hydrogen nucleus), shape (n, n_wavelength).

    H- bound-free (John 1988, eqs. 4-5) and free-free (Gray 2005, eq. 8.13) and Rayleigh scattering by H.
    """
    w = np.atleast_1d(np.asarray(wavelength, float))[None, :]
    theta, lt = state.theta[:, None], np.log10(state.theta)[:, None]
    pe = 10 ** state.log_electron[:, None]
    inverse = np.maximum(1e4 / w - 1 / 1.6419, 0.0)  # 1/lambda - 1/lambda_0, 1/micron
    coefficients = (152.519, 49.534, -118.858, 92.536, -34.194, 4.982)
    bound = 1e-18 * (w * 1e-4) ** 3 * inverse**1.5 * sum(c * inverse ** (0.5 * k) for k, c in enumerate(coefficients))
    stimulated = 1 - 10 ** (-theta * 12398.42 / w)
    bf = 4.158e-10 * bound * pe * theta**2.5 * 10 ** (0.754 * theta) * stimulated
    lw = np.log10(w)
    f0 = -2.2763 - 1.6850 * lw + 0.76661 * lw**2 - 0.053346 * lw**3
    f1 = 15.2827 - 9.2846 * lw + 1.99381 * lw**2 - 0.142631 * lw**3
    f2 = -197.789 + 190.266 * lw - 67.9775 * lw**2 + 10.6913 * lw**3 - 0.625151 * lw**4
    ff = 1e-26 * pe * 10 ** (f0 + f1 * lt + f2 * lt**2)
    rayleigh = 5.799e-13 / w**4 + 1.422e-6 / w**6 + 2.784 / w**8
    return np.log10(bf + ff + rayleigh)


# ---------------------------------------------------------------------------- molecules


def log_equilibrium(
    dissociation: float, mass: float, rotation: float, vibration: float, weight: float, u: np.ndarray, t: np.ndarray
) -> np.ndarray:
    """log10 of n_A n_B / n_AB (per cm3).

    Parameters
    ----------
    dissociation : float
        eV.
    mass : float
        Reduced mass, atomic mass units.
    rotation, vibration : float
        B and omega of the ground state, 1/cm.
    weight : float
        Electronic statistical weight over the symmetry number.
    u : ndarray
        log10 of the product of the atoms' partition functions.
    t : ndarray
        Temperature, K.
    """
    return (
        20.2735
        + 1.5 * np.log10(mass * t)
        - 5040.0 / t * dissociation
        + u
        - np.log10(partition(rotation, vibration, weight, t))
    )


def partition(rotation: float, vibration: float, weight: float, t: np.ndarray) -> np.ndarray:
    """Partition function of a diatomic molecule (rigid rotor, harmonic oscillator)."""
    kt = 0.6950348 * t
    return weight * kt / rotation / (1 - np.exp(-vibration / kt))


#: symbol: (atoms, dissociation eV, reduced mass, B, omega, electronic weight / symmetry)
MOLECULES: dict[str, tuple[tuple[str, str], float, float, float, float, float]] = {
    "CO": (("C", "O"), 11.09, 6.856, 1.931, 2169.8, 1.0),
    "OH": (("O", "H"), 4.392, 0.948, 18.91, 3737.8, 4.0),
    "CN": (("C", "N"), 7.72, 6.462, 1.900, 2068.6, 2.0),
    "CH": (("C", "H"), 3.47, 0.930, 14.46, 2858.5, 4.0),
    "C2": (("C", "C"), 6.30, 6.000, 1.820, 1854.7, 3.0),
    "MgH": (("Mg", "H"), 1.27, 0.967, 5.826, 1495.2, 2.0),
    "N2": (("N", "N"), 9.76, 7.002, 1.998, 2358.6, 0.5),
}


def molecules(state: Layer) -> dict[str, np.ndarray]:
    """Molecules per hydrogen nucleus, shape (n,) each: CO, OH, CN, CH, C2, MgH.

    Carbon and oxygen share CO by the exact quadratic; the others are traces added by two
    sweeps of the mass-action law.
    """
    t = state.temperature
    n_h = 10**state.log_gas / (1.0 + _HELIUM) / (1.380649e-16 * t)
    theta = state.theta

    def log_u(symbol: str) -> np.ndarray:
        return elements()[symbol].log_partition(theta, 0)

    k = {
        name: 10 ** log_equilibrium(d, m, b, w, g, log_u(pair[0]) + log_u(pair[1]), t)
        for name, (pair, d, m, b, w, g) in MOLECULES.items()
    }
    total = {s: n_h * state.abundance[s] for s in ("C", "N", "O")}
    # magnesium is mostly ionised in warm stars; only neutral atoms join MgH
    neutral_mg = 10 ** (log_stage_over_partition("Mg", 0, state) + log_u("Mg"))
    oh, ch, cn = n_h / k["OH"], n_h / k["CH"], np.zeros_like(t)
    n = total["N"].copy()
    c = o = total["C"]
    for _ in range(3):
        a_c, a_o = 1 + ch + cn, 1 + oh  # bound in traces, per free atom
        # free carbon x solves x a_c + x o(x)/K = C with o = O / (a_o + x/K)
        qa, qb = a_c / k["CO"], a_c * a_o + (total["O"] - total["C"]) / k["CO"]
        qc = -total["C"] * a_o
        root = np.sqrt(qb**2 - 4 * qa * qc)
        c = np.where(qb > 0, -2 * qc / (qb + root), (root - qb) / (2 * qa))
        o = total["O"] / (a_o + c / k["CO"])
        free = 1 + c / k["CN"]
        n = 2 * total["N"] / (free + np.sqrt(free**2 + 8 * total["N"] / k["N2"]))
        cn = n / k["CN"]
    return {
        "CO": c * o / k["CO"] / n_h,
        "OH": o / k["OH"],
        "CN": c * n / k["CN"] / n_h,
        "CH": c / k["CH"],
        "C2": c * c / k["C2"] / n_h,
        "MgH": state.abundance["Mg"] * neutral_mg * n_h / k["MgH"],
    }
