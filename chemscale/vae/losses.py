"""Losses of the physics-constrained VAE, each a function of tensors.

Reconstruction, KL, linear head and adversary are those of the paper's appendix A; missing
pixels, errors of the labels and the kernel penalties are chemscale's. Nothing here knows
about chemical labels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

#: Random Fourier features of the kernel independence criterion.
N_FEATURES = 64
#: Random directions of the sliced prior penalty.
N_SLICES = 16


def chi2(prediction: Tensor, flux: Tensor, ivar: Tensor) -> Tensor:
    """Weighted squared residual of each star, summed over pixels; (n,).

    ``ivar`` is 0 where a pixel is missing, so missing pixels carry no weight.
    """
    return ((prediction - flux) ** 2 * ivar).sum(1)


def reconstruction(prediction: Tensor, flux: Tensor, ivar: Tensor) -> Tensor:
    """Mean of :func:`chi2` over the pixels that are there (paper eq. A.1 up to constants); scalar."""
    return chi2(prediction, flux, ivar).sum() / (ivar > 0).sum().clamp_min(1)


def gaussian_kl(mean: Tensor, factor: Tensor, whitening: Tensor) -> Tensor:
    """KL divergence of N(mean, L L^T) from a prior N(0, S), mean over stars (paper eq. A.2).

    Parameters
    ----------
    mean : Tensor (n, d)
    factor : Tensor (n, d, d)
        Lower Cholesky factor L of the posterior covariance, positive diagonal.
    whitening : Tensor (d, d)
        Inverse of the lower Cholesky factor of S, see :func:`whitening`.
    """
    d = mean.shape[1]
    log_det = -torch.log(torch.diagonal(whitening)).sum() - torch.log(torch.diagonal(factor, dim1=1, dim2=2)).sum(1)
    scaled, shift = whitening @ factor, mean @ whitening.T
    return (0.5 * (scaled.square().sum((1, 2)) + shift.square().sum(1) - d) + log_det).mean()


def whitening(prior: Tensor) -> Tensor:
    """Inverse W of the lower Cholesky factor of a covariance (d, d): W z is white where z has that covariance.

    Once for a model: on a GPU to factorise and solve costs more than the rest of the divergence.
    """
    root = torch.linalg.cholesky(prior.double())
    eye = torch.eye(len(prior), dtype=root.dtype, device=root.device)
    return torch.linalg.solve_triangular(root, eye, upper=False).to(prior.dtype)


def linear_head(predicted: Tensor, labels: Tensor, errors: Tensor) -> Tensor:
    """Squared error of (Teff, log g) predicted from w, each star weighted by its label errors.

    Parameters
    ----------
    predicted, labels : Tensor (n, q)
        Standardised; a label that is NaN carries no weight.
    errors : Tensor (n, q)
        Standard errors of the labels in the same units. The weight is 1 / (1 + error^2): a
        label as uncertain as the whole sample is wide counts half.
    """
    known = torch.isfinite(labels)
    weight = known / (1.0 + torch.nan_to_num(errors, nan=0.0) ** 2)
    residual = predicted - torch.nan_to_num(labels)
    return (weight * residual**2).sum() / weight.sum().clamp_min(1e-6)


def fourier_features(
    x: Tensor, generator: torch.Generator | None = None, known: Tensor | None = None, reads: Tensor | None = None
) -> Tensor:
    """Centred random Fourier features (..., n, :data:`N_FEATURES`) of standardised columns of `x`.

    Inner products approximate a mixture of Gaussian kernels (Rahimi & Recht 2007) whose
    widths, in standard deviations, are drawn between 0.5 and 1.5 times sqrt(columns).

    Parameters
    ----------
    x : Tensor (..., n, d)
        Samples of any number of variables; each gets random numbers of its own.
    generator : torch.Generator, optional
        On the device where the numbers are to be drawn.
    known : Tensor of bool (n,), optional
        Stars that count; the features of the others are 0. No row is taken out: how many there are would have to
        be asked of the device.
    reads : Tensor (v, d), optional
        1 for the columns of `x` (n, d) that each of v variables has, else 0: features (v, n, :data:`N_FEATURES`).
    """
    if known is None:
        x = (x - x.mean(-2, keepdim=True).detach()) / (x.std(-2, keepdim=True).detach() + 1e-4)
    else:
        weight = known.to(x.dtype)[:, None]
        x = torch.nan_to_num(x) * weight
        count = weight.sum()
        x = (x - (x.sum(-2, keepdim=True) / count.clamp_min(1)).detach()) * weight
        x = x / ((x.square().sum(-2, keepdim=True) / (count - 1).clamp_min(1)).sqrt().detach() + 1e-4)
    *lead, _, d = x.shape
    if reads is not None:
        lead = [len(reads)]
    drawn = generator.device if generator is not None else x.device
    direction = torch.randn(*lead, d, N_FEATURES, generator=generator, device=drawn).to(x.device)
    uniform = torch.rand(*lead, 2, N_FEATURES, generator=generator, device=drawn).to(x.device)
    width, phase = 0.5 + uniform[..., :1, :], uniform[..., 1:, :] * (2 * math.pi)
    if reads is None:
        width = width * math.sqrt(d)
    else:
        width, direction = width * reads.sum(1).sqrt()[:, None, None], direction * reads[:, :, None]
    features = torch.cos(x @ (direction / width) + phase)
    if known is None:
        return features - features.mean(-2, keepdim=True)
    return (features - (features * weight).sum(-2, keepdim=True) / count.clamp_min(1)) * weight


def dependence(a: Tensor, b: Tensor, generator: torch.Generator | None = None, known: Tensor | None = None) -> Tensor:
    """Normalised Hilbert-Schmidt independence criterion of two samples, in [0, 1]; scalar.

    Gretton et al. (2005) with random features: O(n) instead of O(n^2). 0 for independent
    samples up to a bias of order 1 / n, 1 where one is a function of the other. Stars that are not `known` are
    left out.
    """
    x, y = fourier_features(a, generator, known), fourier_features(b, generator, known)
    return _of_features(x, y)


def _of_features(x: Tensor, y: Tensor) -> Tensor:
    """:func:`dependence` of centred features (..., n, m) each; (...)."""
    left, right = x.transpose(-1, -2), y.transpose(-1, -2)
    cross = (left @ y).square().sum((-1, -2))
    return cross / (torch.linalg.matrix_norm(left @ x) * torch.linalg.matrix_norm(right @ y) + 1e-8)


def dependence_on(
    z: Tensor, b: Tensor, generator: torch.Generator | None = None, known: Tensor | None = None
) -> Tensor:
    """:func:`dependence` on `b` (n, q) of all columns of `z` (n, d) together, plus that of each alone; scalar.

    The features of `b` are made once, those of single columns in one batch.
    """
    target = fourier_features(b, generator, known)
    together = _of_features(fourier_features(z, generator, known), target)
    return together + _of_features(fourier_features(z.T[:, :, None], generator, known), target).sum()


def sliced_prior(z: Tensor, prior: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Sliced squared Wasserstein distance of samples (n, d) from N(0, prior); scalar.

    Sorted random projections against normal quantiles. Unlike the KL of single posteriors
    this looks at the sample as a whole: it fixes the scale and straightens the axes.
    """
    n = z.shape[0]
    drawn = generator.device if generator is not None else z.device
    direction = torch.randn(z.shape[1], N_SLICES, generator=generator, device=drawn).to(z.device)
    direction = direction / ((prior @ direction) * direction).sum(0).sqrt()
    sample = torch.sort(z @ direction, 0)[0]
    ranks = (torch.arange(n, device=z.device, dtype=z.dtype) + 0.5) / n
    return ((sample - torch.special.ndtri(ranks)[:, None]) ** 2).mean()


