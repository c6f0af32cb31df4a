"""The stages that are timed: what commands do, on a simulated survey, with fixed numbers of passes and epochs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from distributed import Client

STAGES = ("ingest", "fit", "embed", "train", "infer", "anomalies", "evaluate")
#: Those that read every pixel, and how often: compared with bare decoding.
READS = {"fit": 6, "embed": 1, "infer": 1}
#: What each stage writes below the scratch directory.
PRODUCTS = {
    "ingest": "ingested.zarr",
    "embed": "embedding.zarr",
    "train": "training",
    "infer": "latents.zarr",
    "anomalies": "anomalies.zarr",
}
#: Components of the fits timed here, and their number of passes over all stars (fixed: passes must not vary).
COMPONENTS, PASSES = 30, 5
#: Epochs of the trainings timed here: of the head start, of the main phase and of the decoders alone.
EPOCHS = {"label_pretrain_epochs": 2, "epochs": 4, "decoder_finetune_epochs": 1}


def run_stage(stage: str, store: str, client: Client, scratch: Path, stars: int) -> int:
    """Do one stage on the client's workers; how many stars it went through."""
    number = 100 * stars if stage == "evaluate" else stars
    _WORK[stage](store, client, scratch, number)
    return number


def prepare(store: str, scratch: Path, stages: Iterable[str]) -> None:
    """Make what the stages need beforehand, outside of the time measured."""
    from chemscale.survey.store.open import open_survey

    if {"embed", "infer"} & set(stages):
        model = _model(store, scratch)
        if "infer" in stages:
            untrained_vae(open_survey(store), scratch / "vae", model)


def _fit(store: str, client: Client, scratch: Path, stars: int) -> Any:
    from chemscale.embedding.fit import fit_survey
    from chemscale.survey.store.open import open_survey

    settings: dict[str, Any] = {"tol": 0.0, "loglike_tol": 0.0, "max_iter": PASSES, "device": _device(client)}
    return fit_survey(open_survey(store), n_components=COMPONENTS, keep_bytes=0, **settings)


def _device(client: Client) -> str | None:
    """The card of workers that have one; else None, the compiled kernels: "cpu" would be the tensor code of a card."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return "cuda" if any("GPU" in (w.get("resources") or {}) for w in workers) else None


def _embed(store: str, client: Client, scratch: Path, stars: int) -> Any:
    from chemscale.embedding.product import embed_survey
    from chemscale.survey.store.open import open_survey

    target = scratch / PRODUCTS["embed"]
    return embed_survey(open_survey(store), _model(store, scratch), target, device=_device(client))


@lru_cache(maxsize=1)
def _model(store: str, scratch: Path) -> Any:
    """A PPCA of a few hundred stars: the cost of embedding does not depend on how good it is. Loaded once."""
    from chemscale.embedding.fit import fit_survey
    from chemscale.statistics.ppca import MaskedPPCA
    from chemscale.survey.store.open import open_survey

    file = scratch / "ppca.zarr"
    if not file.exists():
        ds = open_survey(store).isel(star=slice(0, 512))
        fit_survey(ds, n_components=COMPONENTS, max_iter=3).to_dataset().to_zarr(file, mode="w", consolidated=False)
    import xarray as xr

    return MaskedPPCA.from_dataset(xr.open_zarr(file, consolidated=False).load())


def _infer(store: str, client: Client, scratch: Path, stars: int) -> Any:
    from chemscale.survey.store.open import open_survey
    from chemscale.vae.inference import infer_survey

    ds = open_survey(store)
    folder = untrained_vae(ds, scratch / "vae", _model(store, scratch))
    # the survey's own shards are small here: a task takes one of them
    infer_survey(ds, folder, scratch / PRODUCTS["infer"], store=store, client=client, shard_stars=1024)
    return None


def _train(store: str, client: Client, scratch: Path, stars: int) -> Any:
    """Data-parallel on all workers; on a single one in its process."""
    from chemscale.vae.fitting import train

    options: dict[str, Any] = {"settings": EPOCHS, "scale": False}
    if len(client.scheduler_info(n_workers=-1)["workers"]) > 1:
        return train(store, scratch / PRODUCTS["train"], client=client, **options)
    return client.submit(train, store, scratch / PRODUCTS["train"], **options, pure=False).result()


def untrained_vae(ds: Any, folder: Path, ppca: Any) -> Path:
    """The default model with random weights on the survey's grid: the cost of inference does not depend on them."""
    from chemscale.vae.checkpoint import grid_fingerprint, save_model
    from chemscale.vae.config import ModelConfig
    from chemscale.vae.model import ChemicalVAE
    from chemscale.vae.regions import REST

    if (folder / "model.json").exists():
        return folder
    config = ModelConfig()
    wave = np.asarray(ds["wavelength"].values)
    names = [g.name for g in config.groups] + ([REST] if config.rest else [])
    pixels = {name: np.arange(i, wave.size, len(names)) for i, name in enumerate(names)}
    front = {
        "components": ppca.components_,
        "scale": np.sqrt(ppca.explained_variance_),
        "noise": np.full(wave.size, float(np.mean(ppca.noise_variance_))),
        "mean": ppca.mean_,
    }
    model = ChemicalVAE(config, pixels, np.nan_to_num(ppca.mean_, nan=1.0), front)
    medium = str(ds["wavelength"].attrs.get("medium", ""))
    facts = {
        "grid": grid_fingerprint(wave, medium),
        "survey": str(ds.attrs.get("survey", "")),
        "wavelength": {"pixels": int(wave.size), "low": float(wave[0]), "high": float(wave[-1]), "medium": medium},
    }
    save_model(folder, model, facts)
    return folder


def _ingest(store: str, client: Client, scratch: Path, stars: int) -> Any:
    """Simulated spectra, made on the workers, censored, written and read back: ingestion without input files."""
    from chemscale.simulation.generator import Simulation
    from chemscale.survey.ingest.ingestion import ingest
    from chemscale.survey.sources.simulated import SimulatedSource

    source = SimulatedSource(**Simulation(stars, 22, 7).settings())
    return ingest(source, scratch / PRODUCTS["ingest"], client=client, progress=False)


def _anomalies(store: str, client: Client, scratch: Path, stars: int) -> Any:
    """Of the latents that :func:`_infer` made."""
    from chemscale.vae.product import open_latents
    from chemscale.vae.star_tables import Latents, find_anomalies

    path = scratch / PRODUCTS["infer"]
    stars = open_latents(path).sizes["star"]
    return find_anomalies(
        Latents(str(path), stars, 0.3, 0), scratch / PRODUCTS["anomalies"], false_alarm=0.1, client=client
    )


def _evaluate(store: str, client: Client, scratch: Path, stars: int) -> Any:
    """Rates of 22 clusters against a lazy field of `stars` coordinates made on the workers."""
    import dask.array as da

    from chemscale.rsca.doppelganger import doppelganger_rates

    rng = np.random.default_rng(0)
    chunk = 65_536
    field = da.random.default_rng(1).standard_normal((stars, COMPONENTS), chunks=(chunk, COMPONENTS))
    members = rng.standard_normal((22, 1, COMPONENTS)) + 0.3 * rng.standard_normal((22, 9, COMPONENTS))
    names = np.repeat([f"c{i}" for i in range(22)], 9)
    return doppelganger_rates(field, members.reshape(-1, COMPONENTS), names)


_WORK: dict[str, Callable[[str, Any, Path, int], Any]] = {
    "ingest": _ingest,
    "fit": _fit,
    "embed": _embed,
    "train": _train,
    "infer": _infer,
    "anomalies": _anomalies,
    "evaluate": _evaluate,
}
