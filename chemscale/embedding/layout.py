"""What an embedding holds: its variables, their chunks and attributes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
import zarr

from chemscale.embedding.found import OUTLIER_BIT
from chemscale.errors import InputError
from chemscale.schema import star_variables
from chemscale.statistics.ppca import MaskedPPCA

#: Stars in a chunk of the per-star variables, in a block of the product when it is read, and (without a cluster)
#: between two marks a resumed run can start from.
PART_STARS = 65_536
#: Version of the product's layout.
EMBEDDING_VERSION = 1


def reading_chunk(chunk: int) -> int:
    """Whole chunks of the product, some 65,000 stars: fewer and larger tasks for those who read it."""
    return chunk * max(1, PART_STARS // chunk)


def columns_of(ds: xr.Dataset, extra: Mapping[str, Any] | None) -> dict[str, np.ndarray]:
    """The survey's per-star variables and those given beside them."""
    columns = {name: np.asarray(ds[name].values) for name in star_variables(ds.variables)}
    for name, values in (extra or {}).items():
        values = np.asarray(values)
        if values.shape != (ds.sizes["star"],):
            raise InputError(f"extra variable {name!r} has shape {values.shape}", "pass one value per star")
        columns[name] = values
    return columns


def create_empty(root: str, *, ds: xr.Dataset, model: MaskedPPCA, chunk: int, fingerprint: str) -> None:
    """The empty product, without the survey's per-star variables (:func:`write_columns`)."""
    n, k = ds.sizes["star"], model.n_components
    lazy = da.full((n, k), np.nan, chunks=(chunk, k), dtype=np.float32)
    template = xr.Dataset(
        {
            "coords": (
                ("star", "component"),
                lazy,
                {"long_name": "posterior mean of the coordinates along the principal axes", "units": "flux"},
            ),
            "coords_variance": (
                ("star", "component"),
                da.full((n, k), np.nan, chunks=(chunk, k), dtype=np.float32),
                {"long_name": "posterior variance of the coordinates"},
            ),
            "valid": (("star",), da.zeros(n, chunks=chunk, dtype=bool), {"long_name": "star has a valid pixel"}),
        }
    )
    if model.rejection is not None:
        template = template.assign(_outlier_variables(ds, chunk))
    template.attrs = {
        "chemscale_embedding": EMBEDDING_VERSION,
        "complete": False,
        "fingerprint": fingerprint,
        "noise": model.noise,
        "n_components": k,
        "survey": str(ds.attrs.get("survey", "")),
    }
    template.to_zarr(root, mode="w", compute=False, zarr_format=3, consolidated=False)


def write_columns(root: str, ds: xr.Dataset, columns: Mapping[str, np.ndarray], chunk: int) -> None:
    """Add the per-star variables to a product that workers may be writing the other ones of; anew if they are there."""
    group = zarr.open_group(root, mode="r+")
    table = xr.Dataset(attrs=dict(group.attrs))
    for name, values in columns.items():
        if name in group:  # of a run that was interrupted, perhaps in the middle of it
            del group[name]
        values = values.astype(object) if values.dtype.kind in "UT" else values
        attributes = dict(ds[name].attrs) if name in ds.variables else {}
        # as they are: looked at, text takes longer to become something else and back than to be written
        table[name] = xr.Variable(("star",), values, attributes, fastpath=True)
    encoding = {name: {"chunks": (min(reading_chunk(chunk), max(ds.sizes["star"], 1)),)} for name in columns}
    table.to_zarr(root, mode="a", consolidated=False, encoding=encoding)


def _outlier_variables(ds: xr.Dataset, chunk: int) -> dict[str, Any]:
    """What a model that rejects outliers adds to the product."""
    n, p = ds.sizes["star"], ds.sizes["wavelength"]
    flags = {
        "long_name": "pixels the model does not explain, left out of the coordinates",
        "flag_masks": [OUTLIER_BIT],
        "flag_meanings": "outlier",
    }
    misfit = {"long_name": "mean absolute residual in units of the errors; 1 = as the errors say"}
    anomalous = {"long_name": "the whole spectrum does not fit"}
    return {
        "outlier_flags": (("star", "wavelength"), da.zeros((n, p), chunks=(chunk, p), dtype=np.uint8), flags),
        "n_outliers": (("star",), da.zeros(n, chunks=chunk, dtype=np.int32), {"long_name": "rejected pixels"}),
        "misfit": (("star",), da.full(n, np.nan, chunks=chunk, dtype=np.float32), misfit),
        "anomalous": (("star",), da.zeros(n, chunks=chunk, dtype=bool), anomalous),
    }
