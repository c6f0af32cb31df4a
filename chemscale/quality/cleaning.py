"""Cleaned spectra: what velocity, extinction, fibre or date do to the flux, regressed from the pixels (Appendix B).

De Mijolla & Ness (2021), appendix B, describe and do not apply it: the directions of spectral space that follow
radial velocity are found, and variations along them taken off the spectra. Here every pixel of the field is
regressed on a polynomial of the covariates *and* on temperature, gravity and chemistry, so that what the Galaxy
correlates with the covariate stays; the covariate's part at each star's own value comes off. Cluster members train
nothing.

The result is a revision of the store's root record: readers get cleaned flux, no pixel is rewritten, another call
replaces the first.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import dask
import numpy as np
import xarray as xr
from sklearn.preprocessing import PolynomialFeatures

from chemscale.arrays import missing_pixels
from chemscale.errors import DataError, InputError
from chemscale.runtime.files import Folder
from chemscale.schema import VARIABLES, star_variables
from chemscale.statistics.regression import NormalEquations, block_equations
from chemscale.suggest import hint
from chemscale.survey.store.cleaning import Effects
from chemscale.survey.store.open import as_ingested, open_survey
from chemscale.survey.store.root import RootRecord, publish_cleaning

#: Labels whose (quadratic) effect on the flux is none of a covariate's.
HELD = ("teff", "logg", "fe_h", "alpha_m")
#: A label counts where at least this share of the field has it.
MIN_FRACTION = 0.5
#: Scatter of a pixel beyond its error, in units of the continuum, that the weights allow for.
FLOOR = 0.01
#: Field stars for each quantity of the regression, at least.
STARS_A_TERM = 20
#: Members whose spread is measured, at most (evenly spaced).
MAX_MEMBERS = 2_000
#: Sums of so many blocks are added at a time.
_FAN_IN = 4


def clean_survey(
    store: str | os.PathLike[str],
    *,
    of: Sequence[str],
    degree: int = 3,
    rate: Callable[[Effects], dict[str, Any]] | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Take the effect of per-star variables off a store's flux; replaces the cleaning it has.

    One pass over the spectra; then the chunks that hold cluster members, to see whether siblings come closer.

    Parameters
    ----------
    store : str or path
        A complete store.
    of : sequence of str
        Numeric per-star variables: radial_velocity, extinction, fibre, mjd... Several enter together, with their
        products. None: readers see the stored flux again.
    degree : int
        Of the polynomial.
    rate : callable, optional
        Rates before and after, with ``warnings``, as :func:`chemscale.rsca.cleaned.cleaned_rates` tells of a run.
    dry_run : bool
        Say what would come off; change nothing.

    Returns
    -------
    dict
        ``covariates``, ``held`` (labels whose effect stayed), ``stars`` (field stars of the regression),
        ``uncorrected`` (stars without one of the variables), ``share`` (mean over pixels of the variance beyond `held`
        that comes off; ``chance``: what noise alone gives), ``strongest`` (Angstrom and share), ``members_spread``
        (relative ``change`` of the spread of siblings, with its standard ``error`` over clusters; None without
        clusters), ``rates``, ``warnings``, ``store``, ``revision``, ``changed``.

    Raises
    ------
    InputError
        A variable that is unknown or not numeric; `degree` below 1.
    DataError
        Too few field stars with the variable, or all alike.
    """
    folder = Folder(store)
    before = RootRecord.read(folder)
    if not of:
        revision = before.revision if dry_run else publish_cleaning(folder, None, {})
        nothing: dict[str, Any] = {"covariates": [], "warnings": []}
        return nothing | {"store": folder.root, "revision": revision, "changed": revision != before.revision}
    survey = open_survey(store)
    if before.cleaning:  # found on what was ingested, not on what an earlier cleaning left
        survey = survey.assign(flux=(survey["flux"].dims, as_ingested(folder, "flux", _chunks(survey))))
    effects, facts = find_effects(survey, of, degree=degree)
    facts["members_spread"] = members_spread(survey, effects)
    facts["rates"] = None if rate is None else rate(effects)
    facts["warnings"] = [*_warnings(facts), *(facts["rates"] or {}).pop("warnings", [])]
    revision = before.revision if dry_run else publish_cleaning(folder, effects.to_bytes(), facts)
    return facts | {"store": folder.root, "revision": revision, "changed": revision != before.revision}


