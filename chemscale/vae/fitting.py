"""Training as a stage of a run directory: the split, the front end, one process or many, resuming.

Products below the run: ``vae/model.*`` (weights and record), ``vae/checkpoint.*``, ``vae/curves.json``,
``vae/summary.json``.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import xarray as xr

from chemscale.errors import InputError, ResumeError, StoreError
from chemscale.runtime.jsonio import plain, write_json
from chemscale.runtime.product import PARTIAL, switch
from chemscale.runtime.run import Run
from chemscale.survey.store.cleaning import check_cleaned
from chemscale.vae.alignment import of_training
from chemscale.vae.checkpoint import load_model, read_record, save_model
from chemscale.vae.config import ModelConfig
from chemscale.vae.distributed import run_on_workers, run_processes
from chemscale.vae.errors import LEAST, STARS, measure_errors
from chemscale.vae.groups import read_groups
from chemscale.vae.objective import Parallel
from chemscale.vae.prepare import build, choose_regions, look_at, training_data, unseen_rows
from chemscale.vae.presets import recipe
from chemscale.vae.regions import RegionSet
from chemscale.vae.ruling import with_ruling
from chemscale.vae.train_config import RENAMED, TrainConfig
from chemscale.vae.training import Trainer

if TYPE_CHECKING:
    from distributed import Client

FOLDER = "vae"
HELD_OUT = 0.3


def open_source(store: str | xr.Dataset) -> tuple[xr.Dataset, str | None]:
    """The survey and, where it is a store, its path."""
    if isinstance(store, xr.Dataset):
        return store, None
    from chemscale.survey.store.open import open_survey

    return open_survey(store), str(store)


def run_of(run: Run | str | Path, store: str | None = None, create: bool = False) -> Run:
    """The run directory, opened, or made where `create` says so."""
    if isinstance(run, Run):
        return run
    return Run.create(run, store=store) if create else Run.open(run)


def with_groups(
    model: Mapping[str, Any] | None, regions: str | RegionSet | None, groups: str | Path | None
) -> tuple[Mapping[str, Any] | None, str | RegionSet | None]:
    """Settings of the model and regions, those of a groups file among them.

    Raises
    ------
    InputError
        Both regions and a groups file, or a file that cannot be read.
    """
    if groups is None:
        return model, regions
    if regions is not None:
        raise InputError("regions and a groups file, which has its own", "give one of the two")
    table, regions = read_groups(groups)
    return {**table, **dict(model or {})}, regions


def train(
    store: str | xr.Dataset,
    run: Run | str | Path,
    *,
    preset: str = "default",
    model: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    regions: str | RegionSet | None = None,
    groups: str | Path | None = None,
    held_out: float = HELD_OUT,
    split_seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
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
    groups : path, optional
        TOML file of a dependency table with its windows, see :mod:`~chemscale.vae.groups`; not with `regions`.
    held_out : float
        Fraction of the stars never trained on.
    resume : bool
        Carry on from the last checkpoint of the same settings; a training that is done is left as it is.
    overwrite : bool
        Replace a finished model: it stays as it is until the new one, trained beside it in ``vae.partial``, is whole.
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
        Stars, parameters, final losses, seconds; `done`: there was nothing left to do.

    Raises
    ------
    StoreError
        The run has a finished model, and neither `overwrite` nor `resume` is given.
    DataError, InputError, ResumeError
        See :func:`~chemscale.vae.prepare.look_at`, :func:`~chemscale.vae.prepare.build`,
        :meth:`~chemscale.vae.training.Trainer.resume`.

    Examples
    --------
    >>> import chemscale
    >>> chemscale.train_vae("nowhere.zarr", "run", preset="quick")
    Traceback (most recent call last):
    ...
    chemscale.errors.StoreError: no survey store at ...nowhere.zarr...
    """
    ds, path = open_source(store)
    model, regions = with_groups(model, regions, groups)
    model_config, config, preset_regions = recipe(preset, model, settings)
    survey = look_at(ds, held_out, split_seed)
    chosen = choose_regions(survey, regions if regions is not None else preset_regions)
    config = config.scaled(int(survey.trained.sum())) if scale else config
    many = processes > 1 or client is not None
    if many and path is None:
        raise InputError("several processes need the path of a survey store", "write the Dataset with write_survey")
    where = run_of(run, path, create=True)
    final = where.path / FOLDER
    noted = {"preset": preset, "model": model_config.to_dict(), "train": asdict(config), "regions": chosen.name}
    finished = (final / "model.json").exists() and not (final / "initial.json").exists()
    # what replaces a finished model grows beside it, and takes its name when it is whole
    folder = final.with_name(FOLDER + PARTIAL) if finished else final
    begun = resume and (folder / "initial.json").exists()
    asked = _Asked(preset, set(model or {}) | set(settings or {}), model_config, config)

    def start() -> None:
        """The first files: every process, and a resumed run, starts from the same front end and weights."""
        if finished and folder.exists():  # what was replaced or begun before
            shutil.rmtree(folder)
        for name in ("checkpoint.json", "checkpoint.safetensors"):
            (folder / name).unlink(missing_ok=True)
        facts = _facts(survey, ds, chosen, config, preset, held_out, split_seed)
        shape = model_config if "groups" in (model or {}) else with_ruling(survey, model_config, chosen)
        save_model(folder, build(survey, shape, config, chosen), facts, "initial")

    if finished and resume and not begun and not overwrite:
        _same_start(final, asked, "model")
        check_cleaned(ds.attrs.get("cleaned", ()), read_record(final / "model.json").get("cleaned", ()), "model")
        return where.load_json(f"{FOLDER}/summary.json") | {"seconds": 0.0, "done": True}
    if finished and not (overwrite or begun):
        raise StoreError(f"{final} holds a finished model", "--overwrite replaces it; or choose another --run")
    with where.locked():
        if finished and not begun:  # before the stage is said to run: until there is a file nothing has been replaced
            start()
        with where.stage("vae.train", noted) as stage:
            if begun:
                _same_start(folder, asked)
                learned = read_record(folder / "initial.json").get("cleaned", ())
                check_cleaned(ds.attrs.get("cleaned", ()), learned, "model")
            elif not finished:
                start()
            stage.note(groups=read_record(folder / "initial.json")["model"]["groups"])
            if client is not None:
                run_on_workers(client, fit, (str(path), str(folder), begun, device))
            elif processes > 1:
                run_processes(fit, processes, (str(path), str(folder), begun, device))
            else:
                fit(Parallel(), ds, str(folder), begun, device, on_epoch)
            for name in ("initial.json", "initial.safetensors", "checkpoint.json", "checkpoint.safetensors"):
                (folder / name).unlink(missing_ok=True)
            if finished:
                switch(folder, final)
            summary = where.load_json(f"{FOLDER}/summary.json")
            stage.note(**summary)
    return summary | {"seconds": where.manifest["stages"]["vae.train"]["wall_s"], "done": False}


