"""Errors of the latents that the spectra's own noise bears out, found without a label.

The loss weighs reconstruction against the KL divergence as suits the axes, not as Bayes' rule has it: a mean over
pixels with a small `beta`, and more of it late, states errors that are several times too small. And errors of real
spectra are correlated from pixel to pixel (continuum, sky), which the loss does not know. After training both are
measured: noise like that of the residuals, with their level and their correlation along wavelength, is added once more
to spectra, and the latents' answer is compared with their stated errors. One factor a latent makes up for the ratio.
The stars are held-out ones where there are some: training stars, where they are few, are known by heart and leave
residuals that are too small.

The encoder sees coordinates and not how noisy a spectrum is, so the factor depends on the spectrum's noise: it is
measured on stars in order of it, each group with residuals of its own, and on the noisiest made noisier still.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from chemscale.vae.model import ERROR_LEVELS, ChemicalVAE, noise_level

#: Pixels over which the correlation of residuals is followed: some width of the windows of a continuum.
REACH = 256
#: Stars the factors are found on, at most.
STARS = 1500
#: By how much the noisiest stars are made noisier, beyond the levels that the survey has.
NOISIER = (2.0, 4.0)
#: Fewest stars of a level.
LEAST = 60
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
        On the stated error of each latent, for a typical star.
    levels : ndarray (m,)
        Levels of noise (:func:`~chemscale.vae.model.noise_level`), growing.
    by_level : ndarray (m, d)
        On top of `factors`, at each level.
    auxiliary : ndarray (a,)
        Error of w, of which the encoder states none.
    labels : ndarray (q,)
        The same of the labels that the linear head reads from w, in their units.
    """

    factors: np.ndarray
    levels: np.ndarray
    by_level: np.ndarray
    auxiliary: np.ndarray
    labels: np.ndarray

    def buffers(self) -> dict[str, np.ndarray]:
        """What a model keeps of it, by the names of its buffers."""
        return {"error_scale": self.factors, "error_levels": self.levels, "error_by_level": self.by_level}


class _Encoded(NamedTuple):
    """What a model says of spectra: latents, w, labels, variances of the latents, reconstruction."""

    mean: np.ndarray
    auxiliary: np.ndarray
    labels: np.ndarray
    variance: np.ndarray
    guess: np.ndarray


@torch.no_grad()
def measure_errors(model: ChemicalVAE, flux: np.ndarray, weight: np.ndarray, seed: int = 0) -> MeasuredErrors:
    """Errors by one more draw of noise like that of the residuals; medians over stars, as standard deviations.

    Parameters
    ----------
    flux, weight : ndarray (n, P) float32
        Cleaned spectra and inverse variances (0 where missing), as the encoder takes them.
    """
    rng = np.random.default_rng([seed, 29])
    seen = (weight[:STARS] > 0).any(1)
    flux, weight = flux[:STARS][seen], weight[:STARS][seen]
    before = model.error_scale.clone()
    model.error_scale.fill_(1.0)
    level = noise_level(torch.from_numpy(weight)).numpy()
    groups = np.array_split(
        np.argsort(level, kind="stable"), max(1, min(ERROR_LEVELS - len(NOISIER), len(level) // LEAST))
    )
    levels, ratios, shifts = [], [], []
    for rows in groups:
        w = weight[rows]
        one = _encode(model, flux[rows], w)
        known = (w > 0) & np.isfinite(one.guess)
        pull = np.where(known, (flux[rows] - one.guess) * np.sqrt(w), 0.0)
        correlation = residual_correlation(pull, known)
        again = _encode(model, _noisier(flux[rows], w, correlation, rng), w)
        levels.append(float(np.median(level[rows])))
        ratios.append((again.mean - one.mean) / np.sqrt(one.variance))
        shifts.append((again.auxiliary - one.auxiliary, again.labels - one.labels))
    own = np.concatenate(ratios)
    alone = correlation / max(correlation[0], 1.0)  # noise without the model's misfit, which grows with no noise
    for factor in NOISIER:
        more = _noisier(flux[rows], w, alone * (factor**2 - 1.0), rng)
        scaled = w / factor**2
        one = _encode(model, more, scaled)
        there = (correlation - alone) / factor**2 + alone
        again = _encode(model, _noisier(more, scaled, there, rng), scaled)
        levels.append(levels[len(groups) - 1] + float(np.log(factor)))
        ratios.append((again.mean - one.mean) / np.sqrt(one.variance))
    model.error_scale.copy_(before)
    factors = _usable(_width(own))
    by_level = np.stack([_usable(_width(r)) for r in ratios]) / factors
    short = ERROR_LEVELS - len(levels)  # of a small survey
    return MeasuredErrors(
        factors,
        np.concatenate([np.full(short, levels[0]), levels]),
        np.concatenate([np.repeat(by_level[:1], short, 0), by_level]),
        _width(np.concatenate([s[0] for s in shifts])),
        _width(np.concatenate([s[1] for s in shifts])),
    )


def _encode(model: ChemicalVAE, flux: np.ndarray, weight: np.ndarray) -> _Encoded:
    """Of spectra (n, P), batch by batch."""
    found: tuple[list[np.ndarray], ...] = ([], [], [], [], [])
    device = model.mean.device
    for start in range(0, len(flux), _BATCH):
        rows = slice(start, start + _BATCH)
        a, b = (torch.from_numpy(np.ascontiguousarray(v[rows], np.float32)).to(device) for v in (flux, weight))
        posterior = model.encode(model.features(a, b))
        variance = torch.diagonal(posterior.covariance, dim1=1, dim2=2)
        guess = model.reconstruct(posterior.mean, posterior.auxiliary)
        parts = posterior.mean, posterior.auxiliary, model.labels(posterior.auxiliary), variance, guess
        for total, part in zip(found, parts, strict=True):
            total.append(part.cpu().numpy())
    return _Encoded(*(np.concatenate(v) for v in found))


def _noisier(flux: np.ndarray, weight: np.ndarray, correlation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Spectra with noise of that correlation, in units of their errors, added."""
    noise = correlated_noise(correlation, flux.shape, rng)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(weight > 0, flux + noise / np.sqrt(weight), flux)


def _usable(factors: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(factors) & (factors > 0), factors, 1.0)


def _width(x: np.ndarray) -> np.ndarray:
    """Standard deviation about zero of each column, as the median tells it."""
    return np.asarray(np.nanmedian(np.abs(x), 0) / 0.6745)
