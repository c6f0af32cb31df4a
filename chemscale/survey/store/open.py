"""Survey stores: open one.

A store is one Zarr v3 group (see :mod:`chemscale.survey.store.layout` for chunks and shards, and
:mod:`chemscale.survey.store.manifest` for the bookkeeping beside it). It may hold later revisions
as groups of their own below ``revisions/``; a small root record, replaced atomically, says
which of them a reader sees. No byte that a reader may be reading is ever changed.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import xarray as xr

from chemscale.errors import InputError
from chemscale.runtime.files import Folder
from chemscale.schema import VARIABLES, variable_attrs
from chemscale.survey import accessor as accessor  # registers `survey.chemscale`
from chemscale.survey.store.cleaning import Cleaning
from chemscale.survey.store.layout import PIXEL_VARIABLES, Layout, chunk_file
from chemscale.survey.store.ledger import Ledger, ledger_crc
from chemscale.survey.store.manifest import StoreHeader
from chemscale.survey.store.root import RootRecord, read_hidden, token_of
from chemscale.survey.store.rows import Column, Mask, Rows, StoreGroup

#: A dask block of flux stays under this many bytes.
BLOCK_BYTES = 48 << 20


def open_survey(path: str | os.PathLike[str], *, chunk_stars: int | None = None) -> xr.Dataset:
    """Open a survey store lazily.

    Parameters
    ----------
    path : str or path
        A store on disk or in an object store (``s3://...``).
    chunk_stars : int, optional
        Stars in a dask block of the pixel variables; rounded up to whole Zarr chunks.
        Default: as many chunks as keep a block of flux under 48 MiB.

    Returns
    -------
    xarray.Dataset
        `flux`, `ivar`, `flags` (star, wavelength) as dask arrays whose blocks are whole Zarr
        chunks; per-star variables (star,) lazy, read when their values are asked for. Nothing
        but metadata is read here. Attributes: `survey`, `normalisation`, `provenance`, ...; `cleaned`
        names what `chemscale clean` takes off the flux, or took off before it was ingested.

    Raises
    ------
    StoreError
        No store at `path`, an unfinished one, or one of another version.

    Examples
    --------
    >>> import chemscale
    >>> from chemscale.survey.sources.simulated import SimulatedSource
    >>> summary = chemscale.ingest(SimulatedSource(40, 2, seed=1, grid="lowres"), "opened.zarr")
    >>> survey = chemscale.open_survey("opened.zarr")
    >>> survey["flux"].dims, bool((survey["cluster"] != "").any())
    (('star', 'wavelength'), True)
    """
    folder = Folder(path)
    record = RootRecord.read(folder)
    ledger = Ledger.of(folder, record, record.groups[0])
    header = ledger.header()
    groups = open_groups(folder, record)
    variables: dict[str, Any] = {}
    for name in PIXEL_VARIABLES:
        mask = Mask.of(record.mask) if name == "flags" else None
        cleaning = Cleaning.of(folder, record.cleaning, record.checksums) if name == "flux" else None
        pixels = Rows(groups, name, (record.n_stars, header.n_pixels), VARIABLES[name].dtype, mask, cleaning)
        variables[name] = _pixel_variable(pixels, header, chunk_stars)
    for name in header.variables():
        spec = VARIABLES[name]
        shape = (record.n_stars, len(header.elements))[: len(spec.dims)]
        rows = Rows(groups, name, shape, object if spec.dtype == "str" else spec.dtype)
        variables[name] = _label_variable(rows)
    coords: dict[str, Any] = {"wavelength": small_array(ledger, "wavelength")}
    if header.elements:
        coords["element"] = xr.Variable(
            ("element",), np.array(header.elements, dtype=object), variable_attrs("element")
        )
    attrs = dict(header.attrs) | {"store": folder.root, "revision": record.revision}
    if record.cleaning:  # besides what came off before the spectra were ingested
        attrs["cleaned"] = list(dict.fromkeys([*attrs.get("cleaned", ()), *record.cleaning["facts"]["covariates"]]))
    return xr.Dataset(variables, coords=coords, attrs=attrs)


def open_groups(folder: Folder, record: RootRecord) -> tuple[StoreGroup, ...]:
    """The groups of arrays that readers see."""
    token = token_of(folder, record)
    return tuple(
        StoreGroup(folder.sub(e.path).root, e.n_rows, read_hidden(folder, record, e), token, ledger_crc(record, e))
        for e in record.groups
    )


def as_ingested(folder: Folder, name: str, chunks: tuple[int, ...]) -> Any:
    """Flux without the store's cleaning or flags without its mask, as a dask array of `chunks` stars."""
    import dask.array as da

    record = RootRecord.read(folder)
    header = Ledger.of(folder, record, record.groups[0]).header()
    rows = Rows(open_groups(folder, record), name, (record.n_stars, header.n_pixels), VARIABLES[name].dtype)
    meta = np.empty((0, 0), rows.dtype)
    return da.from_array(rows, chunks=(chunks, (header.n_pixels,)), asarray=False, fancy=False, meta=meta)


def _pixel_variable(rows: Rows, header: StoreHeader, chunk_stars: int | None) -> xr.Variable:
    import dask.array as da

    size = block_stars(header.layout, header.n_pixels, chunk_stars)
    star_chunks = tuple(c for g in rows.groups for c in g.star_chunks(size)) or (0,)
    array = da.from_array(
        rows,
        chunks=(star_chunks, (header.n_pixels,)),
        name=None,
        asarray=False,
        fancy=False,
        meta=np.empty((0, 0), rows.dtype),
    )
    return xr.Variable(VARIABLES[rows.name].dims, array, variable_attrs(rows.name))


def _label_variable(rows: Rows) -> xr.Variable:
    from xarray.core import indexing

    lazy = indexing.MemoryCachedArray(indexing.LazilyIndexedArray(Column(rows)))
    return xr.Variable(VARIABLES[rows.name].dims, lazy, variable_attrs(rows.name))


def small_array(ledger: Ledger, name: str) -> xr.Variable:
    """A variable of one chunk that is read at once, compared with the ledger."""
    import zarr

    for file in (f"{name}/zarr.json", chunk_file(name, 0, 1)):
        ledger.content(file)
    array = zarr.open_array(ledger.folder.zarr_store(), path=name, mode="r")
    return xr.Variable(VARIABLES[name].dims, np.asarray(array[...]), dict(array.attrs))


def block_stars(layout: Layout, n_pixels: int, chunk_stars: int | None = None) -> int:
    """Rows in a dask block: whole Zarr chunks that divide a shard, near the size asked for."""
    chunks = layout.shard_stars // layout.chunk_stars
    if chunk_stars is not None:
        if chunk_stars < 1:
            raise InputError(f"chunk_stars is {chunk_stars}", "give a positive number of stars")
        return layout.chunk_stars * -(-chunk_stars // layout.chunk_stars)
    most = max(1, BLOCK_BYTES // max(1, 4 * n_pixels * layout.chunk_stars))
    if chunks <= most:  # small shards: several of them in one block
        return layout.shard_stars * max(1, most // chunks)
    return layout.chunk_stars * max(k for k in range(1, most + 1) if chunks % k == 0)
