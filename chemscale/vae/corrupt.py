"""Damage done to spectra on purpose, to measure what the scores notice (paper section 4.4).

Every function takes flux (n, P), leaves it untouched and returns a damaged copy. Weights
stay as they are: nobody told the model.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from chemscale.vae.anomalies import SCORES, calibrate, score
from chemscale.vae.inference import infer_arrays
from chemscale.vae.model import ChemicalVAE

Damage = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def heavy_noise(flux: np.ndarray, rng: np.random.Generator, sigma: float = 0.3) -> np.ndarray:
    """Gaussian noise of 30 per cent of the continuum."""
    return flux + np.float32(sigma) * rng.standard_normal(flux.shape, dtype=np.float32)


def spikes(flux: np.ndarray, rng: np.random.Generator, count: int = 20, height: float = 1.0) -> np.ndarray:
    """Single pixels raised or lowered by about `height`."""
    out = flux.copy()
    for row in out:
        where = rng.integers(0, flux.shape[1], count)
        row[where] += (height * rng.choice([-1, 1], count) * rng.uniform(0.5, 1.5, count)).astype(np.float32)
    return out


def blanks(flux: np.ndarray, rng: np.random.Generator, width: int = 100, value: float = 0.0) -> np.ndarray:
    """One stretch of `width` pixels set to `value`."""
    out = flux.copy()
    for row in out:
        start = int(rng.integers(0, max(1, flux.shape[1] - width)))
        row[start : start + width] = value
    return out


def blanks_of_ones(flux: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One stretch of 100 pixels set to the continuum."""
    return blanks(flux, rng, value=1.0)


#: The paper's corruptions, by name.
DAMAGES: dict[str, Damage] = {
    "noise_30_percent": heavy_noise,
    "spikes": spikes,
    "blank_zeros": blanks,
    "blank_ones": blanks_of_ones,
}


def hide_random(weight: np.ndarray, rng: np.random.Generator, fraction: float = 0.05) -> np.ndarray:
    """Weights with a random fraction of the pixels taken away."""
    return np.where(rng.random(weight.shape) < fraction, np.float32(0), weight)


def hide_blocks(weight: np.ndarray, rng: np.random.Generator, fraction: float = 0.05, width: int = 50) -> np.ndarray:
    """Weights with blocks of `width` pixels taken away, about `fraction` of all."""
    out = weight.copy()
    count = max(1, round(fraction * weight.shape[1] / width))
    for row in out:
        for start in rng.integers(0, max(1, weight.shape[1] - width), count):
            row[start : start + width] = 0
    return out


def area_under_curve(clean: np.ndarray, damaged: np.ndarray) -> float:
    """Probability that a damaged spectrum scores higher than a clean one (ties count half)."""
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([clean, damaged]))
    n, m = len(clean), len(damaged)
    return float((ranks[n:].sum() - m * (m + 1) / 2) / (n * m))


def separation(
    model: ChemicalVAE,
    flux: np.ndarray,
    weight: np.ndarray,
    seed: int = 0,
    false_alarm: float = 0.01,
) -> dict[str, dict[str, float]]:
    """How well each corruption is told from clean spectra, by each score and by the combined one.

    The first half of the spectra calibrates the scores, the second is judged, clean and damaged.

    Returns
    -------
    dict
        Corruption -> `auc` of the combined score, `auc_SCORE` of each, `found`: fraction beyond the
        threshold. ``clean`` -> `found`: the false-alarm rate that was reached.
    """
    return separate(model, flux, weight, seed, false_alarm)[0]


def separate(
    model: ChemicalVAE, flux: np.ndarray, weight: np.ndarray, seed: int = 0, false_alarm: float = 0.01
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, np.ndarray]]]:
    """:func:`separation`, and two numbers of each spectrum: ``clean`` or corruption -> `norm`, `relative_l2` (n,)."""
    half = len(flux) // 2
    reference = _as_dataset(model, infer_arrays(model, flux[:half], weight[:half]))
    calibration = calibrate(reference, np.ones(half, dtype=bool), false_alarm)
    test_flux, test_weight = flux[half:], weight[half:]
    inferred = infer_arrays(model, test_flux, test_weight)
    clean = score(_as_dataset(model, inferred), calibration)
    values = {"clean": _paper_scores(inferred)}
    result = {"clean": {"found": float(clean["anomalous"].mean())}}
    for name, damage in DAMAGES.items():
        damaged = damage(test_flux, np.random.default_rng([seed, len(name)]))
        inferred = infer_arrays(model, damaged, test_weight)
        values[name] = _paper_scores(inferred)
        found = score(_as_dataset(model, inferred), calibration)
        row = {"auc": area_under_curve(clean["score"], found["score"]), "found": float(found["anomalous"].mean())}
        for key in SCORES:
            row[f"auc_{key}"] = area_under_curve(clean[f"unit_{key}"], found[f"unit_{key}"])
        for key, value in values[name].items():
            row[f"auc_plain_{key}"] = area_under_curve(values["clean"][key], value)
        result[name] = row
    return result, values


def _paper_scores(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The two numbers of the paper's Figure 7: Euclidean norm of z, relative L2 of the reconstruction; (n,) each."""
    return {"norm": np.linalg.norm(found["mean"], axis=1), "relative_l2": found["relative_l2"][:, 0]}


def _as_dataset(model: ChemicalVAE, found: dict[str, np.ndarray]):
    import xarray as xr

    from chemscale.vae.product import parts_of

    return xr.Dataset(
        {
            "chi2": (("star", "part"), found["chi2"]),
            "local": (("star",), found["local"]),
            "norm": (("star",), found["norm"]),
            "quiet": (("star",), found["quiet"]),
        },
        coords={"part": parts_of(model)},
    )
