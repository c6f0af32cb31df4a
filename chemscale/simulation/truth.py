"""Truth of a simulated survey: kept beside it, never read by a fit.

``STORE.zarr`` has ``STORE.truth.zarr``: one value a star in the order of the store, with the labels
that made each spectrum. Evaluations and tests compare against it by identifier.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from chemscale.errors import InputError, StoreError
from chemscale.schema import APOGEE_ELEMENTS
from chemscale.simulation.generator import Simulation

#: Truth variables with one number a star.
COLUMNS = ("teff", "logg", "fe_h", "alpha_fe", "mass", "velocity", "extinction", "ism_velocity", "barycentric", "snr")
_CHUNK = 1 << 16


def truth_path(store: str) -> str:
    """``a/b.zarr`` -> ``a/b.truth.zarr``."""
    return str(store).rstrip("/").removesuffix(".zarr") + ".truth.zarr"


def truth_dataset(simulation: Simulation, rows: np.ndarray) -> xr.Dataset:
    """True labels of survey rows as a Dataset (star, element)."""
    stars = simulation.truth(rows)
    data: dict[str, Any] = {n: ("star", getattr(stars, n).astype("f4")) for n in COLUMNS}
    data["fibre"] = ("star", stars.fibre.astype("i4"))
    data["abundance"] = (("star", "element"), stars.abundance.astype("f4"))
    data["cluster"] = ("star", stars.cluster.astype(object))
    coords = {
        "star_id": ("star", np.array(stars.star_id, dtype=object)),
        "element": np.array(APOGEE_ELEMENTS, dtype=object),
    }
    return xr.Dataset(data, coords=coords, attrs={"simulation": repr(simulation.settings())})


def write_truth(simulation: Simulation, path: str, *, overwrite: bool = False) -> str:
    """Write the truth of a whole survey as a Zarr store, 65,536 stars at a time.

    Raises
    ------
    StoreError
        `path` exists and `overwrite` is false.
    """
    if "://" not in path and Path(path).exists() and not overwrite:
        raise StoreError(f"{path} exists", "choose another path or overwrite it")
    for start in range(0, simulation.n_stars, _CHUNK):
        part = truth_dataset(simulation, np.arange(start, min(start + _CHUNK, simulation.n_stars)))
        if start == 0:
            encoding = {n: {"chunks": (_CHUNK, *part[n].shape[1:])} for n in (*part.data_vars, "star_id")}
            part.to_zarr(path, mode="w", zarr_format=3, consolidated=False, encoding=encoding)
        else:
            part.drop_vars("element").to_zarr(path, append_dim="star", zarr_format=3, consolidated=False)
    return path


def read_truth(path: str, star_id: Sequence[str] | np.ndarray | None = None) -> xr.Dataset:
    """Truth by path of the truth store (or of the survey's store), optionally for given stars in their order.

    Raises
    ------
    StoreError
        There is no truth store.
    InputError
        A star is not in it.
    """
    where = path if str(path).rstrip("/").endswith(".truth.zarr") else truth_path(path)
    try:
        truth = xr.open_zarr(where, consolidated=False).load()
    except (FileNotFoundError, KeyError, ValueError) as error:
        raise StoreError(f"no truth at {where}: {error}", "only simulated surveys have one") from error
    if star_id is None:
        return truth
    known = {s: i for i, s in enumerate(truth["star_id"].values.tolist())}
    wanted = [str(s) for s in np.asarray(star_id).tolist()]
    missing = [s for s in wanted if s not in known]
    if missing:
        raise InputError(
            f"{len(missing)} stars are not in {where}, e.g. {missing[0]}", "is it the truth of this survey?"
        )
    return truth.isel(star=[known[s] for s in wanted])


def clean_spectra(ds: xr.Dataset) -> np.ndarray:
    """Noise-free spectra of the stars of a simulated survey, made again from its seed.

    Parameters
    ----------
    ds : xarray.Dataset
        Some or all stars of an opened simulated store; only `source_file` is read.

    Returns
    -------
    ndarray, shape (n, P), float32
        Before the instrument: no noise, no tellurics, the same line width for all.

    Raises
    ------
    InputError
        Not a simulated survey.
    """
    settings = ds.attrs.get("simulation")
    if not isinstance(settings, dict) or "source_file" not in ds:
        raise InputError("these are not stars of a simulated survey", "only those have a truth")
    rows = np.array([int(str(f).removeprefix("simulated:")) for f in ds["source_file"].values.tolist()])
    simulation = Simulation(**settings)
    flux = np.empty((rows.size, simulation.wavelengths.wavelength.size), np.float32)
    for start in range(0, rows.size, 4096):
        at = slice(start, start + 4096)
        flux[at] = simulation.clean_flux(simulation.truth(rows[at]))
    return flux
