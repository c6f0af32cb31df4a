"""Survey stores: create, finalise, open, write from a Dataset.

A store is one Zarr v3 group (see :mod:`chemscale.survey.store.layout` for chunks and shards, and
:mod:`chemscale.survey.store.manifest` for the bookkeeping beside it). It may hold later revisions
as groups of their own below ``revisions/``; a small root record, replaced atomically, says
which of them a reader sees. No byte that a reader may be reading is ever changed.
"""

from __future__ import annotations

import io
import json
import os
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import xarray as xr

from chemscale.errors import InputError, StoreError
from chemscale.runtime.files import Folder
from chemscale.runtime.jobs import digest
from chemscale.schema import STAR_VARIABLES, STORE_VERSION, VARIABLES, SchemaError, check, variable_attrs
from chemscale.survey.ingest.finalise import finalise_segment, group_attrs
from chemscale.survey.ingest.writing import write_shard
from chemscale.survey.store.layout import PIXEL_VARIABLES, Layout, choose_layout, chunk_file, encode, metadata
from chemscale.survey.store.manifest import (
    BOOK,
    PLAN,
    ROOT,
    SHARDS,
    Header,
    checksum,
    clean_text,
    done_shards,
    dump,
    empty_columns,
)
from chemscale.survey.store.rows import Column, Mask, Rows, Segment

#: A dask block of flux stays under this many bytes.
BLOCK_BYTES = 48 << 20


@dataclass(frozen=True)
class RootRecord:
    """The root record: which revision readers see."""

    n_stars: int
    segments: list[dict[str, Any]]
    revision: int = 0
    fingerprint: str = ""
    #: CRC32C of each segment's list of markers, and of every hidden-slot file: name -> checksum
    checksums: dict[str, int] = field(default_factory=dict)
    #: pixels that readers see flagged beside those that are (:class:`chemscale.survey.store.rows.Mask`)
    mask: dict[str, Any] = field(default_factory=dict)
    format: str = "chemscale-survey"
    version: int = STORE_VERSION

    @classmethod
    def read(cls, folder: Folder) -> RootRecord:
        """Root record of a complete store.

        Raises
        ------
        StoreError
            No store, an unfinished store, or one of another version.
        """
        try:
            raw = json.loads(folder.read(ROOT))
        except FileNotFoundError:
            raise _why_not(folder) from None
        except (ValueError, NotADirectoryError) as err:
            raise StoreError(f"{folder.root}: {ROOT} is damaged ({err})", "restore it or ingest again") from err
        if raw.get("format") != "chemscale-survey" or raw.get("version") != STORE_VERSION:
            raise StoreError(
                f"{folder.root}: store format {raw.get('format')!r} version {raw.get('version')!r}, "
                f"this chemscale reads version {STORE_VERSION}",
                "use the chemscale that wrote it, or ingest again",
            )
        try:
            record = cls(**{k: v for k, v in raw.items() if k != "checksum"})
        except TypeError as err:
            raise StoreError(f"{folder.root}: {ROOT} is damaged ({err})", "restore it or ingest again") from err
        if raw.get("checksum") != checksum(dump(_content(record))):
            raise StoreError(f"{folder.root}: {ROOT} is damaged (checksum)", "restore it or ingest again")
        return record

    def write(self, folder: Folder) -> None:
        """Publish: from here on readers see this record."""
        content = _content(self)
        folder.write(ROOT, dump(content | {"checksum": checksum(dump(content))}), sync=True)


def _content(record: RootRecord) -> dict[str, Any]:
    """The record as it is stored: without a mask, where there is none, as stores were written before there were any."""
    return {k: v for k, v in asdict(record).items() if k != "mask" or v}


def _why_not(folder: Folder) -> StoreError:
    if not folder.exists():
        return StoreError(f"no survey store at {folder.root}", "check the path; `chemscale ingest` makes one")
    if folder.exists(PLAN):
        header = Header.read(folder)
        done = len(done_shards(folder))
        return StoreError(
            f"{folder.root}: unfinished store, {done} of {header.n_shards} shards are written",
            "repeat the `chemscale ingest` command with --resume (or `chemscale finalise` after --partition jobs)",
        )
    return StoreError(
        f"{folder.root}: not a chemscale store (no {ROOT})",
        "give a store made by `chemscale ingest` or `chemscale simulate --out`",
    )


