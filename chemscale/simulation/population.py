"""The stars of a simulated survey: parameters, abundances, kinematics, sky, visits.

``disc`` draws giants of a thin and a thick disc the way a bright infrared survey sees them: red
giant branch and red clump along plausible isochrones, [alpha/Fe] bimodal at given [Fe/H], 26
species that follow [Fe/H], [alpha/Fe], an age-like neutron-capture factor and two birth-place
factors (``data/chemistry.csv``), carbon and nitrogen changed by dredge-up according to mass and
gravity. ``uniform`` fills the range of the labels evenly. ``metal-poor`` and ``carbon-rich`` are the
catalogues A and B of the variational autoencoder: Teff U(4000, 7000), log g U(2.5, 5), [Fe/H]
N(-1.23, 0.57), [alpha/Fe] N(0.22, 0.15), [C/Fe] N(0.2, 0.4) or N(0.62, 0.75), correlations
rho(Fe, alpha) = -0.3 and rho(Fe, C) = -0.17, S/N N(50, 10). ``halo`` is the paper's own catalogue
(:mod:`chemscale.simulation.halo`): its joint density of abundances, Teff U(3000, 7000), log g U(2.5, 6), errors of
2 % on both. An emulator narrows Teff and log g to its own range.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from chemscale.schema import APOGEE_ELEMENTS
from chemscale.simulation.atomic import rows
from chemscale.simulation.halo import halo

POPULATIONS = ("disc", "uniform", "metal-poor", "carbon-rich", "halo")
#: Catalogues of the variational autoencoder: S/N N(50, 10), low resolution only.
CATALOGUES = ("metal-poor", "carbon-rich", "halo")
#: Stars that share a plate, and so a random stream.
BLOCK = 256
#: Cluster members that share a random stream: few, so that a shard with one member stays cheap.
MEMBER_BLOCK = 16
_INDEX = {e: i for i, e in enumerate(APOGEE_ELEMENTS)}
_ALPHA = ("O", "Mg", "Si", "S", "Ca", "Ti", "TiII")
#: Range of the labels a star may have on each grid: teff, logg, fe_h.
RANGES = {
    "hband": ((3955.0, 5045.0), (1.41, 3.09), (-1.28, 0.43)),
    "lowres": ((4002.0, 6998.0), (2.502, 4.998), (-2.58, 0.39)),
}


@dataclass
class SimulatedStars:
    """Truth of n stars. Every array has n rows.

    ``abundance`` is [X/H] for the 26 species of :data:`chemscale.schema.APOGEE_ELEMENTS`, shape (n, 26).
    Velocities in km/s, extinction A_K in mag, sky in degrees; ``barycentric`` is the component of
    the Earth's velocity towards the star averaged over its visits.
    """

    star_id: list[str]
    cluster: np.ndarray
    probability: np.ndarray
    teff: np.ndarray
    logg: np.ndarray
    fe_h: np.ndarray
    alpha_fe: np.ndarray
    abundance: np.ndarray
    mass: np.ndarray
    velocity: np.ndarray
    extinction: np.ndarray
    ra: np.ndarray
    dec: np.ndarray
    snr: np.ndarray
    fibre: np.ndarray
    barycentric: np.ndarray
    ism_velocity: np.ndarray
    visits: list[str]
    n_visits: np.ndarray
    plate: np.ndarray
    field: list[str]

    def __len__(self) -> int:
        return len(self.star_id)

    def fe_relative(self, element: str) -> np.ndarray:
        """[X/Fe], shape (n,)."""
        return self.abundance[:, _INDEX[element]] - self.fe_h


@cache
def chemistry() -> dict[str, np.ndarray]:
    """Columns of ``data/chemistry.csv`` in the order of the species."""
    table = {r["species"]: r for r in rows("chemistry.csv")}
    names = ("alpha", "metal", "sprocess", "f1", "f2", "scatter", "error", "trend")
    return {n: np.array([float(table[e][n] or "nan") for e in APOGEE_ELEMENTS]) for n in names}


def stream(seed: int, *key: int) -> np.random.Generator:
    """Random stream of one purpose and block: independent of every other key."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


# -------------------------------------------------------------------------------- chemistry


