"""Spectra for training: split, standardised labels, features and pixels of each group.

Small surveys are held in memory (the pixels of the chemical groups only); large ones are
streamed block by block, shuffled within groups of blocks, read ahead by a thread. Either
way a batch is a function of (seed, epoch, position), so training can resume at any step.
"""

from __future__ import annotations

import hashlib
import itertools
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from chemscale.arrays import missing_pixels
from chemscale.errors import DataError, InputError
from chemscale.runtime.devices import free_memory
from chemscale.schema import flag_mask
from chemscale.vae.model import ChemicalVAE

#: Relative error of Teff and log g where the survey gives none (the paper's 2 per cent).
LABEL_ERROR = 0.02
#: Fewest stars a model is trained on.
MIN_STARS = 200


@dataclass
class TrainingBatch:
    """Some stars as the trainer sees them.

    Attributes
    ----------
    features : Tensor (n, K) or (n, P)
    flux, ivar : dict of str to Tensor (n, pixels of the group)
        ``ivar`` is 0 at missing pixels, ``flux`` finite everywhere.
    labels, errors : Tensor (n, q)
        Standardised Teff and log g with their errors; NaN where unknown.
    """

    features: Tensor
    flux: dict[str, Tensor]
    ivar: dict[str, Tensor]
    labels: Tensor
    errors: Tensor

    def __len__(self) -> int:
        return len(self.features)

    def tensors(self) -> list[Tensor]:
        """All arrays, in a fixed order."""
        return [self.features, *self.flux.values(), *self.ivar.values(), self.labels, self.errors]

    @property
    def nbytes(self) -> int:
        """Of all arrays together."""
        return sum(t.nbytes for t in self.tensors())

    def _each(self, change: Callable[[Tensor], Tensor]) -> TrainingBatch:
        return TrainingBatch(
            change(self.features),
            {k: change(v) for k, v in self.flux.items()},
            {k: change(v) for k, v in self.ivar.items()},
            change(self.labels),
            change(self.errors),
        )

    def rows(self, part: slice | Tensor) -> TrainingBatch:
        """Some of the rows."""
        return self._each(lambda x: x[part])

    def to(self, device: torch.device) -> TrainingBatch:
        """On another device; asynchronous from pinned memory."""
        return self._each(lambda x: x.to(device, non_blocking=True))

    def copy(self) -> TrainingBatch:
        """The same stars in memory of its own."""
        return self._each(torch.clone)


def held_out(star_id: Sequence[str] | np.ndarray, fraction: float = 0.3, seed: int = 0) -> np.ndarray:
    """Which stars are kept away from training: a hash of their identifier, so it never depends on order.

    Returns
    -------
    ndarray of bool (n,)
    """
    if not 0 <= fraction < 1:
        raise InputError(f"held-out fraction {fraction}", "give a number from 0 up to (not including) 1")
    return draws(star_id, str(seed)) < int(fraction * 2**32)


def draws(star_id: Sequence[str] | np.ndarray, salt: str) -> np.ndarray:
    """A random number of each star that depends on its identifier and `salt` only; (n,) uint32."""
    key = salt.encode()
    found = (hashlib.blake2b(str(i).encode(), digest_size=4, key=key).digest() for i in star_id)
    return np.frombuffer(b"".join(found), dtype=">u4").astype(np.uint32)


