"""The VAE's stages on a run directory: train, infer, anomalies, flags, evaluate.

Products below the run: ``vae/model.*`` (weights and record), ``vae/checkpoint.*``,
``vae/curves.json``, ``latents.zarr``, ``anomalies.json``, ``flags.json``,
``vae_evaluation.json``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ..errors import InputError, ResumeError
from ..runtime.run import Run, jsonable, write_json
from . import anomalies as anomaly
from . import evaluate as evaluation
from . import flags as flagging
from .checkpoint import load_model, read_record, save_model
from .data import identifiers
from .distributed import run_on_workers, run_processes
from .inference import infer_survey
from .model import ModelConfig
from .objective import Parallel, TrainConfig
from .prepare import build, choose_regions, look_at, training_data
from .presets import recipe
from .product import PRODUCT, open_latents
from .regions import RegionSet
from .training import Trainer, choose_device
from .truth import noise_free_l2, read_truth

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)
FOLDER = "vae"
HELD_OUT = 0.3


def open_source(store: str | xr.Dataset) -> tuple[xr.Dataset, str | None]:
    """The survey and, where it is a store, its path."""
    if isinstance(store, xr.Dataset):
        return store, None
    from ..survey.store import open_survey

    return open_survey(store), str(store)


def _run(run: Run | str | Path, store: str | None = None, create: bool = False) -> Run:
    if isinstance(run, Run):
        return run
    return Run.create(run, store=store) if create else Run.open(run)


def train(
    store: str | xr.Dataset,
    run: Run | str | Path,
    *,
    preset: str = "default",
    model: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    regions: str | RegionSet | None = None,
    held_out: float = HELD_OUT,
    split_seed: int = 0,
    resume: bool = False,
    device: str | None = None,
    processes: int = 1,
    client: Client | None = None,
    scale: bool = True,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Train a VAE on a survey; writes ``vae/model.*`` in the run.

    Reads the survey twice (front end on a sample; training data), or once an epoch more if it
    does not fit in memory.

    Parameters
    ----------
    store : str or xarray.Dataset
        Survey store, or a Dataset that obeys the data contract.
    run : Run or path
        Made if absent.
    preset : {'default', 'quick', 'paper'}
    model, settings : mapping, optional
        Overrides of :class:`~chemscale.vae.model.ModelConfig` and
        :class:`~chemscale.vae.objective.TrainConfig`.
    regions : str or RegionSet, optional
        Name or JSON file; default by the grid (the preset's for ``paper``).
    held_out : float
        Fraction of the stars never trained on.
    resume : bool
        Carry on from the last checkpoint of the same settings.
    processes : int
        Data-parallel processes on this machine.
    scale : bool
        Give small surveys smaller batches and more epochs, see
        :meth:`~chemscale.vae.objective.TrainConfig.scaled`.
    client : distributed.Client, optional
        Train on its workers, data-parallel; the run directory must be on a file system they share.

    Returns
    -------
    dict
        Stars, parameters, final losses, seconds.

    Raises
    ------
    DataError, InputError, ResumeError
        See :func:`~chemscale.vae.prepare.look_at`, :func:`~chemscale.vae.prepare.build`,
        :meth:`~chemscale.vae.training.Trainer.resume`.
    """
    ds, path = open_source(store)
    model_config, config, preset_regions = recipe(preset, model, settings)
    survey = look_at(ds, held_out, split_seed)
    chosen = choose_regions(survey, regions if regions is not None else preset_regions)
    config = config.scaled(int(survey.trained.sum())) if scale else config
    many = processes > 1 or client is not None
    if many and path is None:
        raise InputError("several processes need the path of a survey store", "write the Dataset with write_survey")
    where = _run(run, path, create=True)
    folder = where.path / FOLDER
    noted = {"preset": preset, "model": model_config.to_dict(), "train": asdict(config), "regions": chosen.name}
    with where.stage("vae.train", noted) as stage:
        if not (resume and (folder / "initial.json").exists()):
            for name in ("checkpoint.json", "checkpoint.safetensors"):
                (folder / name).unlink(missing_ok=True)
            # every process, and a resumed run, starts from the same front end and weights
            facts = _facts(survey, ds, chosen, config, preset, held_out, split_seed)
            save_model(folder, build(survey, model_config, config, chosen), facts, "initial")
        else:
            _same_start(folder, model_config, config)
        if client is not None:
            run_on_workers(client, fit, (str(path), str(folder), resume, device))
        elif processes > 1:
            run_processes(fit, processes, (str(path), str(folder), resume, device))
        else:
            fit(Parallel(), ds, str(folder), resume, device, on_epoch)
        summary = where.load_json(f"{FOLDER}/summary.json")
        for name in ("initial.json", "initial.safetensors", "checkpoint.json", "checkpoint.safetensors"):
            (folder / name).unlink(missing_ok=True)
        stage.note(**summary)
    return summary | {"seconds": where.manifest["stages"]["vae.train"]["wall_s"]}


