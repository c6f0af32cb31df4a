"""The physics-constrained variational autoencoder (paper sections 2.2 to 2.4).

One encoder gives a full-covariance posterior over the chemical latents z and a point
estimate of the auxiliary latents w; one decoder a chemical group reconstructs that group's
pixels. The dependency table says which latent a decoder teaches and which it only reads:
read latents are stopped (selective gradient flow). N elements are N rows of that table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chemscale.errors import InputError
from chemscale.vae.axis_map import AxisMap
from chemscale.vae.config import ModelConfig
from chemscale.vae.encoders import ConvEncoder, PPCAEncoder, PPCAFront, perceptron
from chemscale.vae.late_phase import partly
from chemscale.vae.losses import whitening
from chemscale.vae.regions import REST

#: Levels of noise at which the stated errors are known, see :meth:`ChemicalVAE.error_factor`.
ERROR_LEVELS = 7
#: Width in Teff (K) of the change from cool to warm stars, see :meth:`ChemicalVAE.gates`.
CROSSOVER_WIDTH = 150.0


@dataclass
class LatentPosterior:
    """What the encoder says of a batch.

    Attributes
    ----------
    mean : Tensor (n, d)
    factor : Tensor (n, d, d)
        Lower Cholesky factor of the covariance.
    auxiliary : Tensor (n, n_auxiliary)
    """

    mean: Tensor
    factor: Tensor
    auxiliary: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One reparametrised draw of z a star."""
        noise = torch.randn(self.mean.shape, generator=generator).to(self.mean)
        return self.mean + (self.factor @ noise[:, :, None])[:, :, 0]

    @property
    def covariance(self) -> Tensor:
        """(n, d, d)."""
        return self.factor @ self.factor.transpose(1, 2)


