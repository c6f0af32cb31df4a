"""Errors of the latents that the spectra's own noise bears out, found without a label.

The loss weighs reconstruction against the KL divergence as suits the axes, not as Bayes' rule has it: a mean over
pixels with a small `beta`, and more of it late, states errors that are several times too small. And errors of real
spectra are correlated from pixel to pixel (continuum, sky), which the loss does not know. After training both are
measured: noise like that of the residuals, with their level and their correlation along wavelength, is added once more
to spectra, and the latents' answer is compared with their stated errors. One factor a latent makes up for the ratio.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from chemscale.vae.model import ChemicalVAE

#: Pixels over which the correlation of residuals is followed.
REACH = 64
#: Stars the factors are found on, at most.
STARS = 1500
#: Stars at a time.
_BATCH = 256


def residual_correlation(pull: np.ndarray, there: np.ndarray, reach: int = REACH) -> np.ndarray:
    """Mean product of residuals a lag apart, in units of the errors; (reach + 1,), lag 0 first.

    Parameters
    ----------
    pull : ndarray (n, P)
        Residuals over errors; any value where `there` is false.
    there : ndarray of bool (n, P)

    Examples
    --------
    >>> import numpy as np
    >>> white = np.random.default_rng(0).standard_normal((50, 4000))
    >>> np.round(residual_correlation(white, np.ones_like(white, bool), 2), 1) + 0.0
    array([1., 0., 0.])
    """
    n_pixels = pull.shape[1]
    size = 1 << int(np.ceil(np.log2(n_pixels + reach)))
    products, counts = np.zeros(reach + 1), np.zeros(reach + 1)
    for start in range(0, len(pull), _BATCH):
        seen = there[start : start + _BATCH].astype(np.float64)
        # a bad pixel of many sigma must not stand for the noise of all
        value = np.clip(pull[start : start + _BATCH], -5.0, 5.0) * seen
        for total, x in ((products, value), (counts, seen)):
            total += np.fft.irfft(np.abs(np.fft.rfft(x, size)) ** 2, size)[:, : reach + 1].sum(0)
    return products / np.maximum(counts, 1.0)


def correlated_noise(correlation: np.ndarray, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise (n, P) with a given correlation along the second axis, tapered to zero at its last lag."""
    reach = len(correlation) - 1
    size = 1 << int(np.ceil(np.log2(shape[1] + 2 * reach)))
    kernel = np.zeros(size)
    tapered = correlation * np.linspace(1.0, 0.0, reach + 1)
    kernel[: reach + 1] = tapered
    kernel[size - reach :] = tapered[:0:-1]
    amplitude = np.sqrt(np.maximum(np.fft.rfft(kernel).real, 0.0))
    noise = np.empty(shape, np.float32)
    for start in range(0, shape[0], _BATCH):
        white = rng.standard_normal((min(_BATCH, shape[0] - start), size))
        coloured = np.fft.irfft(np.fft.rfft(white) * amplitude, size)
        noise[start : start + _BATCH] = coloured[:, : shape[1]]
    return noise


class MeasuredErrors(NamedTuple):
    """What :func:`measure_errors` found.

    Attributes
    ----------
    factors : ndarray (d,)
        On the stated error of each latent.
    auxiliary : ndarray (a,)
        Error of w, of which the encoder states none.
    labels : ndarray (q,)
        The same of the labels that the linear head reads from w, in their units.
    """

    factors: np.ndarray
    auxiliary: np.ndarray
    labels: np.ndarray


@torch.no_grad()
def measure_errors(model: ChemicalVAE, flux: np.ndarray, weight: np.ndarray, seed: int = 0) -> MeasuredErrors:
    """Errors by one more draw of noise like that of the residuals; medians over stars, as standard deviations.

    Parameters
    ----------
    flux, weight : ndarray (n, P) float32
        Cleaned spectra and inverse variances (0 where missing), as the encoder takes them.
    """
    rng = np.random.default_rng([seed, 29])
    flux, weight = flux[:STARS], weight[:STARS]
    before = model.error_scale.clone()
    model.error_scale.fill_(1.0)
    device = model.mean.device

    def encode(x: np.ndarray) -> tuple[np.ndarray, ...]:
        found: tuple[list[np.ndarray], ...] = ([], [], [], [], [])
        for start in range(0, len(x), _BATCH):
            rows = slice(start, start + _BATCH)
            a, b = (torch.from_numpy(np.ascontiguousarray(v[rows], np.float32)).to(device) for v in (x, weight))
            posterior = model.encode(model.features(a, b))
            variance = torch.diagonal(posterior.covariance, dim1=1, dim2=2)
            guess = model.reconstruct(posterior.mean, posterior.auxiliary)
            parts = posterior.mean, posterior.auxiliary, model.labels(posterior.auxiliary), variance, guess
            for total, part in zip(found, parts, strict=True):
                total.append(part.cpu().numpy())
        return tuple(np.concatenate(v) for v in found)

    mean, auxiliary, labels, variance, guess = encode(flux)
    there = (weight > 0) & np.isfinite(guess)
    pull = np.where(there, (flux - guess) * np.sqrt(weight), 0.0)
    noise = correlated_noise(residual_correlation(pull, there), flux.shape, rng)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_again, auxiliary_again, labels_again, _, _ = encode(
            np.where(weight > 0, flux + noise / np.sqrt(weight), flux)
        )
    model.error_scale.copy_(before)
    factors = _width((mean_again - mean) / np.sqrt(variance))
    factors = np.where(np.isfinite(factors) & (factors > 0), factors, 1.0)
    return MeasuredErrors(factors, _width(auxiliary_again - auxiliary), _width(labels_again - labels))


def _width(x: np.ndarray) -> np.ndarray:
    """Standard deviation about zero of each column, as the median tells it."""
    return np.asarray(np.nanmedian(np.abs(x), 0) / 0.6745)
