"""Simulated halo stars at low resolution, from an emulator file: the catalogues of the VAE's evaluation."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from chemscale.schema import VARIABLES, variable_attrs

#: [C/Fe] of catalogue A (mean, spread) and of the paper's, B.
CATALOGUES = {"A": (0.2, 0.4), "B": (0.62, 0.75)}
LOW = np.array([-2.6, -0.25, -1.2])
HIGH = np.array([0.4, 0.70, 2.4])


def _polynomial(x: np.ndarray, degree: int) -> np.ndarray:
    columns = [np.ones(len(x))]
    for k in range(1, degree + 1):
        for c in itertools.combinations_with_replacement(range(x.shape[1]), k):
            columns.append(np.prod(x[:, c], axis=1))
    return np.stack(columns, 1)


def _matern(a: np.ndarray, b: np.ndarray, scale: np.ndarray) -> np.ndarray:
    a, b = a / scale, b / scale
    r = np.sqrt(5 * np.maximum((a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2 * a @ b.T, 0))
    return (1 + r + r * r / 3) * np.exp(-r)


def emulate(path: Path, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Wavelength (P,) and noise-free flux (n, P) of labels (Teff, log g, [Fe/H], [C/Fe], [alpha/Fe])."""
    em = np.load(path, allow_pickle=False)
    co = labels[:, 3] - labels[:, 4] - 0.26
    cool = 1 / (1 + np.exp((labels[:, 0] - 4700) / 250))
    x = np.stack(
        [
            (5040 / labels[:, 0] - 0.95) / 0.25,
            (labels[:, 1] - 3.75) / 1.25,
            (labels[:, 2] + 1.1) / 1.5,
            (labels[:, 2] + labels[:, 3] + 0.6) / 1.8,
            (labels[:, 4] - 0.22) / 0.47,
            np.log1p(np.exp(co / 0.05)) * 0.10 * cool,
            np.tanh(co / 0.15) * cool,
        ],
        axis=1,
    )
    out = np.empty((len(labels), len(em["wave"])), np.float32)
    for start in range(0, len(labels), 2000):
        rows = slice(start, start + 2000)
        kernel = _matern(x[rows], em["train_x"], em["lengthscale"]) @ em["kern_alpha"]
        root = em["mean"] + (_polynomial(x[rows], int(em["deg"])) @ em["poly_w"] + kernel) @ em["basis"]
        out[rows] = np.exp(-root * root)
    return np.asarray(em["wave"]), out


def draw_labels(n: int, seed: int, carbon: tuple[float, float] = CATALOGUES["A"]) -> np.ndarray:
    """Teff, log g, [Fe/H], [C/Fe], [alpha/Fe] of n stars, prior correlations as in the paper; (n, 5)."""
    rng = np.random.default_rng([seed, 0])
    corr = np.array([[1, -0.3, -0.17], [-0.3, 1, 0.051], [-0.17, 0.051, 1]])
    root = np.linalg.cholesky(corr)
    kept = np.empty((0, 3))
    while len(kept) < n:
        draw = np.array([-1.23, 0.22, carbon[0]]) + np.array([0.57, 0.15, carbon[1]]) * (
            rng.standard_normal((2 * n, 3)) @ root.T
        )
        kept = np.concatenate([kept, draw[((draw > LOW) & (draw < HIGH)).all(1)]])
    fe, alpha, c = kept[:n].T
    return np.stack([rng.uniform(4000, 7000, n), rng.uniform(2.5, 5.0, n), fe, c, alpha], 1)


def catalogue(
    path: Path,
    n: int,
    seed: int = 0,
    kind: str = "A",
    snr: tuple[float, float] = (50.0, 10.0),
    label_error: float = 0.02,
) -> tuple[xr.Dataset, np.ndarray]:
    """A contract Dataset of n stars with noise and perturbed Teff and log g, and the noise-free flux (n, P)."""
    labels = draw_labels(n, seed, CATALOGUES[kind])
    wave, clean = emulate(path, labels)
    rng = np.random.default_rng([seed, 1])
    ratio = np.clip(rng.normal(*snr, n), 5, None)
    flux = clean + (rng.standard_normal(clean.shape, dtype=np.float32) / ratio[:, None]).astype(np.float32)
    seen = labels[:, :2] * (1 + label_error * rng.standard_normal((n, 2)))
    return dataset(wave, flux, ratio, labels, seen), clean


def dataset(
    wave: np.ndarray, flux: np.ndarray, snr: np.ndarray, labels: np.ndarray, seen: np.ndarray, name: str = "lowres"
) -> xr.Dataset:
    """Arrays as a contract Dataset; `seen` are Teff and log g as the survey reports them."""
    n, pixels = flux.shape
    ivar = np.broadcast_to((snr**2).astype(np.float32)[:, None], (n, pixels)).copy()
    columns: dict[str, Any] = {
        "flux": flux.astype(np.float32),
        "ivar": ivar,
        "flags": np.zeros((n, pixels), np.uint8),
        "star_id": np.array([f"L{i:07d}" for i in range(n)], dtype=object),
        "teff": seen[:, 0],
        "logg": seen[:, 1],
        "fe_h": labels[:, 2],
        "c_fe": labels[:, 3],
        "alpha_m": labels[:, 4],
        "snr": snr,
    }
    variables = {}
    for key, values in columns.items():
        spec = VARIABLES[key]
        kind: Any = object if spec.dtype == "str" else spec.dtype
        variables[key] = (spec.dims, np.asarray(values).astype(kind), variable_attrs(key))
    coords = {"wavelength": ("wavelength", wave.astype(np.float64), variable_attrs("wavelength") | {"medium": "air"})}
    attrs = {"survey": name, "normalisation": "continuum-normalised", "provenance": {"generator": "emulator"}}
    return xr.Dataset(variables, coords=coords, attrs=attrs)
