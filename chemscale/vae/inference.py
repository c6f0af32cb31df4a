"""Latents and scores of a whole survey: shards through a model held once per worker.

A shard is a range of stars. Its task reads the store's blocks (the next one is read while
the current one is computed), runs encoder, decoders and scores, and writes one chunk of
every output array. Models never travel in the graph: workers load them from the run
directory, once a process. One pass over the survey.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
import zarr
from torch import Tensor

from ..errors import DataError, InputError, ResumeError
from ..runtime.run import fingerprint, write_json
from ..runtime.shards import map_shards, per_worker
from ..schema import flag_mask
from .anomalies import text_type
from .checkpoint import grid_fingerprint, load_model
from .data import clean, values_here
from .model import ChemicalVAE
from .training import choose_device

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)
PRODUCT = "latents.zarr"
#: Stars through the model at a time on a CPU: residuals of a batch stay in cache.
CPU_BATCH = 512
GPU_BATCH = 8192
#: Pixels in a window of the local score.
WINDOW = 50
#: Fewest used pixels of a window that counts.
WINDOW_LEAST = 10


def scores(model: ChemicalVAE, flux: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """Latents and scores of cleaned spectra (n, P).

    Returns
    -------
    dict of Tensor
        `mean` (n, d), `covariance` (n, d, d), `auxiliary` (n, a), `norm` (n,): length of the
        mean under the prior; `chi2` and `relative_l2` (n, groups + 1), the whole spectrum
        first: chi-square per used pixel and ||x - x_hat|| / ||x|| over used pixels (NaN where
        no pixel is used); `local` (n,): largest deviation of any window from what noise
        gives, in standard deviations; `local_window` (n,): index of that window; `quiet` (n,): see
        :func:`_quiet`.
    """
    posterior = model.encode(model.features(flux, weight))
    prediction = model.reconstruct(posterior.mean, posterior.auxiliary)
    covered = torch.isfinite(prediction[0]) if len(prediction) else torch.ones_like(model.mean, dtype=torch.bool)
    if not bool(covered.all()):
        prediction = torch.nan_to_num(prediction, nan=1.0)
        weight = weight * covered
    used = weight > 0
    difference = (flux - prediction) * used
    pull = difference * weight.sqrt()
    chi2_pixel, square = pull * pull, difference * difference
    size = torch.where(used, flux, torch.zeros_like(flux)) ** 2
    members = _members(model)
    totals = []
    for quantity in (chi2_pixel, square, size, used.to(flux.dtype)):
        totals.append(quantity @ members)
    chi2, error, power, count = totals
    nothing = torch.full_like(chi2, torch.nan)
    local, window = _local(pull, chi2_pixel, used)
    quiet = _quiet(pull, used)
    root = torch.linalg.cholesky(model.prior)
    norm = torch.linalg.solve_triangular(root, posterior.mean.T, upper=False).norm(dim=0)
    return {
        "mean": posterior.mean,
        "covariance": posterior.covariance,
        "auxiliary": posterior.auxiliary,
        "norm": norm,
        "chi2": torch.where(count > 0, chi2 / count.clamp_min(1), nothing),
        "relative_l2": torch.where(count > 0, (error / power.clamp_min(1e-30)).sqrt(), nothing),
        "local": local,
        "local_window": window.to(torch.int32),
        "quiet": quiet,
    }


def _sums(x: Tensor) -> Tensor:
    """Sums over windows of :data:`WINDOW` pixels, the last one what is left; (n, windows)."""
    whole = x.shape[1] // WINDOW * WINDOW
    sums = x[:, :whole].reshape(len(x), whole // WINDOW, WINDOW).sum(-1)
    return sums if whole == x.shape[1] else torch.cat([sums, x[:, whole:].sum(1, keepdim=True)], 1)


def _quiet(pull: Tensor, used: Tensor) -> Tensor:
    """How much less than noise neighbouring pixels differ in the stillest window, in standard deviations.

    Differences of neighbours do not care whether the model is right on average, so a stretch
    that was filled with a constant shows even where the constant is near the truth.
    """
    step = (pull[:, 1:] - pull[:, :-1]) ** 2 / 2
    both = used[:, 1:] & used[:, :-1]
    count = _sums(both.to(pull.dtype))
    k = (count / 1.5).clamp_min(1.0)  # neighbouring differences share a pixel: fewer independent ones
    width = 2.0 / (9.0 * k)
    scatter = ((_sums(step * both) / count.clamp_min(1.0)).pow(1.0 / 3.0) - (1.0 - width)) / width.sqrt()
    return torch.where(count >= WINDOW_LEAST, -scatter, torch.full_like(scatter, -10.0)).amax(1)


def _members(model: ChemicalVAE) -> Tensor:
    """(P, groups + 1) of 0 and 1: all pixels, then those of each group. Sums over groups are products with it."""
    members = model.mean.new_zeros(model.mean.numel(), 1 + len(model.config.groups))
    members[:, 0] = 1.0
    for k, group in enumerate(model.config.groups, start=1):
        members[model.index()[group.name], k] = 1.0
    return members


def _local(pull: Tensor, chi2: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    """Largest deviation over windows of :data:`WINDOW` pixels, and which window it is.

    Two tests a window, each normal with unit variance for pure noise: the signed mean of the
    residuals, and their chi-square through the Wilson-Hilferty cube root. The second is
    two-sided: a stretch that was filled with a constant has *less* scatter than noise.
    """
    count = _sums(used.to(pull.dtype))
    enough = count >= WINDOW_LEAST
    k = count.clamp_min(1.0)
    signed = _sums(pull).abs() / k.sqrt()
    width = 2.0 / (9.0 * k)
    scatter = ((_sums(chi2) / k).pow(1.0 / 3.0) - (1.0 - width)) / width.sqrt()
    worst = torch.where(enough, torch.maximum(signed, scatter.abs()), torch.zeros_like(signed))
    value, index = worst.max(1)
    return value, index


@torch.inference_mode()
def infer_arrays(
    model: ChemicalVAE, flux: np.ndarray, weight: np.ndarray, *, batch: int | None = None, bfloat16: bool = False
) -> dict[str, np.ndarray]:
    """:func:`scores` of cleaned NumPy spectra, batch by batch, on the model's device.

    A star without a used pixel gets NaN everywhere.
    """
    device = model.mean.device
    step = batch or (GPU_BATCH if device.type == "cuda" else CPU_BATCH)
    cast = torch.autocast(device.type, dtype=torch.bfloat16) if bfloat16 else nullcontext()
    parts: list[dict[str, Tensor]] = []
    with cast:
        for start in range(0, max(1, len(flux)), step):
            rows = slice(start, start + step)
            f, w = torch.from_numpy(flux[rows]), torch.from_numpy(weight[rows])
            if device.type == "cuda":
                f, w = (x.pin_memory().to(device, non_blocking=True) for x in (f, w))
            parts.append(scores(model, f, w))
    found = {k: torch.cat([p[k] for p in parts]).float().cpu().numpy() for k in parts[0]}
    found["local_window"] = found["local_window"].astype(np.int32)
    empty = ~(weight > 0).any(1)
    if empty.any():
        for key, values in found.items():
            values[empty] = -1 if key == "local_window" else np.nan
    return found


# ------------------------------------------------------------------- product


def _outputs(model: ChemicalVAE) -> dict[str, tuple[tuple[str, ...], str, str]]:
    """Output variables: dims, dtype, meaning."""
    return {
        "mean": (("star", "latent"), "f4", "posterior mean of the chemical latents"),
        "covariance": (("star", "latent", "latent_"), "f4", "posterior covariance of the chemical latents"),
        "auxiliary": (("star", "auxiliary"), "f4", "auxiliary latents w"),
        "label": (("star", "label_name"), "f4", "labels predicted from w by the linear head, in the survey's units"),
        "norm": (("star",), "f4", "length of the latent mean under the prior"),
        "chi2": (("star", "part"), "f4", "reconstruction chi-square per used pixel"),
        "relative_l2": (("star", "part"), "f4", "||x - x_hat|| / ||x|| over used pixels"),
        "local": (("star",), "f4", "largest deviation of any window, in standard deviations"),
        "local_window": (("star",), "i4", f"index of that window ({WINDOW} pixels each); -1 = none"),
        "quiet": (("star",), "f4", "how much stiller than noise the stillest window is, in standard deviations"),
        "n_used": (("star",), "i4", "used pixels"),
    }


def parts_of(model: ChemicalVAE) -> list[str]:
    """Names along the dimension `part`: the whole spectrum, then each group."""
    return ["all", *(g.name for g in model.config.groups)]


@dataclass(frozen=True)
class Shard:
    """A range of stars and everything a worker needs to find the rest."""

    index: int
    start: int
    stop: int
    store: str
    model: str
    sha256: str
    product: str
    flags: int
    floor: float
    device: str | None
    bfloat16: bool


def _load(path: str, device: str | None) -> ChemicalVAE:
    model, _ = load_model(Path(path), device=choose_device(device))
    return model


def open_store(path: str) -> xr.Dataset:
    """The survey, opened once a worker."""
    from ..survey.store import open_survey

    return per_worker(("chemscale.vae.survey", path, os.getpid()), lambda: open_survey(path))


def infer_shard(shard: Shard) -> dict[str, Any]:
    """Read, compute and write one shard; runs on a worker."""
    model = per_worker(
        ("chemscale.vae.model", shard.model, shard.sha256, shard.device), lambda: _load(shard.model, shard.device)
    )
    return run_shard(model, open_store(shard.store), shard)


def run_shard(model: ChemicalVAE, ds: xr.Dataset, shard: Shard) -> dict[str, Any]:
    """One shard of an open survey through a loaded model; writes its chunk of every output."""
    found: dict[str, list[np.ndarray]] = {}
    for flux, weight in _blocks(ds, shard):
        block = infer_arrays(model, flux, weight, bfloat16=shard.bfloat16)
        block["n_used"] = (weight > 0).sum(1).astype(np.int32)
        for key, values in block.items():
            found.setdefault(key, []).append(values)
    whole = {k: np.concatenate(v) for k, v in found.items()}
    with torch.inference_mode():
        w = torch.from_numpy(whole["auxiliary"]).to(model.mean.device)
        whole["label"] = (model.linear(w) * model.label_scale + model.label_centre).cpu().numpy()
    group = zarr.open_group(shard.product, mode="r+")
    for name in _outputs(model):
        array = group[name]
        assert isinstance(array, zarr.Array)
        array[shard.start : shard.stop] = whole[name].astype(array.dtype)
    ids = group["star_id"]
    assert isinstance(ids, zarr.Array)
    names = np.asarray(ds["star_id"].isel(star=slice(shard.start, shard.stop)).values)
    ids[shard.start : shard.stop] = names.astype(object)
    marker = book_of(Path(shard.product)) / f"{shard.index:06d}.json"
    write_json(marker, {"start": shard.start, "stop": shard.stop, "model": shard.sha256})
    return {"stars": shard.stop - shard.start, "unusable": int((whole["n_used"] == 0).sum())}


def _blocks(ds: xr.Dataset, shard: Shard) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cleaned blocks of a shard's rows, the next one read while the caller works."""
    chunks = ds["flux"].chunks
    edges = np.concatenate([[0], np.cumsum(chunks[0])]) if chunks else np.array([0, ds.sizes["star"]])
    inner = edges[(edges > shard.start) & (edges < shard.stop)]
    bounds = [shard.start, *(int(e) for e in inner), shard.stop]

    def read(rows: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        part = ds[["flux", "ivar", "flags"]].isel(star=slice(*rows))
        flux, ivar, flags = (values_here(part[n]) for n in ("flux", "ivar", "flags"))
        return clean(flux, ivar, flags, selected=shard.flags, floor=shard.floor)

    pairs = list(itertools.pairwise(bounds))
    with ThreadPoolExecutor(1, thread_name_prefix="chemscale-vae-read") as pool:
        ahead = pool.submit(read, pairs[0])
        for following in [*pairs[1:], None]:
            current = ahead.result()
            if following is not None:
                ahead = pool.submit(read, following)
            yield current


def check_grid(ds: xr.Dataset, record: Mapping[str, Any]) -> None:
    """Refuse a survey the model was not trained for.

    Raises
    ------
    InputError
        Other wavelength grid, medium or survey.
    """
    wave = np.asarray(ds["wavelength"].values)
    medium = str(ds["wavelength"].attrs.get("medium", ""))
    if grid_fingerprint(wave, medium) != record.get("grid"):
        was = record.get("wavelength", {})
        raise InputError(
            f"the survey's grid ({wave.size} pixels, {wave[0]:.1f}-{wave[-1]:.1f} Angstrom, {medium}) is not the "
            f"model's ({was.get('pixels')} pixels, {was.get('low')}-{was.get('high')} Angstrom, {was.get('medium')})",
            "ingest the survey onto the model's grid, or train on this one",
        )
    survey, trained_on = str(ds.attrs.get("survey", "")), str(record.get("survey", ""))
    if survey != trained_on:
        raise InputError(
            f"the survey is {survey!r}, the model was trained on {trained_on!r}",
            "train on this survey: line spread and normalisation differ from survey to survey",
        )


def infer_survey(
    ds: xr.Dataset,
    model_dir: Path,
    product: Path,
    *,
    store: str | None = None,
    client: Client | None = None,
    overwrite: bool = False,
    device: str | None = None,
    bfloat16: bool | None = None,
    flags: Any = "all",
    shard_stars: int | None = None,
) -> dict[str, Any]:
    """Infer every star of a survey into a Zarr product; resumable, one pass.

    Parameters
    ----------
    ds : xarray.Dataset
        The survey (lazy).
    model_dir : path
        Directory of ``model.safetensors`` and ``model.json``; workers read it.
    product : path
        ``latents.zarr``; shards with a marker are skipped.
    store : str, optional
        Path or URL under which workers open the survey; needed with `client`.
    client : distributed.Client, optional
        GPU workers are used by their resource ``GPU`` where any worker has it.
    device : str, optional
        Default: CUDA where there is one.
    bfloat16 : bool, optional
        Autocast; default on CUDA only.

    Raises
    ------
    InputError
        Other grid or survey than the model's; no `store` for a client.
    DataError
        No stars.
    ResumeError
        `product` holds results of another model or survey.
    """
    n = int(ds.sizes.get("star", 0))
    if n == 0:
        raise DataError("the survey has no stars", "ingest spectra first")
    model, record = load_model(model_dir)
    check_grid(ds, record)
    if client is not None and not store:
        raise InputError("workers need the path of the survey store", "pass store=")
    size = shard_stars or _shard_stars(ds)
    plan = {
        "store": store or str(ds.attrs.get("store", "")),
        "revision": int(ds.attrs.get("revision", 0)),
        "stars": n,
        "model": record["sha256"],
        "shard_stars": size,
        "flags": flag_mask(flags),
    }
    done = _begin(product, model, ds, plan, overwrite)
    resources = _resources(client)
    on_gpu = bool(resources) or choose_device(device).type == "cuda"
    shards = {
        i: Shard(
            i,
            start,
            min(start + size, n),
            plan["store"],
            str(model_dir),
            record["sha256"],
            str(product),
            plan["flags"],
            float(record.get("train", {}).get("floor", 0.0)),
            device,
            on_gpu if bfloat16 is None else bfloat16,
        )
        for i, start in enumerate(range(0, n, size))
    }
    if client is None:
        local = model.to(choose_device(device))
        func = lambda shard: run_shard(local, ds, shard)  # noqa: E731
    else:
        func = infer_shard
    report = map_shards(
        func,
        shards,
        client,
        done=done,
        resources=resources,
        description="inference",
        unit="stars",
        weight=lambda i: shards[i].stop - shards[i].start,
    ).raise_for_failures("inference shard")
    zarr.open_group(str(product), mode="r+").attrs["complete"] = True
    computed = sum(shards[i].stop - shards[i].start for i in shards if i not in done)
    rate = computed / report.seconds if report.seconds > 0 else 0.0
    return {"stars": n, "computed": computed, "seconds": report.seconds, "stars_per_s": rate}


def _shard_stars(ds: xr.Dataset) -> int:
    chunks = ds["flux"].chunks
    block = int(chunks[0][0]) if chunks else int(ds.sizes["star"])
    return block * max(1, 4096 // max(1, block))


def _resources(client: Client | None) -> dict[str, float] | None:
    if client is None:
        return None
    workers = client.scheduler_info(n_workers=-1).get("workers", {})
    return {"GPU": 1} if any("GPU" in (w.get("resources") or {}) for w in workers.values()) else None


def _begin(product: Path, model: ChemicalVAE, ds: xr.Dataset, plan: dict[str, Any], overwrite: bool) -> set[int]:
    """Create the product or check that it is the same work; returns finished shards."""
    book = book_of(product)
    record = book / "plan.json"
    if record.exists() and not overwrite:
        before = json.loads(record.read_text(encoding="utf-8"))
        if fingerprint(before) != fingerprint(plan):
            different = sorted(k for k in plan if before.get(k) != plan[k])
            raise ResumeError(
                f"{product} holds latents of other input ({', '.join(different)} differ)",
                "pass --overwrite to compute them anew, or choose another run",
            )
        return {int(p.stem) for p in book.glob("*.json") if p.stem.isdigit()}
    n, size = plan["stars"], plan["shard_stars"]
    if product.exists():
        import shutil

        if not overwrite and any(product.iterdir()):
            raise ResumeError(f"{product} exists and has no plan", "pass --overwrite to replace it")
        shutil.rmtree(product)
    for old in book.glob("*.json"):
        old.unlink()
    c = model.config
    lengths = {
        "latent": c.n_latents,
        "latent_": c.n_latents,
        "auxiliary": c.n_auxiliary,
        "label_name": len(c.labels),
        "part": c.n_latents + 1,
    }
    group = zarr.create_group(
        str(product), attributes={"product": "vae latents", "complete": False, "model": plan["model"]}
    )
    for name, (dims, dtype, meaning) in _outputs(model).items():
        shape = (n, *(lengths[d] for d in dims[1:]))
        group.create_array(
            name,
            shape=shape,
            chunks=(size, *shape[1:]),
            dtype=np.dtype(dtype),
            dimension_names=dims,
            attributes={"long_name": meaning},
            fill_value=np.nan if dtype == "f4" else -1,
        )
    group.create_array(
        "star_id",
        shape=(n,),
        chunks=(size,),
        dtype=text_type(),
        dimension_names=("star",),
        fill_value="",
    )
    for dim, names in (("latent", c.latents), ("label_name", c.labels), ("part", parts_of(model))):
        array = group.create_array(
            dim,
            shape=(len(names),),
            dtype=text_type(),
            dimension_names=(dim,),
            fill_value="",
        )
        array[:] = np.array(list(names), dtype=object)
    book.mkdir(parents=True, exist_ok=True)
    write_json(record, plan)
    return set()


def book_of(product: Path) -> Path:
    """Directory of the plan and the markers of a product, beside it."""
    return product.with_suffix(".shards")


def open_latents(product: Path) -> xr.Dataset:
    """The finished product, lazy.

    Raises
    ------
    DataError
        Inference was not finished.
    """
    ds = xr.open_zarr(str(product), consolidated=False)
    if not ds.attrs.get("complete"):
        raise DataError(f"{product} is not finished", "run `chemscale vae infer` again: it carries on")
    return ds
