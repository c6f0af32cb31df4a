"""A small run for the tests of studies, report and documentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr
from helpers import make_survey

from chemscale.embedding.product import open_embedding
from chemscale.rsca.evaluate import evaluate_run
from chemscale.rsca.pipeline import fit_run
from chemscale.runtime.run import Run
from chemscale.schema import variable_attrs
from chemscale.survey.ingest.datasets import write_survey
from chemscale.vae import flags
from chemscale.vae.columns import begin_columns, write_rows

ELEMENTS = ("Fe", "Mg", "Ni", "Si", "Al", "C", "N", "Ca")


def toy_survey(**kwargs) -> xr.Dataset:
    """The shared toy survey, with visits that are partly shared and a hostile star and cluster name."""
    options = {"n_field": 600, "n_clusters": 8, "members": 6, "n_pixels": 120, "seed": 5, "elements": ELEMENTS}
    ds = make_survey(**{**options, **kwargs}).load()
    if "abundance" in ds:  # more species than latents: without errors their covariance would be singular
        noise = np.random.default_rng(1).normal(0, 0.02, ds["abundance"].shape)
        ds["abundance"] = ds["abundance"] + noise.astype(np.float32)
    ds["visits"] = ("star", _visits(ds), variable_attrs("visits"))
    return ds


def _visits(ds: xr.Dataset) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.array(
        [f"r12-{5000 + int(k)}-58{int(k):03d}-101" for k in rng.integers(0, 3, ds.sizes["star"])], dtype=object
    )


def hostile(ds: xr.Dataset) -> xr.Dataset:
    """The survey with names that would run script in a careless page."""
    ids, clusters = ds["star_id"].values.copy(), ds["cluster"].values.copy()
    member = np.flatnonzero(clusters == "Cluster 0")
    ids[member[0]] = "</script><img src=x onerror=window.owned=1>"
    ids[member[1]] = '<a href="javascript:window.owned=1">x</a>'
    clusters[clusters == "Cluster 0"] = "<b onmouseover=window.owned=1>Evil & Co</b>"
    return ds.assign(star_id=("star", ids, ds["star_id"].attrs), cluster=("star", clusters, ds["cluster"].attrs))


def make_run(folder: Path, ds: xr.Dataset, k: int = 6, store: str = "survey.zarr", run: str = "run") -> Run:
    """The survey as a store, and a run on it with every product of `fit` and `evaluate`."""
    write_survey(ds, folder / store)
    out = fit_run(str(folder / store), folder / run, components=k)
    evaluate_run(out.path)
    return Run.open(out.path)


def make_latents_run(folder: Path, ds: xr.Dataset) -> Run:
    """A run that holds finished VAE latents only, in the layout of the product."""
    write_survey(ds, folder / "spectra.zarr")
    out = Run.create(folder / "vae", store=str(folder / "spectra.zarr"))
    rng, n = np.random.default_rng(0), ds.sizes["star"]
    latents = xr.Dataset(
        {
            "star_id": ("star", ds["star_id"].values),
            "mean": (("star", "latent"), rng.normal(size=(n, 3)).astype("f4")),
            "auxiliary": (("star", "auxiliary_latent"), rng.normal(size=(n, 2)).astype("f4")),
            "norm": ("star", rng.random(n).astype("f4")),
        },
        attrs={"complete": True},
    )
    latents.to_zarr(out.file("latents.zarr"), zarr_format=3, consolidated=False)
    out.save_json("vae/curves.json", [{"epoch": e, "phase": "main", "reconstruction": 1 / (e + 1)} for e in range(5)])
    return out


def add_latents(run, n):
    """Products of the autoencoder beside a run's embedding: random latents, one label to calibrate them on."""
    rng = np.random.default_rng(0)
    ids = np.asarray(open_embedding(run.file("embedding.zarr"))["star_id"].values, dtype=object)
    latents = xr.Dataset(
        {
            "star_id": ("star", ids),
            "mean": (("star", "latent"), rng.normal(size=(n, 2)).astype("f4")),
            "covariance": (("star", "latent", "latent_"), np.tile(0.04 * np.eye(2, dtype="f4"), (n, 1, 1))),
            "auxiliary": (("star", "auxiliary"), rng.normal(size=(n, 2)).astype("f4")),
            "label": (("star", "label_name"), rng.normal(4500, 100, (n, 1)).astype("f4")),
            "norm": ("star", rng.random(n).astype("f4")),
            "chi2": (("star", "part"), rng.random((n, 1)).astype("f4")),
            "latent": ("latent", np.array(["metal", "alpha"], dtype=object)),
            "label_name": ("label_name", np.array(["teff"], dtype=object)),
            "part": ("part", np.array(["all"], dtype=object)),
        },
        attrs={"complete": True},
    )
    latents.to_zarr(run.file("latents.zarr"), zarr_format=3, consolidated=False)
    known = {"metal": 0.3 * latents["mean"].values[:, 0] - 0.1 + rng.normal(0, 0.05, n)}
    found = flags.apply(latents, ("metal", "alpha"), abundances=known)
    _write_columns(run.path / "flags.zarr", ids, found.columns(), "vae flags")
    score = rng.random(n)
    cause = np.where(score > 0.9, "window", "").astype(object)
    _write_columns(
        run.path / "anomalies.zarr", ids, {"score": score, "anomalous": score > 0.9, "cause": cause}, "vae anomalies"
    )


def _write_columns(path: Path, star_id: np.ndarray, columns: dict[str, np.ndarray], product: str) -> None:
    """A product whose columns are in memory."""
    every = {"star_id": star_id} | columns
    new = begin_columns(path, len(star_id), every, product)
    write_rows(str(new.folder), 0, every)
    new.finish({})
