"""The training objective: reconstruction by group, KL, linear head, independence, adversary.

Chemical labels never enter. Batch statistics (independence, prior match) are computed over
the whole batch even when it is spread over several processes: see :class:`Parallel`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from chemscale.errors import InputError
from chemscale.vae import losses
from chemscale.vae.data import Batch
from chemscale.vae.model import ChemicalVAE, Posterior
from chemscale.vae.regions import REST


@dataclass(frozen=True)
class Late:
    """Factor on reconstruction, whether it teaches w, and whether the pixels no group claims teach z and w."""

    sharpness: float = 1.0
    auxiliary: bool = False
    rest: bool = False


#: Before the axes have settled.
START = Late()
#: Training stars from which w goes on learning beside the reconstruction.
MANY_STARS = 5000


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained.

    Attributes
    ----------
    epochs, batch, seed : int
    learning_rate, warmup : float
        Peak of the OneCycle schedule and the fraction of steps that climb to it.
    beta : float
        Weight of the KL divergence relative to a mean over pixels.
    linear : float
        Weight of the linear head.
    independence : float
        Weight of the kernel dependence between z and (Teff, log g).
    innovation : float
        Weight of the dependence of each latent's innovation on the earlier latents.
    prior_match : float
        Weight of the sliced distance between the sample of z and the prior.
    on_sample : float
        Fraction of independence and innovation taken on samples of z; the rest on means.
    head_start : int
        Epochs in which w alone learns Teff and log g, before everything else; it is fixed
        until `settled` and z is kept independent of what it predicts. 0: w learns along with the rest
        and z is kept independent of the labels. Needs an encoder with a network for w.
    ramp : float
        Fraction of the steps over which the kernel penalties grow to full weight.
    adversary : tuple of (epoch, weight)
        Stepwise schedule of the adversary; empty = no adversary.
    adversary_rate : float
        Learning rate of the adversary.
    orient : float
        Latent signs are checked against physics (more of an element deepens lines) until this
        fraction of the epochs; 0 = never.
    finish : int
        Epochs in which only the decoders learn, from posterior means, the encoder fixed.
    clip : float
        Largest gradient norm; 0 = no limit.
    group_weights : dict
        Weight of each group's reconstruction, 1 where absent.
    settled : float
        Fraction of the steps after which every latent has found its axis: from here on w learns from the
        reconstruction too (where it had a head start), and `sharpen` sets in.
    sharpen : float
        Factor by which reconstruction gains weight over all other terms, reached two thirds of the way from there on.
    linear_late : float
        Weight of the linear head once w learns from the reconstruction: what keeps chemistry out of w.
        0: w never does.
    rest_late : float
        Weight of the pixels no group claims once the axes have settled: from then on they teach the latents
        too, whose errors are those of the whole spectrum then and not of their windows. 0: never.
    floor : float
        Error added in quadrature to every pixel, as a fraction of the continuum.
    label_error : float
        Relative error of Teff and log g.
    validation : float
        Fraction of the training stars that only watch.
    patience : int
        Stop after this many epochs without a better validation loss (once the ramp is over); 0 = never.
    precision : {'float32', 'bfloat16'}
        Autocast type of encoder and decoders.
    memory_gb : float
        Largest training set held in memory; larger ones are streamed.
    min_steps : tuple of int
        Fewest steps of main phase, finish and head start: see :meth:`scaled`.
    """

    epochs: int = 200
    batch: int = 512
    seed: int = 0
    learning_rate: float = 2e-3
    warmup: float = 0.1
    beta: float = 0.003
    linear: float = 20.0
    independence: float = 5.0
    innovation: float = 1.0
    prior_match: float = 1.0
    on_sample: float = 1.0
    head_start: int = 30
    ramp: float = 0.33
    adversary: tuple[tuple[int, float], ...] = ()
    adversary_rate: float = 1e-3
    orient: float = 0.5
    finish: int = 20
    clip: float = 5.0
    group_weights: dict[str, float] = field(default_factory=dict)
    settled: float = 0.4
    sharpen: float = 6.0
    linear_late: float = 100.0
    rest_late: float = 0.0
    floor: float = 0.005
    label_error: float = 0.02
    validation: float = 0.03
    patience: int = 0
    precision: str = "float32"
    memory_gb: float = 4.0
    min_steps: tuple[int, int, int] = (1200, 600, 180)

    def __post_init__(self) -> None:
        if self.precision not in ("float32", "bfloat16"):
            raise InputError(f"precision {self.precision!r}", "use 'float32' or 'bfloat16'")
        if self.epochs < 1 or self.batch < 8:
            raise InputError(f"epochs = {self.epochs}, batch = {self.batch}", "at least 1 epoch and 8 stars a batch")

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> TrainConfig:
        """Configuration from JSON; unknown keys are errors."""
        known = {f.name for f in fields(cls)}
        if unknown := set(raw) - known:
            raise InputError(f"unknown training settings {sorted(unknown)}", f"known: {', '.join(sorted(known))}")
        values = dict(raw)
        if "adversary" in values:
            values["adversary"] = tuple((int(a), float(b)) for a, b in values["adversary"])
        if "min_steps" in values:
            values["min_steps"] = tuple(int(n) for n in values["min_steps"])
        return cls(**values)

    def scaled(self, n_stars: int) -> TrainConfig:
        """This configuration for a small survey: smaller batches and more epochs, so that steps are enough.

        Nothing changes where `batch` is less than a sixth of the stars and the epochs give
        `min_steps`. Below :data:`MANY_STARS` w keeps what its head start taught it: learning on, it
        would follow the labels' errors. Presets without a head start (the paper's) are left alone.
        """
        if not self.head_start:
            return self
        batch = max(8, min(self.batch, n_stars // 6))
        per_epoch = max(1, n_stars // batch)
        epochs, finish, head = (max(e, -(-m // per_epoch)) if e else 0 for e, m in zip(self._phases(), self.min_steps))
        late = self.linear_late if n_stars >= MANY_STARS else 0.0
        return replace(self, batch=batch, epochs=epochs, finish=finish, head_start=head, linear_late=late)

    def _phases(self) -> tuple[int, int, int]:
        return self.epochs, self.finish, self.head_start

    def late(self, progress: float) -> Late:
        """What is different at a fraction of the steps because the axes have settled."""
        over = progress - self.settled
        return Late(
            self.sharpen ** min(1.0, max(0.0, over) / max((1.0 - self.settled) / 1.5, 1e-9)),
            bool(self.head_start and self.linear_late) and over >= 0,
            bool(self.rest_late) and over >= 0,
        )

    def adversary_weight(self, epoch: int) -> float:
        """Lambda of the stepwise schedule at `epoch`."""
        weight = 0.0
        for start, value in self.adversary:
            if epoch >= start:
                weight = value
        return weight


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
    posterior: Posterior,
    z: Tensor,
    groups: list[str],
    selective: bool | None = None,
    late: Late = START,
) -> dict[str, Tensor]:
    """Predictions of each group under the dependency table's gradient stops."""
    c = model.config
    selective = c.selective if selective is None else selective
    read = z if c.condition_on == "sample" else posterior.mean
    if selective:
        read = read.detach()
    w = posterior.auxiliary if c.auxiliary_gradient or late.auxiliary else posterior.auxiliary.detach()
    found = {g: model.decode(g, z, read, w) for g in groups if g != REST}
    if REST in groups:
        found[REST] = model.decode(REST, z, z, w) if late.rest else model.decode(REST, z, read.detach(), w.detach())
    return found


def objective(
    model: ChemicalVAE,
    batch: Batch,
    config: TrainConfig,
    *,
    epoch: int,
    ramp: float,
    late: Late = START,
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
    noise = torch.randn((n_all, model.config.n_latents), generator=generator).to(posterior.mean)[part]
    z = posterior.mean + (posterior.factor @ noise[:, :, None])[:, :, 0]
    groups = [g.name for g in model.config.groups]
    weights = dict(config.group_weights)
    if late.rest and REST in model.pixels:
        groups.append(REST)
        weights.setdefault(REST, config.rest_late)
    share = len(mine) / n_used
    terms: dict[str, Tensor] = {}
    loss = z.new_zeros(())
    for name, prediction in decode_groups(model, posterior, z, groups, late=late).items():
        flux, ivar = mine.flux[name], mine.ivar[name]
        count = parallel.total((ivar > 0).sum()).clamp_min(1)
        term = losses.chi2(prediction, flux, ivar).sum() / count
        loss = loss + weights.get(name, 1.0) * late.sharpness * term
        terms[f"reconstruction_{name}"] = parallel.total(term)
    kl = losses.gaussian_kl(posterior.mean, posterior.factor, model.prior) * share
    terms["kl"] = parallel.total(kl)
    predicted = model.linear(posterior.auxiliary)
    head = losses.linear_head(predicted, mine.labels, mine.errors) * share
    terms["linear"] = parallel.total(head)
    loss = loss + config.beta * kl
    if late.auxiliary or not config.head_start:
        loss = loss + (config.linear_late if late.auxiliary else config.linear) * head
    means, samples = parallel.gather(posterior.mean), parallel.gather(z)
    labels = parallel.gather(predicted.detach() if config.head_start else mine.labels)
    for kind, weight, on in _penalties(config, means, samples):
        if kind == "prior_match":
            value = losses.sliced_prior(samples, model.prior, generator)
            loss = loss + weight * value
        elif kind == "independence":
            value = independence(on, labels, generator)
            loss = loss + weight * ramp * value
        else:
            value = losses.innovation_dependence(on, model.prior, generator)
            loss = loss + weight * ramp * value
        terms[kind] = terms.get(kind, 0.0) + value.detach()
    rival = z.new_zeros(())
    weight = config.adversary_weight(epoch)
    if config.adversary:
        low = torch.nan_to_num(labels, nan=float("inf")).amin(0)
        high = torch.nan_to_num(labels, nan=-float("inf")).amax(0)
        target = losses.classes(mine.labels, low, high, model.config.adversary_bins)
        rival = losses.adversary_loss(model.adversary(posterior.mean.detach()), target) * share
        terms["adversary"] = parallel.total(rival)
        if weight:
            frozen = [p.requires_grad_(False) for p in model.adversary.parameters()]
            loss = loss - weight * losses.adversary_loss(model.adversary(posterior.mean), target) * share
            for p in frozen:
                p.requires_grad_(True)
    return loss, rival, terms


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


def independence(z: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Dependence of z as a whole and of each latent on the labels of the stars that have them; scalar."""
    known = torch.isfinite(labels).all(1)
    if not bool(known.all()):
        z, labels = z[known], labels[known]
    if len(z) < 8:
        return z.sum() * 0.0
    total = losses.dependence(z, labels, generator)
    for k in range(z.shape[1]):
        total = total + losses.dependence(z[:, k : k + 1], labels, generator)
    return total