class ChemicalVAE(nn.Module):
    """Encoder, decoders by group, linear head and adversary.

    Parameters
    ----------
    config : ModelConfig
    pixels : mapping of str to sequence of int
        Pixel indices of each group (and of ``rest``).
    mean : array (P,)
        Mean spectrum; decoders start from it.
    ppca : mapping, optional
        `components` (K, P), `scale` (K,), `noise` (P,): the fitted front end (encoder ``ppca``).
    """

    prior: Tensor
    whitening: Tensor
    mean: Tensor
    label_centre: Tensor
    label_scale: Tensor
    label_range: Tensor
    error_scale: Tensor
    error_levels: Tensor
    error_by_level: Tensor
    lower: Tensor

    def __init__(
        self,
        config: ModelConfig,
        pixels: Mapping[str, Sequence[int] | np.ndarray],
        mean: np.ndarray,
        ppca: Mapping[str, np.ndarray] | None = None,
    ):
        super().__init__()
        self.config = config
        wanted = [g.name for g in config.groups] + ([REST] if config.rest else [])
        missing = [w for w in wanted if w not in pixels]
        if missing:
            raise InputError(f"no pixels given for {', '.join(missing)}", "name them in the regions file")
        self.pixels: dict[str, np.ndarray] = {g: np.asarray(pixels[g], dtype=np.int64) for g in wanted}
        d, aux = config.n_latents, config.n_auxiliary
        mean32 = torch.from_numpy(np.nan_to_num(np.asarray(mean, dtype=np.float32), nan=1.0))
        self.register_buffer("mean", mean32.clone())
        self.register_buffer("prior", torch.from_numpy(config.prior()))
        self.register_buffer("whitening", whitening(self.prior), persistent=False)
        self.register_buffer("label_centre", torch.zeros(len(config.labels)))
        self.register_buffer("label_scale", torch.ones(len(config.labels)))
        # lowest and highest standardised label of the training stars: the adversary's bins, used in training alone
        self.register_buffer("label_range", torch.tensor([-1.0, 1.0])[:, None].repeat(1, len(config.labels)), False)
        for name, value in unmeasured_errors(d).items():
            self.register_buffer(name, value)
        self.axis_map = AxisMap(d)
        n_out = d + d * (d + 1) // 2
        self.encoder: PPCAEncoder | ConvEncoder
        if config.encoder == "ppca":
            if ppca is None:
                raise InputError("the ppca encoder needs a fitted masked PPCA", "pass ppca=, or use encoder='conv'")
            front = PPCAFront(*(torch.as_tensor(np.nan_to_num(a), dtype=torch.float32) for a in _front(ppca, mean32)))
            self.encoder = PPCAEncoder(front, config.hidden, n_out, aux)
        else:
            self.encoder = ConvEncoder(mean32.clone(), n_out + aux)
        self.gated = {g.name for g in config.groups if g.given_cool or g.given_warm}
        self.decoders = nn.ModuleDict()
        self.depths = nn.ParameterDict()
        for name in wanted:
            n_in = len(self.inputs(name)) + aux
            decoder = perceptron(n_in, config.decoder, len(self.pixels[name]))
            last = decoder[-1]
            assert isinstance(last, nn.Linear)
            with torch.no_grad():
                last.weight.mul_(0.3)
                last.bias.copy_(mean32[self.pixels[name]] - 1.0)
                first = decoder[0]
                assert isinstance(first, nn.Linear)
                first.weight[:, self.read_late(name)] = 0.0  # nothing jumps when the axes have settled
            self.decoders[name] = decoder
            if config.depth and name != REST:
                self.depths[name] = nn.Parameter(torch.full((len(self.pixels[name]),), config.depth))
        self.linear = nn.Linear(aux, len(config.labels))
        bins = config.adversary_bins ** len(config.labels)
        self.adversary = nn.Sequential(nn.Linear(d, 64), nn.ReLU(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, bins))
        # on the model's device: an index from elsewhere would have the host wait for the device in every step
        self.register_buffer("lower", torch.from_numpy(np.stack(np.tril_indices(d, -1))), persistent=False)
        for name in wanted:
            self.register_buffer(f"reads_{name}", torch.tensor(self.inputs(name)[:-1], dtype=torch.long), False)
            self.register_buffer(f"pixels_{name}", torch.from_numpy(self.pixels[name]), False)

    def inputs(self, group: str) -> tuple[int, ...]:
        """Latents decoder `group` sees, in the order of its inputs (its own last); all of them for ``rest``."""
        names = self.config.latents
        if group == REST:
            return tuple(range(len(names)))
        row = next(g for g in self.config.groups if g.name == group)
        return (*(names.index(g) for g in row.read), names.index(row.latent))

    def read_late(self, group: str) -> slice:
        """Inputs of a decoder that it reads only once the axes have settled."""
        row = next((g for g in self.config.groups if g.name == group), None)
        return slice(0, 0) if row is None else slice(len(row.given), len(row.given) + len(row.given_late))

    # ------------------------------------------------------------- encoder

    def features(self, flux: Tensor, ivar: Tensor) -> Tensor:
        """Input of :meth:`encode`: PPCA coordinates or filled spectra."""
        return self.encoder.features(flux, ivar)

    def encode(self, features: Tensor, level: Tensor | None = None) -> LatentPosterior:
        """Posterior of a batch of features; its errors those of spectra with a `level` (n,) of noise where it is given.

        See :func:`noise_level`. Without it they are those of a typical training star.
        """
        d = self.config.n_latents
        out = self.encoder.head(features).float()
        mean, rest = out[:, :d], out[:, d:]
        diagonal = F.softplus(rest[:, :d] - 1.0) + 1e-4
        factor = torch.diag_embed(diagonal)
        rows, columns = self.lower
        factor[:, rows, columns] = rest[:, d : d + len(rows)]
        factor = factor * self.error_scale[:, None]
        if level is not None:
            factor = factor * self.error_factor(level)[:, :, None]
        auxiliary = rest[:, d + len(rows) :]
        if self.axis_map.fitted:
            mean, spread = self.axis_map(mean, self.teff(auxiliary))
            factor = factor * spread[:, :, None]
        return LatentPosterior(mean, factor, auxiliary)

    def error_factor(self, level: Tensor) -> Tensor:
        """By how much stated errors grow at a level of noise (n,), (n, d): between those measured in logarithms."""
        known = self.error_levels
        after = torch.searchsorted(known, level.to(known).contiguous()).clamp(1, len(known) - 1)
        share = (level.to(known) - known[after - 1]) / (known[after] - known[after - 1]).clamp_min(1e-6)
        share = share.clamp(0.0, 1.0)[:, None]
        logs = self.error_by_level.log()
        return torch.exp(logs[after - 1] * (1.0 - share) + logs[after] * share)

    # ------------------------------------------------------------ decoders

    def cool(self, auxiliary: Tensor) -> Tensor:
        """How cool a star is by the Teff that the linear head reads from w: 0 above the crossover, 1 below; (n,)."""
        teff = self.teff(auxiliary.detach()).detach()
        return torch.sigmoid((self.config.crossover - teff) / CROSSOVER_WIDTH)

    def gates(self, group: str, auxiliary: Tensor, opening: float | Tensor) -> Tensor:
        """How far a decoder reads each of its other inputs before the axes have settled, (n, inputs - 1) in [0, 1]."""
        row = next(g for g in self.config.groups if g.name == group)
        cool = self.cool(auxiliary)
        share = [torch.ones_like(cool)] * len((*row.given, *row.given_late))
        share += [cool + (1 - cool) * opening] * len(row.given_cool)
        share += [1 - cool + cool * opening] * len(row.given_warm)
        return torch.stack(share, 1)

    def entry(self, group: str, auxiliary: Tensor, entering: float | Tensor) -> Tensor:
        """Weight of each star in a decoder's reconstruction: `entering` where its own element does not rule; (n,)."""
        row = next(g for g in self.config.groups if g.name == group)
        cool = self.cool(auxiliary)
        own = 1 - cool if row.given_cool else cool
        return own + (1 - own) * entering

    def decode(
        self,
        group: str,
        own: Tensor,
        read: Tensor,
        auxiliary: Tensor,
        settled: bool = True,
        opening: float | Tensor = 1.0,
    ) -> Tensor:
        """Spectrum of `group`'s pixels.

        Parameters
        ----------
        own : Tensor (n, d)
            Latents from which the decoder's own one is taken (a sample, in training).
        read : Tensor (n, d)
            Latents from which the others are taken; stopped by the caller.
        auxiliary : Tensor (n, n_auxiliary)
        settled : bool
            Whether the decoder reads the latents of `given_late`.
        opening : float
            How far the latents of `given_cool` and `given_warm` are read of all stars, see :meth:`gates`.
        """
        index = self.inputs(group)
        last = slice(index[-1], index[-1] + 1)
        parts = [
            read.index_select(1, self.get_buffer(f"reads_{group}")),
            (read if group == REST else own)[:, last],
            auxiliary,
        ]
        late = self.read_late(group)
        if partly(opening) and group in self.gated:
            parts[0] = parts[0] * self.gates(group, auxiliary, opening)
        if not settled and late.stop > late.start:
            parts[0] = parts[0].clone()
            parts[0][:, late] = 0.0
        spectrum = 1.0 + self.decoders[group](torch.cat(parts, 1)).float()
        return spectrum - self.depths[group] * parts[1] if group in self.depths else spectrum

    def reconstruct(self, mean: Tensor, auxiliary: Tensor) -> Tensor:
        """Whole spectra (n, P) from posterior means; NaN at pixels no decoder covers.

        A pixel several groups claim gets the mean of their predictions.
        """
        n_pixels = self.mean.numel()
        total = mean.new_zeros(len(mean), n_pixels)
        count = mean.new_zeros(n_pixels)
        for name, index in self.index().items():
            total.index_add_(1, index, self.decode(name, mean, mean, auxiliary))
            count.index_add_(0, index, torch.ones_like(index, dtype=count.dtype))
        if bool((count > 1).any()) or bool((count == 0).any()):
            total = total / torch.where(count > 0, count, torch.full_like(count, torch.nan))
        return total

    def labels(self, auxiliary: Tensor) -> Tensor:
        """Labels (n, labels) the linear head reads from w, in the survey's units."""
        return self.linear(auxiliary) * self.label_scale + self.label_centre

    def teff(self, auxiliary: Tensor) -> Tensor:
        """Teff (n,), K, that the linear head reads from w."""
        return self.labels(auxiliary)[:, self.config.labels.index("teff")]

    def index(self) -> dict[str, Tensor]:
        """Pixel indices of each decoder on the model's device."""
        return {name: self.get_buffer(f"pixels_{name}") for name in self.pixels}

    # --------------------------------------------------------- orientation

    @torch.no_grad()
    def flip(self, latent: int) -> None:
        """Change the sign of one latent everywhere, leaving every reconstruction as it is."""
        d = self.config.n_latents
        head = self.encoder.net[-1] if isinstance(self.encoder, PPCAEncoder) else self.encoder.out
        rows, columns = self.lower.tolist()
        lower = [2 * d + i for i, (r, c) in enumerate(zip(rows, columns)) if latent in (int(r), int(c))]
        assert isinstance(head, nn.Linear)
        for row in (latent, *lower):
            head.weight[row] *= -1
            head.bias[row] *= -1
        for name in self.pixels:
            index = self.inputs(name)
            if name in self.depths and index[-1] == latent:
                self.depths[name] *= -1
            if latent in index:
                self.decoders[name][0].weight[:, index.index(latent)] *= -1  # type: ignore[index]
        self.adversary[0].weight[:, latent] *= -1  # type: ignore[operator, index]

    @torch.no_grad()
    def response(self, posterior: LatentPosterior, step: float = 0.5) -> np.ndarray:
        """Mean change of each group's flux when its own latent grows by one standard deviation; (d,).

        Negative where more of the latent deepens lines: the physical orientation, found
        without a label.
        """
        mean, found = posterior.mean, []
        for k, group in enumerate(self.config.groups):
            shift = torch.zeros_like(mean)
            shift[:, k] = step * mean[:, k].std()
            up = self.decode(group.name, mean + shift, mean, posterior.auxiliary)
            down = self.decode(group.name, mean - shift, mean, posterior.auxiliary)
            found.append(float((up - down).mean()) / (2 * step))
        return np.array(found)


