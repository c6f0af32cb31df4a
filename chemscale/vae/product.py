"""The Zarr product of inference: layout, plan, markers."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import xarray as xr
import zarr

from chemscale.errors import DataError, ResumeError
from chemscale.runtime.jsonio import read_json
from chemscale.runtime.product import PARTIAL, RECORD, ResumableProduct, in_order, record_of
from chemscale.vae.columns import text_type
from chemscale.vae.model import ChemicalVAE
from chemscale.vae.scores import WINDOW

PRODUCT = "latents.zarr"
#: Stars in a chunk of `star_id`, about.
NAMED_STARS = 65_536
#: Raised when variables are added: a product of another layout is computed anew, not carried on.
LAYOUT = 2


def outputs(model: ChemicalVAE) -> dict[str, tuple[tuple[str, ...], str, str]]:
    """Output variables: dims, dtype, meaning."""
    return {
        "mean": (("star", "latent"), "f4", "posterior mean of the chemical latents"),
        "covariance": (("star", "latent", "latent_"), "f4", "posterior covariance of the chemical latents"),
        "auxiliary": (("star", "auxiliary"), "f4", "auxiliary latents w"),
        "label": (("star", "label_name"), "f4", "labels predicted from w by the linear head, in the survey's units"),
        "norm": (("star",), "f4", "length of the latent mean under the prior"),
        "chi2": (("star", "part"), "f4", "reconstruction chi-square per used pixel"),
        "relative_l2": (("star", "part"), "f4", "||x - x_hat|| / ||x|| over used pixels"),
        "noise_l2": (("star", "part"), "f4", "relative L2 that the survey's errors alone would give"),
        "local": (("star",), "f4", "largest deviation of any window, in standard deviations"),
        "local_window": (("star",), "i4", f"index of that window ({WINDOW} pixels each); -1 = none"),
        "quiet": (("star",), "f4", "how much stiller than noise the stillest window is, in standard deviations"),
        "n_used": (("star",), "i4", "used pixels"),
    }


def parts_of(model: ChemicalVAE) -> list[str]:
    """Names along the dimension `part`: the whole spectrum, then each group."""
    return ["all", *(g.name for g in model.config.groups)]


def begin(product: ResumableProduct, model: ChemicalVAE, overwrite: bool) -> set[int] | None:
    """Create the product or check that it is the same work; returns finished shards, None where all are.

    Raises
    ------
    ResumeError
        There are latents of other input.
    """
    target = Path(str(product.target))
    if not overwrite:
        if product.is_finished():
            product.clear()
            return None
        there = _plan_there(target)
        different = product.differing()
        if there is not None:
            different = sorted(key for key in product.plan if there.get(key) != product.plan[key])
        if different:
            raise ResumeError(
                f"{target} holds latents of other input ({', '.join(different)} differ)",
                "pass --overwrite to compute them anew, or choose another run",
            )
        if there is not None and record_of(target) is None and zarr.open_group(str(target), mode="r").attrs["complete"]:
            return None  # finished by release 8de129b
        if product.begun():
            return product.carry_on()
    product.restart(partial(_create, model=model, n=product.plan["stars"], size=product.plan["shard_stars"]))
    return set()


def _plan_there(target: Path) -> dict[str, Any] | None:
    """The plan of the product that is there (release 8de129b kept it beside); None where there is none."""
    if not target.exists() or not any(target.iterdir()):
        return None
    record = record_of(target)
    if record is not None:
        return dict(record["plan"])
    file = target.with_suffix(".shards") / "plan.json"
    return dict(read_json(file)) if file.exists() else {}


def _create(path: str, *, model: ChemicalVAE, n: int, size: int) -> None:
    """The empty product."""
    c = model.config
    lengths = {
        "latent": c.n_latents,
        "latent_": c.n_latents,
        "auxiliary": c.n_auxiliary,
        "label_name": len(c.labels),
        "part": c.n_latents + 1,
    }
    group = zarr.create_group(path, attributes={"product": "vae latents", "complete": False})
    for name, (dims, dtype, meaning) in outputs(model).items():
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
        chunks=(min(size * max(1, NAMED_STARS // size), n),),
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


def write_star_ids(path: str, ds: xr.Dataset, stop: Event) -> None:
    """The stars' identifiers, chunk by chunk until `stop` is set: beside those who write the other variables.

    A survey keeps them in chunks of many shards, each of which a worker would decode for every shard of its own.
    """
    array = zarr.open_array(path, path="star_id", mode="r+")
    step = array.chunks[0]
    for start in range(0, array.shape[0], step):
        if stop.is_set():
            return
        rows = slice(start, start + step)
        array[rows] = np.asarray(ds["star_id"].isel(star=rows).values).astype(object)


def open_latents(product: Path) -> xr.Dataset:
    """The finished product, lazy.

    Raises
    ------
    DataError
        Inference was not finished.
    """
    if not product.exists() and Path(f"{product}{PARTIAL}").exists():
        raise DataError(f"{product} is not finished", "run `chemscale vae infer` again: it carries on")
    ds = xr.open_zarr(str(product), consolidated=False)
    if not ds.attrs.get("complete"):
        raise DataError(f"{product} is not finished", "run `chemscale vae infer` again: it carries on")
    ds.attrs.pop(RECORD, None)
    return in_order(ds)
