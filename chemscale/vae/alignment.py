"""A guard over the axes that needs no abundance: do the decoders answer to their latents as physics says?

A training may exchange two latents, or mix them, and reconstruct as well as before. Three signs need no label of
chemistry:

* *spectra*: how the decoders answer to a latent, pixel by pixel, is explained by how the built-in line lists say that
  the spectra of the same stars answer to each element. The own element should explain most.
* *parameters*: a latent that gradient-boosted trees can tell Teff or log g from has taken temperature for chemistry.
* *information*: a latent whose posterior is nearly as wide as its prior has learned nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import xarray as xr

from chemscale.schema import APOGEE_ELEMENTS
from chemscale.simulation.lines import LineSpectra, grid
from chemscale.vae.model import ChemicalVAE
from chemscale.vae.regions import REST, convert

#: Stars the decoders' answers are compared on.
STARS = 120
#: [Fe/H] of the stars whose lines are computed, dex.
METALLICITY = -1.0
#: Step of the finite differences: dex for the lines, standard deviations for the latents.
STEP = 0.25
#: Largest R^2 of Teff or log g from the latents of a sound model.
MOST_R2 = 0.10
#: Largest share of a latent's variance that is posterior.
MOST_UNKNOWN = 0.6
#: A later latent is exchanged with the first where the first's lines explain this many times more than its own: what
#: they share is their common strength of lines, so a little more is no sign.
MOST_FIRST = 1.5
#: Elements that change together in each latent of the default models.
ELEMENTS = {
    "metal": APOGEE_ELEMENTS,
    "alpha": ("O", "Mg", "Si", "S", "Ca", "Ti", "TiII"),
    "carbon": ("C", "CI"),
}


@dataclass(frozen=True)
class Alignment:
    """What the guard found.

    Attributes
    ----------
    shares : dict of str to dict of str to float
        Latent -> element group -> share of the decoders' answer that its lines explain, see :func:`explain`; empty
        where the built-in lines do not cover the survey or know none of the elements.
    r2 : dict of str to float
        Teff and log g from the latents.
    unknown : dict of str to float
        Latent -> mean posterior variance over the whole variance.
    warnings : tuple of str
        What is wrong; empty for a sound model.
    by_teff : dict of str to dict
        `shares` of the coolest and of the hottest third of the stars: axes may be exchanged in one of them alone.
    """

    shares: dict[str, dict[str, float]]
    r2: dict[str, float]
    unknown: dict[str, float]
    warnings: tuple[str, ...]
    by_teff: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self) | {"warnings": list(self.warnings)}


def elements_of(latent: str) -> tuple[str, ...]:
    """Elements a latent stands for: those of :data:`ELEMENTS`, or the element it is named after; () if unknown.

    >>> elements_of("carbon"), elements_of("Mg"), elements_of("speed")
    (('C', 'CI'), ('Mg',), ())
    """
    if latent in ELEMENTS:
        return tuple(ELEMENTS[latent])
    return (latent,) if latent in APOGEE_ELEMENTS else ()


def line_answers(
    latents: Sequence[str], teff: np.ndarray, logg: np.ndarray, wavelength: np.ndarray, medium: str
) -> dict[str, np.ndarray]:
    """Change of flux a dex of each latent's elements by the built-in lines, (n, P) each; {} off their grids.

    Parameters
    ----------
    teff, logg : ndarray (n,)
    wavelength : ndarray (P,)
        Angstrom, in `medium`.
    """
    name = next((g for g in ("lowres", "hband") if _covers(g, wavelength, medium)), None)
    if name is None:
        return {}
    lines = LineSpectra(grid(name))
    parameters = {"teff": np.asarray(teff, float), "logg": np.asarray(logg, float)}
    n = len(parameters["teff"])
    names = [e for e in APOGEE_ELEMENTS if e not in ("CI", "TiII")]

    def spectra(changed: tuple[str, ...], step: float) -> np.ndarray:
        return lines.flux(parameters, {e: np.full(n, METALLICITY + step * (e in changed)) for e in names})

    where = convert(wavelength, medium, lines.grid.medium)
    found = {}
    for latent in latents:
        if elements := elements_of(latent):
            change = (spectra(elements, STEP) - spectra(elements, -STEP)) / (2 * STEP)
            found[latent] = np.stack([np.interp(where, lines.grid.wavelength, row) for row in change])
    return found


def _covers(name: str, wavelength: np.ndarray, medium: str) -> bool:
    own = grid(name)
    here = convert(wavelength, medium, own.medium)
    return bool(np.mean((here >= own.wavelength[0]) & (here <= own.wavelength[-1])) > 0.5)


@torch.no_grad()
def decoder_answers(model: ChemicalVAE, mean: np.ndarray, auxiliary: np.ndarray) -> np.ndarray:
    """Change of flux a standard deviation of each latent, (d, n, P); NaN where no decoder reads the latent.

    The own decoder's answer counts where several claim a pixel.
    """
    z, w = torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(auxiliary.astype(np.float32))
    device = model.mean.device
    z, w = z.to(device), w.to(device)
    found = np.full((z.shape[1], len(z), model.mean.numel()), np.nan)
    for name in (REST, *(g.name for g in model.config.groups)):
        if name not in model.pixels:
            continue
        index = model.inputs(name)
        for k in index if name == REST else index[-1:]:
            shift = torch.zeros_like(z)
            shift[:, k] = STEP * float(z[:, k].std(correction=0))
            up, down = (model.decode(name, z + s, z + s if name == REST else z, w) for s in (shift, -shift))
            found[k][:, model.pixels[name]] = ((up - down) / (2 * STEP)).cpu().numpy()
    return found


def explain(answers: np.ndarray, lines: dict[str, np.ndarray], latents: Sequence[str]) -> dict[str, dict[str, float]]:
    """How much of each latent's answer each element group's lines explain: latent -> element group -> share.

    Star by star the answer is fitted by the lines of all element groups together; a share is a coefficient times the
    length of its lines over the length of the answer, the median over the stars.
    """
    found: dict[str, dict[str, float]] = {}
    names = list(lines)
    for k, latent in enumerate(latents):
        used = np.isfinite(answers[k]).all(0)
        shares = []
        for i, row in enumerate(answers[k][:, used]):
            template = np.stack([lines[n][i, used] for n in names])
            coefficient = np.linalg.lstsq(template.T, row, rcond=None)[0]
            shares.append(coefficient * np.linalg.norm(template, axis=1) / max(np.linalg.norm(row), 1e-12))
        found[latent] = dict(zip(names, np.abs(np.median(shares, 0)).tolist(), strict=True))
    return found


def of_latents(model: ChemicalVAE, ds: xr.Dataset, survey: xr.Dataset, stars: np.ndarray) -> Alignment:
    """:func:`check` on chosen stars of ``latents.zarr`` and the survey it was made from.

    Parameters
    ----------
    stars : ndarray of bool (n,)
        Best those held out.
    """
    rows = np.flatnonzero(stars)
    posterior = {k: np.asarray(ds[k].values)[rows] for k in ("mean", "covariance", "auxiliary")}
    labels = {k: np.asarray(survey[k].values, float)[rows] for k in ("teff", "logg")}
    wavelength = survey["wavelength"]
    return check(model, posterior, labels, np.asarray(wavelength.values), str(wavelength.attrs.get("medium", "air")))


def check(
    model: ChemicalVAE,
    posterior: dict[str, np.ndarray],
    labels: dict[str, np.ndarray],
    wavelength: np.ndarray,
    medium: str,
) -> Alignment:
    """Look at the axes of a trained model.

    Parameters
    ----------
    posterior : dict
        `mean` (n, d), `covariance` (n, d, d) and `auxiliary` (n, a) of stars, best held-out ones.
    labels : dict
        `teff` (K) and `logg` (n,) of the same stars; NaN where unknown.
    wavelength : ndarray (P,)
        The survey's, Angstrom, in `medium`.
    """
    from chemscale.vae.evaluate import boosted_r2

    names = model.config.latents
    mean, auxiliary = np.asarray(posterior["mean"], float), np.asarray(posterior["auxiliary"], float)
    variance = np.diagonal(np.asarray(posterior["covariance"], float), axis1=1, axis2=2)
    warnings = []
    hidden = np.nanmean(variance, 0)
    unknown = dict(zip(names, (hidden / (hidden + np.nanvar(mean, 0))).tolist(), strict=True))
    warnings += [
        f"latent {k!r} has learned little: {v:.0%} of its variance is error"
        for k, v in unknown.items()
        if v > MOST_UNKNOWN
    ]
    r2 = {k: boosted_r2(mean, np.asarray(v, float)) for k, v in labels.items()}
    warnings += [f"the latents tell {k}: R^2 = {v:.2f}" for k, v in r2.items() if v > MOST_R2]
    known = np.isfinite(mean).all(1) & np.isfinite(labels["teff"]) & np.isfinite(labels["logg"])
    rows = np.flatnonzero(known)[:: max(1, int(known.sum()) // STARS)][:STARS]
    rows = rows[np.argsort(np.asarray(labels["teff"])[rows], kind="stable")]
    shares: dict[str, dict[str, float]] = {}
    by_teff: dict[str, dict[str, dict[str, float]]] = {}
    if len(rows) >= 8:
        lines = line_answers(names, labels["teff"][rows], labels["logg"][rows], wavelength, medium)
        if lines:
            answers = decoder_answers(model, mean[rows], auxiliary[rows])
            shares = explain(answers, lines, names)
            third = len(rows) // 3
            if third >= 8:
                for which, part in (("coolest", slice(0, third)), ("hottest", slice(-third, None))):
                    by_teff[which] = explain(answers[:, part], {k: v[part] for k, v in lines.items()}, names)
    found = _exchanged(shares, names)
    if not found:  # an exchange in all stars is one in a third of them
        for which, part_shares in by_teff.items():
            mixed = _exchanged(part_shares, names, most_first=np.inf)
            found += [f"{w}, in the {which} third of the stars" for w in mixed]
    return Alignment(shares, r2, unknown, tuple(warnings + found), by_teff)


def _exchanged(
    shares: Mapping[str, Mapping[str, float]], names: Sequence[str], most_first: float = MOST_FIRST
) -> list[str]:
    """Latents whose answers other elements' lines explain better than their own.

    A third of the stars cannot tell a later latent from the first: all elements, carbon too, change with the first.
    """
    found = []
    for latent, row in shares.items():
        own = row.get(latent)
        if own is None:
            continue
        limits = {k: own * (most_first if k == names[0] else 1.0) for k in row if k != latent}
        beyond = {k: row[k] / max(limit, 1e-12) for k, limit in limits.items() if row[k] > limit}
        if beyond:
            best = max(beyond, key=lambda k: beyond[k])
            found.append(f"latent {latent!r} answers like {best}: share {row[best]:.2f}, own {own:.2f}")
    return found