def unmeasured_errors(n_latents: int) -> dict[str, Tensor]:
    """Buffers of a model whose errors have not been measured: as the encoder states them.

    >>> sorted(unmeasured_errors(3))
    ['error_by_level', 'error_levels', 'error_scale']
    """
    return {
        "error_scale": torch.ones(n_latents),
        "error_levels": torch.zeros(ERROR_LEVELS),
        "error_by_level": torch.ones(ERROR_LEVELS, n_latents),
    }


def learned_last(n_latents: int) -> dict[str, Tensor]:
    """What a model has before the end of its training, and those of earlier versions have not: errors and axis map."""
    axes = {f"axis_map.{k}": v for k, v in AxisMap(n_latents).state_dict().items()}
    return unmeasured_errors(n_latents) | axes


def noise_level(weight: Tensor) -> Tensor:
    """Logarithm of a typical pixel's error from weights (n, P), 0 where missing; (n,)."""
    return noise_level_of(weight.sum(1), (weight > 0).sum(1))


def noise_level_of(total: Tensor, count: Tensor) -> Tensor:
    """:func:`noise_level` from the sum of the weights of each star and the number of its pixels, (n,) each."""
    return -0.5 * torch.log(total / count.clamp_min(1)).nan_to_num(0.0, 0.0, 0.0)


def _front(ppca: Mapping[str, np.ndarray], mean: Tensor) -> tuple[Any, ...]:
    noise = np.broadcast_to(np.asarray(ppca["noise"], dtype=np.float32), mean.shape)
    centre = np.asarray(ppca.get("mean", mean.numpy()), dtype=np.float32)
    return ppca["components"], centre, ppca["scale"], noise.copy()