def create_store(folder: Folder, header: Header, wavelength: np.ndarray) -> None:
    """Write metadata, wavelength and header of an empty store; shards follow.

    Writing the same header again gives the same bytes, so several partition jobs may start
    at once. The header comes last: without it there is no store.
    """
    folder.write("zarr.json", dump({"attributes": group_attrs(header), "node_type": "group", "zarr_format": 3}))
    small: dict[str, np.ndarray] = {"wavelength": np.asarray(wavelength, "f8")}
    if header.elements:
        small["element"] = np.array(header.elements, dtype=object)
    for name, values in small.items():
        spec = VARIABLES[name]
        extra = {"medium": header.medium} if name == "wavelength" else {}
        meta = metadata(name, spec.dtype, values.shape, header.layout, spec.dims, variable_attrs(name) | extra)
        folder.write(f"{name}/zarr.json", meta)
        folder.write(chunk_file(name, 0, 1), encode(name, spec.dtype, values, header.layout))
    for name in PIXEL_VARIABLES:
        spec = VARIABLES[name]
        shape = (header.n_slots, header.n_pixels)
        meta = metadata(name, spec.dtype, shape, header.layout, spec.dims, variable_attrs(name))
        folder.write(f"{name}/zarr.json", meta)
    folder.write(PLAN, header.to_json(), sync=True)


def prepare_path(path: str | os.PathLike[str], *, overwrite: bool) -> Folder:
    """The folder of a new store; an existing one is refused, or removed with `overwrite`.

    Raises
    ------
    StoreError
        Something is there already; or, with `overwrite`, something that is not a store:
        that is never removed.
    """
    folder = Folder(path)
    if not folder.exists() or (not folder.remote and os.path.isdir(folder.root) and not os.listdir(folder.root)):
        return folder
    is_store = folder.exists(PLAN) or folder.exists(ROOT)
    if not overwrite:
        if is_store and not folder.exists(ROOT):
            raise _why_not(folder)
        raise StoreError(
            f"{folder.root}: already exists", "choose another path, or pass --overwrite to replace the store"
        )
    if not is_store and not is_begun(folder):
        raise StoreError(
            f"{folder.root}: exists and is not a chemscale store, so it is not overwritten",
            "choose another path or remove it yourself",
        )
    folder.remove(ROOT)  # readers are told first
    folder.remove_tree()
    return folder


def is_begun(folder: Folder) -> bool:
    """Whether `folder` holds a store, or the first steps of one (interrupted before the header was written)."""
    if folder.exists(PLAN) or any(n in folder.list(BOOK) for n in ("inputs.npz", "rejected-plan.json")):
        return True
    try:
        return "chemscale_store" in json.loads(folder.read("zarr.json")).get("attributes", {})
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False


def finalise_store(folder: Folder) -> RootRecord:
    """Close a store whose shards are all written: labels, statistics, root record.

    Idempotent: an interrupted call is repeated safely, and a complete store is only tidied.

    Raises
    ------
    StoreError
        Shards are missing; the message lists them.
    """
    header = Header.read(folder)
    if not folder.exists(ROOT):
        summary = finalise_segment(folder, header)
        publish_first(folder, header, summary["hidden"])
    tidy(folder)
    return RootRecord.read(folder)


def publish_first(folder: Folder, header: Header, hidden: np.ndarray) -> None:
    """Write the root record of a store's first revision."""
    publish(folder, [("", header.n_slots, hidden)], revision=0, fingerprint=digest(header.fingerprint))


def publish(
    folder: Folder,
    segments: list[tuple[str, int, np.ndarray]],
    *,
    revision: int,
    fingerprint: str,
    mask: dict[str, Any] | None = None,
) -> None:
    """Write the root record: (path, slots, hidden slots) of every segment. Until then readers see the one before."""
    entries = [segment_entry(folder, path, slots, hidden, revision=revision) for path, slots, hidden in segments]
    names = [f"{path}/{SHARDS}".lstrip("/") for path, _, _ in segments] + [e["hidden"] for e in entries if e["hidden"]]
    RootRecord(
        n_stars=sum(slots - len(hidden) for _, slots, hidden in segments),
        segments=entries,
        revision=revision,
        fingerprint=fingerprint,
        checksums={name: checksum(folder.read(name)) for name in names},
        mask=mask or {},
    ).write(folder)


def publish_mask(folder: Folder, mask: dict[str, Any]) -> int:
    """Replace the store's mask (``windows``, ``max_error``) by a revision of the root record; no pixel is rewritten.

    Returns
    -------
    int
        The revision readers see now: the same one where the mask was there already.
    """
    record = RootRecord.read(folder)
    if record.mask != mask:
        record = replace(record, mask=mask, revision=record.revision + 1)
        record.write(folder)
    return record.revision


def segment_entry(folder: Folder, path: str, slots: int, hidden: np.ndarray, *, revision: int) -> dict[str, Any]:
    """Entry of a segment in the root record; its hidden slots go to a file of their own."""
    name = None
    if len(hidden):
        name = f"{BOOK}/hidden-{revision:04d}-{path.rsplit('/', 1)[-1] or 'first'}.npy"
        buffer = io.BytesIO()
        np.save(buffer, np.asarray(hidden, "i8"), allow_pickle=False)
        folder.write(name, buffer.getvalue(), sync=True)
    return {"path": path, "slots": slots, "hidden": name, "n_hidden": len(hidden)}


def read_hidden(folder: Folder, entry: dict[str, Any]) -> np.ndarray:
    """Hidden slots of a segment, sorted."""
    if not entry["hidden"]:
        return np.empty(0, "i8")
    return np.load(io.BytesIO(folder.read(entry["hidden"])), allow_pickle=False)


