"""Training: the loop, checkpoints that resume to the step, early stopping, curves.

Randomness is a function of (seed, step) and the learning rate one of the step, so a checkpoint needs no more than
weights, optimiser moments and counters: a resumed run walks the same path as one that was never stopped.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chemscale.errors import DataError, InputError
from chemscale.runtime.devices import choose_device
from chemscale.vae import losses
from chemscale.vae.axis_map import MOST_STARS
from chemscale.vae.captured import CapturedSteps, Pass
from chemscale.vae.data import BatchSource, TrainingBatch
from chemscale.vae.encoders import PPCAEncoder
from chemscale.vae.late_phase import LatePhase
from chemscale.vae.model import ChemicalVAE
from chemscale.vae.objective import Parallel, decode_groups, objective
from chemscale.vae.resuming import read_checkpoint, training_identity, write_checkpoint
from chemscale.vae.schedule import one_cycle, one_cycle_momentum
from chemscale.vae.steps import LossTerms, TrainingProgress, step_generator, step_seed
from chemscale.vae.train_config import TrainConfig, former_names

logger = logging.getLogger(__name__)
#: Share of a GPU's free memory that training stars may take.
ON_DEVICE = 0.5
#: Seconds of training before the first checkpoint.
FIRST_CHECKPOINT = 10.0


class Trainer:
    """Trains a :class:`~chemscale.vae.model.ChemicalVAE`.

    Parameters
    ----------
    model : ChemicalVAE
    source : BatchSource
        Training stars.
    config : TrainConfig
    validation : TrainingBatch, optional
        Stars that only watch.
    folder : path, optional
        Where checkpoints and curves go; none are written without it.
    device : str or torch.device, optional
    parallel : Parallel, optional
        This process's place in a data-parallel group.
    on_epoch : callable, optional
        Called with each epoch's entry of the curves, and `epochs`: how many there are in all phases.
    """

    def __init__(
        self,
        model: ChemicalVAE,
        source: BatchSource,
        config: TrainConfig,
        *,
        validation: TrainingBatch | None = None,
        folder: Path | None = None,
        device: str | torch.device | None = None,
        parallel: Parallel | None = None,
        on_epoch: Callable[[dict[str, Any]], None] | None = None,
    ):
        self.device = choose_device(str(device) if device else None)
        self.model = model.to(self.device)
        self.source, self.config, self.folder = source, config, folder
        source.keep_on(self.device, ON_DEVICE)
        self.validation = None if validation is None else self._move(validation)
        self.parallel = parallel or Parallel()
        self.on_epoch = on_epoch
        self.progress = TrainingProgress()
        apart: set[nn.Parameter] = set(model.adversary.parameters())
        self.head: list[nn.Parameter] = []
        if config.label_pretrain_epochs:
            if not isinstance(model.encoder, PPCAEncoder) or model.config.auxiliary_gradient:
                raise InputError(
                    "label_pretrain_epochs needs the ppca encoder and auxiliary_gradient = false",
                    "set label_pretrain_epochs = 0 for this model",
                )
            self.head = [*model.encoder.auxiliary.parameters(), *model.linear.parameters()]
            apart |= set(self.head)
        self.parameters: list[nn.Parameter] = [p for p in model.parameters() if p not in apart]
        self.adversary_parameters: list[nn.Parameter] = list(model.adversary.parameters())
        self.optimizer = self._adam([*self.parameters, *self.head], config.learning_rate, config.betas)
        self.adversary_optimizer = self._adam(self.adversary_parameters, config.adversary_rate)
        # messages between processes are not recorded
        alone = self.device.type == "cuda" and self.parallel.world == 1
        self.captured = CapturedSteps(list(model.parameters()), self.device) if alone else None

    def _adam(self, parameters: list[nn.Parameter], rate: float, betas: Any = (0.9, 0.999)) -> torch.optim.Adam:
        """On a GPU one kernel changes all parameters."""
        return torch.optim.Adam(parameters, lr=rate, betas=betas, fused=self.device.type == "cuda")

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """By the names that checkpoints have for them."""
        return {"optimizer": self.optimizer, "rival": self.adversary_optimizer}

    # ---------------------------------------------------------------- loop

    @property
    def total_steps(self) -> int:
        """Steps of the main phase."""
        return self.config.epochs * self.source.n_batches()

    def train(self, max_steps: int | None = None, checkpoint_every: float = 60.0) -> TrainingProgress:
        """Run to the end (or `max_steps` further steps).

        Parameters
        ----------
        checkpoint_every : float
            Seconds between checkpoints; one more after :data:`FIRST_CHECKPOINT`, the last at the end.
        """
        p, config = self.progress, self.config
        per_epoch = self.source.n_batches()
        if config.label_pretrain_epochs and not p.pretrained and p.step == 0:
            self.pretrain_labels()
            p.pretrained = True
        # the first one early: a stop within the first minute loses little
        last_save = time.monotonic() - checkpoint_every + min(checkpoint_every, FIRST_CHECKPOINT)
        done = 0
        while p.step < self.total_steps and not p.stopped:
            epoch, start = divmod(p.step, per_epoch)
            if start == 0 and 0 < epoch <= config.orient * config.epochs:
                self.orient()
            terms = LossTerms()
            began = time.perf_counter()
            for batch in self.source.epoch(epoch, start):
                terms.add(self.step(self._move(batch), epoch))
                p.step += 1
                done += 1
                if p.step % per_epoch == 0:  # the epoch's entry belongs into the checkpoint
                    self._close_epoch(epoch, terms.means(), time.perf_counter() - began)
                if max_steps is not None and done >= max_steps:
                    self.save()
                    return p
                if self.folder and time.monotonic() - last_save > checkpoint_every:
                    self.save()
                    last_save = time.monotonic()
        self.finetune_decoders()
        self.save()
        return p

    def _close_epoch(self, epoch: int, entry: dict[str, float], seconds: float) -> None:
        p, config = self.progress, self.config
        record: dict[str, Any] = {"epoch": epoch, "step": p.step, **entry, "seconds": seconds}
        record["rate"] = one_cycle(p.step, self.total_steps, config.learning_rate, config.warmup)
        bad = [k for k, v in entry.items() if not math.isfinite(v)]
        if bad:
            raise self._diverged(epoch, ", ".join(bad))
        if self.validation is not None:
            record["validation"] = self.validate()
            if epoch >= config.ramp * config.epochs:
                if record["validation"] < p.best - 1e-5:
                    p.best, p.stale = record["validation"], 0
                else:
                    p.stale += 1
                p.stopped = bool(config.patience and p.stale >= config.patience)
        p.curves.append(record)
        self._tell(record)

    @staticmethod
    def _diverged(epoch: int, what: str) -> DataError:
        return DataError(
            f"training diverged in epoch {epoch}: {what} not finite",
            "lower learning_rate, or check the survey's errors (ivar) for absurd values",
        )

    def _tell(self, record: dict[str, Any]) -> None:
        """Hand the record of an epoch on, with the number of epochs of all phases."""
        if self.on_epoch:
            config = self.config
            epochs = config.label_pretrain_epochs + config.epochs + config.decoder_finetune_epochs
            self.on_epoch(record | {"epochs": epochs})

    def _move(self, batch: TrainingBatch) -> TrainingBatch:
        return batch if self.device.type == "cpu" else batch.to(self.device)

    def step(self, batch: TrainingBatch, epoch: int) -> dict[str, Tensor]:
        """One step of encoder and decoders (and adversary); returns the loss terms of the whole batch.

        Nothing in it has the host wait for a GPU.
        """
        p, config = self.progress, self.config
        rate = one_cycle(p.step, self.total_steps, config.learning_rate, config.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
            if config.cycle_momentum:
                group["betas"] = (one_cycle_momentum(p.step, self.total_steps, config.warmup), config.betas[1])
        late = config.late(p.step / max(1, self.total_steps))
        dials = late.dials() | {"ramp": min(1.0, p.step / max(1.0, config.ramp * self.total_steps))}
        key = ("step", late.kind(), config.adversary_weight(epoch))
        terms = self._run(
            key,
            batch,
            dials,
            lambda *given: self._gradients(*given, epoch=epoch, late=late),
            step_seed(config.seed, p.step),
        )
        self.optimizer.step()
        if config.adversary:
            self.adversary_optimizer.step()
        return terms

    def _gradients(
        self,
        batch: TrainingBatch,
        dials: Mapping[str, float | Tensor],
        generator: torch.Generator,
        *,
        epoch: int,
        late: LatePhase,
    ) -> dict[str, Tensor]:
        """Forward and backward pass of a step; gradients lie in the parameters."""
        config = self.config
        with self._autocast():
            loss, adversary, terms = objective(
                self.model,
                batch,
                config,
                epoch=epoch,
                ramp=dials["ramp"],
                late=late.turned(dials),
                generator=generator,
                parallel=self.parallel,
            )
        loss.backward()
        if config.adversary:
            adversary.backward()
        learning = self.parameters + (self.head if late.auxiliary else [])
        self.parallel.sum_gradients(learning + (self.adversary_parameters if config.adversary else []))
        if config.clip:
            for part in (self.parameters, self.head):  # apart: one must not slow the other down
                nn.utils.clip_grad_norm_(part, config.clip)
        return terms

    def _run(
        self, key: Hashable, batch: TrainingBatch, dials: Mapping[str, float], run: Pass, seed: int = 0
    ) -> dict[str, Tensor]:
        """Forward and backward pass `run` of a step; on a GPU recorded once for each `key` and replayed."""
        if self.captured is not None:
            return self.captured(key, batch, dials, seed, run)
        self.model.zero_grad(set_to_none=True)
        return run(batch, dials, step_generator(seed, self.device))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.config.precision == "bfloat16")

    @torch.no_grad()
    def orient(self, stars: int = 2048) -> None:
        """Flip latents whose growth makes lines shallower: the prior's correlations hold for abundances."""
        batch = next(iter(self.source.epoch(0)))
        posterior = self.model.encode(self._move(batch).features[:stars])
        for k, change in enumerate(self.model.response(posterior)):
            if change > 0:
                self.model.flip(k)
                logger.info("latent %s turned round", self.model.config.latents[k])

    @torch.no_grad()
    def validate(self) -> float:
        """Mean over groups of the reconstruction loss of the validation stars, from posterior means."""
        assert self.validation is not None
        batch = self.validation
        posterior = self.model.encode(batch.features)
        groups = [g.name for g in self.model.config.groups]
        late = self.config.late(self.progress.step / max(1, self.total_steps))
        found = decode_groups(self.model, posterior, posterior.mean, groups, late=late)
        each = [losses.reconstruction(found[g], batch.flux[g], batch.ivar[g]) for g in groups]
        return float(torch.stack(each).double().mean())

    # ---------------------------------------------------------- head start

    def pretrain_labels(self) -> None:
        """w learns Teff and log g alone; then it is fixed."""
        config, n = self.config, self.source.n_batches()
        optimizer = self._adam(self.head, 3e-3, (0.9, 0.99))
        step, total = 0, config.label_pretrain_epochs * n
        for epoch in range(config.label_pretrain_epochs):
            terms = LossTerms()
            for batch in self.source.epoch(-epoch - 1 + 2**20):
                for group in optimizer.param_groups:
                    group["lr"] = one_cycle(step, total, 3e-3, 0.2)
                terms.add(self._run("labels", self._move(batch), {}, self._label_gradients))
                optimizer.step()
                step += 1
            record = {"epoch": epoch - config.label_pretrain_epochs, "phase": "labels"} | terms.means()
            self.progress.curves.append(record)
            self._tell(record)

    def _label_gradients(self, batch: TrainingBatch, *_: Any) -> dict[str, Tensor]:
        mine = batch.rows(self.parallel.part(len(batch)))
        predicted = self.model.linear(self.model.encode(mine.features).auxiliary)
        loss = losses.linear_head(predicted, mine.labels, mine.errors) / self.parallel.world
        loss.backward()
        self.parallel.sum_gradients(self.head)
        return {"linear": self.parallel.total(loss)}

    # ------------------------------------------------ finetune

    def finetune_decoders(self) -> None:
        """Decoders learn on from posterior means, the encoder fixed; the ``rest`` decoder starts here."""
        config, p = self.config, self.progress
        total = config.decoder_finetune_epochs * self.source.n_batches()
        if not total:
            return
        if config.map_axes and "teff" in self.model.config.labels:
            self.map_axes()
        optimizer = self._adam(self._decoder_parameters(), config.learning_rate)
        p.finetune_step = 0  # short enough to be done again after an interruption
        for epoch in range(config.decoder_finetune_epochs):
            terms = LossTerms()
            for batch in self.source.epoch(config.epochs + epoch):
                for group in optimizer.param_groups:
                    group["lr"] = one_cycle(p.finetune_step, total, config.learning_rate, 0.2)
                terms.add(self._run("decoders", self._move(batch), {}, self._decoder_gradients))
                optimizer.step()
                p.finetune_step += 1
            record = {"epoch": config.epochs + epoch, "phase": "decoders"}
            p.curves.append(record | terms.means())
            self._tell(p.curves[-1])

    def _decoder_parameters(self) -> list[nn.Parameter]:
        return [*self.model.decoders.parameters(), *self.model.depths.parameters()]

    def _decoder_gradients(self, batch: TrainingBatch, *_: Any) -> dict[str, Tensor]:
        mine = batch.rows(self.parallel.part(len(batch)))
        names = list(self.model.pixels)
        with torch.no_grad():
            posterior = self.model.encode(mine.features)
        loss: Tensor = torch.zeros((), device=self.device)
        terms: dict[str, Tensor] = {}
        with self._autocast():
            found = decode_groups(self.model, posterior, posterior.mean, names)
            for name in names:
                count = self.parallel.total((mine.ivar[name] > 0).sum()).clamp_min(1)
                term = losses.chi2(found[name], mine.flux[name], mine.ivar[name]).sum() / count
                terms[f"reconstruction_{name}"] = self.parallel.total(term)
                loss = loss + term
        loss.backward()
        self.parallel.sum_gradients(self._decoder_parameters())
        return terms

    @torch.no_grad()
    def map_axes(self) -> None:
        """Fit the :class:`~chemscale.vae.axis_map.AxisMap` on training stars, the same ones in every process."""
        self.model.axis_map.reset()
        found: list[Tensor] = []
        for batch in self.source.epoch(self.config.epochs):
            posterior = self.model.encode(self._move(batch).features)
            found.append(torch.cat([posterior.mean, self.model.teff(posterior.auxiliary)[:, None]], 1).cpu())
            if len(found) * len(batch) >= MOST_STARS:
                break
        table = torch.cat(found).numpy()
        fitted = self.model.axis_map.fit(table[:, :-1], table[:, -1])
        logger.info("axis map of %d stars: %s", len(table), "fitted" if fitted else "too few")

    # --------------------------------------------------------- checkpoints

    def identity(self, settings: Mapping[str, Any] | None = None) -> str:
        """What must be the same for a resume, see :func:`~chemscale.vae.resuming.training_identity`."""
        return training_identity(self.model, settings or asdict(self.config), self.source.n_stars)

    def save(self) -> None:
        """Write the checkpoint (only the first process does).

        Raises
        ------
        DataError
            Weights are not finite: the checkpoint before stays.
        """
        if self.folder is None or self.parallel.rank:
            return
        if not all(bool(torch.isfinite(q).all()) for q in self.model.parameters()):
            raise self._diverged(self.progress.step // self.source.n_batches(), "weights")
        write_checkpoint(self.folder, self.model, self._optimizers(), self.identity(), self.progress)

    def resume(self) -> bool:
        """Carry on from the folder's checkpoint; False when there is none.

        Raises
        ------
        ResumeError
            The checkpoint belongs to another model, configuration or sample.
        """
        if self.folder is None:
            return False
        mine = (self.identity(), self.identity(former_names(asdict(self.config))))
        progress = read_checkpoint(self.folder, self.model, self._optimizers(), mine)
        if progress is not None:
            self.progress = progress
        return progress is not None
