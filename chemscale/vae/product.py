"""The Zarr product of inference: layout, plan, markers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from chemscale.errors import DataError, ResumeError
from chemscale.runtime.jsonio import digest, write_json
from chemscale.vae.anomalies import text_type
from chemscale.vae.model import ChemicalVAE
from chemscale.vae.scores import WINDOW

PRODUCT = "latents.zarr"
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


def begin(product: Path, model: ChemicalVAE, plan: dict[str, Any], overwrite: bool) -> set[int]:
    """Create the product or check that it is the same work; returns finished shards."""
    book = book_of(product)
    record = book / "plan.json"
    if record.exists() and not overwrite:
        before = json.loads(record.read_text(encoding="utf-8"))
        if digest(before) != digest(plan):
            different = sorted(k for k in plan if before.get(k) != plan[k])
            raise ResumeError(
                f"{product} holds latents of other input ({', '.join(different)} differ)",
                "pass --overwrite to compute them anew, or choose another run",
            )
        return {int(p.stem) for p in book.glob("*.json") if p.stem.isdigit()}
    n, size = plan["stars"], plan["shard_stars"]
    if product.exists():
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
