"""A fitted :class:`~chemscale.statistics.ppca.MaskedPPCA` as a Dataset, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from chemscale.errors import InputError
from chemscale.statistics.determined import determined

#: Parameters that are kept as attributes; those that are None are left out.
PARAMETERS = ("noise", "intrinsic", "start", "outlier_sigmas", "loglike_tol", "max_iter", "random_state")


def write(ppca: Any) -> xr.Dataset:
    """The fitted :class:`~chemscale.statistics.ppca.MaskedPPCA` `ppca` (dims component, wavelength)."""
    noise = ppca.noise_variance_
    ds = xr.Dataset(
        {
            "components": (("component", "wavelength"), ppca.components_),
            "mean": ("wavelength", ppca.mean_),
            "pixel_used": ("wavelength", ppca.pixel_used_),
            "latent_scale": ("component", ppca.latent_scale_),
            "explained_variance": ("component", ppca.explained_variance_),
            "noise_variance": (("wavelength",), noise) if isinstance(noise, np.ndarray) else ((), noise),
            "axis_error": ("component", ppca.axis_error_, {"units": "rad"}),
            "outlier_count": ("wavelength", ppca.outlier_count_),
            "loglike": ("full_pass", np.asarray(ppca.loglike_, dtype=np.float64)),
            "angle": ("full_pass", np.asarray(ppca.angle_, dtype=np.float64)),
        }
    )
    ds.attrs = {
        "model": "masked PPCA",
        "n_components": int(ppca.n_components),
        "tol": "default" if ppca.tol is None else ppca.tol,
        "n_passes": ppca.n_passes_,
        "n_stars": ppca.n_stars_,
        "n_determined": ppca.n_determined_,
        "n_outlier_stars": ppca.n_outlier_stars_,
        "n_anomalous": ppca.n_anomalous_,
        "converged": ppca.stopping_reason_ if ppca.converged_ else "",
        "stopping_reason": ppca.stopping_reason_,
    }
    ds.attrs |= {name: getattr(ppca, name) for name in PARAMETERS if getattr(ppca, name) is not None}
    return ds


def leading(ppca: Any, k: int) -> Any:
    """A copy with the first `k` components only.

    With shared noise, the variance along the others becomes noise, as in the maximum of the likelihood with `k`
    components (Tipping & Bishop 1999, eq. 8).
    """
    have = len(ppca.components_)
    if not 1 <= k <= have:
        raise InputError(f"{k} of {have} components", f"choose between 1 and {have}")
    out = read(type(ppca), write(ppca))
    out.n_components, out.components_, out.latent_scale_ = k, ppca.components_[:k], ppca.latent_scale_[:k]
    out.explained_variance_, out.axis_error_ = ppca.explained_variance_[:k], ppca.axis_error_[:k]
    out.n_determined_ = determined(out.axis_error_)
    if ppca.noise == "shared":
        pixels = int(ppca.pixel_used_.sum())
        dropped = float(np.sum(ppca.latent_scale_[k:] ** 2))
        out.noise_variance_ = float(ppca.noise_variance_) + dropped / (pixels - k)
        out.latent_scale_ = np.sqrt(np.maximum(out.explained_variance_ - out.noise_variance_, 0.0))
    return out


def read(cls: Any, ds: xr.Dataset) -> Any:
    """Model written by :func:`write`, or by an earlier release (which did not say what the data determine)."""
    if ds.attrs.get("model") != "masked PPCA":
        raise InputError("the dataset does not hold a masked PPCA", "pass what MaskedPPCA.to_dataset gave")
    a = ds.attrs
    k = int(a["n_components"])
    parameters = {name: a[name] for name in PARAMETERS if name in a}
    out = cls(k, tol=None if a["tol"] == "default" else float(a["tol"]), **parameters)
    out.components_ = ds["components"].values
    out.mean_ = ds["mean"].values
    out.pixel_used_ = ds["pixel_used"].values.astype(bool)
    out.latent_scale_ = ds["latent_scale"].values
    out.explained_variance_ = ds["explained_variance"].values
    noise = ds["noise_variance"].values
    out.noise_variance_ = noise if noise.ndim else float(noise)
    n_pixels = out.pixel_used_.size
    out.axis_error_ = ds["axis_error"].values if "axis_error" in ds else np.full(k, np.nan)
    out.outlier_count_ = ds["outlier_count"].values if "outlier_count" in ds else np.zeros(n_pixels, dtype=np.int64)
    out.loglike_ = ds["loglike"].values.tolist()
    out.angle_ = ds["angle"].values.tolist()
    out.n_passes_, out.n_stars_ = int(a["n_passes"]), int(a["n_stars"])
    out.n_determined_ = int(a.get("n_determined", 0))
    out.n_outlier_stars_, out.n_anomalous_ = int(a.get("n_outlier_stars", 0)), int(a.get("n_anomalous", 0))
    out.converged_ = bool(a["converged"])
    out.stopping_reason_ = str(a.get("stopping_reason", a["converged"] or "passes"))
    out.n_features_in_ = n_pixels
    return out
