"""Noise-free spectra of a simulation, to measure reconstructions against."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import xarray as xr

from chemscale.errors import InputError
from chemscale.simulation.truth import read_noise_free
from chemscale.vae.model import ChemicalVAE

#: Names a file of noise-free spectra may use.
NAMES = ("flux_true", "flux_clean", "flux_noise_free", "truth", "flux")


def read_truth(path: str | Path, star_id: np.ndarray, n_pixels: int) -> np.ndarray:
    """Noise-free spectra (n, P) in the order of `star_id`.

    Parameters
    ----------
    path : path
        ``.npy`` of shape (n, P) in the survey's order, ``.npz`` with the spectra under one of
        :data:`NAMES` and, where the order differs, `star_id`, or the ``.truth.zarr`` that
        ``chemscale simulate --noise-free`` writes.

    Raises
    ------
    InputError
        Unreadable, of another shape, or without some of the stars.
    """
    if str(path).rstrip("/").endswith(".zarr"):
        found = read_noise_free(str(path), star_id)
        if found is None:
            raise InputError(f"{path} holds no noise-free spectra", "simulate with --noise-free")
        return found
    try:
        raw = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as err:
        raise InputError(f"noise-free spectra {path} cannot be read: {err}", "give a .npy or .npz file") from err
    ids = None
    if isinstance(raw, np.lib.npyio.NpzFile):
        name = next((n for n in NAMES if n in raw.files), None)
        if name is None:
            raise InputError(f"{path}: no noise-free spectra among {', '.join(raw.files)}", f"name them {NAMES[0]}")
        flux = raw[name]
        ids = raw["star_id"].astype(str) if "star_id" in raw.files else None
    else:
        flux = raw
    if flux.ndim != 2 or flux.shape[1] != n_pixels or (ids is None and len(flux) != len(star_id)):
        raise InputError(
            f"{path}: noise-free spectra of shape {flux.shape}, the survey has {len(star_id)} x {n_pixels}",
            "give every star's, on the survey's grid",
        )
    if ids is None:
        return flux
    where = {s: i for i, s in enumerate(ids)}
    absent = [s for s in star_id if s not in where]
    if absent:
        raise InputError(f"{path}: no noise-free spectrum of {', '.join(absent[:5])}", "give every star's")
    return flux[[where[s] for s in star_id]]


@torch.inference_mode()
def noise_free_l2(model: ChemicalVAE, ds: xr.Dataset, flux: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """||x_hat - x|| and ||x|| of every wanted star to its noise-free spectrum, over predicted pixels; (n, 2), else NaN.

    Parameters
    ----------
    ds : xarray.Dataset
        ``latents.zarr``.
    flux : ndarray (n, P)
        Noise-free spectra.
    wanted : ndarray of bool (n,)
    """
    mean = np.asarray(ds["mean"].values, dtype=np.float32)
    auxiliary = np.asarray(ds["auxiliary"].values, dtype=np.float32)
    found = np.full((len(mean), 2), np.nan)
    rows = np.flatnonzero(wanted & np.isfinite(mean).all(1))
    for start in range(0, rows.size, 1024):
        part = rows[start : start + 1024]
        guess = model.reconstruct(torch.from_numpy(mean[part]), torch.from_numpy(auxiliary[part])).numpy()
        covered = np.isfinite(guess[0])
        x = np.asarray(flux[part], dtype=np.float32)[:, covered]
        found[part, 0] = np.linalg.norm(guess[:, covered] - x, axis=1)
        found[part, 1] = np.linalg.norm(x, axis=1)
    return found
