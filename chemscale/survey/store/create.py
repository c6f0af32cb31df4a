"""The first and the last step of a store's making: an empty store at a path, a complete one without leftovers."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np

from chemscale.errors import StoreError
from chemscale.runtime.files import PARTIAL, Folder
from chemscale.runtime.jsonio import dump
from chemscale.schema import STORE_VERSION, VARIABLES, known, variable_attrs
from chemscale.survey.store.layout import PIXEL_VARIABLES, chunk_file, encode, metadata
from chemscale.survey.store.manifest import LEDGER, PLAN, ROOT, StoreHeader
from chemscale.survey.store.replace import begin, beside, under_way
from chemscale.survey.store.root import why_not


def create_store(folder: Folder, header: StoreHeader, wavelength: np.ndarray) -> None:
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
        shape = (header.n_rows, header.n_pixels)
        meta = metadata(name, spec.dtype, shape, header.layout, spec.dims, variable_attrs(name))
        folder.write(f"{name}/zarr.json", meta)
    folder.write(PLAN, header.to_json(), sync=True)


def check_path(folder: Folder, *, overwrite: bool) -> None:
    """Whether a new store may be made at a path; looks, and changes nothing.

    Raises
    ------
    StoreError
        Something is there already; or, with `overwrite`, something that is not a store:
        that is never removed.
    """
    if under_way(folder) and not overwrite:
        raise why_not(folder)
    if not folder.exists() or (not folder.remote and os.path.isdir(folder.root) and not os.listdir(folder.root)):
        return
    is_store = folder.exists(PLAN) or folder.exists(ROOT)
    if not overwrite:
        if is_store and not folder.exists(ROOT):
            raise why_not(folder)
        raise StoreError(
            f"{folder.root}: already exists", "choose another path, or pass --overwrite to replace the store"
        )
    if not is_store and not is_begun(folder):
        raise StoreError(
            f"{folder.root}: exists and is not a chemscale store, so it is not overwritten",
            "choose another path or remove it yourself",
        )


def prepare_path(folder: Folder, *, overwrite: bool) -> Folder:
    """Where to make a new store of this path: there; beside it, where `overwrite` is to replace a complete one.

    The latter stays as it is until :func:`chemscale.survey.store.replace.put_in_place`. An unfinished store, which
    nobody can read, is removed.
    """
    check_path(folder, overwrite=overwrite)
    if folder.exists(ROOT):
        return begin(folder)
    if under_way(folder):
        beside(folder).remove_tree()
    if overwrite:
        folder.remove_tree()
    return folder


def is_begun(folder: Folder) -> bool:
    """Whether `folder` holds a store, or the first steps of one (interrupted before the header was written).

    A store's own folders without a file are such steps too; empty folders of other names are somebody else's.
    """
    if folder.exists(PLAN) or any(n in folder.list(LEDGER) for n in ("inputs.npz", "rejected-plan.json")):
        return True
    names = folder.list()
    own = all(known(n) or n in (LEDGER, "revisions") or PARTIAL in n for n in names)
    if names and own and all(PARTIAL in name for name, _ in folder.walk()):
        return True
    try:
        return "chemscale_store" in json.loads(folder.read("zarr.json")).get("attributes", {})
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False


def tidy(folder: Folder) -> None:
    """Remove markers, per-shard columns and leftovers of interrupted writes from a complete store."""
    for name in ("parts", "partitions", "shards"):
        folder.remove_tree(f"{LEDGER}/{name}")
    folder.remove_partials()


def group_attrs(header: StoreHeader) -> dict[str, Any]:
    """Attributes of a store's group."""
    return {"chemscale_store": STORE_VERSION, **header.attrs}
