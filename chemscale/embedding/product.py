"""The embedding of a survey: every star's coordinates on the basis, a Zarr product that resumes.

Works on a Dataset of the data contract (:func:`chemscale.open_survey`), with whatever Dask scheduler is active: a
distributed client, or threads.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import dask
import numpy as np
import xarray as xr
import zarr

from chemscale.embedding.fit import missing_bits, survey_pixels
from chemscale.embedding.found import Found, embed_found
from chemscale.embedding.layout import PART_STARS, columns_of, create_empty, reading_chunk, write_columns
from chemscale.errors import InputError, ResumeError, StoreError
from chemscale.runtime.blocks import Reader, group_size, readers_of, split_at_blocks
from chemscale.runtime.cluster import current_client
from chemscale.runtime.files import Folder
from chemscale.runtime.product import PARTIAL, RECORD, ResumableProduct, done_parts, in_order
from chemscale.runtime.shards import map_shards, per_worker
from chemscale.runtime.versions import opened_at
from chemscale.statistics import blocks
from chemscale.statistics.ppca import MaskedPPCA
from chemscale.statistics.ppca_source import load_block


def embed_survey(
    ds: xr.Dataset,
    model: MaskedPPCA,
    path: str | os.PathLike[str],
    *,
    flags: str | int | Iterable[str] = "all",
    extra: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    resume: bool = False,
    revise: Callable[[str, xr.Dataset], None] | None = None,
    made_from: Mapping[str, str | None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    device: str | None = None,
) -> xr.Dataset:
    """Write the posterior mean and variance of every star's coordinates to a Zarr product: one pass.

    Workers read runs of blocks, embed them and write them themselves, each run a chunk of the product of its own
    (:mod:`chemscale.runtime.blocks`); the client marks them done. Without a distributed client, or for arrays that are
    not simply a store's, this process writes, some 65,000 stars at a time.

    Parameters
    ----------
    model : MaskedPPCA
        Fitted on the same wavelength grid.
    path : str or path
        New Zarr group. Until it is complete, readers are refused (:func:`open_embedding`).
    extra : mapping of name to array (star,), optional
        Per-star variables to store as well, such as a star's role in a run.
    overwrite : bool
        Replace an embedding that is there. Readers find it until the new one is whole, in object stores as well.
    resume : bool
        Continue an interrupted run; parts already written are kept. A finished embedding of the same model, survey
        and settings is left as it is.
    revise : callable, optional
        Called with (path of the Zarr group, its Dataset) when all is written and before the product takes its place.
    made_from : mapping, optional
        Identities of the products the model comes from, for the record (:mod:`chemscale.runtime.product`).
    progress : callable, optional
        Called with (stars done, stars in all) after every part.
    device : str, optional
        ``"cuda"``, ``"cuda:1"``: on a GPU (of each worker), within the rounding of float32 as on CPUs. None: on CPUs.

    Returns
    -------
    xarray.Dataset
        The product, lazy: `coords`, `coords_variance` (star, component) float32, NaN where `valid` (star,) is
        False because a star has no valid pixel; and the survey's per-star variables. A model that rejects outliers
        adds `outlier_flags` (star, wavelength), `n_outliers`, `misfit` and `anomalous` (star,).

    Raises
    ------
    StoreError
        `path` exists (pass `overwrite` or `resume`) or is not an embedding.
    InputError
        There is no such `device`, or the model is of another grid.
    ResumeError
        `path` was begun with another model, survey or setting.
    """
    if device is not None:
        from chemscale.statistics.ppca_device import room

        room(device)  # one that is not there is said before anything is made
    flux, ivar, bits = survey_pixels(ds)
    if flux.shape[1] != model.pixel_used_.size:
        raise InputError(
            f"the survey has {flux.shape[1]} pixels, the model {model.pixel_used_.size}",
            "use the survey it was fitted to",
        )
    n, rows = flux.shape[0], flux.chunks[0]
    size = max(rows) * group_size(len(rows))
    parts = [(start, min(start + size, n)) for start in range(0, n, size)]
    root = os.fspath(path)
    root = root if "://" in root else os.path.abspath(root)  # workers were started elsewhere
    columns = columns_of(ds, extra)
    fingerprint = _fingerprint(ds, model, columns, missing_bits(flags), parts)
    product = ResumableProduct(root, {"fingerprint": fingerprint})
    if resume and product.is_finished():
        product.clear()
        return open_embedding(root)
    create = partial(create_empty, ds=ds, model=model, chunk=size, fingerprint=fingerprint)
    done = _begin(product, create, overwrite=overwrite, resume=resume)
    load = partial(
        load_block,
        function=partial(
            embed_found,
            model=model.model(),
            weighted=model.noise == "per-pixel",
            rejection=model.rejection,
            grid=np.flatnonzero(model.pixel_used_),
            device=device,
        ),
        has=(True, True),
        bits=missing_bits(flags),
        keep=model.pixel_used_,
        weighted=model.uses_ivar,
    )
    target = _Target(product.folder, fingerprint, model.n_components)
    marks = _Marks(product, done, parts, progress)
    with ThreadPoolExecutor(1) as pool:  # half a second of the client's, beside what the workers do
        columns_written = pool.submit(write_columns, product.folder, ds, columns, size)
        _embed(readers_of([flux, bits, ivar]), [flux, bits, ivar], rows, load, target, marks)
        columns_written.result()
    if revise is not None:
        revise(product.folder, _read(product.folder))
    product.finish(made_from or {}, {"complete": True})
    return open_embedding(root)


def _embed(
    readers: list[Reader] | None,
    arrays: list[Any],
    rows: tuple[int, ...],
    load: Callable[..., Found],
    target: _Target,
    marks: _Marks,
) -> None:
    """Every part that is not done yet: by workers that read and write themselves where they can."""
    edges, client = np.concatenate([[0], np.cumsum(rows)]).astype(int), current_client()
    if readers is None or client is None:
        everyone = np.ones((edges[-1], 1), dtype=bool)
        _embed_here(blocks.map_blocks(load, [everyone, *arrays], rows), edges, target, marks)
        return
    map_shards(
        _embed_part,
        {i: part for i, part in enumerate(marks.parts) if i not in marks.done},
        client,
        shared=_Job(readers, edges, load, target),
        on_result=lambda number, _: marks.add([number]),
        results=False,
        description="embedding",
        unit="stars",
        weight=lambda number: marks.parts[number][1] - marks.parts[number][0],
    ).raise_for_failures("embedding part")


@dataclass(frozen=True)
class _Target:
    """The product that parts are written to, and how wide it is."""

    root: str
    fingerprint: str
    components: int

    def write(self, start: int, stop: int, found: Found) -> None:
        """What was found of the stars from `start` to `stop`: on workers whole chunks, nobody else's."""
        key = ("chemscale.embedding", self.root, self.fingerprint, os.getpid())
        arrays = per_worker(key, self._open)
        k = self.components
        arrays["coords"][start:stop] = found.both[:, :k]
        arrays["coords_variance"][start:stop] = found.both[:, k:]
        arrays["valid"][start:stop] = np.isfinite(found.both[:, 0])
        if found.star is not None:
            flags = found.flags(arrays["outlier_flags"].shape[1])
            arrays["outlier_flags"][start:stop] = flags
            arrays["n_outliers"][start:stop] = np.count_nonzero(flags, axis=1)
            arrays["misfit"][start:stop] = found.misfit
            arrays["anomalous"][start:stop] = found.anomalous

    def _open(self) -> dict[str, Any]:
        group = zarr.open_group(self.root, mode="r+")
        names = ("coords", "coords_variance", "valid", "outlier_flags", "n_outliers", "misfit", "anomalous")
        return {name: group[name] for name in names if name in group}


