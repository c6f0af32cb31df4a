"""Likeness element by element: RSCA on windows around the lines of one element (the paper's closing idea, section 6).

Each element has a small basis of its own, fitted to its windows only, and a metric on it that is learned from the
same clusters: stars are alike in silicon where siblings are alike in the silicon windows.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr

from chemscale.errors import DataError, InputError
from chemscale.quality.interstellar import window_mask
from chemscale.rsca.detrending import polynomial
from chemscale.rsca.doppelganger import Evaluation
from chemscale.rsca.element_windows import (
    Windows,
    find_windows,
    line_windows,
    pixels_of,
    read_windows,
    responses,
)
from chemscale.rsca.metric import RSCA
from chemscale.rsca.stars import ABUNDANCE, RunStars, check_rows, cleaned_of
from chemscale.rsca.uncertainty import bootstrap
from chemscale.runtime.run import Run
from chemscale.schema import ALL_FLAGS
from chemscale.statistics.ppca import MaskedPPCA
from chemscale.survey.store.cleaning import check_cleaned

#: Field stars the bases are fitted and the metrics rated on, at most.
MAX_FIELD = 12_000


@dataclass(frozen=True)
class ElementModel:
    """Basis and metric of one element: `pixels` are columns of the spectra it is given."""

    pixels: np.ndarray
    basis: MaskedPPCA
    metric: RSCA
    n_features: int

    def features(self, flux: np.ndarray, missing: np.ndarray) -> np.ndarray:
        """Features (n, n_features) of spectra; NaN for a star without a pixel in the windows."""
        z = np.asarray(self.basis.transform(flux[:, self.pixels], missing[:, self.pixels]))
        return self.metric.transform(z, self.n_features)


def elements_run(
    run_path: str | os.PathLike[str],
    *,
    windows: str | os.PathLike[str] | None = None,
    components: int = 6,
    n_features: int = 2,
) -> dict[str, Any]:
    """Learn likeness in each element and write the features of every star to ``RUN/elements.zarr``.

    Reads the spectra twice: once for a sample of the field and the members, once for all stars.

    Parameters
    ----------
    run_path : path
        A run of ``chemscale rsca fit``; its selection of field stars and members is used.
    windows : path, "lines" or "abundances", optional
        CSV table element, low, high (Angstrom); around the atomic lines that ship
        (:func:`chemscale.rsca.element_windows.line_windows`); or where the run's basis follows the survey's own
        abundances (:func:`chemscale.rsca.element_windows.responses`). By default lines where the lists reach the grid
        (15,140 to 16,960 and the optical), else abundances.
    components : int
        Components of each element's basis.
    n_features : int
        Features kept.

    Returns
    -------
    dict
        By element: ``pixels``, ``windows`` (Angstrom), ``rate`` (leave-one-cluster-out) with ``rate_error``,
        ``correlation`` of the best kept feature with the element's [X/H], ``own``, the features' multiple correlation
        with it beyond what [Fe/H], Teff and log g tell (0 for iron), ``leak``, the largest correlation with velocity or
        extinction. ``source`` of the windows; ``left_out``: reasons, by element, those that the survey
        measures and no window tells of included.

    Raises
    ------
    InputError, DataError
        Bad table, no abundances to find windows by, no element with enough pixels.
    """
    from chemscale.survey.store.open import open_survey

    if not 1 <= n_features <= components:
        raise InputError(f"n_features is {n_features}", f"choose between 1 and {components}")
    run = Run.open(run_path)
    settings = {"windows": None if windows is None else str(windows), "components": components}
    with run.stage("elements", settings=settings | {"n_features": n_features}) as stage:
        stars = RunStars.read(run, max_field=MAX_FIELD)
        survey = open_survey(run.store)
        check_rows(survey, stars.embedding)
        check_cleaned(survey.attrs.get("cleaned", ()), cleaned_of(run))
        wavelength = np.asarray(survey["wavelength"].values)
        source, found = _windows(run, stars, windows, wavelength, survey["wavelength"].attrs.get("medium", "vacuum"))
        union = np.unique(np.concatenate([pixels_of(w) for w in found.values()]))
        flux, missing = _pixels(survey, union)
        rows = np.concatenate([stars.field_rows, stars.member_rows])
        order = np.argsort(rows, kind="stable")
        back = np.argsort(order, kind="stable")
        x, gone = dask.compute(flux[rows[order]], missing[rows[order]])  # together: each chunk is decoded once
        sample = x[back], gone[back]
        models: dict[str, ElementModel] = {}
        measured = [str(e) for e in survey["element"].values] if "element" in survey.variables else []
        untold = {e: f"no window: {source} have no line of its own" for e in measured if e not in found}
        report: dict[str, Any] = {"source": source, "elements": {}, "left_out": untold}
        for element, spans in found.items():
            pixels = np.searchsorted(union, pixels_of(spans))
            try:
                models[element], facts = _fit(stars, element, pixels, *sample, components, n_features)
            except (DataError, InputError) as err:
                report["left_out"][element] = err.message
                continue
            facts["windows"] = [[float(wavelength[a]), float(wavelength[b - 1])] for a, b in spans]
            report["elements"][element] = facts
        if not models:
            reasons = "; ".join(f"{e}: {r}" for e, r in report["left_out"].items())
            raise DataError(f"no element could be fitted ({reasons})", "widen the windows or use fewer components")
        _write(run, survey, found, models, flux, missing)
        run.save_json("elements.json", report)
        stage.note(elements=list(models), left_out=report["left_out"])
    return report


def _windows(
    run: Run, stars: RunStars, windows: str | os.PathLike[str] | None, wavelength: np.ndarray, medium: str
) -> tuple[str, Windows]:
    """Where windows come from, in words, and the windows."""
    found: Windows = {}
    if windows not in (None, "lines", "abundances"):
        return "the given windows", read_windows(windows, wavelength)
    if windows != "abundances":
        found = line_windows(wavelength, medium)
        if found:
            return "the atomic lines that ship", found
        if windows == "lines":
            raise DataError(
                f"no line that ships lies between {wavelength[0]:.0f} and {wavelength[-1]:.0f} Angstrom",
                "give a table: --windows FILE, or --windows abundances",
            )
    found = find_windows(responses(stars, run.open_dataset("ppca.zarr")["components"].values))
    if not found:
        raise DataError(
            "no element stands out anywhere in the spectra",
            "the survey's abundances go together: give a table, --windows FILE",
        )
    return "the survey's own abundances", found


def _pixels(survey: xr.Dataset, union: np.ndarray) -> tuple[da.Array, da.Array]:
    """Flux and boolean missing at the pixels `union`, lazy."""
    flux, ivar, flags = (da.asarray(survey[v].data)[:, union] for v in ("flux", "ivar", "flags"))
    missing = ((flags & ALL_FLAGS) != 0) | ~(ivar > 0) | ~da.isfinite(flux)
    return da.where(missing, 0, flux).astype(np.float32), missing


def _fit(
    stars: RunStars,
    element: str,
    pixels: np.ndarray,
    flux: np.ndarray,
    missing: np.ndarray,
    components: int,
    n_features: int,
) -> tuple[ElementModel, dict[str, Any]]:
    """Model of one element, and how good it is."""
    if len(pixels) <= components:
        raise DataError(f"{len(pixels)} pixels for {components} components", "widen the windows")
    x, gone = flux[:, pixels], missing[:, pixels]
    basis = MaskedPPCA(components, tol=0.01, max_iter=30).fit(x, gone)
    z = np.asarray(basis.transform(x, gone))
    n = len(stars.field_rows)
    good = np.isfinite(z).all(axis=1)
    names, counts = np.unique(stars.clusters[good[n:]], return_counts=True)
    members = good[n:] & np.isin(stars.clusters, names[counts >= 2])
    engine = Evaluation(
        z[:n][good[:n]], z[n:][members], stars.clusters[members], stars.covariates.at(good[:n], members)
    )
    rates = engine.rates("rsca", n_features=n_features)
    metric = RSCA().fit(engine.moments, engine.members, engine.clusters)
    features, field_rows = metric.transform(z[:n][good[:n]], n_features), stars.field_rows[good[:n]]
    own = stars.correlations(features, field_rows, (f"{ABUNDANCE}{element}",))
    leaks = stars.correlations(features, field_rows, ("radial_velocity", "extinction"))
    facts = {
        "pixels": len(pixels),
        "rate": rates.overall,
        "rate_error": bootstrap(rates)[0],
        "correlation": max((abs(v) for row in own.values() for v in row), default=float("nan")),
        "own": _own(stars, element, features, field_rows),
        "leak": max((abs(v) for row in leaks.values() for v in row), default=float("nan")),
    }
    return ElementModel(pixels, basis, metric, n_features), facts


def _own(stars: RunStars, element: str, features: np.ndarray, rows: np.ndarray) -> float:
    """Multiple correlation of features with [X/H] beyond what [Fe/H], Teff and log g tell of both; NaN if unknown."""
    known = [stars.label(name) for name in (f"{ABUNDANCE}{element}", "fe_h", "teff", "logg")]
    if known[0] is None:
        return float("nan")
    values = np.stack([v[rows] for v in known if v is not None], axis=1)
    good = np.isfinite(values).all(axis=1)
    if good.sum() < 20 * (values.shape[1] + features.shape[1]):
        return float("nan")
    values = values[good] - values[good].mean(axis=0)
    held = polynomial(values[:, 1:] / np.maximum(values[:, 1:].std(axis=0), 1e-12), 2)
    both = np.concatenate([values[:, :1], features[good]], axis=1)
    both = both - held @ np.linalg.lstsq(held, both, rcond=None)[0]
    told = both[:, 1:] @ np.linalg.lstsq(both[:, 1:], both[:, 0], rcond=None)[0]
    return float(told.std() / max(both[:, 0].std(), 1e-12))


def _block(flux: np.ndarray, missing: np.ndarray, models: list[ElementModel]) -> np.ndarray:
    return np.stack([m.features(flux, missing) for m in models], axis=1).astype(np.float32)


def _write(
    run: Run, survey: xr.Dataset, found: Windows, models: dict[str, ElementModel], flux: da.Array, missing: da.Array
) -> None:
    """Features of every star, block by block: one pass over the store."""
    n_features = next(iter(models.values())).n_features
    features = da.map_blocks(
        partial(_block, models=list(models.values())),
        flux.rechunk({1: -1}),
        missing.rechunk({1: -1}),
        dtype=np.float32,
        new_axis=2,
        chunks=(flux.chunks[0], (len(models),), (n_features,)),
        meta=np.empty((0, 0, 0), np.float32),
    )
    inside = [window_mask(found[e], survey.sizes["wavelength"]) for e in models]
    ds = xr.Dataset(
        {
            "features": (
                ("star", "element", "feature"),
                features,
                {"long_name": "RSCA features of the element's windows; Euclidean distance tells likeness"},
            ),
            "window": (("element", "wavelength"), np.array(inside), {"long_name": "pixels of the element's windows"}),
            "scale": (("element", "feature"), np.array([m.metric.scale_[:n_features] for m in models.values()])),
        },
        coords={
            "star_id": ("star", np.asarray(survey["star_id"].values).astype(object)),
            "element": np.array(list(models), dtype=object),
            "wavelength": survey["wavelength"].values,
        },
    )
    run.save_dataset("elements.zarr", ds)
