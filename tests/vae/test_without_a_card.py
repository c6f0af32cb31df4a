"""What a GPU would refuse, shown without one.

Tensors of torch's meta device have a shape and no values. As on a GPU, operations that mix them with those of the host
fail; reading one of their values, for which the host would have to wait, fails too.
"""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from vae_toy import FAST, FAST_MODEL, TOY_REGIONS, toy_survey

from chemscale.vae import training
from chemscale.vae.axis_map import AxisMap
from chemscale.vae.config import ModelConfig
from chemscale.vae.prepare import build, look_at, training_data
from chemscale.vae.train_config import TrainConfig

ELSEWHERE = torch.device("meta")


@pytest.fixture
def elsewhere(monkeypatch):
    """A function that makes a trainer whose tensors all lie on the meta device."""
    # there is no generator of random numbers, and no autocast, for tensors without values
    monkeypatch.setattr(training, "step_generator", lambda *_: torch.Generator())
    for name in ("randn", "rand"):
        made = getattr(torch, name)

        def draw(*size, generator=None, device=None, made=made):
            return made(*size, device=ELSEWHERE)

        monkeypatch.setattr(torch, name, draw)
    monkeypatch.setattr(training.Trainer, "_autocast", lambda self: nullcontext())
    # at the end of an epoch the host reads the losses
    monkeypatch.setattr(training.LossTerms, "means", lambda self: {})

    def make(**settings):
        config = TrainConfig.from_dict({**FAST, **settings})
        survey = look_at(toy_survey(600))
        network = build(survey, ModelConfig.from_dict(FAST_MODEL), config, TOY_REGIONS)
        source, validation, _ = training_data(survey, network, config)
        return training.Trainer(network, source, config, validation=validation, device="meta")

    return make


@pytest.mark.parametrize("settings", [{}, {"adversary": ((1, 0.05),)}], ids=["default", "adversary"])
def test_a_step_mixes_no_devices_and_waits_for_none(elsewhere, settings):
    trainer = elsewhere(**settings)
    batch = next(iter(trainer.source.epoch(0))).to(ELSEWHERE)
    for step in (0, trainer.total_steps // 2, trainer.total_steps - 1):  # the objective changes on the way
        trainer.progress.step = step
        terms = trainer.step(batch, step // trainer.source.n_batches())
        assert terms
        assert {v.device.type for v in terms.values()} == {"meta"}


def test_the_other_phases_mix_no_devices(elsewhere):
    trainer = elsewhere()
    trainer.pretrain_labels()
    trainer.finetune_decoders()


def test_the_test_sees_a_value_that_is_read(elsewhere):
    trainer = elsewhere()
    with pytest.raises(RuntimeError, match="meta"):
        trainer.validate()  # once an epoch: it may


def test_an_axis_map_is_fitted_on_the_host_wherever_it_lies():
    rng = np.random.default_rng(0)
    z, teff = rng.standard_normal((9000, 3)), rng.uniform(4000.0, 7000.0, 9000)
    axis_map = AxisMap(3).to(ELSEWHERE)
    assert axis_map.fit(z, teff)
    assert axis_map.span.device == ELSEWHERE
    assert axis_map.shape.fitted
    mapped, factors = axis_map(torch.empty(5, 3, device="meta"), torch.empty(5, device="meta"))
    assert mapped.shape == factors.shape == (5, 3)
    assert mapped.device == ELSEWHERE