def tidy(folder: Folder) -> None:
    """Remove markers, parts and leftovers of interrupted writes from a complete store."""
    for name in ("parts", "partitions", "shards"):
        folder.remove_tree(f"{BOOK}/{name}")
    folder.remove_partials()


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
        but metadata is read here. Attributes: `survey`, `normalisation`, `provenance`, ...

    Raises
    ------
    StoreError
        No store at `path`, an unfinished one, or one of another version.
    """
    folder = Folder(path)
    record = RootRecord.read(folder)
    header = Header.read(folder)
    segments = _open_segments(folder, record)
    token = segments[0].token
    variables: dict[str, Any] = {}
    for name in PIXEL_VARIABLES:
        mask = Mask.of(record.mask) if name == "flags" else None
        pixels = Rows(segments, name, (record.n_stars, header.n_pixels), VARIABLES[name].dtype, mask)
        variables[name] = _pixel_variable(pixels, header, chunk_stars)
    for name in header.variables():
        spec = VARIABLES[name]
        shape = (record.n_stars, len(header.elements))[: len(spec.dims)]
        rows = Rows(segments, name, shape, object if spec.dtype == "str" else spec.dtype)
        variables[name] = _label_variable(rows)
    coords: dict[str, Any] = {"wavelength": _small_array(folder, "wavelength", token)}
    if header.elements:
        coords["element"] = xr.Variable(
            ("element",), np.array(header.elements, dtype=object), variable_attrs("element")
        )
    attrs = dict(header.attrs) | {"store": folder.root, "revision": record.revision}
    return xr.Dataset(variables, coords=coords, attrs=attrs)


def store_token(store: str) -> str:
    """A text that changes whenever a store's contents do: made anew, appended to, or masked otherwise."""
    folder = Folder(store)
    return _token(folder, RootRecord.read(folder))


def _token(folder: Folder, record: RootRecord) -> str:
    return digest([record.fingerprint, record.revision, record.n_stars, _modified(folder)])


def _open_segments(folder: Folder, record: RootRecord) -> tuple[Segment, ...]:
    token = _token(folder, record)
    return tuple(
        Segment(folder.sub(e["path"]).root, int(e["slots"]), read_hidden(folder, e), token) for e in record.segments
    )


def flags_as_ingested(folder: Folder, chunks: tuple[int, ...]) -> Any:
    """The store's flags without its mask, as a dask array of `chunks` stars."""
    import dask.array as da

    record, header = RootRecord.read(folder), Header.read(folder)
    rows = Rows(_open_segments(folder, record), "flags", (record.n_stars, header.n_pixels), np.uint8)
    meta = np.empty((0, 0), np.uint8)
    return da.from_array(rows, chunks=(chunks, (header.n_pixels,)), asarray=False, fancy=False, meta=meta)


def _modified(folder: Folder) -> float:
    return 0.0 if folder.remote else os.stat(folder.where(ROOT)).st_mtime


def _pixel_variable(rows: Rows, header: Header, chunk_stars: int | None) -> xr.Variable:
    import dask.array as da

    size = block_stars(header.layout, header.n_pixels, chunk_stars)
    star_chunks = tuple(c for s in rows.segments for c in s.row_chunks(size)) or (0,)
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


def _small_array(folder: Folder, name: str, token: str) -> xr.Variable:
    import zarr

    array = zarr.open_array(folder.zarr_store(), path=name, mode="r")
    return xr.Variable(VARIABLES[name].dims, np.asarray(array[...]), dict(array.attrs))


def block_stars(layout: Layout, n_pixels: int, chunk_stars: int | None = None) -> int:
    """Slots in a dask block: whole Zarr chunks that divide a shard, near the size asked for."""
    chunks = layout.shard_stars // layout.chunk_stars
    if chunk_stars is not None:
        if chunk_stars < 1:
            raise InputError(f"chunk_stars is {chunk_stars}", "give a positive number of stars")
        return layout.chunk_stars * -(-chunk_stars // layout.chunk_stars)
    most = max(1, BLOCK_BYTES // max(1, 4 * n_pixels * layout.chunk_stars))
    if chunks <= most:  # small shards: several of them in one block
        return layout.shard_stars * max(1, most // chunks)
    return layout.chunk_stars * max(k for k in range(1, most + 1) if chunks % k == 0)


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
    header = Header(
        survey=str(ds.attrs.get("survey", "")),
        medium=str(ds["wavelength"].attrs["medium"]),
        n_slots=n,
        n_pixels=pixels,
        labels=tuple(v for v in VARIABLES if v in names and v not in ("star_id", "cluster")),
        elements=elements,
        layout=layout or choose_layout(n, pixels),
        attrs=json.loads(dump(attrs)),
    )
    header = replace(header, fingerprint={"dataset": digest([asdict(header), [str(i) for i in ds["star_id"].values]])})
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
