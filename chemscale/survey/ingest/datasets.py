"""A Dataset to a store."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import xarray as xr

from chemscale.runtime.jsonio import digest, dump
from chemscale.schema import STAR_VARIABLES, VARIABLES, SchemaError, check
from chemscale.survey.ingest.finalise import finalise_store
from chemscale.survey.ingest.writing import write_shard
from chemscale.survey.store.create import create_store, prepare_path
from chemscale.survey.store.layout import PIXEL_VARIABLES, Layout, choose_layout
from chemscale.survey.store.manifest import StoreHeader, clean_text, empty_columns


def write_survey(
    ds: xr.Dataset, path: str | os.PathLike[str], *, overwrite: bool = False, layout: Layout | None = None
) -> str:
    """Write a Dataset that obeys the data contract as a complete, verified store.

    Parameters
    ----------
    ds : xarray.Dataset
        NumPy or dask; computed shard by shard (one pass, one shard in memory).
    path : str or path
        Where to write; an existing path is refused unless `overwrite`.
    layout : Layout, optional
        Chunks and shards; chosen from a memory target when left out.

    Returns
    -------
    str
        Path of the store.

    Raises
    ------
    SchemaError
        `ds` breaks the contract.
    StoreError
        `path` exists, or cannot be written.
    """
    problems = check(ds)
    if ds.sizes.get("star", 0) == 0:
        problems.append("star: no rows")
    if problems:
        raise SchemaError(problems)
    folder = prepare_path(path, overwrite=overwrite)
    n, pixels = ds.sizes["star"], ds.sizes["wavelength"]
    names = [v for v in ds.variables if v in STAR_VARIABLES or v in ("abundance", "abundance_error")]
    elements = tuple(str(e) for e in ds["element"].values) if "element" in ds.variables else ()
    attrs = {k: v for k, v in ds.attrs.items() if k not in {"store", "revision", "chemscale_store"}}
    header = StoreHeader(
        survey=str(ds.attrs.get("survey", "")),
        medium=str(ds["wavelength"].attrs["medium"]),
        n_rows=n,
        n_pixels=pixels,
        labels=tuple(v for v in VARIABLES if v in names and v not in ("star_id", "cluster")),
        elements=elements,
        layout=layout or choose_layout(n, pixels),
        attrs=json.loads(dump(attrs)),
    )
    header = replace(header, fingerprint={"dataset": digest([header.stored(), [str(i) for i in ds["star_id"].values]])})
    create_store(folder, header, ds["wavelength"].values)
    for shard in range(header.n_shards):
        rows = slice(*header.layout.rows(shard, n))
        block = ds.isel(star=rows).compute()
        columns = empty_columns(header, rows.stop - rows.start)
        for name, column in columns.items():
            if name in block.variables:
                values = block[name].values
                is_text = VARIABLES[name].dtype == "str"
                column[...] = [clean_text(v) for v in values] if is_text else values
        status = np.ones(rows.stop - rows.start, np.uint8)
        write_shard(folder, header, shard, {v: block[v].values for v in PIXEL_VARIABLES}, columns, status)
    finalise_store(folder)
    return folder.root
