"""Windows that answer to their element at every temperature: a region set from what spectra answer to abundances.

    python benchmarks/vae_windows.py --emulator lowres_emulator.npz --out windows.json

Halo stars in bins of 500 K are made with each [X/Fe] or [Fe/H] a little higher and lower, with the built-in lines (3000
to 7000 K) and with the emulators given. A pixel is an iron pixel where its rms answer to carbon stays below `--most` of
that to metals in every bin of every one of them, answers in units of the population's widths (0.57 dex in [Fe/H], 0.75
in [C/Fe]). Interstellar Na D is left out. An alpha pixel is one that answers to alpha (0.15 dex) at least
:data:`ALPHA_METAL` times as much as to metals and a :data:`ALPHA_CARBON` th as much as to carbon, in every bin. Windows
of carbon are those of the set `optical`, less these.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from chemscale.schema import APOGEE_ELEMENTS
from chemscale.simulation.emulator import Emulator
from chemscale.simulation.halo import SIGMAS, halo
from chemscale.simulation.lines import LineSpectra, grid
from chemscale.simulation.population import _with_abundances
from chemscale.vae.regions import load_regions

#: Bins of Teff, K, and half a step of the differences, dex.
BIN, STEP = 500.0, 0.1
#: Smallest rms answer to metals of an iron pixel, in units of the continuum.
LEAST = 0.008
#: Of an alpha pixel: smallest answer to alpha over that to metals, largest one to carbon over that to alpha, and
#: smallest mean answer to alpha.
ALPHA_METAL, ALPHA_CARBON, ALPHA_LEAST = 0.12, 5.0, 0.003
#: Interstellar sodium, Angstrom.
SODIUM = (5885.0, 5900.0)


def answers(spectra: LineSpectra | Emulator, stars: int, rng: np.random.Generator) -> np.ndarray:
    """Rms answer to [Fe/H], [C/Fe] and [alpha/Fe] in every bin, in units of their widths; (bins, 3, P)."""
    emulated = isinstance(spectra, Emulator)
    low, high = (spectra.low, spectra.high) if emulated else ((3000.0, 2.5), (7000.0, 6.0))

    def flux(teff, logg, fe_h, alpha, carbon):
        if emulated:
            return spectra.flux(spectra.clip(np.stack([teff, logg, fe_h, carbon, alpha], 1)))
        *_, abundance, _ = _with_abundances(teff, logg, fe_h, alpha, carbon)
        columns = {e: abundance[:, i] for i, e in enumerate(APOGEE_ELEMENTS) if e not in ("CI", "TiII")}
        return spectra.flux({"teff": teff, "logg": logg}, columns)

    found = []
    for start in np.arange(low[0], high[0] - 1, BIN):
        teff, logg = rng.uniform(start, start + BIN, stars), rng.uniform(low[1], high[1], stars)
        fe_h, carbon, alpha = halo().draw(rng, stars)
        row = []
        for k, width in enumerate(SIGMAS):
            fe, c, a = STEP * np.eye(3)[k]
            up, down = (flux(teff, logg, fe_h + s * fe, alpha + s * a, carbon + s * c) for s in (1, -1))
            row.append(np.sqrt(np.mean(((up - down) / (2 * STEP) * width) ** 2, 0)))
        found.append(np.stack(row))
    return np.stack(found)


def windows(chosen: np.ndarray, wave: np.ndarray) -> list[list[float]]:
    """Runs of chosen pixels as [low, high], their edges half a pixel out."""
    index = np.flatnonzero(chosen)
    half = 0.45 * np.log(10) * 1e-4
    runs = np.split(index, np.flatnonzero(np.diff(index) > 1) + 1)
    return [[round(float(wave[r[0]] * (1 - half)), 2), round(float(wave[r[-1]] * (1 + half)), 2)] for r in runs]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--emulator", action="append", default=[], help="emulator file; may be given again")
    parser.add_argument("--most", type=float, default=1.0, help="largest answer to carbon over that to metals")
    parser.add_argument("--stars", type=int, default=64, help="stars a bin")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    optical = grid("lowres")
    wave = optical.wavelength
    rng = np.random.default_rng(args.seed)
    found = [answers(s, args.stars, rng) for s in (LineSpectra(optical), *(Emulator(f) for f in args.emulator))]
    metal, carbon, alpha = np.concatenate(found).transpose(1, 0, 2)
    clear = (wave < SODIUM[0]) | (wave > SODIUM[1])
    of_alpha = clear & (alpha.mean(0) > ALPHA_LEAST)
    of_alpha &= ((alpha > ALPHA_METAL * metal) & (carbon < ALPHA_CARBON * alpha)).all(0)
    of_iron = clear & ~of_alpha & ((carbon < args.most * metal) & (metal > LEAST)).all(0)
    raw = load_regions("optical").to_dict()
    of_carbon = load_regions("optical").masks(wave, optical.medium)["carbon"] & ~of_alpha & ~of_iron
    raw["groups"] = {
        name: windows(mask, wave) for name, mask in (("iron", of_iron), ("alpha", of_alpha), ("carbon", of_carbon))
    }
    raw["name"] = args.out.stem
    args.out.write_text(json.dumps(raw, indent=1) + "\n")
    print({k: sum(m) for k, m in load_regions(args.out).masks(wave, optical.medium).items()}, "pixels")


if __name__ == "__main__":
    main()