def birth_abundances(rng: np.random.Generator, fe_h: np.ndarray, alpha: np.ndarray, young: np.ndarray) -> np.ndarray:
    """[X/H] at birth, shape (n, 26), for given [Fe/H], [alpha/Fe] and youth (-1 old ... 1 young)."""
    c = chemistry()
    n = fe_h.size
    h1, h2 = rng.standard_normal((2, n, 1))
    s = (young + 0.4 * rng.standard_normal(n))[:, None]
    x_fe = (
        alpha[:, None] * c["alpha"] + fe_h[:, None] * c["metal"] + s * c["sprocess"] + h1 * c["f1"] + h2 * c["f2"]
        + rng.standard_normal((n, len(APOGEE_ELEMENTS))) * c["scatter"]
    )  # fmt: skip
    x_fe[:, _INDEX["Fe"]] = 0.0
    _tie(x_fe)
    return fe_h[:, None] + x_fe


def _tie(x: np.ndarray) -> None:
    """Two measures of one element agree: C from molecules and from C I, Ti from both ions."""
    x[:, _INDEX["CI"]] = x[:, _INDEX["C"]]
    x[:, _INDEX["TiII"]] = x[:, _INDEX["Ti"]]


def dredge_up(abundance: np.ndarray, logg: np.ndarray, mass: np.ndarray, fe_h: np.ndarray) -> None:
    """Change surface C and N in place: first dredge-up by mass, extra mixing above the bump.

    More massive giants mix more (e.g. Masseron & Gilmore 2015); metal-poor upper giants mix again.
    """
    done = 1.0 / (1.0 + np.exp((logg - 3.25) / 0.06))
    deep = 1.0 / (1.0 + np.exp((logg - 2.2) / 0.12)) * np.clip(-fe_h, 0.0, 1.0)
    excess = np.clip(mass - 1.0, 0.0, 1.4)
    carbon = done * (-0.06 - 0.14 * excess) - 0.18 * deep
    nitrogen = done * (0.10 + 0.28 * excess) + 0.20 * deep
    abundance[:, _INDEX["C"]] += carbon
    abundance[:, _INDEX["CI"]] += carbon
    abundance[:, _INDEX["N"]] += nitrogen


# --------------------------------------------------------------------------- parameters


def giant_branch(
    rng: np.random.Generator, fe_h: np.ndarray, mass: np.ndarray, scatter: float
) -> tuple[np.ndarray, np.ndarray]:
    """(Teff, logg) of giants: a quarter in the red clump, the others up the branch."""
    n = fe_h.size
    clump = rng.random(n) < 0.25
    branch = 1.42 + 1.66 * rng.random(n) ** 0.8
    logg = np.where(clump, 2.42 + 0.10 * (mass - 1.2) + 0.07 * rng.standard_normal(n), branch)
    g = branch - 2.5
    teff_branch = 4560 + 430 * g - 40 * g**2 - 260 * fe_h - 30 * fe_h**2 + 90 * (mass - 1.1)
    teff_clump = 4760 - 230 * fe_h + 80 * (mass - 1.2)
    teff = np.where(clump, teff_clump, teff_branch) + scatter * rng.standard_normal(n)
    return teff, logg