@dataclass(frozen=True)
class _Job:
    """What every part needs; sent to each worker once."""

    readers: list[Reader]
    edges: np.ndarray
    load: Callable[..., Found]
    target: _Target


def _embed_part(part: tuple[int, int], job: _Job) -> None:
    """Read, embed and write one part; runs on a worker."""
    found = []
    for start, stop in split_at_blocks(*part, job.edges):
        everyone = np.ones((stop - start, 1), dtype=bool)
        read = (reader.read(start, stop, reuse=True) for reader in job.readers)
        found.append(blocks.call(everyone, *read, function=job.load))
    job.target.write(*part, Found.join(found))


def _embed_here(delayed: list[Any], edges: np.ndarray, target: _Target, marks: _Marks) -> None:
    """Embed with whatever Dask scheduler is active and write from this process, some 65,000 stars at a time.

    `delayed` are the embedded blocks between `edges`; parts may end inside of a block.
    """
    parts = marks.parts
    first = np.searchsorted(edges, [start for start, _ in parts], side="right") - 1
    last = np.searchsorted(edges, [stop for _, stop in parts], side="left")
    written = np.ones(len(delayed), dtype=bool)
    for i in set(range(len(parts))) - marks.done:
        written[first[i] : last[i]] = False
    todo = np.flatnonzero(~written).tolist()
    while todo:
        stars = 0
        batch: list[int] = []
        while todo and (not batch or stars + edges[todo[0] + 1] - edges[todo[0]] <= PART_STARS):
            stars += int(edges[todo[0] + 1] - edges[todo[0]])
            batch.append(todo.pop(0))
        for number, found in zip(batch, dask.compute(*(delayed[b] for b in batch))):
            target.write(int(edges[number]), int(edges[number + 1]), found)
            written[number] = True
        marks.add([i for i in range(len(parts)) if i not in marks.done and written[first[i] : last[i]].all()])


