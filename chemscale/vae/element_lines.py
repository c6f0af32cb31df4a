"""How strongly each element's built-in lines show in a spectrum, star by star and without an abundance.

What Teff and log g make of the spectra is taken out; what is left of each is a sum of the answers that the line lists
give to the elements of the latents. The coefficients stand for abundances: roughly (lines of the list are not those of
the sky, and answers are those of one metallicity), but known before any training.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chemscale.schema import APOGEE_ELEMENTS
from chemscale.simulation.lines import LineSpectra, grid
from chemscale.vae.regions import convert

#: [Fe/H] of the stars whose lines are computed, dex.
METALLICITY = -1.0
#: Step of the finite differences, dex.
STEP = 0.25
#: Elements that change together in each latent of the default models; a latent of iron is one of all metals, others
#: than the default's being of an element over iron.
ELEMENTS = {
    "metal": APOGEE_ELEMENTS,
    "Fe": APOGEE_ELEMENTS,
    "alpha": ("O", "Mg", "Si", "S", "Ca", "Ti", "TiII"),
    "carbon": ("C", "CI"),
}
#: Elements whose molecules cover much of a cool star's spectrum.
MOLECULAR = ("C", "N", "O")
#: Smallest error of a pixel that the lines leave unexplained, as a fraction of the continuum.
LEAST_ERROR = 1e-4
#: Percentiles beyond which strengths are cut off.
TRIMMED = (1.0, 99.0)


def elements_of(latent: str) -> tuple[str, ...]:
    """Elements a latent stands for: those of :data:`ELEMENTS`, or the element it is named after; () if unknown.

    >>> elements_of("carbon"), elements_of("Mg"), elements_of("speed")
    (('C', 'CI'), ('Mg',), ())
    """
    if latent in ELEMENTS:
        return tuple(ELEMENTS[latent])
    return (latent,) if latent in APOGEE_ELEMENTS else ()


def fitted_along(latents: Sequence[str]) -> tuple[str, ...]:
    """Elements whose lines are fitted beside those of the latents, where no latent stands for carbon.

    Else their molecules would be taken for the lines of whichever element is nearest.

    >>> fitted_along(("Fe", "Mg", "O")), fitted_along(("metal", "carbon", "alpha"))
    (('C', 'N'), ())
    """
    named = {e for k in latents if elements_of(k) != APOGEE_ELEMENTS for e in elements_of(k)}
    return () if "C" in named else tuple(e for e in MOLECULAR if e not in named)


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


def parameter_surface(teff: np.ndarray, logg: np.ndarray) -> np.ndarray:
    """Terms of a cubic in Teff and log g, (n, 10)."""
    a, b = ((x - x.mean()) / max(float(x.std()), 1e-9) for x in (teff, logg))
    return np.stack([a**i * b**j for i in range(4) for j in range(4 - i)], 1)


def without_parameters(values: np.ndarray, surface: np.ndarray) -> np.ndarray:
    """Columns (n, m) less what a surface (n, k) in Teff and log g makes of them."""
    return np.asarray(values - surface @ np.linalg.lstsq(surface, values, rcond=None)[0])


def line_strengths(
    flux: np.ndarray, there: np.ndarray, lines: Sequence[np.ndarray], surface: np.ndarray, rounds: int = 1
) -> np.ndarray:
    """Coefficients (n, m) of each star's answers in its spectrum.

    Parameters
    ----------
    flux : ndarray (n, P)
    there : ndarray of bool (n, P)
        Pixels that are used.
    lines : sequence of m ndarray (n, P)
        Answers of :func:`line_answers`.
    surface : ndarray (n, k)
        Terms in Teff and log g that are taken out of the flux first.
    rounds : int
        Fits; from the second on a pixel weighs by how little of it the fit before has left.
    """
    mean = (flux * there).sum(0) / np.maximum(there.sum(0), 1)
    left = without_parameters(np.where(there, flux - mean, 0.0), surface)
    answers = np.stack([np.where(there, one, 0.0) for one in lines], 1).astype(np.float32)
    width = np.ones(flux.shape[1])
    found = np.zeros((len(flux), len(lines)))
    for number in range(rounds):
        for i, (own, row) in enumerate(zip(answers, left, strict=True)):
            found[i] = np.linalg.lstsq((own / width).T, row * there[i] / width, rcond=None)[0]
        if number + 1 < rounds:
            rest = left - np.einsum("nmp,nm->np", answers, found)
            width = np.maximum(np.sqrt((rest**2 * there).sum(0) / np.maximum(there.sum(0), 1)), LEAST_ERROR)
    return found


def trimmed_strengths(strengths: np.ndarray, surface: np.ndarray) -> np.ndarray:
    """Strengths (n, m) with their tails cut off, less their own trend with Teff and log g, in standard deviations."""
    low, high = np.percentile(strengths, TRIMMED, axis=0)
    found = without_parameters(np.clip(strengths, low, high), surface)
    return np.asarray(found / np.maximum(found.std(0), 1e-12))