def find_effects(survey: xr.Dataset, of: Sequence[str], *, degree: int = 3) -> tuple[Effects, dict[str, Any]]:
    """The effect of per-star variables on the flux of field stars, at fixed temperature, gravity and chemistry.

    Computes: one pass. Arguments, errors and what is said of it as :func:`clean_survey`.
    """
    names = list(dict.fromkeys(of))
    if degree < 1:
        raise InputError(f"degree is {degree}", "1 is a straight line, 3 the default")
    columns = {name: _column(survey, name) for name in names}
    n_stars = survey.sizes["star"]
    field = np.asarray(survey["cluster"].values).astype(str) == "" if "cluster" in survey else np.ones(n_stars, bool)
    held = {name: _column(survey, name) for name in HELD if name in survey and name not in names}
    held = {name: v for name, v in held.items() if np.mean(np.isfinite(v[field])) >= MIN_FRACTION}
    has = np.isfinite(np.stack(list(columns.values()))).all(axis=0)
    use = field & has & np.isfinite(np.stack([*held.values(), columns[names[0]]])).all(axis=0)
    polynomial, quadratic = PolynomialFeatures(degree, include_bias=False), PolynomialFeatures(2)
    powers = polynomial.fit(np.zeros((1, len(names)))).powers_
    n_terms = len(powers) + (quadratic.fit(np.zeros((1, len(held)))).n_output_features_ if held else 1)
    if use.sum() < STARS_A_TERM * n_terms:
        raise DataError(
            f"{int(use.sum())} field stars have {', '.join([*names, *held])}: too few for {n_terms} terms",
            "lower --degree, or clean fewer variables at a time",
        )
    scales = {name: _scale(name, values[use]) for name, values in (columns | held).items()}
    centre, spread, low, high = np.array([scales[name] for name in names]).T
    effects = Effects(tuple(names), centre, spread, low, high, powers, np.zeros((len(powers), 0), np.float32))
    own = effects.terms(columns)
    fixed = np.ones((n_stars, 1))
    if held:
        u = [np.clip((v - scales[n][0]) / scales[n][1], *scales[n][2:]) for n, v in held.items()]
        fixed = quadratic.fit_transform(np.nan_to_num(np.stack(u, axis=1)))
    size = np.maximum(own[use].std(axis=0), 1e-12)
    sums = _sums(survey, np.concatenate([fixed, own / size], axis=1).astype(np.float32), use)
    rest = sums.solve(slice(0, fixed.shape[1]))[1]
    found, left = sums.solve()
    spectra = (found[:, fixed.shape[1] :] / size).T.astype(np.float32)
    share = np.divide(rest - left, rest, out=np.zeros_like(rest), where=found.any(axis=1) & (rest > 0))
    wave = np.asarray(survey["wavelength"].values)
    facts = {
        "covariates": names,
        "degree": degree,
        "held": list(held),
        "stars": int(use.sum()),
        "uncorrected": int(np.count_nonzero(~has)),
        "share": float(share[share != 0].mean()) if share.any() else 0.0,
        "chance": len(powers) / float(use.sum()),
        "strongest": [[round(float(wave[i]), 3), round(float(share[i]), 4)] for i in np.argsort(-share)[:5]],
    }
    return replace(effects, spectra=spectra), facts


def members_spread(survey: xr.Dataset, effects: Effects) -> dict[str, float] | None:
    """Relative change of the spread of siblings about their cluster's mean that `effects` bring; None without clusters.

    Reads the chunks that hold members. Pixels are weighted as in the regression, clusters by their members.
    """
    cluster = np.asarray(survey["cluster"].values).astype(str) if "cluster" in survey else np.empty(0, str)
    rows = np.flatnonzero(cluster != "")
    if len(rows) > MAX_MEMBERS:
        rows = rows[np.linspace(0, len(rows) - 1, MAX_MEMBERS).astype(np.int64)]
    groups = [np.flatnonzero(cluster[rows] == name) for name in np.unique(cluster[rows])]
    groups = [g for g in groups if len(g) > 1]
    if len(groups) < 2:
        return None
    values, weights = [], []
    for block in _blocks(survey, rows):
        flux, w = _weighted(*dask.compute(*block))
        values.append(flux)
        weights.append(w)
    flux, weight = np.concatenate(values), np.concatenate(weights)
    cleaned = effects.take_off(flux.copy(), {n: _column(survey, n)[rows] for n in effects.covariates})
    spreads = np.array([[_spread(x[g], weight[g]) for x in (flux, cleaned)] for g in groups])
    size = np.array([len(g) for g in groups], float)
    change = spreads[:, 1] / spreads[:, 0] - 1
    mean = float(np.average(change, weights=size))
    effective = size.sum() ** 2 / np.sum(size**2)
    scatter = float(np.average((change - mean) ** 2, weights=size))
    return {"change": mean, "error": float(np.sqrt(scatter / max(effective - 1, 1)))}


