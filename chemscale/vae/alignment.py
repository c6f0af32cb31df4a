"""A guard over the axes that needs no abundance: does each latent follow the lines of its element?

A training may exchange two latents, or mix them, and reconstruct as well as before. Four signs need no label of
chemistry:

* *lines*: how strongly each element's lines show in a spectrum (:mod:`~chemscale.vae.element_lines`) stands for its
  abundance. Each latent must follow its own element's lines more than any other's.
* *held-out stars*: decoders that fit the stars trained on better than others have learned those stars by heart.
* *parameters*: a latent that gradient-boosted trees can tell Teff or log g from has taken temperature for chemistry.
* *information*: a latent whose posterior is nearly as wide as the latent itself has learned nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from chemscale.vae.data import read_rows, star_blocks
from chemscale.vae.element_lines import fitted_along, line_answers, line_strengths, parameter_surface, trimmed_strengths
from chemscale.vae.inference import infer_arrays
from chemscale.vae.model import ChemicalVAE
from chemscale.vae.prepare import Survey, sample_rows, unseen_rows

#: Held-out stars, and stars trained on, that the guard looks at after a training, at most.
GUARDED, FITTED = 4096, 1500
#: Stars whose lines are looked at, at most and at least.
MOST, LEAST = 900, 200
#: Fits of the lines to the spectra, see :func:`~chemscale.vae.element_lines.line_strengths`.
ROUNDS = 3
#: A latent may follow another element's lines up to so many times as much as its own.
MOST_OTHER = 1.2
#: Largest chi-square of held-out stars over that of the stars trained on, the mean over groups of windows.
MOST_OVERFIT = 1.04
#: Largest R^2 of Teff or log g from the latents of a sound model.
MOST_R2 = 0.20
#: Largest share of a latent's variance that is error.
MOST_UNKNOWN = 0.5


@dataclass(frozen=True)
class Alignment:
    """What the guard found.

    Attributes
    ----------
    lines : dict of str to dict of str to float
        Latent -> element group -> change of the latent with the strength of the group's lines, all others held fixed,
        in standard deviations; empty where the built-in lines do not cover the survey or know none of the elements.
    r2 : dict of str to float
        Teff and log g from the latents.
    unknown : dict of str to float
        Latent -> variance of its posterior over that of the latent, of a typical star.
    overfit : float
        Chi-square of held-out stars over that of the stars trained on; NaN where none were held out.
    warnings : tuple of str
        What is wrong; empty for a sound model.
    """

    lines: dict[str, dict[str, float]]
    r2: dict[str, float]
    unknown: dict[str, float]
    overfit: float = float("nan")
    warnings: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self) | {"warnings": list(self.warnings)}


def of_training(model: ChemicalVAE, survey: Survey, seed: int = 0, floor: float = 0.0) -> Alignment:
    """Judge a model on the survey that it was trained on; reads a sample of the blocks.

    The stars are held-out ones; those trained on where too few were held out.

    Parameters
    ----------
    floor : float
        Error added in quadrature to every pixel, as in training.
    """
    flux, weight, rows = unseen_rows(survey, GUARDED, LEAST, seed, floor)
    posterior = infer_arrays(model, flux, weight)
    labels = {k: np.asarray(survey.ds[k].values, float)[rows] for k in ("teff", "logg")}
    latents = model.config.latents
    lines = follow_lines(posterior["mean"], latents, (flux, weight), labels, survey.wavelength, survey.medium)
    fitted = None
    if not survey.trained[rows].any():
        flux, weight, _ = sample_rows(survey, FITTED, seed, floor)
        fitted = infer_arrays(model, flux, weight)["chi2"]
    return check(latents, posterior, labels, lines, fitted)


def of_latents(model: ChemicalVAE, ds: xr.Dataset, survey: xr.Dataset, held_out: np.ndarray) -> Alignment:
    """Judge a model by ``latents.zarr`` and the survey it was made from; reads the blocks of the first stars held out.

    Parameters
    ----------
    held_out : ndarray of bool (n,)
    """
    rows = np.flatnonzero(held_out)
    names = ("mean", "covariance", "chi2")
    posterior = {k: np.asarray(ds[k].values)[rows] for k in names}
    labels = {k: np.asarray(survey[k].values, float)[rows] for k in ("teff", "logg")}
    wanted = held_out & (np.cumsum(held_out) <= MOST)
    parts = [read_rows(survey, a, b, wanted[a:b]) for a, b in star_blocks(survey) if wanted[a:b].any()]
    spectra = np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
    first = slice(0, int(wanted.sum()))
    lines = follow_lines(
        posterior["mean"][first],
        model.config.latents,
        spectra,
        {k: v[first] for k, v in labels.items()},
        np.asarray(survey["wavelength"].values),
        str(survey["wavelength"].attrs.get("medium", "air")),
    )
    fitted = np.asarray(ds["chi2"].values)[~held_out]
    return check(model.config.latents, posterior, labels, lines, fitted if len(fitted) else None)


def follow_lines(
    mean: np.ndarray,
    latents: Sequence[str],
    spectra: tuple[np.ndarray, np.ndarray],
    labels: Mapping[str, np.ndarray],
    wavelength: np.ndarray,
    medium: str,
) -> dict[str, dict[str, float]]:
    """How much each latent follows the lines of each element group, see :class:`Alignment`; {} where nothing is known.

    Parameters
    ----------
    mean : ndarray (n, d)
    spectra : tuple of ndarray (n, P)
        Cleaned flux, and weight (0 where missing).
    labels : mapping
        `teff` and `logg` (n,).
    """
    flux, weight = spectra
    teff, logg = (np.asarray(labels[k], float) for k in ("teff", "logg"))
    known = np.isfinite(mean).all(1) & np.isfinite(teff) & np.isfinite(logg) & (weight > 0).any(1)
    known &= np.cumsum(known) <= MOST
    if known.sum() < LEAST:
        return {}
    teff, logg, z = teff[known], logg[known], np.asarray(mean, float)[known]
    along = fitted_along(latents)
    answers = line_answers((*latents, *along), teff, logg, wavelength, medium)
    lines = [k for k in answers if k not in along]
    if not lines:
        return {}
    surface = parameter_surface(teff, logg)
    found = line_strengths(flux[known], weight[known] > 0, list(answers.values()), surface, ROUNDS)[:, : len(lines)]
    strengths = trimmed_strengths(found, surface)
    unit = (z - z.mean(0)) / np.maximum(z.std(0), 1e-12)
    slopes = np.linalg.lstsq(strengths, unit, rcond=None)[0].T
    return {
        k: dict(zip(lines, row.tolist(), strict=True)) for k, row in zip(latents, slopes, strict=True) if k in lines
    }


def check(
    latents: Sequence[str],
    posterior: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    lines: Mapping[str, Mapping[str, float]],
    fitted: np.ndarray | None = None,
) -> Alignment:
    """Judge the axes of a model.

    Parameters
    ----------
    latents : sequence of str
    posterior : mapping
        `mean` (n, d), `covariance` (n, d, d) and `chi2` (n, 1 + groups) of some stars, best held-out ones.
    labels : mapping
        `teff` (K) and `logg` (n,) of the same stars; NaN where unknown.
    lines : mapping
        See :func:`follow_lines`.
    fitted : ndarray (m, 1 + groups), optional
        Chi-square of stars trained on, where the others are not.
    """
    from chemscale.vae.evaluate import boosted_r2

    mean = np.asarray(posterior["mean"], float)
    variance = np.diagonal(np.asarray(posterior["covariance"], float), axis1=1, axis2=2)
    # stated variances have a long tail: their mean is that of the few stars that say nothing
    unknown = np.nanmedian(variance, 0) / np.maximum(np.nanvar(mean, 0), 1e-12)
    unknown = dict(zip(latents, np.minimum(unknown, 1.0).tolist(), strict=True))
    warnings = [
        f"latent {k!r} has learned little: {v:.0%} of its variance is error"
        for k, v in unknown.items()
        if v > MOST_UNKNOWN
    ]
    r2 = {k: boosted_r2(mean, np.asarray(v, float)) for k, v in labels.items()}
    warnings += [f"the latents tell {k}: R^2 = {v:.2f}" for k, v in r2.items() if v > MOST_R2]
    overfit = float("nan")
    if fitted is not None:
        overfit = float(np.mean(np.nanmedian(posterior["chi2"], 0)[1:] / np.nanmedian(fitted, 0)[1:]))
        if overfit > MOST_OVERFIT:
            warnings.append(
                f"it overfits: chi-square of held-out stars is {overfit:.2f} times that of the stars trained on"
            )
    return Alignment({k: dict(v) for k, v in lines.items()}, r2, unknown, overfit, (*warnings, *_exchanged(lines)))


def _exchanged(lines: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Latents that follow another element's lines nearly as much as their own, or more."""
    found = []
    for latent, row in lines.items():
        others = {k: abs(v) for k, v in row.items() if k != latent}
        if not others:
            continue
        best, own = max(others, key=lambda k: others[k]), abs(row[latent])
        if others[best] > MOST_OTHER * own:
            found.append(f"latent {latent!r} follows the lines of {best}: {others[best]:.2f}, its own {own:.2f}")
    return found
