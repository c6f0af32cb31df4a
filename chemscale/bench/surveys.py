"""Surveys that are timed: many stars, made in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import xarray as xr
    from distributed import Client

#: Different spectra in the surveys timed here.
BASE_STARS = 2048


def make_store(path: Path, stars: int, client: Client | None, seed: int = 7) -> str:
    """A survey of `stars` spectra (H band); kept if it is there already.

    The spectra of some 2,000 simulated stars, 22 clusters among them, repeated with fresh noise: their cost is that
    of `stars` different ones, and the store is made in seconds rather than minutes.
    """
    import dask
    import xarray as xr

    from chemscale.simulation.generator import Simulation
    from chemscale.survey.ingest.datasets import write_survey
    from chemscale.survey.ingest.ingestion import ingest
    from chemscale.survey.sources.simulated import SimulatedSource
    from chemscale.survey.store.layout import Layout
    from chemscale.survey.store.open import open_survey

    if path.exists():
        return open_survey(path).attrs["store"]
    source = SimulatedSource(**Simulation(BASE_STARS, 22, seed).settings())
    base_path = path.with_name("base.zarr")
    ingest(source, base_path, client=client, resume=base_path.exists(), progress=False)
    base = open_survey(base_path).load()
    # shards small enough that every worker has several even in a short benchmark
    layout = Layout(512, 1024, 65536)
    parts = []
    for start in range(0, stars, layout.shard_stars):
        rows = np.arange(start, min(start + layout.shard_stars, stars))
        parts.append(_repeated(base, rows, seed))
    part = path.with_name(f".{path.name}.part")
    with dask.config.set(scheduler="synchronous"):  # the base is in this process
        write_survey(xr.concat(parts, "star"), part, layout=layout, overwrite=part.exists())
    part.rename(path)
    return str(path)


def _repeated(base: xr.Dataset, rows: np.ndarray, seed: int) -> xr.Dataset:
    """Stars `rows` of the repeated survey, lazy; beyond the base they have noise of their own and no cluster."""
    import dask
    import dask.array as da

    which = rows % base.sizes["star"]
    out = base.drop_vars(["flux", "ivar", "flags"]).isel(star=which)
    out["star_id"] = ("star", np.array([f"R{i:09d}" for i in rows], dtype=object), base["star_id"].attrs)
    cluster = np.where(rows < base.sizes["star"], out["cluster"].values.astype(object), "")
    out["cluster"] = ("star", cluster, base["cluster"].attrs)
    for name in ("flux", "ivar", "flags"):
        values = dask.delayed(_take, pure=False, traverse=False)(base, name, which, seed + int(rows[0]))
        shape = (len(rows), base.sizes["wavelength"])
        out[name] = (base[name].dims, da.from_delayed(values, shape, base[name].dtype), base[name].attrs)
    return out


def _take(base: xr.Dataset, name: str, which: np.ndarray, seed: int) -> np.ndarray:
    values = base[name].values[which]
    if name == "flux":
        ivar = base["ivar"].values[which]
        error = np.where(ivar > 0, 1 / np.sqrt(np.maximum(ivar, 1e-12)), 0.0).astype(np.float32)
        values = values + error * np.random.default_rng(seed).standard_normal(values.shape, np.float32)
    return values
