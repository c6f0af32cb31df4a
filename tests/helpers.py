"""Small surveys for tests: linear-Gaussian spectra that obey the data contract."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from chemscale.schema import VARIABLES, Flag, variable_attrs
from chemscale.survey.ingest.censoring import censor


def make_survey(
    n_field: int = 200,
    n_clusters: int = 4,
    members: int = 6,
    n_pixels: int = 80,
    seed: int = 0,
    *,
    n_latent: int = 6,
    n_chemical: int = 3,
    noise: float = 0.01,
    scatter: float = 0.1,
    missing: float = 0.05,
    gap_pixels: int = 4,
    elements: tuple[str, ...] = ("Fe", "Mg", "Si"),
    shuffle: bool = True,
    prefix: str = "S",
) -> xr.Dataset:
    """A toy survey in memory.

    ``flux = 1 + latent @ components + noise``: `latent` is standard normal, (N, n_latent);
    the first `n_chemical` columns are shared by the members of a cluster to within
    `scatter` (in units of the field's spread), the others (think temperature, gravity) are
    not. The first chemical columns are `fe_h`, `alpha_m` and `abundance`; `teff` and `logg`
    follow the last two latents. A fraction `missing` of pixels has error 1e10, a few are NaN
    in the raw spectrum (stored as 0 with NON_FINITE), `gap_pixels` at the middle of the grid
    are gaps for every star.

    Returns a contract Dataset with attributes `survey`, `normalisation`, `provenance`. For
    the truth, call :func:`toy_latents` and :func:`toy_components` with the same arguments;
    ``int(star_id[len(prefix):])`` is a star's row there.
    """
    latent, cluster = toy_latents(n_field, n_clusters, members, seed, n_latent, n_chemical, scatter)
    rng = np.random.default_rng([seed, 1])
    n = len(latent)
    components = toy_components(n_pixels, n_latent, seed)
    order = rng.permutation(n) if shuffle else np.arange(n)
    latent, cluster = latent[order], cluster[order]

    error = noise * rng.uniform(0.7, 1.4, (n, 1)) * np.ones((1, n_pixels))
    flux = 1.0 + latent @ components + error * rng.standard_normal((n, n_pixels))
    ivar = 1.0 / error**2
    flags = np.zeros((n, n_pixels), np.uint8)
    ivar[rng.random((n, n_pixels)) < missing] = 1e-20
    flags[rng.random((n, n_pixels)) < missing / 4] |= np.uint8(Flag.SURVEY_BAD)
    nan = rng.random((n, n_pixels)) < missing / 10
    flux[nan] = np.nan
    middle = slice(n_pixels // 2, n_pixels // 2 + gap_pixels)
    flux[:, middle] = 0.0
    ivar[:, middle] = 0.0
    flags = censor(flux.astype("f4"), ivar.astype("f4"), flags)
    flux[nan], ivar[nan] = 0.0, 0.0
    flux[:, middle] = 0.0

    chem = latent[:, :n_chemical]
    columns: dict[str, Any] = {
        "star_id": np.array([f"{prefix}{i:06d}" for i in order], dtype=object),
        "cluster": cluster,
        "cluster_probability": np.where(cluster == "", np.nan, 0.95),
        "ra": rng.uniform(0, 360, n),
        "dec": rng.uniform(-90, 90, n),
        "teff": 4500 + 200 * np.tanh(latent[:, -1]),
        "logg": 2.3 + 0.4 * np.tanh(latent[:, -2]),
        "fe_h": 0.2 * chem[:, 0],
        "alpha_m": 0.1 * chem[:, min(1, n_chemical - 1)],
        "snr": rng.uniform(50, 300, n),
        "radial_velocity": rng.normal(0, 40, n),
        "extinction": rng.gamma(2.0, 0.1, n),
        "visits": np.array([f"{5800 + int(i) % 7},{5900 + int(i) % 11}" for i in order], dtype=object),
        "quality": np.zeros(n),
    }
    data: dict[str, Any] = {"flux": flux, "ivar": ivar, "flags": flags} | columns
    if elements:
        mix = np.random.default_rng([seed, 2]).normal(0, 0.1, (n_chemical, len(elements)))
        data["abundance"] = chem @ mix
        data["abundance_error"] = np.full((n, len(elements)), 0.02)
    variables = {}
    for name, values in data.items():
        spec = VARIABLES[name]
        dtype: Any = object if spec.dtype == "str" else spec.dtype
        variables[name] = (spec.dims, np.asarray(values).astype(dtype), variable_attrs(name))
    wavelength = 15000.0 * 10 ** (6e-6 * np.arange(n_pixels))
    coords: dict[str, Any] = {
        "wavelength": ("wavelength", wavelength, variable_attrs("wavelength") | {"medium": "vacuum"})
    }
    if elements:
        coords["element"] = ("element", np.array(elements, dtype=object), variable_attrs("element"))
    attrs = {"survey": "toy", "normalisation": "continuum-normalised", "provenance": {"generator": "make_survey"}}
    return xr.Dataset(variables, coords=coords, attrs=attrs)


def toy_latents(
    n_field: int, n_clusters: int, members: int, seed: int, n_latent: int = 6, n_chemical: int = 3, scatter: float = 0.1
) -> tuple[np.ndarray, np.ndarray]:
    """Latents (N, n_latent) and cluster names (N,) of :func:`make_survey` before shuffling: field first."""
    rng = np.random.default_rng([seed, 0])
    field = rng.standard_normal((n_field, n_latent))
    group = rng.standard_normal((n_clusters * members, n_latent))
    centres = rng.standard_normal((n_clusters, n_chemical))
    which = np.repeat(np.arange(n_clusters), members)
    group[:, :n_chemical] = centres[which] + scatter * group[:, :n_chemical]
    names = np.array([""] * n_field + [f"Cluster {i}" for i in which], dtype=object)
    return np.concatenate([field, group]), names


def toy_components(n_pixels: int, n_latent: int = 6, seed: int = 0) -> np.ndarray:
    """The (n_latent, n_pixels) directions in flux of :func:`make_survey`'s latents."""
    return np.random.default_rng([seed, 3]).normal(0, 0.05, (n_latent, n_pixels))
