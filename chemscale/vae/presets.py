"""Named recipes: the default, found by measurement, and the paper's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from chemscale.errors import InputError
from chemscale.vae.config import PAPER_GROUPS, ModelConfig
from chemscale.vae.train_config import TrainConfig

#: Section 4 and appendix B of the paper.
PAPER_MODEL = ModelConfig(
    encoder="conv",
    decoder=(32, 64, 128),
    groups=PAPER_GROUPS,
    condition_on="sample",
    auxiliary_gradient=True,
    depth=0.0,
    rest=False,
)
PAPER_TRAIN = TrainConfig(
    epochs=4000,
    batch=512,
    learning_rate=1e-3,
    warmup=0.3,
    beta=1e-3,
    linear=1.0,
    independence=0.0,
    innovation=0.0,
    prior_match=0.0,
    adversary=((200, 1e-2), (2000, 1e-1)),
    label_pretrain_epochs=0,
    orient=0.0,
    decoder_finetune_epochs=0,
    clip=0.0,
    floor=0.0,
    late_reconstruction_factor=1.0,
    late_rest_weight=0.0,
    pixels="all",
    betas=(0.9, 0.999),
    cycle_momentum=True,
)
#: Short: a survey of a few thousand stars in under a minute on two cores.
QUICK = {
    "epochs": 20,
    "batch": 128,
    "decoder_finetune_epochs": 3,
    "map_axes": True,
    "label_pretrain_epochs": 8,
    "min_steps": (500, 80, 150),
}

#: name -> (model, training, regions or None for the grid's default)
PRESETS: dict[str, tuple[ModelConfig, TrainConfig, str | None]] = {
    "default": (ModelConfig(), TrainConfig(map_axes=True), None),
    "quick": (ModelConfig(), TrainConfig(**QUICK), None),  # type: ignore[arg-type]
    "paper": (PAPER_MODEL, PAPER_TRAIN, "paper"),
}


def recipe(
    preset: str = "default",
    model: Mapping[str, Any] | None = None,
    train: Mapping[str, Any] | None = None,
) -> tuple[ModelConfig, TrainConfig, str | None]:
    """Configuration of a preset with overrides.

    Raises
    ------
    InputError
        Unknown preset or setting.
    """
    if preset not in PRESETS:
        raise InputError(f"no preset {preset!r}", f"presets: {', '.join(PRESETS)}")
    base_model, base_train, regions = PRESETS[preset]
    return (
        ModelConfig.from_dict({**asdict(base_model), **dict(model or {})}),
        TrainConfig.from_dict({**asdict(base_train), **dict(train or {})}),
        regions,
    )