class _Marks:
    """Which parts are done: each is marked in the product once its data are written."""

    def __init__(
        self,
        product: ResumableProduct,
        done: set[int],
        parts: list[tuple[int, int]],
        progress: Callable[[int, int], None] | None,
    ):
        self.product, self.done, self.parts, self.progress = product, set(done), parts, progress
        self.stars = sum(parts[i][1] - parts[i][0] for i in done)

    def add(self, numbers: Iterable[int]) -> None:
        """Parts that are written."""
        for number in numbers:
            self.product.mark(number)
            self.done.add(number)
            self.stars += self.parts[number][1] - self.parts[number][0]
        if self.progress is not None:
            self.progress(self.stars, self.parts[-1][1])


def _fingerprint(
    ds: xr.Dataset, model: MaskedPPCA, columns: Mapping[str, np.ndarray], bits: int, parts: Sequence[tuple[int, ...]]
) -> str:
    digest = hashlib.sha256()
    for array in (model.components_, model.mean_, model.latent_scale_, np.asarray(model.noise_variance_)):
        digest.update(np.ascontiguousarray(array).tobytes())
    for name, values in columns.items():
        text = values.dtype.kind in "OUT"
        digest.update(name.encode())
        digest.update("\0".join(map(str, values)).encode() if text else np.ascontiguousarray(values).tobytes())
    # The store's name is left out on purpose: a survey that moved is still the same survey.
    facts: list[Any] = [model.noise, bits, list(map(list, parts)), str(ds.attrs.get("revision", ""))]
    if model.outlier_sigmas is not None:
        facts.append(model.outlier_sigmas)
    digest.update(json.dumps(facts).encode())
    return digest.hexdigest()


def _begin(product: ResumableProduct, create: Callable[[str], None], *, overwrite: bool, resume: bool) -> set[int]:
    """Create the product, or check the one that is there; which parts are done."""
    root = str(product.target)
    attrs = _attributes(root)
    if attrs is not None and "chemscale_embedding" not in attrs:
        raise StoreError(f"{root}: exists and is not an embedding, so it is not touched", "choose another path")
    there = attrs is not None
    if not there and not product.remote and os.path.exists(root) and (not os.path.isdir(root) or os.listdir(root)):
        raise StoreError(f"{root}: exists and is not an embedding, so it is not touched", "choose another path")
    begun = product.partial.exists("plan.json")
    if not overwrite:
        if resume and begun:
            return product.carry_on()
        if resume and there and attrs is not None and attrs.get("complete"):
            raise ResumeError(
                f"{root}: is of another model, survey or setting, or damaged", "pass overwrite to replace it"
            )
        if (there or begun) and not resume:
            raise StoreError(f"{root}: already exists", "pass overwrite to replace it, or resume to continue it")
    product.restart(create)
    return set()


def _attributes(root: str) -> dict[str, Any] | None:
    import zarr

    try:
        return dict(zarr.open_group(opened_at(root), mode="r").attrs)
    except (FileNotFoundError, zarr.errors.GroupNotFoundError):
        return None


def open_embedding(path: str | os.PathLike[str]) -> xr.Dataset:
    """Open a complete embedding product lazily.

    Raises
    ------
    StoreError
        Nothing there, not an embedding, or one whose run was interrupted.

    Examples
    --------
    >>> import chemscale
    >>> chemscale.open_embedding("nowhere/embedding.zarr")
    Traceback (most recent call last):
    ...
    chemscale.errors.StoreError: no embedding at nowhere/embedding.zarr...
    """
    root = os.fspath(path)
    attrs = _attributes(root)
    parts = done_parts(root + PARTIAL)
    if attrs is None and not Folder(root + PARTIAL).exists():
        raise StoreError(f"no embedding at {root}", "check the path; `chemscale rsca fit` makes one")
    if attrs is not None and "chemscale_embedding" not in attrs:
        raise StoreError(f"{root}: not an embedding", "check the path")
    if attrs is None or not attrs.get("complete"):
        raise StoreError(
            f"{root}: unfinished embedding, {len(parts)} parts are written", "run the embedding again with resume"
        )
    return _read(opened_at(root))


def _read(root: str) -> xr.Dataset:
    chunk = int(zarr.open_array(root, path="coords", mode="r").chunks[0])
    ds = xr.open_zarr(root, consolidated=False, chunks={"star": reading_chunk(chunk)})
    ds.attrs.pop(RECORD, None)
    text = {name: ds[name].astype(object) for name in ds.variables if ds[name].dtype.kind == "T"}
    ds = ds.assign({name: v.assign_attrs(ds[name].attrs) for name, v in text.items()})
    return in_order(ds)
