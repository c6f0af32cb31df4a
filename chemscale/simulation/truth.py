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
import zarr

from chemscale.errors import InputError, StoreError
from chemscale.schema import APOGEE_ELEMENTS
from chemscale.simulation.generator import Simulation

#: Truth variables with one number a star.
COLUMNS = ("teff", "logg", "fe_h", "alpha_fe", "mass", "velocity", "extinction", "ism_velocity", "barycentric", "snr")
_CHUNK = 1 << 16
#: Noise-free spectra in the truth store, where they were asked for, and stars of them written at a time.
NOISE_FREE = "flux_true"
_SPECTRA = 4096


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


def write_truth(simulation: Simulation, path: str, *, overwrite: bool = False, noise_free: bool = False) -> str:
    """Write the truth of a whole survey as a Zarr store, 65,536 stars at a time.

    Parameters
    ----------
    noise_free : bool
        Also the spectra before the instrument, :data:`NOISE_FREE` (star, wavelength), 4,096 stars at a time.

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
    if noise_free:
        _write_noise_free(simulation, path)
    return path


def _write_noise_free(simulation: Simulation, path: str) -> None:
    wave = simulation.wavelengths.wavelength
    n = simulation.n_stars
    chunk = max(1, min(n, _SPECTRA))
    array = zarr.open_group(path, mode="r+").create_array(
        NOISE_FREE,
        shape=(n, wave.size),
        chunks=(min(chunk, 256), wave.size),
        dtype="f4",
        dimension_names=("star", "wavelength"),
        attributes={"long_name": "flux without noise, before the instrument"},
    )
    for start in range(0, n, chunk):
        rows = np.arange(start, min(start + chunk, n))
        array[start : start + len(rows)] = simulation.clean_flux(simulation.truth(rows))


def read_noise_free(path: str, star_id: Sequence[str] | np.ndarray) -> np.ndarray | None:
    """Noise-free spectra (n, P) of stars in the order given; None where the truth store was written without them.

    Raises
    ------
    StoreError
        There is no truth store.
    InputError
        A star is not in it.
    """
    order = read_truth(path, star_id).attrs["rows"]
    group = zarr.open_group(_where(path), mode="r")
    if NOISE_FREE not in group:
        return None
    array = group[NOISE_FREE]
    assert isinstance(array, zarr.Array)
    found = np.empty((len(order), array.shape[1]), np.float32)
    for start in range(0, len(order), _SPECTRA):
        rows = np.asarray(order[start : start + _SPECTRA])
        inverse = np.argsort(np.argsort(rows, kind="stable"), kind="stable")
        found[start : start + len(rows)] = np.asarray(array.oindex[np.sort(rows)])[inverse]
    return found


def _where(path: str) -> str:
    return path if str(path).rstrip("/").endswith(".truth.zarr") else truth_path(path)


def read_truth(path: str, star_id: Sequence[str] | np.ndarray | None = None) -> xr.Dataset:
    """Truth by path of the truth store (or of the survey's store), optionally for given stars in their order.

    Without the noise-free spectra, see :func:`read_noise_free`. The attribute `rows` says where given stars lie.

    Raises
    ------
    StoreError
        There is no truth store.
    InputError
        A star is not in it.
    """
    where = _where(path)
    try:
        truth = xr.open_zarr(where, consolidated=False, drop_variables=[NOISE_FREE]).load()
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
    rows = [known[s] for s in wanted]
    return truth.isel(star=rows).assign_attrs(rows=rows)


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
