"""What is computed of a spectrum: latents, reconstruction errors by region, tests of pixel windows.

Tensor code for any device; :mod:`~chemscale.vae.engine` does the same in compiled passes on CPUs.
"""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from chemscale.vae.model import ChemicalVAE, noise_level

GPU_BATCH = 8192
#: Pixels in a window of the local score.
WINDOW = 50
#: Fewest used pixels of a window that counts.
WINDOW_LEAST = 10


def scores(model: ChemicalVAE, flux: Tensor, weight: Tensor, floor: float = 0.0) -> dict[str, Tensor]:
    """Latents and scores of cleaned spectra (n, P); `floor` is what `weight` has in quadrature.

    Returns
    -------
    dict of Tensor
        `mean` (n, d), `covariance` (n, d, d), `auxiliary` (n, a), `norm` (n,): length of the
        mean under the prior; `chi2` and `relative_l2` (n, groups + 1), the whole spectrum
        first: chi-square per used pixel and ||x - x_hat|| / ||x|| over used pixels (NaN where
        no pixel is used); `noise_l2`, of the same shape: what the survey's errors alone would give;
        `local` (n,): largest deviation of any window from what noise
        gives, in standard deviations; `local_window` (n,): index of that window; `quiet` (n,): see
        :func:`_quiet`.
    """
    posterior = model.encode(model.features(flux, weight), noise_level(weight))
    prediction = model.reconstruct(posterior.mean, posterior.auxiliary)
    covered = torch.isfinite(prediction[0]) if len(prediction) else torch.ones_like(model.mean, dtype=torch.bool)
    if not bool(covered.all()):
        prediction = torch.nan_to_num(prediction, nan=1.0)
        weight = weight * covered
    used = weight > 0
    difference = (flux - prediction) * used
    pull = difference * weight.sqrt()
    chi2_pixel, square = pull * pull, difference * difference
    size = torch.where(used, flux, torch.zeros_like(flux)) ** 2
    members = _members(model)
    totals = []
    variance = torch.where(used, 1.0 / weight.clamp_min(1e-30) - floor**2, torch.zeros_like(weight))
    for quantity in (chi2_pixel, square, size, used.to(flux.dtype), variance):
        totals.append(quantity @ members)
    chi2, error, power, count, noise = totals
    nothing = torch.full_like(chi2, torch.nan)
    local, window = _local(pull, chi2_pixel, used)
    quiet = _quiet(pull, used)
    norm = latent_norm(model, posterior.mean)
    return {
        "mean": posterior.mean,
        "covariance": posterior.covariance,
        "auxiliary": posterior.auxiliary,
        "norm": norm,
        "chi2": torch.where(count > 0, chi2 / count.clamp_min(1), nothing),
        "relative_l2": torch.where(count > 0, (error / power.clamp_min(1e-30)).sqrt(), nothing),
        "noise_l2": torch.where(count > 0, (noise.clamp_min(0) / power.clamp_min(1e-30)).sqrt(), nothing),
        "local": local,
        "local_window": window.to(torch.int32),
        "quiet": quiet,
    }


def latent_norm(model: ChemicalVAE, mean: Tensor) -> Tensor:
    """Length of posterior means (n, d) under the prior; (n,)."""
    return (mean @ model.whitening.T).norm(dim=1)


def _sums(x: Tensor) -> Tensor:
    """Sums over windows of :data:`WINDOW` pixels, the last one what is left; (n, windows)."""
    whole = x.shape[1] // WINDOW * WINDOW
    sums = x[:, :whole].reshape(len(x), whole // WINDOW, WINDOW).sum(-1)
    return sums if whole == x.shape[1] else torch.cat([sums, x[:, whole:].sum(1, keepdim=True)], 1)


def _quiet(pull: Tensor, used: Tensor) -> Tensor:
    """How much less than noise neighbouring pixels differ in the stillest window, in standard deviations.

    Differences of neighbours do not care whether the model is right on average, so a stretch
    that was filled with a constant shows even where the constant is near the truth.
    """
    step = (pull[:, 1:] - pull[:, :-1]) ** 2 / 2
    both = used[:, 1:] & used[:, :-1]
    count = _sums(both.to(pull.dtype))
    k = (count / 1.5).clamp_min(1.0)  # neighbouring differences share a pixel: fewer independent ones
    width = 2.0 / (9.0 * k)
    scatter = ((_sums(step * both) / count.clamp_min(1.0)).pow(1.0 / 3.0) - (1.0 - width)) / width.sqrt()
    return torch.where(count >= WINDOW_LEAST, -scatter, torch.full_like(scatter, -10.0)).amax(1)


def _members(model: ChemicalVAE) -> Tensor:
    """(P, groups + 1) of 0 and 1: all pixels, then those of each group. Sums over groups are products with it."""
    members = model.mean.new_zeros(model.mean.numel(), 1 + len(model.config.groups))
    members[:, 0] = 1.0
    for k, group in enumerate(model.config.groups, start=1):
        members[model.index()[group.name], k] = 1.0
    return members


def _local(pull: Tensor, chi2: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    """Largest deviation over windows of :data:`WINDOW` pixels, and which window it is.

    Two tests a window, each normal with unit variance for pure noise: the signed mean of the
    residuals, and their chi-square through the Wilson-Hilferty cube root. The second is
    two-sided: a stretch that was filled with a constant has *less* scatter than noise.
    """
    count = _sums(used.to(pull.dtype))
    enough = count >= WINDOW_LEAST
    k = count.clamp_min(1.0)
    signed = _sums(pull).abs() / k.sqrt()
    width = 2.0 / (9.0 * k)
    scatter = ((_sums(chi2) / k).pow(1.0 / 3.0) - (1.0 - width)) / width.sqrt()
    worst = torch.where(enough, torch.maximum(signed, scatter.abs()), torch.zeros_like(signed))
    value, index = worst.max(1)
    return value, index


@torch.inference_mode()
def scores_in_batches(
    model: ChemicalVAE,
    flux: np.ndarray,
    weight: np.ndarray,
    *,
    batch: int = GPU_BATCH,
    bfloat16: bool = False,
    floor: float = 0.0,
) -> dict[str, np.ndarray]:
    """:func:`scores` of cleaned NumPy spectra, batch by batch, on the model's device; and `n_used`.

    A star without a used pixel gets NaN everywhere. Batches are pinned and copied to a GPU while
    the one before is computed.
    """
    device = model.mean.device
    cast = torch.autocast(device.type, dtype=torch.bfloat16) if bfloat16 else nullcontext()
    parts: list[dict[str, Tensor]] = []
    with cast:
        for start in range(0, max(1, len(flux)), batch):
            rows = slice(start, start + batch)
            f, w = torch.from_numpy(flux[rows]), torch.from_numpy(weight[rows])
            if device.type == "cuda":
                f, w = (x.pin_memory().to(device, non_blocking=True) for x in (f, w))
            parts.append(scores(model, f, w, floor))
    found = {k: torch.cat([p[k] for p in parts]).float().cpu().numpy() for k in parts[0]}
    found["local_window"] = found["local_window"].astype(np.int32)
    used = (weight > 0).sum(1).astype(np.int32)
    for key, values in found.items():
        values[used == 0] = -1 if key == "local_window" else np.nan
    return found | {"n_used": used}
