"""From a survey store to a model that can be trained: checks, PPCA front end, training stars."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from dask.system import CPU_COUNT

from chemscale.errors import DataError, InputError
from chemscale.statistics.ppca import MaskedPPCA
from chemscale.vae.checkpoint import grid_fingerprint
from chemscale.vae.config import ModelConfig
from chemscale.vae.data import (
    MIN_STARS,
    BatchSource,
    Labels,
    MemoryData,
    StreamData,
    TrainingBatch,
    held_out,
    join,
    make_batch,
    read_rows,
    standard_labels,
    star_blocks,
)
from chemscale.vae.model import ChemicalVAE
from chemscale.vae.objective import Parallel
from chemscale.vae.regions import REST, RegionSet, load_regions, regions_for
from chemscale.vae.train_config import TrainConfig

logger = logging.getLogger(__name__)
#: Stars the PPCA front end is fitted to, at most: it has P x K parameters and needs no more.
PPCA_STARS = 6_000
#: Smallest intrinsic error the PPCA front end assumes, as a fraction of the continuum.
PPCA_FLOOR = 1e-3


@dataclass
class Survey:
    """A survey as the VAE sees it.

    Attributes
    ----------
    ds : xarray.Dataset
        Lazy, with the pixels of `columns` only.
    trained : ndarray of bool (n_stars,)
        Stars that may be trained on; the others are held out.
    """

    ds: xr.Dataset
    trained: np.ndarray
    medium: str
    grid: str

    @property
    def wavelength(self) -> np.ndarray:
        """Angstrom (P,)."""
        return np.asarray(self.ds["wavelength"].values)


def look_at(ds: xr.Dataset, fraction: float = 0.3, seed: int = 0) -> Survey:
    """Check that a survey can be used and split it.

    Raises
    ------
    DataError
        No stars, or too few of them to train on.
    InputError
        Not a survey Dataset.
    """
    missing = [n for n in ("flux", "ivar", "flags", "wavelength", "star_id") if n not in ds.variables]
    if missing:
        raise InputError(f"not a survey: no {', '.join(missing)}", "open one with chemscale.open_survey")
    if ds.sizes.get("star", 0) == 0:
        raise DataError("the survey has no stars", "ingest spectra first")
    medium = str(ds["wavelength"].attrs.get("medium", ""))
    if medium not in ("air", "vacuum"):
        raise InputError(f"the survey's wavelength medium is {medium!r}", "it must be 'air' or 'vacuum'")
    ids = np.asarray(ds["star_id"].values)
    grid = grid_fingerprint(np.asarray(ds["wavelength"].values), medium)
    return Survey(ds, ~held_out(ids, fraction, seed), medium, grid)


def choose_regions(survey: Survey, regions: str | RegionSet | None) -> RegionSet:
    """The region set asked for, or the default of the survey's grid and temperatures."""
    if regions is None:
        teff = np.asarray(survey.ds["teff"].values) if "teff" in survey.ds else None
        regions = regions_for(survey.wavelength, teff)
    return load_regions(regions)


def group_pixels(survey: Survey, config: ModelConfig, regions: RegionSet) -> dict[str, np.ndarray]:
    """Pixel indices of every decoder on the survey's grid.

    Raises
    ------
    InputError
        The dependency table names a group the regions do not have.
    """
    masks = regions.masks(survey.wavelength, survey.medium)
    absent = [g.name for g in config.groups if g.name not in masks]
    if absent:
        raise InputError(
            f"regions {regions.name!r} have no group {', '.join(absent)}",
            f"they have {', '.join(masks)}: name them as the model does, or give the model these groups with --groups",
        )
    pixels = {g.name: np.flatnonzero(masks[g.name]) for g in config.groups}
    if config.rest:
        claimed = np.zeros(survey.wavelength.size, dtype=bool)
        for index in pixels.values():
            claimed[index] = True
        pixels[REST] = np.flatnonzero(~claimed)
    return pixels


