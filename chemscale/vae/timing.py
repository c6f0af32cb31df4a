"""How long a training will take, from a few of its own steps on a sample of the survey."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from chemscale.vae.alignment import of_training
from chemscale.vae.errors import STARS, measure_errors
from chemscale.vae.fitting import HELD_OUT, open_source, with_groups
from chemscale.vae.prepare import PPCA_STARS, build, choose_regions, look_at, sample_rows, training_data
from chemscale.vae.presets import recipe
from chemscale.vae.regions import RegionSet
from chemscale.vae.train_config import TrainConfig
from chemscale.vae.training import Trainer

#: Training stars of the sample at least; a batch must fit in.
SAMPLE = 600
#: Steps that are timed of each kind, after one that is not.
STEPS = 4


@dataclass(frozen=True)
class TrainingTime:
    """Expected seconds of a training, part by part.

    Attributes
    ----------
    preparation : float
        Front end and reading of the training data.
    head_start, main, decoders : float
        Steps of the three phases, with the look at the held-out stars after each epoch of the second.
    afterwards : float
        Measured errors and the guard over the axes.
    steps : int
        Of all phases.
    stars : int
        Trained on, those that only watch among them; without a usable pixel none is, as far as the sample tells.
    """

    preparation: float
    head_start: float
    main: float
    decoders: float
    afterwards: float
    steps: int
    stars: int

    @property
    def seconds(self) -> float:
        """All parts together."""
        return self.preparation + self.head_start + self.main + self.decoders + self.afterwards

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self) | {"seconds": self.seconds}


def training_time(
    store: str | xr.Dataset,
    *,
    preset: str = "default",
    model: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    regions: str | RegionSet | None = None,
    groups: str | Path | None = None,
    held_out: float = HELD_OUT,
    device: str | None = None,
) -> TrainingTime:
    """Measure what :func:`~chemscale.vae.fitting.train` with the same arguments would take here; writes nothing.

    Reads the first stars of the survey, fits a front end to them and takes :data:`STEPS` steps of every kind at the
    training's own batch size. Takes some seconds. One process; a survey that has to be streamed takes longer.

    Raises
    ------
    DataError, InputError
        What the training itself would raise.
    """
    ds, _ = open_source(store)
    model, regions = with_groups(model, regions, groups)
    model_config, config, preset_regions = recipe(preset, model, settings)
    survey = look_at(ds, held_out)
    chosen = choose_regions(survey, regions if regions is not None else preset_regions)
    n = int(survey.trained.sum())
    config = config.scaled(n)
    rows = int(max(SAMPLE, 1.5 * config.batch) / max(n / len(survey.trained), 1e-9))
    small = look_at(ds.isel(star=slice(0, rows)), held_out) if rows < len(survey.trained) else survey
    sampled = int(small.trained.sum())
    network, front = _timed(lambda: build(small, model_config, config, chosen))
    network.train()
    (source, validation, _), reading = _timed(lambda: training_data(small, network, config))
    trainer = Trainer(network, source, config, validation=validation, device=device)
    each = _steps(trainer, config)
    looking = _timed(trainer.validate)[1] if validation is not None else 0.0
    network.eval()
    flux, weight, _ = sample_rows(small, STARS, config.seed, config.floor)
    measuring = _timed(lambda: measure_errors(network, flux, weight, config.seed))[1]
    guarding = _timed(lambda: of_training(network, small, config.seed, config.floor))[1]
    share = n / max(sampled, 1)
    learning = source.n_stars * share
    usable = source.n_stars + (len(validation) if validation is not None else 0)
    per_epoch = max(1, int(learning) // config.batch)
    early = min(1.0, config.late_phase_start)
    main = per_epoch * (each["early"] * early + each["late"] * (1.0 - early)) + looking * share
    phases = (config.label_pretrain_epochs, config.epochs, config.decoder_finetune_epochs)
    return TrainingTime(
        preparation=front * min(PPCA_STARS, n) / min(PPCA_STARS, sampled) + reading * share,
        head_start=phases[0] * per_epoch * each["labels"],
        main=phases[1] * main,
        decoders=phases[2] * per_epoch * each["decoders"],
        afterwards=measuring * min(STARS, n) / len(flux) + guarding,
        steps=sum(phases) * per_epoch,
        stars=round(usable * share),
    )


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    out = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return out, time.perf_counter() - began


def _steps(trainer: Trainer, config: TrainConfig) -> dict[str, float]:
    """Seconds of one step of each kind: of the head start, before and after the axes settle, of the decoders alone."""
    out = {"labels": 0.0, "decoders": 0.0}
    n = trainer.source.n_batches()
    once = max(1, -(-STEPS // n))
    trainer.config = replace(
        config,
        label_pretrain_epochs=min(once, config.label_pretrain_epochs),
        decoder_finetune_epochs=min(once, config.decoder_finetune_epochs),
    )
    for name, phase, epochs in (
        ("labels", trainer.pretrain_labels, trainer.config.label_pretrain_epochs),
        ("decoders", trainer.finetune_decoders, trainer.config.decoder_finetune_epochs),
    ):
        if epochs:
            phase()  # the first time the machine warms up
            out[name] = _timed(phase)[1] / (epochs * n)
    trainer.config = config
    batches = [trainer._move(b) for b in trainer.source.epoch(0)]
    for name, at in (("early", 0.0), ("late", 0.9)):
        trainer.progress.step = int(at * trainer.total_steps)
        seconds = []
        for k in range(STEPS + 1):
            seconds.append(_timed(partial(trainer.step, batches[k % len(batches)], 0))[1])
        out[name] = float(np.median(seconds[1:]))
    return out
