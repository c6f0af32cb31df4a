"""How a model is trained, as a type; stored beside its weights.

Names of settings that an earlier version wrote stay readable, see :data:`RENAMED`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from chemscale.errors import InputError
from chemscale.vae.config import read_settings
from chemscale.vae.late_phase import LatePhase

#: Training settings that were renamed: old -> new. Records, checkpoints and settings with old names are read.
RENAMED = {
    "head_start": "label_pretrain_epochs",
    "finish": "decoder_finetune_epochs",
    "settled": "late_phase_start",
    "sharpen": "late_reconstruction_factor",
    "linear_late": "late_label_weight",
    "rest_late": "late_rest_weight",
}
#: Training settings that came later: written into fingerprints only where they differ from what was done before.
ADDED = {"pixels": "group", "betas": (0.9, 0.99), "cycle_momentum": False, "own_side": 0.1, "map_axes": False}


def former_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Training settings as they were called before :data:`RENAMED`; for fingerprints written then.

    >>> former_names({"epochs": 2, "late_phase_start": 0.4})
    {'epochs': 2, 'settled': 0.4}
    """
    old = {new: name for name, new in RENAMED.items()}
    return {old.get(k, k): v for k, v in settings.items()}


def without_added(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Training settings without those of :data:`ADDED` that change nothing; for fingerprints.

    >>> without_added({"epochs": 2, "pixels": "group", "cycle_momentum": True})
    {'epochs': 2, 'cycle_momentum': True}
    """
    return {k: v for k, v in settings.items() if k not in ADDED or v != ADDED[k]}


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
    label_pretrain_epochs : int
        Epochs in which w alone learns Teff and log g, before everything else; it is fixed
        until `late_phase_start` and z is kept independent of what it predicts. 0: w learns along with the rest
        and z is kept independent of the labels. Needs an encoder with a network for w.
    ramp : float
        Fraction of the steps over which the kernel penalties grow to full weight.
    adversary : tuple of (epoch, weight)
        Stepwise schedule of the adversary; empty = no adversary.
    adversary_rate : float
        Learning rate of the adversary.
    pixels : {'group', 'all'}
        What a reconstruction is a mean over: each group's pixels, groups added up; or, halved, all groups' pixels
        together, as the paper prints it (eq. A.1).
    betas : tuple of float
        Decay rates of Adam's two moments.
    cycle_momentum : bool
        Whether the first of them runs from 0.95 to 0.85 and back while the learning rate cycles, as PyTorch's
        ``OneCycleLR`` does by default.
    orient : float
        Latent signs are checked against physics (more of an element deepens lines) until this
        fraction of the epochs; 0 = never.
    decoder_finetune_epochs : int
        Epochs in which only the decoders learn, from posterior means, the encoder fixed.
    map_axes : bool
        Whether latents get the same distribution at every Teff before the decoders learn alone, see
        :mod:`~chemscale.vae.axis_map`. Needs `decoder_finetune_epochs`.
    clip : float
        Largest gradient norm; 0 = no limit.
    own_side : float
        Fraction of the steps in which a decoder with `given_cool` or `given_warm` learns from the stars alone of which
        it reads no such latent, where its own element rules; over as many steps again the others come in.
    group_weights : dict
        Weight of each group's reconstruction, 1 where absent.
    late_phase_start : float
        Fraction of the steps after which every latent has found its axis: from here on w learns from the
        reconstruction too (where it had a head start), and `late_reconstruction_factor` sets in.
    late_reconstruction_factor : float
        Factor by which reconstruction gains weight over all other terms, reached two thirds of the way from there on.
    late_label_weight : float
        Weight of the linear head once w learns from the reconstruction: what keeps chemistry out of w.
        0: w never does.
    late_rest_weight : float
        Weight of the pixels no group claims once the axes have late_phase_start: from then on they teach the latents
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
        Fewest steps of main phase, decoder_finetune_epochs and head start: see :meth:`scaled`.
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
    label_pretrain_epochs: int = 30
    ramp: float = 0.33
    adversary: tuple[tuple[int, float], ...] = ()
    adversary_rate: float = 1e-3
    pixels: str = "group"
    betas: tuple[float, float] = (0.9, 0.99)
    cycle_momentum: bool = False
    orient: float = 0.5
    decoder_finetune_epochs: int = 20
    map_axes: bool = False
    clip: float = 5.0
    own_side: float = 0.1
    group_weights: dict[str, float] = field(default_factory=dict)
    late_phase_start: float = 0.4
    late_reconstruction_factor: float = 6.0
    late_label_weight: float = 100.0
    late_rest_weight: float = 0.0
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
        if self.pixels not in ("group", "all"):
            raise InputError(f"pixels = {self.pixels!r}", "use 'group' or 'all'")
        if self.epochs < 1 or self.batch < 8:
            raise InputError(f"epochs = {self.epochs}, batch = {self.batch}", "at least 1 epoch and 8 stars a batch")

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> TrainConfig:
        """Configuration from JSON; unknown keys are errors, old names (:data:`RENAMED`) are read.

        >>> TrainConfig.from_dict({"epochs": 10, "head_start": 3}).label_pretrain_epochs
        3
        """
        return read_settings(cls, raw, "training", RENAMED)

    def scaled(self, n_stars: int) -> TrainConfig:
        """This configuration for a small survey: smaller batches and more epochs, so that steps are enough.

        Nothing changes where `batch` is less than a sixth of the stars and the epochs give
        `min_steps`. Below :data:`MANY_STARS` w keeps what its head start taught it: learning on, it
        would follow the labels' errors. Presets without a head start (the paper's) are left alone.
        """
        if not self.label_pretrain_epochs:
            return self
        batch = max(8, min(self.batch, n_stars // 6))
        per_epoch = max(1, n_stars // batch)
        phases = (self.epochs, self.decoder_finetune_epochs, self.label_pretrain_epochs)
        epochs, finetune, pretrain = (
            max(e, -(-least // per_epoch)) if e else 0 for e, least in zip(phases, self.min_steps, strict=True)
        )
        return replace(
            self,
            batch=batch,
            epochs=epochs,
            decoder_finetune_epochs=finetune,
            label_pretrain_epochs=pretrain,
            late_label_weight=self.late_label_weight if n_stars >= MANY_STARS else 0.0,
        )

    def late(self, progress: float) -> LatePhase:
        """What is different at a fraction of the steps because the axes have settled."""
        over = progress - self.late_phase_start
        ramp = min(1.0, max(0.0, over) / max((1.0 - self.late_phase_start) / 1.5, 1e-9))
        return LatePhase(
            self.late_reconstruction_factor**ramp,
            bool(self.label_pretrain_epochs and self.late_label_weight) and over >= 0,
            bool(self.late_rest_weight) and over >= 0,
            over >= 0,
            ramp,
            min(1.0, max(0.0, progress / self.own_side - 1.0)) if self.own_side else 1.0,
        )

    def adversary_weight(self, epoch: int) -> float:
        """Lambda of the stepwise schedule at `epoch`."""
        weight = 0.0
        for start, value in self.adversary:
            if epoch >= start:
                weight = value
        return weight