def clean(
    flux: np.ndarray, ivar: np.ndarray, flags: np.ndarray, selected: int, floor: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Flux and weights ready for the model: missing pixels get flux 1 and weight 0; (n, P) float32 each.

    Parameters
    ----------
    selected : int
        Flag bits that make a pixel missing.
    floor : float
        Error added in quadrature (fraction of the continuum): what the model cannot resolve anyway.
    """
    flux = np.asarray(flux, dtype=np.float32)
    weight = np.array(ivar, dtype=np.float32)
    bad = missing_pixels(flux, weight, flags, selected) | ~np.isfinite(weight)
    if floor:
        with np.errstate(invalid="ignore", over="ignore"):
            weight = weight / (1.0 + np.float32(floor**2) * weight)
    weight[bad] = 0.0
    return np.where(bad, np.float32(1.0), flux), weight


@dataclass(frozen=True)
class Labels:
    """Standardised labels of the training stars.

    Attributes
    ----------
    values, errors : ndarray (n, q) float32
    centre, scale : ndarray (q,)
        ``value = (label - centre) / scale``.
    """

    values: np.ndarray
    errors: np.ndarray
    centre: np.ndarray
    scale: np.ndarray


def standard_labels(ds: xr.Dataset, names: Sequence[str], relative_error: float = LABEL_ERROR) -> Labels:
    """Teff and log g of a Dataset, standardised by median and 16-84 per cent half-width.

    Errors are the survey's (``teff_error``, ``logg_error``) where it has them, else `relative_error`.

    Raises
    ------
    DataError
        A label the store does not have, or that is missing for nearly every star.
    """
    columns = []
    for name in names:
        if name not in ds.variables:
            raise DataError(
                f"the survey has no {name}", "the VAE needs Teff and log g of its training stars; ingest them as labels"
            )
        column = np.asarray(ds[name].values, dtype=np.float64)
        if np.isfinite(column).mean() < 0.5 or np.nanstd(column) == 0:
            raise DataError(
                f"{name} is known for {np.isfinite(column).sum()} of {column.size} training stars and must vary",
                "select stars with stellar parameters",
            )
        columns.append(column)
    table = np.stack(columns, 1)
    centre = np.nanmedian(table, 0)
    low, high = np.nanpercentile(table, [15.865, 84.135], axis=0)
    scale = np.where(high > low, (high - low) / 2, np.nanstd(table, 0))
    values = (table - centre) / scale
    errors = relative_error * np.abs(table)
    for k, name in enumerate(names):
        if f"{name}_error" in ds.variables:
            own = np.asarray(ds[f"{name}_error"].values, dtype=np.float64)
            errors[:, k] = np.where(own > 0, own, errors[:, k])
    errors /= scale
    return Labels(values.astype("f4"), errors.astype("f4"), centre, scale)


class BatchSource(Protocol):
    """Where batches come from."""

    n_stars: int

    def keep_on(self, device: torch.device, share: float) -> None:
        """Have batches come from the device's memory, where all stars take at most `share` of what is free of it."""
        ...

    def n_batches(self) -> int:
        """Batches an epoch."""
        ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[TrainingBatch]:
        """Batches of an epoch from number `start` on."""
        ...


def _order(seed: int, epoch: int, n: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n)


@dataclass
class MemoryData:
    """All training stars in memory: features and the groups' pixels."""

    data: TrainingBatch
    batch: int
    seed: int = 0

    def __post_init__(self) -> None:
        self.n_stars = len(self.data)
        self.batch = min(self.batch, self.n_stars)

    def keep_on(self, device: torch.device, share: float) -> None:
        """Move the stars to the device if they fit."""
        if device.type != "cuda" or self.data.nbytes <= share * free_memory(device):
            self.data = self.data.to(device)

    def n_batches(self) -> int:
        """Batches an epoch; the incomplete last one is left out."""
        return max(1, self.n_stars // self.batch)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[TrainingBatch]:
        """Batches of an epoch in random order."""
        d = self.data
        order = torch.from_numpy(_order(self.seed, epoch, self.n_stars)).to(d.features.device)
        for b in range(start, self.n_batches()):
            rows = order[b * self.batch : (b + 1) * self.batch]
            yield d.rows(rows)


class StreamData:
    """Training stars read from the store again in every epoch, with read-ahead.

    Parameters
    ----------
    read : callable
        ``read(block) -> TrainingBatch`` of the training stars in dask block `block`, those without a usable pixel
        left out: the others of the same blocks stand in for them, so that an epoch has as many batches as it says.
    sizes : sequence of int
        Training stars in each block, with and without usable pixels.
    batch : int
        Stars of a batch; all of them where there are fewer.
    group : int
        Blocks mixed together, at least: the shuffle buffer. More where they have less than a batch.
    """

    def __init__(
        self, read: Callable[[int], TrainingBatch], sizes: Sequence[int], batch: int, seed: int = 0, group: int = 4
    ):
        self.read, self.sizes, self.seed, self.group = read, list(sizes), seed, group
        self.n_stars = int(sum(sizes))
        self.batch = min(batch, self.n_stars)
        self.device = torch.device("cpu")

    def keep_on(self, device: torch.device, share: float) -> None:
        """Have the thread that reads ahead bring a group to the device; the survey itself stays in its store."""
        self.device = device

    def _groups(self, epoch: int) -> list[list[int]]:
        groups: list[list[int]] = [[]]
        for block in _order(self.seed, epoch, len(self.sizes)):
            if len(groups[-1]) >= self.group and self._batches_of(groups[-1]):
                groups.append([])
            groups[-1].append(int(block))
        return groups

    def _any_stars(self) -> TrainingBatch:
        """Stars of the first block that has any with a usable pixel."""
        for block, size in enumerate(self.sizes):
            if size and len(data := self.read(block)):
                return data
        raise DataError("not one training star has a usable pixel", "check flags and ivar of the store")

    def _batches_of(self, group: Sequence[int]) -> int:
        return sum(self.sizes[b] for b in group) // self.batch

    def n_batches(self) -> int:
        """Batches every epoch has at least; epochs are cut to it so that schedules are fixed."""
        lost = sum(self.batch - 1 for _ in range(-(-len(self.sizes) // self.group)))
        return max(1, (self.n_stars - lost) // self.batch)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[TrainingBatch]:
        """Batches of an epoch; groups before `start` are skipped without reading them."""
        number, limit = 0, self.n_batches()
        wanted = []
        for index, group in enumerate(self._groups(epoch)):
            count = self._batches_of(group)
            if count and number + count > start and number < limit:
                wanted.append((index, number, count, group))
            number += count
        ahead: queue.Queue[Any] = queue.Queue(maxsize=1)
        stop = threading.Event()

        def fill() -> None:
            try:
                last: TrainingBatch | None = None
                for index, first, count, group in wanted:
                    parts = [self.read(b) for b in group if self.sizes[b]]
                    if stop.is_set():
                        return
                    data = join(parts)
                    if not len(data):  # blank stars alone: those of the blocks before are seen again
                        if last is None:
                            last = self._any_stars()
                        data = last
                    last = data
                    ahead.put((index, first, count, data.to(self.device)))
                ahead.put(None)
            except BaseException as err:
                ahead.put(err)

        thread = threading.Thread(target=fill, name="chemscale-vae-read-ahead", daemon=True)
        thread.start()
        try:
            while (item := ahead.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                index, first, count, data = item
                shuffled = np.random.default_rng([self.seed, epoch, index]).permutation(len(data))
                order = torch.from_numpy(np.resize(shuffled, max(len(data), count * self.batch))).to(self.device)
                for b in range(count):
                    if start <= first + b < limit:
                        rows = order[b * self.batch : (b + 1) * self.batch]
                        yield data.rows(rows)
        finally:
            stop.set()
            while thread.is_alive():
                try:
                    ahead.get(timeout=0.1)
                except queue.Empty:
                    continue


def join(parts: Sequence[TrainingBatch]) -> TrainingBatch:
    """Batches one after the other."""
    first = parts[0]
    return TrainingBatch(
        torch.cat([p.features for p in parts]),
        {k: torch.cat([p.flux[k] for p in parts]) for k in first.flux},
        {k: torch.cat([p.ivar[k] for p in parts]) for k in first.ivar},
        torch.cat([p.labels for p in parts]),
        torch.cat([p.errors for p in parts]),
    )


@torch.no_grad()
def make_batch(
    model: ChemicalVAE,
    groups: Sequence[str],
    flux: np.ndarray,
    weight: np.ndarray,
    labels: np.ndarray,
    errors: np.ndarray,
) -> TrainingBatch:
    """Features and group pixels of cleaned spectra (n, P)."""
    f, w = torch.from_numpy(flux), torch.from_numpy(weight)
    index = {g: torch.from_numpy(model.pixels[g]) for g in groups}
    device = model.mean.device
    features = model.features(f.to(device), w.to(device)).cpu()
    return TrainingBatch(
        features,
        {g: f[:, i].contiguous() for g, i in index.items()},
        {g: w[:, i].contiguous() for g, i in index.items()},
        torch.from_numpy(np.ascontiguousarray(labels, dtype=np.float32)),
        torch.from_numpy(np.ascontiguousarray(errors, dtype=np.float32)),
    )


def identifiers(ds: xr.Dataset) -> np.ndarray:
    """`star_id` as a NumPy array of str, whatever type of text the store gave."""
    return np.array([str(s) for s in ds["star_id"].values], dtype=np.str_)


def star_blocks(ds: xr.Dataset) -> list[tuple[int, int]]:
    """Row ranges of the dask blocks of `flux`."""
    chunks = ds["flux"].chunks
    sizes = chunks[0] if chunks else (ds.sizes["star"],)
    edges = np.concatenate([[0], np.cumsum(sizes)])
    return [(int(a), int(b)) for a, b in itertools.pairwise(edges)]


def values_here(array: xr.DataArray) -> np.ndarray:
    """Values of an array, computed in this thread: on a Dask worker the default would send the work back."""
    data = array.data
    return np.asarray(data.compute(scheduler="synchronous") if hasattr(data, "compute") else data)


def read_rows(
    ds: xr.Dataset, start: int, stop: int, keep: np.ndarray | None = None, flags: Any = "all", floor: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Cleaned flux and weight of rows ``[start, stop)`` (those of `keep`); reads one block."""
    part = ds[["flux", "ivar", "flags"]].isel(star=slice(start, stop))
    flux, ivar, bits = (values_here(part[name]) for name in ("flux", "ivar", "flags"))
    if keep is not None and not keep.all():
        flux, ivar, bits = flux[keep], ivar[keep], bits[keep]
    return clean(flux, ivar, bits, selected=flag_mask(flags), floor=floor)
