"""Surveys of many kinds as NPZ files, to learn whether a metric holds where it was not developed.

The generator shares nothing with :mod:`chemscale.simulation` but the emulator file: populations, chemistry,
clusters, instrument, sky and label errors are its own, and each world has another mixture of them. The files carry the
contract's names, so ``chemscale ingest table FILE.npz`` reads them.

    python benchmarks/worlds.py --emulator hband_emulator.npz --world isochrone --seed 1 --out survey.npz
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np

LABELS = ("teff", "logg", "fe_h", "c_fe", "n_fe", "o_fe", "mg_fe", "al_fe", "si_fe", "ca_fe", "ni_fe")
ELEMENTS = ("Fe", "C", "N", "O", "Mg", "Al", "Si", "Ca", "Ni")
CHIPS = ((250, 3270), (3590, 6075), (6350, 8330))
KM_S = 4.1416  # of one pixel
#: Arrays of a survey that no survey has: the interstellar bands, and which listed members are field stars.
TRUTH = ("bands", "stranger")


@dataclass(frozen=True)
class World:
    """One kind of survey. Amplitudes are in units of the continuum unless said otherwise."""

    isochrone: bool = True  # Teff follows (log g, [Fe/H]); otherwise the three are independent
    clusters: int = 22
    members: int = 185
    scatter: float = 0.012  # of a species within a cluster, dex
    snr: tuple[float, float] = (150.0, 0.5)  # median and scatter of ln S/N; clipped to 50..300 below
    line_spread: float = 0.10  # extra variance of a line with fibre, pixel^2
    telluric: float = 0.03  # residual of the strongest telluric lines
    band: float = 0.06  # depth of the strongest interstellar band at A_K = 1
    tilt: float = 0.006
    persistence: float = 0.0  # share of the stars with light left over on the first chip
    understated: float = 1.0  # reported error / true error
    dredge: float = 0.15  # change of C and N along the giant branch, dex
    label_error: float = 1.0  # 1: 40 K, 0.08, 0.02, 0.02 and 0.03 dex for a species
    bad: float = 0.02  # share of pixels without information
    wrong: float = 0.0  # share of listed members that are field stars
    binaries: int = 0  # wide binaries: "clusters" of two, named Binary 000, ...


WORLDS = {
    "isochrone": World(),
    "independent": World(isochrone=False),
    "clean": World(line_spread=0.02, telluric=0.005, band=0.0, tilt=0.001, dredge=0.0),
    "noisy": World(snr=(80.0, 0.4), understated=0.7, clusters=18, members=150, label_error=1.5),
    "persistent": World(persistence=0.15, isochrone=False, telluric=0.05, clusters=25, members=200, scatter=0.02),
    "few": World(clusters=8, members=100),
    "many": World(clusters=40, members=320),
    "wrong": World(wrong=0.1),
    "scattered": World(scatter=0.03),
    "banded": World(band=0.25, line_spread=0.4),
    "smeared": World(line_spread=0.5, isochrone=False),
    "tilted": World(tilt=0.012, line_spread=0.2, clusters=15, members=120, scatter=0.015, dredge=0.3),
}


def emulate(path: str, labels: np.ndarray) -> np.ndarray:
    """Noise-free flux (n, P) float32 of labels (n, 11)."""
    with np.load(path, allow_pickle=False) as file:
        e = {k: file[k] for k in file.files}
    x = 2 * (labels - e["label_lo"]) / (e["label_hi"] - e["label_lo"]) - 1
    x[:, 0] = (5040 / labels[:, 0] - 5040 / 4460.0) / 0.14
    scale = e["lengthscale"]
    train = e["train_x"] / scale
    out = np.empty((len(x), len(e["wave"])), np.float32)
    for start in range(0, len(x), 1000):
        part = x[start : start + 1000]
        terms = [np.ones(len(part))]
        for k in range(1, int(e["deg"]) + 1):
            terms += [np.prod(part[:, c], axis=1) for c in combinations_with_replacement(range(part.shape[1]), k)]
        u = part / scale
        r2 = (u**2).sum(1)[:, None] + (train**2).sum(1) - 2 * u @ train.T
        r = np.sqrt(5 * np.maximum(r2, 0))
        c = np.stack(terms, 1) @ e["poly_w"] + ((1 + r + r * r / 3) * np.exp(-r)) @ e["kern_alpha"]
        out[start : start + 1000] = c.astype(np.float32) @ e["basis"] + e["mean"]
    return out


def chemistry(rng: np.random.Generator, n: int, disc_only: bool = False) -> np.ndarray:
    """[Fe/H] and eight [X/Fe] (n, 9): two sequences in alpha, metallicity trends, three hidden factors, scatter."""
    thick = (rng.random(n) < 0.25) & (not disc_only)
    fe = np.where(thick, rng.normal(-0.45, 0.22, n), rng.normal(-0.05, 0.19, n))
    fe = np.clip(fe, -1.1, 0.38)
    alpha = np.where(thick, 0.20 - 0.12 * (fe + 0.4), 0.02 - 0.12 * fe) + 0.03 * rng.standard_normal(n)
    age, place, third = rng.standard_normal((3, n))
    #            C      N     O     Mg    Al    Si    Ca    Ni
    of_alpha = [0.3, 0.0, 1.0, 1.1, 0.8, 0.7, 0.5, 0.2]
    of_fe = [0.05, 0.35, -0.05, 0.0, 0.1, 0.0, -0.05, 0.05]
    of_age = [-0.03, 0.05, 0.01, 0.0, 0.02, 0.01, -0.02, 0.0]
    of_place = [0.02, 0.03, 0.02, -0.02, 0.04, 0.01, 0.01, 0.02]
    of_third = [0.01, 0.0, -0.02, 0.02, -0.02, 0.02, 0.02, -0.01]
    own = [0.03, 0.04, 0.03, 0.02, 0.04, 0.02, 0.02, 0.015]
    x = alpha[:, None] * of_alpha + fe[:, None] * of_fe + age[:, None] * of_age + place[:, None] * of_place
    x = x + third[:, None] * of_third + rng.standard_normal((n, 8)) * own
    return np.c_[fe, x]


def parameters(rng: np.random.Generator, fe: np.ndarray, isochrone: bool, mass: np.ndarray) -> np.ndarray:
    """(Teff, log g) of giants, (n, 2)."""
    n = len(fe)
    logg = np.where(rng.random(n) < 0.3, rng.normal(2.45, 0.07, n), 1.55 + 1.4 * rng.random(n) ** 0.85)
    logg = np.clip(logg, 1.52, 2.98)
    if isochrone:
        teff = 4480 + 480 * (logg - 2.3) - 320 * (fe + 0.1) + 110 * (mass - 1.2) + 25 * rng.standard_normal(n)
    else:
        teff = rng.uniform(4030, 4970, n)
    return np.c_[np.clip(teff, 4010, 4990), logg]


def stars(rng: np.random.Generator, world: World, n_field: int) -> dict[str, np.ndarray]:
    """Truth of all stars, field first."""
    w = world
    size = np.exp(1.1 * rng.standard_normal(w.clusters))
    size = np.maximum(2, np.round(size / size.sum() * w.members)).astype(int)
    size[np.argmax(size)] += max(w.members - size.sum(), 2 - size.max())
    size = np.r_[size, np.full(w.binaries, 2)]
    names = [f"World {i:02d}" for i in range(w.clusters)] + [f"Binary {i:03d}" for i in range(w.binaries)]
    n_groups = len(size)
    cluster = np.concatenate([np.full(n_field, "", "U16"), np.repeat(names, size)])
    each = np.repeat(np.arange(n_groups), size)
    m = len(each)
    birth = chemistry(rng, n_groups, disc_only=True)
    inside = birth[each] + w.scatter * np.c_[0.8 * rng.standard_normal((m, 1)), rng.standard_normal((m, 8))]
    strangers = np.zeros(m, bool)
    if w.wrong:
        strangers = rng.random(m) < w.wrong
        inside[strangers] = chemistry(rng, int(strangers.sum()))
    chem = np.concatenate([chemistry(rng, n_field), inside])
    mass = np.concatenate([1.0 + 0.35 * np.abs(rng.standard_normal(n_field)), rng.uniform(1, 2, n_groups)[each]])
    place = parameters(rng, chem[:, 0], w.isochrone, mass)
    mixed = w.dredge / (1 + np.exp((place[:, 1] - 2.2) / 0.15)) + 0.5 * w.dredge * (mass - 1.2)
    chem[:, 1] -= 0.6 * mixed
    chem[:, 2] += mixed
    velocity = np.concatenate([40 * rng.standard_normal(n_field), (35 * rng.standard_normal(n_groups))[each]])
    velocity[n_field:] += rng.standard_normal(m)
    gas = np.concatenate([12 * rng.standard_normal(n_field), (12 * rng.standard_normal(n_groups))[each]])
    a_k = np.concatenate(
        [0.12 * np.exp(rng.standard_normal(n_field)), (0.1 * np.exp(0.8 * rng.standard_normal(n_groups)))[each]]
    )
    a_k = np.clip(a_k + 0.01 * np.abs(rng.standard_normal(n_field + m)), 0.001, 1.5)
    a_k[: n_field // 20] = rng.uniform(0, 0.005, n_field // 20)
    order = np.concatenate([rng.permutation(n_field), n_field + np.arange(m)])
    a_k = a_k[order]
    stranger = np.concatenate([np.zeros(n_field, bool), strangers])
    return {
        "cluster": cluster, "chem": chem, "place": place, "velocity": velocity, "gas": gas, "extinction": a_k,
        "stranger": stranger,
    }  # fmt: skip


def templates(rng: np.random.Generator, n_pixels: int, lines: int, width: tuple[float, float], pad: int) -> np.ndarray:
    """A forest of Gaussian lines, deepest 1, on the grid with `pad` pixels more at each end."""
    x = np.arange(n_pixels + 2 * pad)
    out = np.zeros(len(x))
    for centre, depth, s in zip(
        rng.uniform(0, len(x), lines), rng.exponential(0.3, lines), rng.uniform(*width, lines), strict=True
    ):
        lo, hi = max(0, int(centre - 6 * s)), min(len(x), int(centre + 6 * s) + 1)
        out[lo:hi] += depth * np.exp(-0.5 * ((x[lo:hi] - centre) / s) ** 2)
    return out / out.max()


def observe(
    rng: np.random.Generator, world: World, flux: np.ndarray, s: dict[str, np.ndarray]
) -> tuple[np.ndarray, ...]:
    """Flux as observed (in place), error, S/N, and the bands: (centre pixel, depth, sigma in pixels) of each."""
    w, (n, p), pad = world, flux.shape, 120
    sky = np.stack([templates(rng, p, 250, (1.2, 2.0), pad) for _ in range(2)])
    bands, known = np.zeros(p + 2 * pad), []
    for pixel, depth in zip(rng.integers(400, p - 400, 5), (1.0, 0.6, 0.4, 0.3, 0.2), strict=True):
        known.append((pixel, depth * w.band, rng.uniform(8, 20)))
        bands += depth * np.exp(-0.5 * ((np.arange(len(bands)) - pad - pixel) / known[-1][2]) ** 2)
    snr = np.clip(w.snr[0] * np.exp(w.snr[1] * rng.standard_normal(n)), 50, 300)
    s["fibre"] = fibre = rng.uniform(-1, 1, n)
    earth = rng.uniform(-28, 28, n)
    modes = rng.normal(0, w.line_spread, (3, 3))
    gap = np.ones(p, bool)
    shape = np.ones(p)
    tilts = np.zeros((9, p), np.float32)
    for c, (a, b) in enumerate(CHIPS):
        gap[a:b] = False
        x = np.linspace(-1, 1, b - a)
        shape[a:b] = 1 + 0.25 * x**4
        tilts[3 * c : 3 * c + 3, a:b] = np.stack([np.full(b - a, 0.4), x, 0.9 * x**2 - 0.3])
        extra = np.stack([fibre, fibre**2 - 0.33, np.sin(3 * fibre)], 1) @ modes[
            c
        ] + 0.5 * w.line_spread * rng.standard_normal(n)
        tap = (0.5 * extra).astype(np.float32)[:, None]
        part = flux[:, a:b]
        part[:, 1:-1] += tap * (part[:, 2:] + part[:, :-2] - 2 * part[:, 1:-1])
    size = rng.standard_normal((n, 2)) * w.telluric
    seen, gas = (s["velocity"] + earth) / KM_S, (s["velocity"] - s["gas"]) / KM_S
    for i in range(n):
        for template, amount, shift in ((size[i] @ sky, 1.0, seen[i]), (bands, -w.band * s["extinction"][i], gas[i])):
            at = pad + np.clip(shift, 2 - pad, pad - 2)
            k = int(at)
            flux[i] *= 1 + amount * (template[k : k + p] * (1 - at + k) + template[k + 1 : k + 1 + p] * (at - k))
    flux *= 1 + (w.tilt * rng.standard_normal((n, 9))).astype(np.float32) @ tilts
    left = rng.random(n) < w.persistence
    a, b = CHIPS[0]
    flux[np.ix_(left, np.arange(a, (a + b) // 2))] *= (
        1 + rng.uniform(-0.03, 0.01, left.sum()).astype(np.float32)[:, None]
    )
    error = (shape / snr[:, None]).astype(np.float32)
    for start in range(0, n, 1000):
        flux[start : start + 1000] += error[start : start + 1000] * rng.standard_normal(
            (len(error[start : start + 1000]), p), np.float32
        )
    error *= np.float32(w.understated)
    error[:, gap], flux[:, gap] = 1e10, 0.0
    for start in range(0, n, 1000):
        part = error[start : start + 1000]
        part[rng.random(part.shape, np.float32) < w.bad] = 1e10
    return flux, error, snr, np.array(known)


def make(world: World, seed: int, emulator: str, n_field: int = 12_000) -> dict[str, np.ndarray]:
    """Arrays of one survey under the contract's names, with measured labels and abundances; and the truth (`TRUTH`)."""
    rng = np.random.default_rng([seed, 20260])
    s = stars(rng, world, n_field)
    truth = np.c_[s["place"], s["chem"]]
    with np.load(emulator, allow_pickle=False) as e:
        wave, low, high = e["wave"], e["label_lo"], e["label_hi"]
    flux = emulate(emulator, np.clip(truth, low, high))
    flux, error, snr, bands = observe(rng, world, flux, s)
    n = len(flux)
    e = world.label_error * np.clip(120 / snr, 0.6, 2)
    warm = (s["place"][:, 0] - 4500) / 400
    x_h = s["chem"].copy()
    x_h[:, 1:] += x_h[:, :1]
    trends = rng.normal(0, 0.02, 9)  # systematic errors of abundances with temperature
    abundance = x_h + warm[:, None] * trends + e[:, None] * 0.03 * rng.standard_normal((n, 9))
    alpha = s["chem"][:, [3, 4, 6, 7]].mean(axis=1)
    return {
        "flux": flux, "error": error, "wavelength": wave,
        "star_id": np.array([f"W{i:06d}" for i in range(n)]), "cluster": s["cluster"],
        "teff": s["place"][:, 0] + 40 * e * rng.standard_normal(n),
        "logg": s["place"][:, 1] + 0.08 * e * rng.standard_normal(n),
        "fe_h": x_h[:, 0] + 0.02 * e * rng.standard_normal(n), "alpha_m": alpha + 0.02 * e * rng.standard_normal(n),
        "snr": snr, "radial_velocity": s["velocity"], "extinction": s["extinction"], "fibre": 150 * (1 + s["fibre"]),
        "abundance": abundance, "element": np.array(ELEMENTS),
        "bands": bands, "stranger": s["stranger"],
    }  # fmt: skip


def main() -> None:
    """Write one survey."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emulator", required=True)
    parser.add_argument("--world", choices=sorted(WORLDS), required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--stars", type=int, default=12_000)
    parser.add_argument("--without", nargs="*", default=[], help="arrays to leave out, e.g. abundance element teff")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    arrays = make(WORLDS[args.world], args.seed, args.emulator, args.stars)
    np.savez(args.out, **{k: v for k, v in arrays.items() if k not in (*args.without, *TRUTH)})


if __name__ == "__main__":
    main()
