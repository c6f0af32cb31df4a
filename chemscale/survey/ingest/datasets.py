"""A Dataset to a store."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import xarray as xr

from chemscale.runtime.files import Folder
from chemscale.runtime.jsonio import digest, dump
from chemscale.schema import VARIABLES, SchemaError, check, ordered, star_variables
from chemscale.survey.ingest.finalise import finalise_store
from chemscale.survey.ingest.writing import write_shard
from chemscale.survey.store.create import check_path, create_store, is_begun, prepare_path
from chemscale.survey.store.layout import PIXEL_VARIABLES, Layout, choose_layout
from chemscale.survey.store.locks import writing
from chemscale.survey.store.manifest import INPUTS, PLAN, ROOT, StoreHeader, clean_text, empty_columns
from chemscale.survey.store.replace import put_in_place


def write_survey(
    ds: xr.Dataset, path: str | os.PathLike[str], *, overwrite: bool = False, layout: Layout | None = None
) -> str:
    """Write a Dataset that obeys the data contract as a complete, verified store.

    Parameters
    ----------
    ds : xarray.Dataset
        NumPy or dask; computed shard by shard (one pass, one shard in memory).
    path : str or path
        Where to write; an existing path is refused unless `overwrite`. A store that `ds` itself is read from may be
        overwritten: it stays until the new one is whole.
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

    Examples
    --------
    >>> import chemscale
    >>> from chemscale.survey.sources.simulated import SimulatedSource
    >>> summary = chemscale.ingest(SimulatedSource(40, 2, seed=1, grid="lowres"), "many.zarr")
    >>> ten = chemscale.open_survey("many.zarr").isel(star=slice(0, 10))
    >>> chemscale.open_survey(chemscale.write_survey(ten, "ten.zarr")).sizes["star"]
    10
    """
    problems = check(ds)
    if ds.sizes.get("star", 0) == 0:
        problems.append("star: no rows")
    if problems:
        raise SchemaError(problems)
    folder = Folder(path)
    with writing(folder):
        again = _interrupted(folder)
        check_path(folder, overwrite=overwrite or again)
        header = _header(ds, layout)
        work = prepare_path(folder, overwrite=overwrite or again)
        try:
            _write(ds, work, header)
        except BaseException:
            if work is not folder:  # nobody can carry on with half a dataset
                work.remove_tree()
            raise
        put_in_place(folder)
    return folder.root


def _interrupted(folder: Folder) -> bool:
    """Whether an earlier :func:`write_survey` was killed here: unlike an ingestion it can only start again."""
    if folder.exists(ROOT) or not folder.list() or not is_begun(folder):
        return False
    if not folder.exists(PLAN):
        return not folder.exists(INPUTS)
    return not StoreHeader.read(folder).source


def _header(ds: xr.Dataset, layout: Layout | None) -> StoreHeader:
    n, pixels = ds.sizes["star"], ds.sizes["wavelength"]
    names = {*star_variables(ds.variables), *(v for v in ("abundance", "abundance_error") if v in ds.variables)}
    elements = tuple(str(e) for e in ds["element"].values) if "element" in ds.variables else ()
    attrs = {k: v for k, v in ds.attrs.items() if k not in {"store", "revision", "chemscale_store"}}
    header = StoreHeader(
        survey=str(ds.attrs.get("survey", "")),
        medium=str(ds["wavelength"].attrs["medium"]),
        n_rows=n,
        n_pixels=pixels,
        labels=ordered(names - {"star_id", "cluster"}),
        elements=elements,
        layout=layout or choose_layout(n, pixels),
        attrs=json.loads(dump(attrs)),
    )
    names_digest = digest([header.stored(), [str(i) for i in ds["star_id"].values]])
    return replace(header, fingerprint={"dataset": names_digest})


def _write(ds: xr.Dataset, folder: Folder, header: StoreHeader) -> None:
    create_store(folder, header, ds["wavelength"].values)
    for shard in range(header.n_shards):
        rows = slice(*header.layout.rows(shard, header.n_rows))
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
