"""The training objective: reconstruction by group, KL, linear head, independence, adversary.

Chemical labels never enter. Batch statistics (independence, prior match) are computed over
the whole batch even when it is spread over several processes: see :class:`Parallel`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from chemscale.vae import losses
from chemscale.vae.data import TrainingBatch
from chemscale.vae.late_phase import EARLY, LatePhase, partly
from chemscale.vae.model import ChemicalVAE, LatentPosterior
from chemscale.vae.regions import REST
from chemscale.vae.train_config import TrainConfig


class Parallel:
    """One process of a data-parallel group; a single process is a group of one.

    A batch is cut into contiguous, equal parts. Sums over stars are summed over processes;
    batch statistics see the latents of all stars, with gradients through this process's own,
    so that *summed* gradients equal those of one process with the whole batch.
    """

    def __init__(self, rank: int = 0, world: int = 1):
        self.rank, self.world = rank, world

    def part(self, n: int) -> slice:
        """Rows of this process in a batch of n stars; the remainder of an uneven cut is left out."""
        size = n // self.world
        return slice(self.rank * size, (self.rank + 1) * size)

    def gather(self, x: Tensor) -> Tensor:
        """Rows of all processes, own rows with their gradient."""
        if self.world == 1:
            return x
        import torch.distributed as dist

        parts = [torch.empty_like(x) for _ in range(self.world)]
        dist.all_gather(parts, x.detach().contiguous())
        parts[self.rank] = x
        return torch.cat(parts)

    def total(self, x: Tensor) -> Tensor:
        """Sum over processes (no gradient)."""
        if self.world == 1:
            return x.detach()
        import torch.distributed as dist

        x = x.detach().clone()
        dist.all_reduce(x)
        return x

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace every gradient by its sum over processes; one message."""
        if self.world == 1:
            return
        import torch.distributed as dist

        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = torch.cat([g.reshape(-1) for g in grads])
        dist.all_reduce(flat)
        offset = 0
        for p, g in zip(parameters, grads):
            p.grad = flat[offset : offset + g.numel()].view_as(g).clone()
            offset += g.numel()


def decode_groups(
    model: ChemicalVAE,
    posterior: LatentPosterior,
    z: Tensor,
    groups: list[str],
    selective: bool | None = None,
    late: LatePhase = EARLY,
) -> dict[str, Tensor]:
    """Predictions of each group under the dependency table's gradient stops."""
    c = model.config
    selective = c.selective if selective is None else selective
    read = z if c.condition_on == "sample" else posterior.mean
    if selective:
        read = read.detach()
    w = posterior.auxiliary if c.auxiliary_gradient or late.auxiliary else posterior.auxiliary.detach()
    found = {g: model.decode(g, z, read, w, late.settled, late.opening) for g in groups if g != REST}
    if REST in groups:
        found[REST] = model.decode(REST, z, z, w) if late.rest else model.decode(REST, z, read.detach(), w.detach())
    return found


