"""Labels as a survey's pipeline would report them: true values, errors and small systematics."""

from __future__ import annotations

from typing import Any

import numpy as np

from chemscale.schema import APOGEE_ELEMENTS
from chemscale.simulation.atmosphere import microturbulence
from chemscale.simulation.population import SimulatedStars, chemistry

#: Star-level bit of a spectrum the pipeline could not fit.
STAR_BAD = 1 << 23
#: Temperatures (K) the trends of the label errors were made for, those of H-band giants; flat beyond.
TREND_RANGE = (3955.0, 5045.0)
#: Relative error of Teff and log g of the halo's catalogue (the paper's section 3).
HALO_ERROR = 0.02


def _trends() -> tuple[np.ndarray, np.ndarray]:
    """Slope and curvature with Teff of each species' label error, in units of its size (fixed)."""
    rng = np.random.default_rng(16)
    n = len(APOGEE_ELEMENTS)
    return rng.normal(0, 1, n), rng.normal(0, 0.6, n)


_SLOPE, _CURVE = _trends()


def halo_labels(stars: SimulatedStars, rng: np.random.Generator) -> dict[str, Any]:
    """Labels of the halo's catalogue: Teff and log g with an error of 2 %, abundances exact, every star sound."""
    values = observed_labels(stars, rng)
    for name in ("teff", "logg"):
        true = getattr(stars, name)
        values[name] = (true * (1.0 + HALO_ERROR * rng.standard_normal(len(stars)))).astype(np.float32)
    exact = {
        "fe_h": stars.fe_h,
        "alpha_m": stars.alpha_fe,
        "c_fe": stars.fe_relative("C"),
        "abundance": stars.abundance,
    }
    values |= {k: v.astype(np.float32) for k, v in exact.items()}
    values["abundance_error"] = np.zeros_like(values["abundance"])
    values["quality"] = np.zeros(len(stars), np.int64)
    return values


def observed_labels(stars: SimulatedStars, rng: np.random.Generator) -> dict[str, Any]:
    """Per-star variables of the data contract, as measured.

    Errors shrink with S/N down to a floor. Each abundance also follows Teff a little, within the range of
    temperatures the trend was made for (:data:`TREND_RANGE`) and no further: what makes measured abundances of one
    cluster's members differ more than their errors say.
    """
    n = len(stars)
    c = chemistry()
    quality = np.sqrt(0.7**2 + (0.7 * 150.0 / stars.snr) ** 2)
    t = (np.clip(stars.teff, *TREND_RANGE) - 4600.0) / 400.0
    measured = np.isfinite(c["error"])
    sigma = c["error"] * quality[:, None]
    error = rng.standard_normal((n, len(APOGEE_ELEMENTS))) * np.nan_to_num(sigma)
    trend = c["trend"] * (t[:, None] * _SLOPE + (t**2 - 0.6)[:, None] * _CURVE) * 0.5
    abundance = np.where(measured, stars.abundance + error + trend, np.nan)
    reported = np.where(measured, sigma, np.nan)
    # weak lines in warm or metal-poor stars: no value
    faint = np.isin(APOGEE_ELEMENTS, ("P", "V", "Cu", "Ce", "Na", "TiII"))
    hard = (rng.random((n, len(APOGEE_ELEMENTS))) < 0.004 * (1 + 4 * (stars.fe_h < -0.8))[:, None]) & faint
    abundance[hard], reported[hard] = np.nan, np.nan
    bad = rng.random(n) < 0.006
    fe = APOGEE_ELEMENTS.index("Fe")
    alpha = [APOGEE_ELEMENTS.index(e) for e in ("O", "Mg", "Si", "S", "Ca", "Ti")]
    teff = stars.teff + rng.normal(0, 22.0, n) * quality
    logg = stars.logg + rng.normal(0, 0.035, n) * quality
    fe_h = abundance[:, fe]
    values: dict[str, Any] = {
        "teff": teff,
        "logg": logg,
        "fe_h": fe_h,
        "alpha_m": np.nanmean(abundance[:, alpha], axis=1) - fe_h,
        "c_fe": abundance[:, 0] - fe_h,
        "vmicro": microturbulence(teff, logg) + rng.normal(0, 0.05, n),
        "snr": stars.snr,
        "radial_velocity": stars.velocity + rng.normal(0, 0.05, n) + rng.normal(0, 6.0, n) / stars.snr,
        "velocity_scatter": np.abs(rng.normal(0.08, 0.05, n)) + rng.exponential(0.03, n),
        "extinction": np.clip(stars.extinction + rng.normal(0, 0.008, n), 0.0, None),
        "reddening": np.clip(stars.extinction * 2.75 * (1 + rng.normal(0, 0.1, n)), 0.0, None),
        "ra": stars.ra,
        "dec": stars.dec,
        "n_visits": stars.n_visits,
        "cluster_probability": stars.probability,
        "abundance": abundance,
        "abundance_error": reported,
    }
    for name in ("abundance", "abundance_error", "fe_h", "alpha_m", "c_fe"):
        values[name] = np.where(bad[:, None] if values[name].ndim == 2 else bad, np.nan, values[name])
    out = {k: np.asarray(v, np.float64 if k in ("ra", "dec") else np.float32) for k, v in values.items()}
    out["quality"] = np.where(bad, STAR_BAD, 0).astype(np.int64)
    out["cluster"] = stars.cluster
    out["visits"] = np.array(stars.visits, dtype=object)
    return out
