"""Open clusters: each with its own birth abundances, members along one isochrone."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np

from chemscale.schema import APOGEE_ELEMENTS
from chemscale.simulation.population import (
    BLOCK,
    CATALOGUES,
    RANGES,
    SimulatedStars,
    birth_abundances,
    draw_plate,
    draw_stars,
    dredge_up,
    giant_branch,
    identify,
    observe,
    stream,
    to_equatorial,
)

#: Members of 22 clusters: a few rich ones, many with a handful (185 in all).
_SIZES = (32, 26, 21, 16, 12, 10, 9, 8, 7, 6, 5, 5, 4, 4, 4, 3, 3, 2, 2, 2, 2, 2)
_MAX_STARS = 100_000_000


def cluster_sizes(n_clusters: int) -> list[int]:
    """Members of each cluster; the same shape of distribution for any number of clusters."""
    at = (np.arange(n_clusters) + 0.5) / max(n_clusters, 1) * len(_SIZES) - 0.5
    return [max(2, round(float(s))) for s in np.interp(at, np.arange(len(_SIZES)), _SIZES)]


def cluster_name(index: int) -> str:
    """Name of a simulated cluster, numbered from 1."""
    return f"SIM {index + 1:02d}"


def draw_field(seed: int, block: int, population: str, grid: str, n: int = BLOCK) -> SimulatedStars:
    """The field stars of one block (one plate)."""
    rng = stream(seed, 0, block)
    plate = draw_plate(rng, 4000 + block)
    teff, logg, fe_h, alpha, abundance, mass = draw_stars(rng, n, population, grid)
    ra, dec = _place(rng, plate.glon, plate.glat, n, 1.4)
    ra, dec, ids = identify(ra, dec, np.arange(n) + block * BLOCK)
    extinction = np.clip(plate.extinction * rng.gamma(4.0, 0.25, n), 0.001, 2.5)
    thick = alpha > 0.12
    rotation = 25.0 * np.sin(2 * np.radians(plate.glon)) * np.cos(np.radians(plate.glat))
    velocity = rotation + np.where(thick, 60.0, 34.0) * rng.standard_normal(n)
    catalogue = population in CATALOGUES
    seen = observe(rng, plate, n, 157.0, together=False)
    if catalogue:
        seen["snr"] = np.clip(rng.normal(50.0, 10.0, n), 10.0, None)
    elif grid == "lowres":
        seen["snr"] = np.clip(60.0 * np.exp(0.6 * rng.standard_normal(n)), 8.0, 500.0)
    return SimulatedStars(
        star_id=ids,
        cluster=np.full(n, "", "U16"),
        probability=np.full(n, np.nan),
        teff=teff, logg=logg, fe_h=fe_h, alpha_fe=alpha, abundance=abundance, mass=mass,
        velocity=velocity, extinction=extinction, ra=ra, dec=dec,
        ism_velocity=plate.gas + 6.0 * rng.standard_normal(n),
        plate=np.full(n, plate.number),
        field=[plate.name] * n,
        **seen,
    )  # fmt: skip


def draw_cluster(seed: int, index: int, n: int, first: int, grid: str) -> SimulatedStars:
    """The members of one cluster.

    Parameters
    ----------
    first : int
        Number of the first member among all members; makes identifiers unique.
    """
    rng = stream(seed, 1, index)
    plate = draw_plate(rng, 8000 + 2 * index)
    other = draw_plate(rng, 8001 + 2 * index)
    fe = float(np.clip(rng.normal(0.0, 0.16), -0.4, 0.35))
    alpha = 0.02 - 0.10 * fe + 0.02 * rng.standard_normal()
    age = float(np.exp(rng.uniform(np.log(0.6), np.log(7.0))))
    mass = np.full(n, np.clip(1.0 + 1.1 * np.log(8.0 / age) / np.log(8.0 / 0.6), 1.0, 2.2))
    one = birth_abundances(rng, np.array([fe]), np.array([alpha]), np.array([np.clip(1.2 - 0.35 * age, -1, 1)]))
    # members differ by 0.01-0.02 dex: partly together (one metallicity), partly element by element
    abundance = one + 0.007 * rng.standard_normal((n, 1)) + 0.009 * rng.standard_normal((n, len(APOGEE_ELEMENTS)))
    for twin, of in (("CI", "C"), ("TiII", "Ti")):
        abundance[:, APOGEE_ELEMENTS.index(twin)] = abundance[:, APOGEE_ELEMENTS.index(of)]
    fe_h = abundance[:, APOGEE_ELEMENTS.index("Fe")].copy()
    teff, logg = _members_seen(rng, fe_h, mass, grid)
    dredge_up(abundance, logg, mass, fe_h)
    ra, dec = _place(rng, plate.glon, plate.glat, n, 0.2)
    ra, dec, ids = identify(ra, dec, _MAX_STARS - 1 - first - np.arange(n))
    screen = float(np.clip(0.10 * rng.lognormal(0, 0.8), 0.005, 0.8))
    extinction = np.clip(screen + 0.012 * rng.standard_normal(n), 0.001, None)
    # most members share a cohort; about a quarter were observed on other nights
    apart = rng.random(n) < 0.25
    seen, away = observe(rng, plate, n, 191.0, True), observe(rng, other, n, 191.0, True)
    merged: dict[str, Any] = {
        k: [b if a else s for s, b, a in zip(seen[k], away[k], apart, strict=True)]
        if isinstance(seen[k], list)
        else np.where(apart, away[k], seen[k])
        for k in seen
    }
    return SimulatedStars(
        star_id=ids,
        cluster=np.full(n, cluster_name(index), "U16"),
        probability=1.0 - 0.18 * rng.random(n) ** 2,
        teff=teff, logg=logg, fe_h=fe_h, alpha_fe=np.full(n, alpha), abundance=abundance, mass=mass,
        velocity=rng.normal(0, 36.0) + 0.6 * rng.standard_normal(n),
        extinction=extinction, ra=ra, dec=dec,
        ism_velocity=plate.gas + 3.0 * rng.standard_normal(n),
        plate=np.where(apart, other.number, plate.number),
        field=[plate.name] * n,
        **merged,
    )  # fmt: skip


def _members_seen(
    rng: np.random.Generator, fe_h: np.ndarray, mass: np.ndarray, grid: str
) -> tuple[np.ndarray, np.ndarray]:
    """(Teff, logg) of giants that a selection 4000 < Teff < 5000, 1.5 < logg < 3 keeps, errors included."""
    teff, logg = np.full(fe_h.size, np.nan), np.full(fe_h.size, np.nan)
    for _ in range(12):
        t, g = giant_branch(rng, fe_h, mass, 15.0)
        take_it = np.isnan(teff) & (t > 4060) & (t < 4930) & (g > 1.57) & (g < 2.93)
        teff[take_it], logg[take_it] = t[take_it], g[take_it]
    left = np.isnan(teff)
    teff[left], logg[left] = np.clip(t[left], 4060, 4930), np.clip(g[left], 1.57, 2.93)
    return np.clip(teff, *RANGES[grid][0]), np.clip(logg, *RANGES[grid][1])


def draw_members(seed: int, n_clusters: int, grid: str) -> SimulatedStars | None:
    """All members of all clusters, cluster by cluster; None without clusters."""
    parts, first = [], 0
    for index, size in enumerate(cluster_sizes(n_clusters)):
        parts.append(draw_cluster(seed, index, size, first, grid))
        first += size
    return concatenate(parts) if parts else None


def concatenate(parts: list[SimulatedStars]) -> SimulatedStars:
    """Stars of several blocks in order."""
    values: dict[str, Any] = {}
    for name in SimulatedStars.__dataclass_fields__:
        columns = [getattr(p, name) for p in parts]
        values[name] = list(chain.from_iterable(columns)) if isinstance(columns[0], list) else np.concatenate(columns)
    return SimulatedStars(**values)


def take(stars: SimulatedStars, index: np.ndarray) -> SimulatedStars:
    """Rows of `stars`."""
    values: dict[str, Any] = {}
    for name in SimulatedStars.__dataclass_fields__:
        column = getattr(stars, name)
        values[name] = [column[i] for i in index.tolist()] if isinstance(column, list) else column[index]
    return SimulatedStars(**values)


def _place(rng: np.random.Generator, glon: float, glat: float, n: int, radius: float) -> tuple[np.ndarray, np.ndarray]:
    r, angle = radius * np.sqrt(rng.random(n)), rng.uniform(0, 2 * np.pi, n)
    b = np.clip(glat + r * np.sin(angle), -89, 89)
    return to_equatorial(glon + r * np.cos(angle) / np.cos(np.radians(b)), b)