def _same_start(folder: Path, model: ModelConfig, config: TrainConfig) -> None:
    """Refuse to resume under other settings."""
    record = read_record(folder / "initial.json")
    then, now = {**record["model"], **record["train"]}, jsonable({**model.to_dict(), **asdict(config)})
    different = sorted(k for k in now if then.get(k) != now[k])
    if different:
        raise ResumeError(
            f"{folder}: the training that was stopped had other settings ({', '.join(different)})",
            "repeat its settings, or train without --resume",
        )


def fit(
    parallel: Parallel,
    store: str | xr.Dataset,
    folder: str,
    resume: bool = False,
    device: str | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Train from ``initial.*`` in `folder`; runs in every process of a data-parallel group.

    The first process writes ``model.*``, ``curves.json`` and ``summary.json``.
    """
    ds, _ = open_source(store)
    where = Path(folder)
    network, facts = load_model(where, "initial")
    network.train()
    config = TrainConfig.from_dict(facts["train"])
    survey = look_at(ds, facts["held_out"], facts["split_seed"])
    source, validation, labels = training_data(survey, network, config)
    trainer = Trainer(
        network,
        source,
        config,
        validation=validation,
        folder=where,
        device=device,
        parallel=parallel,
        on_epoch=on_epoch,
    )
    if resume:
        trainer.resume()
    progress = trainer.train()
    if parallel.rank:
        return
    facts = {k: v for k, v in facts.items() if k not in ("format", "version", "sha256", "model")}
    names = list(network.config.labels)
    facts["labels"] = {"names": names, "centre": labels.centre.tolist(), "scale": labels.scale.tolist()}
    digest = save_model(where, network, facts)
    write_json(where / "curves.json", progress.curves)
    last = {k: v for k, v in progress.curves[-1].items() if isinstance(v, float) and math.isfinite(v)}
    summary = {
        "stars": source.n_stars,
        "held_out": int((~survey.trained).sum()),
        "parameters": sum(p.numel() for p in network.parameters()),
        "steps": progress.step,
        "stopped_early": progress.stopped,
        "processes": parallel.world,
        "sha256": digest,
        "losses": last,
    }
    write_json(where / "summary.json", summary)


def _facts(
    survey: Any, ds: xr.Dataset, regions: RegionSet, config: Any, preset: str, held_out: float, split_seed: int
) -> dict[str, Any]:
    wave = survey.wavelength
    return {
        "preset": preset,
        "survey": str(ds.attrs.get("survey", "")),
        "grid": survey.grid,
        "wavelength": {
            "pixels": int(wave.size),
            "low": round(float(wave[0]), 2),
            "high": round(float(wave[-1]), 2),
            "medium": survey.medium,
        },
        "regions": regions.to_dict(),
        "train": asdict(config),
        "held_out": held_out,
        "split_seed": split_seed,
    }


def infer(
    store: str | xr.Dataset,
    run: Run | str | Path,
    *,
    client: Client | None = None,
    overwrite: bool = False,
    device: str | None = None,
    bfloat16: bool | None = None,
    product: str = PRODUCT,
) -> dict[str, Any]:
    """Latents and scores of every star of a survey into ``latents.zarr`` of the run; one pass, resumable.

    Parameters as in :func:`~chemscale.vae.inference.infer_survey`.
    """
    ds, path = open_source(store)
    where = _run(run)
    where.need(f"{FOLDER}/model.json", f"chemscale vae train STORE --run {where.path}")
    where_to_run = str(choose_device(device)) if client is None else device or "what each worker has"
    with where.stage("vae.infer", {"product": product, "device": where_to_run}) as stage:
        summary = infer_survey(
            ds,
            where.path / FOLDER,
            where.path / product,
            store=path,
            client=client,
            overwrite=overwrite,
            device=device,
            bfloat16=bfloat16,
        )
        stage.note(**summary)
    return summary


def latents(run: Run | str | Path, product: str = PRODUCT) -> tuple[xr.Dataset, dict[str, Any], np.ndarray]:
    """Finished latents of a run, the model's record, and which stars were held out."""
    from .data import held_out

    where = _run(run)
    where.need(product, f"chemscale vae infer STORE --run {where.path}")
    record = read_record(where.path / FOLDER / "model.json")
    ds = open_latents(where.path / product)
    if ds.attrs.get("model") != record["sha256"]:
        raise InputError(
            f"{where.path / product} was made with other weights than {FOLDER}/model.safetensors",
            "run `chemscale vae infer STORE --overwrite` again",
        )
    out = held_out(np.asarray(ds["star_id"].values), record["held_out"], record["split_seed"])
    return ds, record, out


def anomalies(
    run: Run | str | Path, *, false_alarm: float = 0.01, top: int = 1000, product: str = PRODUCT
) -> dict[str, Any]:
    """Ranked anomalous stars of a run, calibrated on held-out stars; writes ``anomalies.json`` and ``anomalies.zarr``.

    See :func:`chemscale.vae.anomalies.calibrate` for scores and causes.
    """
    where = _run(run)
    with where.stage("anomalies", {"false_alarm": false_alarm, "top": top}) as stage:
        ds, record, out = latents(where, product)
        calibration = anomaly.calibrate(ds, out, false_alarm)
        table = anomaly.score(ds, calibration)
        anomaly.save(where.path / "anomalies.zarr", ds, table)
        ranked = anomaly.ranked(ds, table, calibration, top, _windows(where, record))
        summary = {
            "false_alarm": false_alarm,
            "stars": int(ds.sizes["star"]),
            "flagged": int(table["anomalous"].sum()),
            "flagged_held_out": float(np.mean(table["anomalous"][out])) if out.any() else None,
            "calibrated_on": calibration.n_stars,
            "thresholds": calibration.thresholds,
            "causes": anomaly.count_causes(table),
            "ranked": ranked,
        }
        where.save_json("anomalies.json", summary)
        stage.note(**{k: v for k, v in summary.items() if k != "ranked"})
    return summary


def _windows(where: Run, record: Mapping[str, Any]) -> np.ndarray | None:
    """Central wavelengths of the windows of the local score, from the run's survey."""
    from .scores import WINDOW

    try:
        ds, _ = open_source(where.store)
    except Exception as err:
        logger.debug("no wavelengths for the windows: %s", err)
        return None
    wave = np.asarray(ds["wavelength"].values)
    return np.array([wave[i : i + WINDOW].mean() for i in range(0, wave.size, WINDOW)])


def flags(
    run: Run | str | Path,
    *,
    rules: Mapping[str, Any] | None = None,
    labels: Mapping[str, Mapping[str, float]] | None = None,
    survey_labels: bool = True,
    purity: float | None = None,
    product: str = PRODUCT,
) -> dict[str, Any]:
    """Chemically enhanced or depleted stars; writes ``flags.json`` and ``flags.zarr``.

    Parameters
    ----------
    rules : mapping, optional
        Name -> cuts as in :data:`chemscale.vae.flags.PRESETS`, added to the presets.
    labels : mapping, optional
        star_id -> {latent: abundance}: a handful of stars that fix signs and give the scale in
        dex.
    survey_labels : bool
        Without `labels`: calibrate on the abundances the survey itself has of stars that were
        trained on. Where there are none signs come from the decoders (more of an element deepens
        lines) and cuts are in standard deviations.
    purity : float, optional
        Wanted fraction of true members among the flagged, instead of each class's own.
    """
    where = _run(run)
    with where.stage("flags", {"rules": rules, "labelled": len(labels or {}), "purity": purity}) as stage:
        ds, _, out = latents(where, product)
        network, _ = load_model(where.path / FOLDER)
        given: dict[str, np.ndarray] = {}
        if labels:
            given = flagging.labels_in_order(ds, labels)
        elif survey_labels:
            given = _survey_abundances(where, network.config.latents, out)
        result = flagging.apply(
            ds, network.config.latents, rules=rules, abundances=given, signs=_signs(network, ds), purity=purity
        )
        flagging.save(where.path / "flags.zarr", ds, result)
        summary = result.summary(np.asarray(ds["star_id"].values))
        summary["calibrated_on"] = "labels" if labels else "survey" if given else "nothing"
        where.save_json("flags.json", summary)
        stage.note(**{k: v for k, v in summary.items() if k != "stars"})
    return summary


def _survey_abundances(where: Run, names: tuple[str, ...], held_out: np.ndarray) -> dict[str, np.ndarray]:
    """Abundances of the survey's own stars by latent, those held out left out; empty where it has none."""
    if not where.store:
        return {}
    ds, _ = open_source(where.store)
    if ds.sizes.get("star") != len(held_out):
        return {}
    known = evaluation.label_columns(ds)
    found = {}
    for latent, (_, label) in evaluation.LABELS.items():
        if latent in names and label in known:
            values = np.where(held_out, np.nan, known[label])
            if np.isfinite(values).sum() >= 2:
                found[latent] = values
    return found


def _signs(network: Any, ds: xr.Dataset) -> dict[str, int]:
    """Sign of each latent by the decoders' response: -1 where more of the latent makes lines shallower."""
    import torch

    from .model import Posterior

    rows = slice(0, min(4096, ds.sizes["star"]))
    mean = np.asarray(ds["mean"][rows].values)
    good = np.isfinite(mean).all(1)
    posterior = Posterior(
        torch.from_numpy(mean[good]), torch.empty(0), torch.from_numpy(np.asarray(ds["auxiliary"][rows].values)[good])
    )
    change = network.response(posterior)
    return {name: (-1 if c > 0 else 1) for name, c in zip(network.config.latents, change)}


def evaluate(
    run: Run | str | Path,
    *,
    store: str | xr.Dataset | None = None,
    truth: str | Path | None = None,
    product: str = PRODUCT,
) -> dict[str, Any]:
    """How well the latents do against the survey's labels, on held-out stars; writes ``vae_evaluation.json``.

    See :func:`chemscale.vae.evaluate.evaluate` for the keys.

    Parameters
    ----------
    truth : path, optional
        Noise-free spectra of a simulation, see :func:`~chemscale.vae.truth.read_truth`; without them
        `relative_l2` is estimated by taking the errors' share away.
    """
    where = _run(run)
    with where.stage("vae.evaluate") as stage:
        ds, _, out = latents(where, product)
        survey, _ = open_source(store if store is not None else where.store)
        errors = None
        if truth is not None:
            network, _ = load_model(where.path / FOLDER)
            ids = identifiers(ds)
            noise_free = read_truth(truth, ids, network.mean.numel())
            errors = noise_free_l2(network, ds, noise_free, out)
        result = evaluation.evaluate(ds, survey, out, errors)
        where.save_json("vae_evaluation.json", result)
        stage.note(**{k: v for k, v in result.items() if isinstance(v, (int, float))})
    return result
