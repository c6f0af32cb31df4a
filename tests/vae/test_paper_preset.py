"""The preset `paper` trains as the paper says: numbers, loss, bins, and PyTorch's own schedule."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from vae_toy import TOY_REGIONS

from chemscale.vae import losses
from chemscale.vae.config import PAPER_GROUPS
from chemscale.vae.model import ChemicalVAE
from chemscale.vae.objective import Parallel, decode_groups, objective
from chemscale.vae.prepare import build, look_at, training_data
from chemscale.vae.presets import recipe
from chemscale.vae.schedule import one_cycle, one_cycle_momentum
from chemscale.vae.train_config import TrainConfig
from chemscale.vae.training import Trainer


@pytest.fixture(scope="module")
def toy_training(toy):
    """The paper's recipe on 240 toy pixels, and its training stars."""
    model, train, _ = recipe("paper", None, {"epochs": 2, "batch": 64})
    survey = look_at(toy)
    network = build(survey, model, train, TOY_REGIONS)
    source, _, _ = training_data(survey, network, train)
    return network, train, source


def test_numbers_are_the_papers():
    model, train, regions = recipe("paper")
    assert (model.encoder, model.decoder, regions) == ("conv", (32, 64, 128), "paper")
    assert model.correlations == {"metal-alpha": -0.3, "metal-carbon": -0.17}
    assert model.groups == PAPER_GROUPS
    assert (train.epochs, train.batch, train.learning_rate, train.beta) == (4000, 512, 1e-3, 1e-3)
    weights = [train.adversary_weight(e) for e in (0, 199, 200, 1999, 2000, 3999)]
    assert weights == [0.0, 0.0, 1e-2, 1e-2, 1e-1, 1e-1]
    # none of chemscale's own terms
    assert (train.independence, train.innovation, train.prior_match, train.floor, train.clip) == (0, 0, 0, 0, 0)
    assert (train.late_reconstruction_factor, train.late_rest_weight) == (1, 0)
    grid = 4000 * 10 ** (1e-4 * np.arange(4150))
    network = ChemicalVAE(model, {g: [0] for g in ("iron", "carbon", "alpha")}, np.ones(grid.size))
    encoder = sum(p.numel() for p in network.encoder.parameters())
    assert encoder == pytest.approx(3.2e6, rel=0.1)  # 3.34 million with decoders of the whole windows


def test_schedule_is_pytorchs_one_cycle():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([parameter])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=200)
    for step in range(200):
        assert one_cycle(step, 200, 1e-3, 0.3) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        assert one_cycle_momentum(step, 200, 0.3) == pytest.approx(optimizer.param_groups[0]["betas"][0], rel=1e-9)
        optimizer.step()
        if step < 199:
            schedule.step()


def test_training_sets_adams_rates_as_the_schedule_does(toy_training):
    network, train, source = toy_training
    trainer = Trainer(network, source, train)
    seen = []
    for step in range(2):
        batch = next(iter(source.epoch(0)))
        trainer.step(batch, 0)
        group = trainer.optimizer.param_groups[0]
        seen.append((group["lr"], *group["betas"]))
        trainer.progress.step += 1
        total = trainer.total_steps
        assert seen[-1] == pytest.approx(
            (one_cycle(step, total, 1e-3, 0.3), one_cycle_momentum(step, total, 0.3), 0.999)
        )


def test_loss_is_equation_a1_over_all_pixels(toy_training):
    network, train, source = toy_training
    batch = next(iter(source.epoch(0)))
    loss, _, terms = objective(
        network, batch, train, epoch=0, ramp=1.0, generator=torch.Generator().manual_seed(1), parallel=Parallel()
    )
    posterior = network.encode(batch.features)
    noise = torch.randn((len(batch), 3), generator=torch.Generator().manual_seed(1))
    z = posterior.mean + (posterior.factor @ noise[:, :, None])[:, :, 0]
    found = decode_groups(network, posterior, z, ["iron", "carbon", "alpha"])
    total = sum(losses.chi2(found[g], batch.flux[g], batch.ivar[g]).sum() for g in found)
    pixels = sum((batch.ivar[g] > 0).sum() for g in found)
    expected = 0.5 * total / pixels + train.beta * terms["kl"] + terms["linear"]
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_adversarys_bins_are_those_of_the_training_set(toy_training):
    network, train, source = toy_training
    every = torch.cat([b.labels for b in source.epoch(0)])
    low, high = network.label_range
    assert torch.all(low <= every.amin(0))
    assert torch.all(high >= every.amax(0))
    batch = next(iter(source.epoch(0)))
    whole = losses.classes(batch.labels, low, high, 8)
    half = losses.classes(batch.labels[:32], low, high, 8)
    assert whole[:32].tolist() == half.tolist()
    # a star's class does not depend on the batch it comes in: the adversary's loss is that of these classes
    _, adversary, _ = objective(
        network, batch, train, epoch=0, ramp=1.0, generator=torch.Generator(), parallel=Parallel()
    )
    logits = network.adversary(network.encode(batch.features).mean)
    assert float(adversary.detach()) == pytest.approx(float(losses.adversary_loss(logits, whole).detach()), rel=1e-5)


def test_settings_added_later_do_not_change_a_fingerprint(toy_training):
    network, _, source = toy_training
    before = {k: v for k, v in TrainConfig().__dict__.items() if k not in ("pixels", "betas", "cycle_momentum")}
    trainer = Trainer(network, source, TrainConfig(label_pretrain_epochs=0))
    before["label_pretrain_epochs"] = 0
    assert trainer.identity() == trainer.identity(before)