class _Asked(NamedTuple):
    """What a call that resumes asks for: a preset, and the settings it names itself with their values."""

    preset: str
    named: set[str]
    model: ModelConfig
    train: TrainConfig


def _same_start(folder: Path, asked: _Asked, name: str = "initial") -> None:
    """Refuse to resume under other settings; those nobody names are the stopped training's own."""
    record = read_record(folder / f"{name}.json")
    before = asdict(TrainConfig.from_dict(record["train"]))
    then, now = plain({**record["model"], **before}), plain({**asked.model.to_dict(), **asdict(asked.train)})
    different = sorted(RENAMED.get(k, k) for k in asked.named if then.get(RENAMED.get(k, k)) != now[RENAMED.get(k, k)])
    if record.get("preset", asked.preset) != asked.preset:
        different.append("preset")
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
    network.eval()
    flux, weight, _ = unseen_rows(survey, STARS, LEAST, config.seed, config.floor)
    measured = measure_errors(network, flux, weight, config.seed)
    for name, values in measured.buffers().items():
        getattr(network, name).copy_(torch.as_tensor(values, dtype=torch.float32))
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
        "error_factors": dict(zip(network.config.latents, measured.factors.tolist(), strict=True)),
        "error_levels": np.exp(measured.levels).tolist(),
        "error_factors_by_level": (measured.by_level * measured.factors).tolist(),
        "auxiliary_error": measured.auxiliary.tolist(),
        "label_error": dict(zip(names, measured.labels.tolist(), strict=True)),
        "alignment": of_training(network, survey, config.seed, config.floor).to_dict(),
    }
    write_json(where / "summary.json", summary)


def _facts(
    survey: Any, ds: xr.Dataset, regions: RegionSet, config: Any, preset: str, held_out: float, split_seed: int
) -> dict[str, Any]:
    wave = survey.wavelength
    return {
        "preset": preset,
        "survey": str(ds.attrs.get("survey", "")),
        "cleaned": list(ds.attrs.get("cleaned", ())),
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
