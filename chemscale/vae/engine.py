"""Inference on CPUs: matrix products and two compiled passes over the pixels.

The arithmetic is that of :func:`~chemscale.vae.scores.scores`; what differs is the way
through memory. The front end's coordinates are one product of whitened residuals with the
basis, every decoder's last layer writes straight into one buffer, and cleaning and scoring
are a compiled pass each.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from torch import nn

from chemscale.arrays import runs_of_true, scratch
from chemscale.vae.encoders import PPCAEncoder
from chemscale.vae.kernels import TILE_WINDOWS, PixelBuffers, PixelLayout, ScoreBuffers, prepare_pixels, score_pixels
from chemscale.vae.model import ChemicalVAE, noise_level_of
from chemscale.vae.scores import WINDOW, WINDOW_LEAST, latent_norm

#: Stars at a time: a block's arrays together stay near the size of a core's share of the cache.
BATCH = 256


class Engine:
    """Latents and scores of raw spectra through one model, on the CPU.

    Safe to use from several threads at once: each has its own buffers.

    Parameters
    ----------
    model : ChemicalVAE
        In evaluation mode, on the CPU.
    """

    def __init__(self, model: ChemicalVAE):
        self.model = model
        p = model.mean.numel()
        encoder = model.encoder
        self.ppca = isinstance(encoder, PPCAEncoder)
        self.mean = np.ascontiguousarray(encoder.front.mean.numpy() if isinstance(encoder, PPCAEncoder) else model.mean)
        self.noise = encoder.front.noise.numpy() if isinstance(encoder, PPCAEncoder) else np.zeros(p, np.float32)
        if isinstance(encoder, PPCAEncoder):
            encoder.front.prepare()
            self.basis = (encoder.front.scale[:, None] * encoder.front.components).T.contiguous()
            self.square = encoder.front.scale**2
        names = list(model.pixels)
        edges = np.cumsum([0, *(len(model.pixels[n]) for n in names)])
        self.columns = {n: slice(int(edges[k]), int(edges[k + 1])) for k, n in enumerate(names)}
        self.n_columns = int(edges[-1])
        self.layout, covered = _layout(model, self.columns)
        self.gaps = np.flatnonzero(~covered)
        self.last = {n: _last_layer(model, n) for n in names}
        blank = np.ones((1, p), np.float32)
        self(blank, blank, np.zeros((1, p), np.uint8))  # compiles, where no other process has

    def __call__(
        self, flux: np.ndarray, ivar: np.ndarray, flags: np.ndarray | None = None, bits: int = 0, floor: float = 0.0
    ) -> dict[str, np.ndarray]:
        """Latents and scores of spectra (n, P), as :func:`~chemscale.vae.scores.scores` gives them, and `n_used`.

        Parameters
        ----------
        flux, ivar : ndarray (n, P) float32
        flags : ndarray (n, P) uint8, optional
            A pixel is missing where ``flags & bits``, or flux or ivar is of no use.
        floor : float
            Error added in quadrature to every pixel, as in training.
        """
        n, d = len(flux), self.model.config.n_latents
        parts = 1 + d
        found: dict[str, np.ndarray] = {
            "mean": np.empty((n, d), np.float32),
            "covariance": np.empty((n, d, d), np.float32),
            "auxiliary": np.empty((n, self.model.config.n_auxiliary), np.float32),
            "norm": np.empty(n, np.float32),
            "local": np.empty(n, np.float32),
            "local_window": np.empty(n, np.int32),
            "quiet": np.empty(n, np.float32),
            "n_used": np.empty(n, np.int32),
        }
        sums = np.empty((n, parts, 5))
        with torch.inference_mode():
            for start in range(0, n, BATCH):
                rows = slice(start, min(start + BATCH, n))
                bytes_ = flags[rows] if flags is not None else np.empty((0, 0), np.uint8)
                self._batch(
                    flux[rows], ivar[rows], bytes_, bits, floor, {k: v[rows] for k, v in found.items()}, sums[rows]
                )
        count = sums[:, :, 3]
        with np.errstate(invalid="ignore", divide="ignore"):
            found["chi2"] = (sums[:, :, 0] / count).astype(np.float32)
            found["relative_l2"] = np.sqrt(sums[:, :, 1] / np.maximum(sums[:, :, 2], 1e-30)).astype(np.float32)
            noise = np.maximum(sums[:, :, 4] - floor**2 * count, 0.0)  # the survey's own errors
            found["noise_l2"] = np.sqrt(noise / np.maximum(sums[:, :, 2], 1e-30)).astype(np.float32)
        for key in ("relative_l2", "noise_l2"):
            found[key][count == 0] = np.nan
        empty = found["n_used"] == 0
        for key, values in found.items():
            if key != "n_used":
                values[empty] = -1 if key == "local_window" else np.nan
        return found

    def _batch(
        self,
        flux: np.ndarray,
        ivar: np.ndarray,
        flags: np.ndarray,
        bits: int,
        floor: float,
        found: dict[str, np.ndarray],
        sums: np.ndarray,
    ) -> None:
        pixels = PixelBuffers(*(scratch(f"vae_{k}", flux.shape, np.float32) for k in PixelBuffers._fields))
        flux = np.ascontiguousarray(flux, np.float32)
        used, total, mixed, first = prepare_pixels(
            flux,
            np.ascontiguousarray(ivar, np.float32),
            np.ascontiguousarray(flags),
            np.uint8(bits),
            np.float32(floor**2),
            self.mean,
            self.noise,
            pixels,
        )
        features = self._features(flux, pixels, mixed, first)
        posterior = self.model.encode(features, noise_level_of(torch.from_numpy(total), torch.from_numpy(used)))
        if self.gaps.size:
            pixels.weight[:, self.gaps] = 0.0
        predicted = scratch("vae_predicted", (len(flux), self.n_columns), np.float32)
        target = torch.from_numpy(predicted)
        z, w = posterior.mean, posterior.auxiliary
        for name, columns in self.columns.items():
            torch.mm(self._hidden(name, z, w), self.last[name], out=target[:, columns])
        out = ScoreBuffers(sums, found["local"], found["local_window"], found["quiet"])
        score_pixels(flux, pixels.weight, predicted, self.layout, WINDOW, WINDOW_LEAST, out)
        found["n_used"][:] = used
        found["mean"][:] = z.numpy()
        found["covariance"][:] = posterior.covariance.numpy()
        found["auxiliary"][:] = w.numpy()
        found["norm"][:] = latent_norm(self.model, z).numpy()

    def _features(self, flux: np.ndarray, pixels: PixelBuffers, mixed: np.ndarray, first: np.ndarray) -> torch.Tensor:
        encoder = self.model.encoder
        if not isinstance(encoder, PPCAEncoder):
            weight = torch.from_numpy(pixels.weight)
            return self.model.features(torch.where(weight > 0, torch.from_numpy(flux), 1.0), weight)
        right, precision = torch.from_numpy(pixels.residual) @ self.basis, torch.from_numpy(pixels.precision)
        if mixed.all():
            return encoder.front.solve(right, precision)
        simple = right / (1.0 + torch.from_numpy(first)[:, None] * self.square)
        if mixed.any():
            rows = torch.from_numpy(np.flatnonzero(mixed))
            simple = simple.index_copy_(0, rows, encoder.front.solve(right[rows], precision[rows]))
        return simple

    def _hidden(self, name: str, z: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        """Input of a decoder's last layer, a 1 for the offset and, where there is a depth term, its own latent."""
        index = self.model.inputs(name)
        x = torch.cat([z[:, index], w], 1)
        decoder = self.model.decoders[name]
        assert isinstance(decoder, nn.Sequential)
        for layer in list(decoder)[:-1]:
            x = layer(x)
        own = [z[:, index[-1:]]] if name in self.model.depths else []
        return torch.cat([x, x.new_ones(len(x), 1), *own], 1)


