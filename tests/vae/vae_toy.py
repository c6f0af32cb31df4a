"""A small toy survey with the structure the VAE assumes, cheap enough for every test."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr
from vae_catalogue import dataset

from chemscale.vae.regions import RegionSet

torch.set_num_threads(1)

#: Windows of the toy survey on its grid of 240 pixels from 4000 Angstrom.
TOY_REGIONS = RegionSet(
    "toy",
    "air",
    {"iron": ((4000.0, 4059.5),), "alpha": ((4060.0, 4119.5),), "carbon": ((4120.0, 4179.5),)},
)


def toy_survey(n: int = 600, seed: int = 0, missing: float = 0.03, noise: float = 0.01) -> xr.Dataset:
    """Spectra whose iron pixels answer to metals, alpha pixels to metals and alpha, carbon pixels to all three."""
    rng = np.random.default_rng([seed, 5])
    z = rng.standard_normal((n, 3))
    u = rng.uniform(-1, 1, (n, 2))
    shape = np.abs(np.random.default_rng(99).normal(0.03, 0.015, (5, 240)))
    wave = 4000.0 + np.arange(240)
    allowed = np.zeros((3, 240))
    allowed[0] = 1.0
    allowed[1, 60:] = 1.0
    allowed[2, 120:] = 1.0
    depth = (1.0 + 0.3 * z) @ (allowed * shape[:3]) + 0.5 * u @ shape[3:]
    clean = np.exp(-depth).astype(np.float32)
    snr = np.full(n, 1 / noise)
    flux = clean + noise * rng.standard_normal(clean.shape).astype(np.float32)
    labels = np.stack([np.zeros(n), np.zeros(n), 0.5 * z[:, 0] - 1.2, 0.4 * z[:, 2] + 0.2, 0.15 * z[:, 1] + 0.2], 1)
    seen = np.stack([5500 + 1000 * u[:, 0], 3.75 + 0.8 * u[:, 1]], 1) * (1 + 0.01 * rng.standard_normal((n, 2)))
    ds = dataset(wave, flux, snr, labels, seen, name="toy")
    hidden = rng.random(flux.shape) < missing
    ds["flags"].values[hidden] = 4
    ds["flux"].values[hidden & (rng.random(flux.shape) < 0.2)] = np.nan
    return ds


#: A recipe that takes about two seconds on the toy survey.
FAST_MODEL = {"n_components": 8, "hidden": (32, 16), "decoder": (16,)}
FAST = {"epochs": 8, "batch": 64, "decoder_finetune_epochs": 2, "label_pretrain_epochs": 3, "validation": 0.05}