def innovation_dependence(z: Tensor, whitening: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Dependence of each latent's innovation on the stopped latents before it; scalar.

    Under the prior, latent k given the earlier ones is N(B z, s): what is left after
    taking B z away must be independent of them. Sequential, so that a later latent never
    moves an earlier one; computed for all of them at once.

    Parameters
    ----------
    z : Tensor (n, d)
    whitening : Tensor (d, d)
        Of the prior (:func:`whitening`): its rows, divided by their diagonal, take B z away.
    """
    d = z.shape[1]
    if d < 2:
        return z.new_zeros(())
    centre, spread = z.mean(0).detach(), z.std(0).detach() + 1e-3
    unit = (z - centre) / spread
    before = unit.detach()
    earlier = torch.tril(whitening / torch.diagonal(whitening)[:, None], -1)
    innovation = unit + before @ earlier.T
    reads = torch.ones(d, d, device=z.device, dtype=z.dtype).tril(-1)[1:, :-1]
    x = fourier_features(innovation.T[1:, :, None], generator)
    return _of_features(x, fourier_features(before[:, :-1], generator, reads=reads)).sum()


def classes(labels: Tensor, low: Tensor, high: Tensor, bins: int) -> Tensor:
    """One class a star from its binned labels: (n, q) -> (n,) integers below bins**q; -1 if a label is missing."""
    known = torch.isfinite(labels).all(1)
    scaled = (torch.nan_to_num(labels) - low) / (high - low)
    index = (scaled * bins).long().clamp(0, bins - 1)
    flat = torch.zeros(len(labels), dtype=torch.long, device=labels.device)
    for column in index.T:
        flat = flat * bins + column
    return torch.where(known, flat, torch.full_like(flat, -1))


def adversary_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of the adversary on logits (paper eq. A.4); stars of class -1 are left out."""
    counted = (target >= 0).sum().clamp_min(1)
    return F.cross_entropy(logits, target, ignore_index=-1, reduction="sum") / counted