def _dwarfs(rng: np.random.Generator, fe_h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    teff = rng.uniform(4300, 6800, fe_h.size)
    main = 4.62 - 0.22 * np.clip((teff - 4600) / 1000, 0, None) ** 1.3
    evolved = rng.random(fe_h.size) < 0.3
    logg = main - np.where(evolved, 0.5 * rng.random(fe_h.size), 0) + 0.04 * rng.standard_normal(fe_h.size)
    return teff, logg


def _inside(name: str, values: np.ndarray, grid: str) -> np.ndarray:
    low, high = RANGES[grid][("teff", "logg", "fe_h").index(name)]
    return np.clip(values, low, high)


def draw_stars(
    rng: np.random.Generator, n: int, population: str, grid: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(teff, logg, fe_h, alpha_fe, abundance, mass) of n field stars."""
    if population == "halo":
        fe_h, carbon, alpha = halo().draw(rng, n)
        return _with_abundances(rng.uniform(3000, 7000, n), rng.uniform(2.5, 6.0, n), fe_h, alpha, carbon)
    if population in ("metal-poor", "carbon-rich"):
        return _catalogue(
            rng, n, 0.2 if population == "metal-poor" else 0.62, 0.4 if population == "metal-poor" else 0.75
        )
    if population == "uniform":
        (t0, t1), (g0, g1), (f0, f1) = RANGES[grid]
        teff, logg, fe_h = rng.uniform(t0, t1, n), rng.uniform(g0, g1, n), rng.uniform(f0, f1, n)
        alpha = rng.uniform(-0.15, 0.45, n)
        abundance = fe_h[:, None] + rng.uniform(-0.15, 0.15, (n, len(APOGEE_ELEMENTS)))
        abundance[:, _INDEX["Fe"]] = fe_h
        for e in _ALPHA:
            abundance[:, _INDEX[e]] = fe_h + np.clip(alpha, -0.09, 0.39)
        abundance[:, _INDEX["C"]] = fe_h + rng.uniform(-0.42, 0.14, n)
        _tie(abundance)
        return teff, logg, fe_h, np.clip(alpha, -0.09, 0.39), abundance, np.ones(n)
    thick = rng.random(n) < 0.24
    fe_h = np.where(thick, rng.normal(-0.37, 0.20, n), 0.0 - rng.gamma(2.0, 0.095, n) + rng.gamma(1.5, 0.095, n))
    fe_h = _inside("fe_h", fe_h, grid)
    thin_track = 0.02 - 0.10 * fe_h
    thick_track = np.clip(0.22 - 0.14 * (fe_h + 0.4), 0.06, 0.30)
    alpha = np.where(thick, thick_track, thin_track) + 0.025 * rng.standard_normal(n)
    young = np.where(thick, -0.9, 0.3) + 0.35 * rng.standard_normal(n)
    mass = np.where(thick, 0.95, 1.15) + np.abs(rng.normal(0, np.where(thick, 0.06, 0.40), n))
    abundance = birth_abundances(rng, fe_h, alpha, young)
    if grid == "lowres":
        dwarf = rng.random(n) < 0.6
        giants, dwarfs = giant_branch(rng, fe_h, mass, 30.0), _dwarfs(rng, fe_h)
        teff, logg = (np.where(dwarf, d, g) for d, g in zip(dwarfs, giants, strict=True))
    else:
        teff, logg = giant_branch(rng, fe_h, mass, 30.0)
    teff, logg = _inside("teff", teff, grid), _inside("logg", logg, grid)
    dredge_up(abundance, logg, mass, fe_h)
    return teff, logg, fe_h, alpha, abundance, mass


def _catalogue(
    rng: np.random.Generator, n: int, carbon_mean: float, carbon_sd: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Catalogues A and B, truncated to the emulator's range by drawing again."""
    low, high = np.array([-2.59, -0.245, -1.19]), np.array([0.39, 0.695, 2.39])
    sd = np.array([0.57, 0.15, carbon_sd])
    rho = np.array([[1, -0.3, -0.17], [-0.3, 1, 0.0], [-0.17, 0.0, 1]])
    factor = np.linalg.cholesky(rho * sd[:, None] * sd)
    draws = np.array([-1.23, 0.22, carbon_mean]) + rng.standard_normal((8 * n + 64, 3)) @ factor.T
    fe_h, alpha, carbon = draws[((draws > low) & (draws < high)).all(1)][:n].T
    return _with_abundances(rng.uniform(4002, 6998, n), rng.uniform(2.502, 4.998, n), fe_h, alpha, carbon)


def _with_abundances(
    teff: np.ndarray, logg: np.ndarray, fe_h: np.ndarray, alpha: np.ndarray, carbon: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Parameters with [X/H] of every species: alpha elements together, carbon alone, the others with iron."""
    abundance = np.repeat(fe_h[:, None], len(APOGEE_ELEMENTS), axis=1)
    for e in _ALPHA:
        abundance[:, _INDEX[e]] += alpha
    abundance[:, _INDEX["C"]] += carbon
    _tie(abundance)
    return teff, logg, fe_h, alpha, abundance, np.ones(fe_h.size)


# --------------------------------------------------------------------- sky and observation

_GALACTIC = np.array(
    [
        [-0.0548755604, -0.8734370902, -0.4838350155],
        [0.4941094279, -0.4448296300, 0.7469822445],
        [-0.8676661490, -0.1980763734, 0.4559837762],
    ]
)


def to_equatorial(glon: np.ndarray, glat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Right ascension and declination (deg) of galactic coordinates (deg)."""
    el, b = np.radians(glon), np.radians(glat)
    v = np.stack([np.cos(b) * np.cos(el), np.cos(b) * np.sin(el), np.sin(b)])
    x, y, z = _GALACTIC.T @ v
    return np.degrees(np.arctan2(y, x)) % 360.0, np.degrees(np.arcsin(np.clip(z, -1, 1)))


def identify(ra: np.ndarray, dec: np.ndarray, number: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Positions (deg) moved by at most 25' so that ids 2MHHMMSSss+DDMMSSs are unique, and the ids.

    The last four digits of both coordinates carry the star's number (up to 10^8 stars).
    """
    code = (np.asarray(number, np.int64) * 61803399) % 100_000_000
    ra_unit = (np.floor(ra * 24000.0).astype(np.int64) // 10_000 * 10_000 + code // 10_000) % 8_640_000
    south = dec < 0
    dec_unit = np.floor(np.abs(dec) * 36000.0).astype(np.int64) // 10_000 * 10_000 + code % 10_000
    ids = [
        f"2M{a // 360000:02d}{a // 6000 % 60:02d}{a % 6000:04d}{sign}{d // 36000:02d}{d // 600 % 60:02d}{d % 600:03d}"
        for a, d, sign in zip(ra_unit.tolist(), dec_unit.tolist(), np.where(south, "-", "+").tolist(), strict=True)
    ]
    return ra_unit / 24000.0, np.where(south, -1, 1) * dec_unit / 36000.0, ids


@dataclass(frozen=True)
class Plate:
    """A field of the sky and the nights on which it was observed."""

    number: int
    glon: float
    glat: float
    nights: tuple[int, ...]
    #: mean and scatter of the extinction and of the interstellar gas's velocity along this line of sight
    extinction: float
    gas: float
    season: float

    @property
    def name(self) -> str:
        """Galactic longitude and latitude, as a release names its fields."""
        return f"{round(self.glon):03d}{round(self.glat):+03d}"


def draw_plate(rng: np.random.Generator, number: int) -> Plate:
    """A plate at a random place of the disc."""
    glon, glat = rng.uniform(0, 360), float(np.clip(rng.laplace(0, 12.0), -75, 75))
    start = int(rng.integers(55800, 58300))
    nights = tuple(int(x) for x in start + np.cumsum(rng.integers(3, 40, 6)))
    extinction = 0.28 * np.exp(-abs(glat) / 9.0) * rng.lognormal(0, 0.5) + 0.015
    return Plate(
        number, glon, glat, nights, float(extinction), float(rng.normal(0, 12)), float(rng.uniform(0, 2 * np.pi))
    )


def observe(rng: np.random.Generator, plate: Plate, n: int, median_snr: float, together: bool) -> dict[str, Any]:
    """Visits, fibres, S/N and the Earth's velocity for n stars of a plate.

    ``together``: every star has the same nights (a cohort); else each star has some of them.
    """
    n_nights = len(plate.nights)
    fibre = rng.permutation(300)[:n] + 1 if n <= 300 else rng.integers(1, 301, n)
    count = np.full(n, rng.integers(2, 5)) if together else rng.choice([1, 2, 3, 3, 3, 4, 6], n)
    first = np.zeros(n, int) if together else rng.integers(0, n_nights - count + 1)
    visits, earth = [], np.empty(n)
    orbit = 29.0 * np.sin(2 * np.pi * np.array(plate.nights) / 365.25 + plate.season)
    for i in range(n):
        nights = slice(first[i], first[i] + count[i])
        visits.append(",".join(f"r12-{plate.number}-{m}-{fibre[i]}" for m in plate.nights[nights]))
        earth[i] = orbit[nights].mean()
    snr = median_snr * np.exp(0.727 * rng.standard_normal(n))
    # surveys observe until a target is met: the faint end is thinner than a log-normal's
    snr = np.clip(np.where(snr < 45.0, 45.0**2 / snr, snr), 45.0, 2500.0)
    return {"visits": visits, "n_visits": count, "fibre": fibre, "barycentric": earth, "snr": snr}