def unseen_rows(
    survey: Survey, most: int, least: int, seed: int, floor: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """:func:`sample_rows` of held-out stars; of those that may be trained on where fewer than `least` were held out."""
    apart = ~survey.trained
    return sample_rows(survey, most, seed, floor, of=apart if apart.sum() >= least else None)


def sample_rows(
    survey: Survey, most: int, seed: int, floor: float = 0.0, of: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cleaned flux and weights of up to `most` stars and their rows, drawn block by block; one pass over their blocks.

    Parameters
    ----------
    of : ndarray of bool (n_stars,), optional
        Stars to draw from, default those that may be trained on.
    """
    blocks = star_blocks(survey.ds)
    of = survey.trained if of is None else of
    total = int(of.sum())
    rng = np.random.default_rng([seed, 71])
    fraction = min(1.0, most / max(1, total))
    parts, rows = [], []
    order = rng.permutation(len(blocks)) if fraction < 0.2 else np.arange(len(blocks))
    taken = 0
    for b in order:
        start, stop = blocks[b]
        keep = of[start:stop].copy()
        if fraction >= 0.2:
            keep &= rng.random(stop - start) < fraction
        if not keep.any():
            continue
        parts.append(read_rows(survey.ds, start, stop, keep, floor=floor))
        rows.append(start + np.flatnonzero(keep))
        taken += int(keep.sum())
        if taken >= most:
            break
    if not parts:
        raise DataError("the survey has no stars to train on", "lower the held-out fraction")
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]), np.concatenate(rows)


def fit_front(flux: np.ndarray, weight: np.ndarray, n_components: int, seed: int) -> dict[str, np.ndarray]:
    """Masked PPCA of cleaned spectra, as the front end wants it.

    The shared noise variance of the fit contains the measurement errors; what exceeds their
    median is taken as intrinsic, at least :data:`PPCA_FLOOR` squared.
    """
    missing = weight <= 0
    ppca = MaskedPPCA(n_components, noise="shared", tol=0.05, loglike_tol=1e-5, max_iter=6, random_state=seed).fit(
        flux, missing
    )
    used = ppca.pixel_used_
    with np.errstate(divide="ignore"):
        typical = float(np.median(1.0 / weight[~missing])) if (~missing).any() else 0.0
    intrinsic = max(float(ppca.noise_variance_) - typical, PPCA_FLOOR**2)
    return {
        "components": np.where(used, ppca.components_, 0.0),
        "mean": np.where(used, ppca.mean_, 1.0),
        "scale": np.asarray(ppca.latent_scale_),
        "noise": np.full(used.size, intrinsic),
    }


def build(survey: Survey, config: ModelConfig, train: TrainConfig, regions: RegionSet) -> ChemicalVAE:
    """A model for the survey, front end fitted, decoders starting from the mean spectrum; one pass over a sample.

    Raises
    ------
    DataError
        Fewer than :data:`~chemscale.vae.data.MIN_STARS` training stars.
    """
    count = int(survey.trained.sum())
    if count < MIN_STARS:
        raise DataError(f"{count} stars to train on, at least {MIN_STARS} are needed", "use a larger survey")
    pixels = group_pixels(survey, config, regions)
    flux, weight, _ = sample_rows(survey, PPCA_STARS if config.encoder == "ppca" else 4000, train.seed)
    if not (weight > 0).any():
        raise DataError("not one usable pixel in the survey", "check flags and ivar of the store")
    torch.manual_seed(train.seed)  # initial weights
    if config.encoder == "ppca":
        front = fit_front(flux, weight, min(config.n_components, len(flux) - 1), train.seed)
        return ChemicalVAE(config, pixels, front["mean"], front)
    total = weight.sum(0)
    mean = np.where(total > 0, (flux * weight).sum(0) / np.maximum(total, 1e-30), 1.0)
    return ChemicalVAE(config, pixels, mean)


def training_data(
    survey: Survey, model: ChemicalVAE, train: TrainConfig, parallel: Parallel | None = None
) -> tuple[BatchSource, TrainingBatch | None, Labels]:
    """Batches, validation stars and label scaling for a model. One pass if the data fit in memory.

    The model's label scaling is set. Data go to memory when the groups' pixels and features
    of all training stars stay under ``train.memory_gb``; otherwise blocks are streamed. Stars without a usable pixel
    are left out.
    """
    ds, trained = survey.ds, survey.trained
    names = model.config.labels
    wanted = [*names, *(f"{n}_error" for n in names)]
    columns = {n: (("star",), np.asarray(ds[n].values)) for n in wanted if n in ds.variables}
    labels = standard_labels(xr.Dataset(columns).isel(star=np.flatnonzero(trained)), names, train.label_error)
    with torch.no_grad():
        model.label_centre.copy_(torch.as_tensor(labels.centre, dtype=torch.float32))
        model.label_scale.copy_(torch.as_tensor(labels.scale, dtype=torch.float32))
        with np.errstate(invalid="ignore"):
            ends = [np.nanmin(labels.values, 0), np.nanmax(labels.values, 0)]
        model.label_range.copy_(torch.as_tensor(np.stack(ends), dtype=torch.float32))
    values = np.full((len(trained), len(names)), np.nan, np.float32)
    errors = np.full_like(values, np.nan)
    values[trained], errors[trained] = labels.values, labels.errors
    # validation stars are the training stars a second hash picks
    watching = held_out(np.asarray(ds["star_id"].values), train.validation, seed=1) & trained
    learning, watched = trained & ~watching, [watching] if watching.any() else []
    groups = list(model.pixels)
    blocks = star_blocks(ds)

    def read(block: int, *kept: np.ndarray) -> list[TrainingBatch]:
        """The stars of a block that each of some masks (n_stars,) keeps; the block is read once."""
        start, stop = blocks[block]
        either = np.logical_or.reduce(kept)[start:stop]
        flux, weight = read_rows(ds, start, stop, either, floor=train.floor)
        rows = start + np.flatnonzero(either)
        if not (seen := (weight > 0).any(1)).all():
            flux, weight, rows = flux[seen], weight[seen], rows[seen]
        batch = make_batch(model, groups, flux, weight, values[rows], errors[rows])
        return [batch if keep[rows].all() else batch.rows(torch.from_numpy(keep[rows])) for keep in kept]

    def gather(*kept: np.ndarray) -> list[TrainingBatch]:
        wanted = [b for b, (start, stop) in enumerate(blocks) if any(keep[start:stop].any() for keep in kept)]
        with ThreadPoolExecutor(CPU_COUNT, thread_name_prefix="chemscale-vae-gather") as pool:
            return [join(parts) for parts in zip(*pool.map(lambda b: read(b, *kept), wanted), strict=True)]

    width = sum(len(model.pixels[g]) for g in groups) * 8
    width += 4 * (model.config.n_components if model.config.encoder == "ppca" else model.mean.numel())
    need = int(learning.sum()) * width
    if need <= train.memory_gb * 1e9:
        stars, *apart = gather(learning, *watched)
        return MemoryData(stars, train.batch, train.seed), apart[0] if apart else None, labels
    logger.info("%.1f GB of training pixels exceed %.1f GB: streaming", need / 1e9, train.memory_gb)
    sizes: Sequence[int] = [int(learning[a:b].sum()) for a, b in blocks]
    source: Any = StreamData(lambda b: read(b, learning)[0], sizes, train.batch, train.seed)
    return source, gather(*watched)[0] if watched else None, labels
