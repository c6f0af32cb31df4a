"""Checkpoints of a training: what they hold, and whose they are."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from chemscale.errors import ResumeError
from chemscale.runtime.jsonio import digest, write_json
from chemscale.vae import checkpoint
from chemscale.vae.model import ChemicalVAE, learned_last
from chemscale.vae.steps import TrainingProgress
from chemscale.vae.train_config import without_added

CHECKPOINT = "checkpoint"


def training_identity(model: ChemicalVAE, settings: Mapping[str, Any], stars: int) -> str:
    """What must be the same for a resume: model, settings of the training, number of stars."""
    row = model.config.to_dict()
    # rows without such inputs are written as they were before there were any
    former = ("given_late", "given_cool", "given_warm")
    row["groups"] = [{k: v for k, v in g.items() if k not in former or v} for g in row["groups"]]
    if not model.gated:
        row.pop("crossover")
    return digest({"model": row, "train": without_added(settings), "stars": stars}, compact=True)


def write_checkpoint(
    folder: Path,
    model: ChemicalVAE,
    optimizers: Mapping[str, torch.optim.Optimizer],
    identity: str,
    progress: TrainingProgress,
) -> None:
    """Weights, moments of the optimisers and counters."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = checkpoint.training_tensors(model, optimizers)
    weights = checkpoint.save_tensors(folder / f"{CHECKPOINT}.safetensors", tensors)
    record = {"format": checkpoint.FORMAT, "version": checkpoint.VERSION, "sha256": weights}
    record |= {"identity": identity, "progress": progress.to_dict()}
    write_json(folder / f"{CHECKPOINT}.json", record)


def read_checkpoint(
    folder: Path,
    model: ChemicalVAE,
    optimizers: Mapping[str, torch.optim.Optimizer],
    identities: Collection[str],
) -> TrainingProgress | None:
    """Put model and optimisers where the folder's checkpoint was; None when there is none.

    Raises
    ------
    ResumeError
        The checkpoint's identity is none of `identities`.
    """
    if not (folder / f"{CHECKPOINT}.json").exists():
        return None
    record = checkpoint.read_record(folder / f"{CHECKPOINT}.json")
    if record["identity"] not in identities:
        raise ResumeError(
            f"{folder}: the checkpoint is of another model, training configuration or sample",
            "repeat the settings of the run that was stopped, or train without --resume",
        )
    tensors = checkpoint.read_tensors(folder / f"{CHECKPOINT}.safetensors", record["sha256"])
    weights = checkpoint.part_of(tensors, "model")
    model.load_state_dict(learned_last(model.config.n_latents) | weights)
    for name, optimizer in optimizers.items():
        checkpoint.restore_optimizer(optimizer, checkpoint.part_of(tensors, name))
    return TrainingProgress.from_dict(record["progress"])
