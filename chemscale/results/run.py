"""A run as its reader sees it: opened by its path, its results as a table and by star."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import numpy as np
import xarray as xr

from chemscale.errors import StoreError
from chemscale.rsca.stars import text
from chemscale.runtime.run import Run

if TYPE_CHECKING:
    from astropy.table import Table


class RunResults(Run):
    """A run directory, for reading: ``chemscale.Run("run")``.

    Parameters
    ----------
    path : path-like
        The directory.
    manifest : dict, optional
        Contents of ``manifest.json``; read from the directory by default.

    Raises
    ------
    StoreError
        `path` is not a run.

    Examples
    --------
    >>> import chemscale
    >>> chemscale.Run("nowhere")
    Traceback (most recent call last):
    ...
    chemscale.errors.StoreError: nowhere is not a chemscale run (no manifest.json)...
    """

    def __init__(self, path: str | os.PathLike[str], manifest: dict[str, Any] | None = None):
        super().__init__(path, Run.open(path).manifest if manifest is None else manifest)

    def table(self, *, features: int | None = None) -> Table:
        """One row a star of everything the run holds, in memory, with units and descriptions.

        Identifiers, coordinates and labels of the survey; RSCA features, latents and calibrated abundances, each
        with its error; anomaly scores and causes; flags. ``table.loc[STAR_ID]`` is a star's row. For surveys that do
        not fit in memory see :func:`chemscale.results.export.export`.

        Parameters
        ----------
        features : int, optional
            RSCA features at most; by default those that tell clusters apart.
        """
        from astropy.table import Column, Table

        from chemscale.results.columns import gather

        found = gather(self, features=features)
        blocks = list(found.blocks())
        out = Table(meta={**found.attrs, "left_out": found.left_out})
        for c in found.columns:
            values = np.concatenate([b[c.name] for b in blocks]) if blocks else np.empty(0)
            unit = c.unit or None
            out[c.name] = Column(values, unit=unit, description=c.description, meta={"ucd": c.ucd})
        out.add_index("star_id")
        return out

    def features(self, n_features: int | None = None) -> xr.DataArray:
        """Features of the recommended metric (star, feature), lazy; ``.sel(star=STAR_ID)`` is one star's.

        Parameters
        ----------
        n_features : int, optional
            The most telling ones only; by default all.
        """
        import dask.array as da

        from chemscale.results.features import RunFeatures

        found = RunFeatures.of_run(self, most=10**6 if n_features is None else n_features)
        starts = np.cumsum([0, *found.stars.embedding["coords"].data.chunks[0]])
        n = len(found.titles)
        blocks = [
            da.from_delayed(dask.delayed(found.values)(a, b), shape=(b - a, n), dtype=np.float32)
            for a, b in pairwise(starts.tolist())
        ]
        coords = {"star": found.star_id, "feature": np.arange(1, n + 1)}
        values = da.concatenate(blocks)
        out = xr.DataArray(values, dims=("star", "feature"), coords=coords, name="rsca_features")
        return out.assign_attrs(metric=found.metric)

    def latents(self) -> xr.Dataset:
        """Latents of every star, see :func:`open_latents`."""
        return open_latents(self.path)


def open_latents(path: str | os.PathLike[str]) -> xr.Dataset:
    """Latents of a run by star, lazy: ``open_latents("run").sel(star=STAR_ID)``.

    Parameters
    ----------
    path : path-like
        A run directory, or its ``latents.zarr``.

    Returns
    -------
    xarray.Dataset
        Coordinates `star` (identifiers), `latent`, `label_name`, `part`. Variables `latents` (star, latent) posterior
        means; `latents_error` (star, latent) the roots of the variances; `latents_covariance` (star, latent,
        latent_); `auxiliary_latents` (star, auxiliary); `predicted_label` (star, label_name) in the survey's units;
        and the scores `latent_norm`, `chi2`, `relative_l2`, `noise_l2`, `local`, `local_window`, `quiet`, `n_used`.

    Raises
    ------
    StoreError
        No latents there.
    DataError
        Inference was not finished.

    Examples
    --------
    >>> import chemscale
    >>> chemscale.open_latents("nowhere")
    Traceback (most recent call last):
    ...
    chemscale.errors.StoreError: nowhere has no latents...
    """
    from chemscale.vae.product import PRODUCT
    from chemscale.vae.product import open_latents as open_product

    product = Path(path)
    product = product if product.suffix == ".zarr" else product / PRODUCT
    if not product.exists():
        raise StoreError(f"{path} has no latents", "run `chemscale vae infer STORE --run RUN` first")
    ds = open_product(product)
    covariance = ds["covariance"]
    error = xr.apply_ufunc(
        lambda c: np.sqrt(np.diagonal(c, axis1=-2, axis2=-1)),
        covariance,
        input_core_dims=[["latent", "latent_"]],
        output_core_dims=[["latent"]],
        dask="parallelized",
        output_dtypes=[covariance.dtype],
    ).assign_attrs(long_name="error of the latents")
    names = {"mean": "latents", "covariance": "latents_covariance", "label": "predicted_label", "norm": "latent_norm"}
    names["auxiliary"] = "auxiliary_latents"
    out = ds.drop_vars("star_id").rename(names).assign(latents_error=error)
    plain = {k: text(ds[k]) for k in ("latent", "label_name", "part") if k in ds.variables}
    return out.assign_coords({"star": text(ds["star_id"]), **plain})