def _last_layer(model: ChemicalVAE, name: str) -> torch.Tensor:
    """A decoder's last layer as one matrix: weights, offset with the continuum, depth term where there is one."""
    decoder = model.decoders[name]
    assert isinstance(decoder, nn.Sequential)
    layer: Any = decoder[-1]
    rows = [layer.weight.detach().T, (layer.bias.detach() + 1.0)[None]]
    if name in model.depths:
        rows.append(-model.depths[name].detach()[None])
    return torch.cat(rows).contiguous()


def _layout(model: ChemicalVAE, columns: dict[str, slice]) -> tuple[PixelLayout, np.ndarray]:
    """Where each pixel's predictions lie in the buffer, and which pixels have one (P,)."""
    p = model.mean.numel()
    place, count, extra = np.zeros(p, np.uint32), np.zeros(p, np.int64), []
    for name, pixels in model.pixels.items():
        for column, pixel in zip(range(columns[name].start, columns[name].stop), pixels):
            if count[pixel]:
                extra.append((pixel, column))
            else:
                place[pixel] = column
            count[pixel] += 1
    tile = TILE_WINDOWS * WINDOW
    runs = []
    for part, group in enumerate(model.config.groups, start=1):
        claimed = np.zeros(p, bool)
        claimed[model.pixels[group.name]] = True
        for a, b in runs_of_true(claimed):
            edges = [a, *range((a // tile + 1) * tile, b, tile), b]
            runs += [(part, int(c), int(d)) for c, d in itertools.pairwise(edges)]
    ranges = np.array(sorted(runs, key=lambda r: (r[1] // tile, r[0], r[1])), np.int32).reshape(-1, 3)
    further = np.array(sorted(extra), np.int32).reshape(-1, 2)
    firsts = np.arange(0, p + tile, tile)[: -(-p // tile) + 1]
    tiles = np.stack([np.searchsorted(ranges[:, 1] // tile, firsts // tile), np.searchsorted(further[:, 0], firsts)], 1)
    share = (1.0 / np.maximum(count, 1)).astype(np.float32)
    return PixelLayout(place, further, share, ranges, tiles.astype(np.int32)), count > 0