def _spread(flux: np.ndarray, weight: np.ndarray) -> float:
    """Weighted mean square about the weighted mean, over stars and pixels."""
    total = np.maximum(weight.sum(axis=0), 1e-30)
    off = flux - np.sum(weight * flux, axis=0) / total
    return float(np.sum(weight * off**2, dtype=np.float64) / np.sum(weight, dtype=np.float64))


def _warnings(facts: dict[str, Any]) -> list[str]:
    """What speaks against this cleaning."""
    out = []
    spread = facts["members_spread"]
    if spread and spread["change"] > 2 * spread["error"] and spread["change"] > 0:
        out.append(
            f"siblings lie further apart in cleaned spectra ({spread['change']:+.1%} +- {spread['error']:.1%}): "
            "what came off was no effect of the instrument"
        )
    if facts["share"] < 2 * facts["chance"]:
        out.append(
            f"{', '.join(facts['covariates'])} explain {facts['share']:.3%} of the scatter of a pixel, noise alone "
            f"would {facts['chance']:.3%}: there is hardly anything to clean"
        )
    return out


def _column(survey: xr.Dataset, name: str) -> np.ndarray:
    """A numeric per-star variable, (n,), NaN = missing."""
    numeric = [n for n in star_variables(survey.variables) if VARIABLES[n].dtype.startswith("float")]
    if name not in numeric:
        raise InputError(f"the survey has no numeric variable {name!r}", hint(name, numeric, "variables"))
    return np.asarray(survey[name].values, dtype=np.float64)


def _scale(name: str, values: np.ndarray) -> tuple[float, float, float, float]:
    """Centre and spread of a variable over the field, and its range in these units."""
    centre = float(np.median(values))
    spread = float(0.7413 * np.subtract(*np.percentile(values, [75, 25]))) or float(values.std())
    if not spread > 0:
        raise DataError(f"all field stars have the same {name}", "leave it out: there is nothing to take off")
    low, high = np.percentile((values - centre) / spread, [0.1, 99.9])
    return centre, spread, float(low), float(high)


def _chunks(survey: xr.Dataset) -> tuple[int, ...]:
    """Stars of each block of the pixels: all of them, where they are in memory."""
    chunks = survey["flux"].chunks
    return chunks[0] if chunks else (survey.sizes["star"],)


def _blocks(survey: xr.Dataset, rows: np.ndarray) -> Iterator[list[Any]]:
    """Lazy flux, ivar and flags of some stars (sorted), a chunk at a time."""
    start = 0
    for size in _chunks(survey):
        lo, hi = np.searchsorted(rows, [start, start + size])
        if hi > lo:
            at = rows[lo:hi] - start
            yield [survey[n].data[start : start + size][at] for n in ("flux", "ivar", "flags")]
        start += size


def _weighted(flux: np.ndarray, ivar: np.ndarray, flags: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flux and weights (n, P), both 0 where a pixel is not used."""
    missing = missing_pixels(flux, ivar, flags)
    with np.errstate(divide="ignore"):
        weight = 1 / (1 / ivar + FLOOR**2)
    return np.where(missing, 0, flux).astype(np.float32), np.where(missing, 0, weight).astype(np.float32)


def _block_sums(design: np.ndarray, flux: np.ndarray, ivar: np.ndarray, flags: np.ndarray) -> NormalEquations:
    flux, weight = _weighted(flux, ivar, flags)
    return block_equations(design, flux - 1, weight)


def _sums(survey: xr.Dataset, design: np.ndarray, use: np.ndarray) -> NormalEquations:
    """Normal equations of all pixels over the stars in `use`: one pass."""
    rows, parts, done = np.flatnonzero(use), [], 0
    for block in _blocks(survey, rows):
        n = block[0].shape[0]
        parts.append(dask.delayed(_block_sums)(design[rows[done : done + n]], *block))
        done += n
    while len(parts) > 1:
        parts = [dask.delayed(_added)(*parts[i : i + _FAN_IN]) for i in range(0, len(parts), _FAN_IN)]
    return dask.compute(parts[0])[0]


def _added(*sums: NormalEquations) -> NormalEquations:
    total = sums[0]
    for more in sums[1:]:
        total = total + more
    return total