def objective(
    model: ChemicalVAE,
    batch: TrainingBatch,
    config: TrainConfig,
    *,
    epoch: int,
    ramp: float | Tensor,
    late: LatePhase = EARLY,
    generator: torch.Generator,
    parallel: Parallel,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Loss of encoder, decoders and linear head on this process's part of a batch.

    Returns
    -------
    (Tensor, Tensor, dict)
        The loss whose gradients, summed over processes, are the batch's; the adversary's own
        loss; and the terms of the whole batch for the curves.
    """
    n_all = len(batch)
    part = parallel.part(n_all)
    n_used = parallel.world * (part.stop - part.start)
    mine = batch.rows(part)
    posterior = model.encode(mine.features)
    # the whole batch's noise is drawn, whatever the number of processes: same numbers for the same star
    drawn = torch.randn((n_all, model.config.n_latents), generator=generator, device=generator.device)
    noise = drawn.to(posterior.mean)[part]
    z = posterior.mean + (posterior.factor @ noise[:, :, None])[:, :, 0]
    groups = [g.name for g in model.config.groups]
    weights = dict(config.group_weights)
    if late.rest and REST in model.pixels:
        groups.append(REST)
        weights.setdefault(REST, config.late_rest_weight)
    share = len(mine) / n_used
    every = parallel.total(sum((mine.ivar[g] > 0).sum() for g in groups)).clamp_min(1)  # type: ignore[arg-type]
    terms: dict[str, Tensor] = {}
    loss = z.new_zeros(())
    for name, prediction in decode_groups(model, posterior, z, groups, late=late).items():
        flux, ivar = mine.flux[name], mine.ivar[name]
        count = parallel.total((ivar > 0).sum()).clamp_min(1)
        each = losses.chi2(prediction, flux, ivar)
        if partly(late.entering) and name in model.gated:
            each = each * model.entry(name, posterior.auxiliary, late.entering)
        chi2 = each.sum()
        term = 0.5 * chi2 / every if config.pixels == "all" else chi2 / count
        loss = loss + weights.get(name, 1.0) * late.reconstruction_factor * term
        terms[f"reconstruction_{name}"] = parallel.total(chi2 / count)
    kl = losses.gaussian_kl(posterior.mean, posterior.factor, model.whitening) * share
    terms["kl"] = parallel.total(kl)
    predicted = model.linear(posterior.auxiliary)
    head = losses.linear_head(predicted, mine.labels, mine.errors) * share
    terms["linear"] = parallel.total(head)
    loss = loss + config.beta * kl
    if late.auxiliary or not config.label_pretrain_epochs:
        loss = loss + (config.late_label_weight if late.auxiliary else config.linear) * head
    means, samples = parallel.gather(posterior.mean), parallel.gather(z)
    own = not config.label_pretrain_epochs  # a star may lack one of the survey's labels; w has all of them
    labels = parallel.gather(mine.labels if own else predicted.detach())
    for kind, weight, on in _penalties(config, means, samples):
        if kind == "prior_match":
            value = losses.sliced_prior(samples, model.prior, generator)
            loss = loss + weight * value
        elif kind == "independence":
            value = independence(on, labels, generator, complete=not own)
            loss = loss + weight * ramp * value
        else:
            value = losses.innovation_dependence(on, model.whitening, generator)
            loss = loss + weight * ramp * value
        terms[kind] = terms.get(kind, 0.0) + value.detach()
    adversary = z.new_zeros(())
    weight = config.adversary_weight(epoch)
    if config.adversary:
        low, high = model.label_range
        target = losses.classes(mine.labels, low, high, model.config.adversary_bins)
        adversary = losses.adversary_loss(model.adversary(posterior.mean.detach()), target) * share
        terms["adversary"] = parallel.total(adversary)
        if weight:
            frozen = [p.requires_grad_(False) for p in model.adversary.parameters()]
            loss = loss - weight * losses.adversary_loss(model.adversary(posterior.mean), target) * share
            for p in frozen:
                p.requires_grad_(True)
    return loss, adversary, terms


def _penalties(config: TrainConfig, means: Tensor, samples: Tensor) -> list[tuple[str, float, Tensor]]:
    chosen = []
    if config.prior_match:
        chosen.append(("prior_match", config.prior_match, samples))
    for kind in ("independence", "innovation"):
        weight = getattr(config, kind)
        if weight * (1 - config.on_sample):
            chosen.append((kind, weight * (1 - config.on_sample), means))
        if weight * config.on_sample:
            chosen.append((kind, weight * config.on_sample, samples))
    return chosen


def independence(z: Tensor, labels: Tensor, generator: torch.Generator, complete: bool = False) -> Tensor:
    """Dependence of z as a whole and of each latent on the labels of the stars that have them; scalar.

    0 where fewer than 8 stars have them all. With `complete` every star has, and none is looked at.
    """
    if complete:
        return losses.dependence_on(z, labels, generator) if len(z) >= 8 else z.sum() * 0.0
    known = torch.isfinite(labels).all(1)
    value = losses.dependence_on(z, labels, generator, known)
    return torch.where(known.sum() >= 8, value, value * 0.0)
