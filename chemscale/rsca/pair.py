"""Two stars side by side: how alike they are, how sure that is, and where their spectra differ."""

from __future__ import annotations

import os

import numpy as np
import xarray as xr

from chemscale.errors import InputError
from chemscale.rsca.applied import LikenessModel
from chemscale.rsca.neighbours import SiblingIndex
from chemscale.rsca.siblings import stored_likeness
from chemscale.rsca.stars import RunStars, check_rows, read_rows, text
from chemscale.runtime.run import Run
from chemscale.survey.store.cleaning import check_cleaned

#: Draws of the coordinates' noise that the error of a distance rests on.
NOISE_DRAWS = 400


def pair(
    first: str,
    second: str,
    run_path: str | os.PathLike[str],
    *,
    metric: str = "best",
    prior: float | None = None,
) -> xr.Dataset:
    """Distance, likeness and spectra of two stars of a run.

    Parameters
    ----------
    first, second : str
        Identifiers of the survey.
    run_path : path
        Run directory of ``chemscale rsca fit``.
    metric : {"best", "paper", "auto"}
    prior : float, optional
        Chance that a random pair are siblings; adds `probability` with its 16th and 84th percentile.

    Returns
    -------
    Dataset
        `flux_1`, `flux_2`, `difference`, `difference_error` against `wavelength`, NaN where a pixel is missing.
        Attributes: `distance`, `distance_error` (from the noise of both spectra), `metric`, `n_features`, and where
        likeness was measured `log_ratio` and `probability`.

    Raises
    ------
    InputError
        An unknown star, twice the same, or one without a usable pixel.
    """
    from chemscale.survey.store.open import open_survey

    run = Run.open(run_path)
    model = LikenessModel.of_run(run, metric)
    name = "auto" if model.labels or type(model.metric).__name__ == "AutoMetric" else "paper"
    stars = RunStars.read(run, "embedding_auto.zarr" if name == "auto" else "embedding.zarr", max_field=1)
    ids = text(stars.embedding["star_id"])
    names = SiblingIndex(np.zeros((len(ids), 1), np.float32), ids)
    rows = np.array([names.row_of(first), names.row_of(second)])
    if rows[0] == rows[1]:
        raise InputError(f"{first} twice", "name two stars")
    mean = np.asarray(stars.embedding["coords"].data[rows].compute(), dtype=np.float64)
    spread = np.sqrt(np.asarray(stars.embedding["coords_variance"].data[rows].compute(), dtype=np.float64))
    for i, star in enumerate((first, second)):
        if not np.isfinite(mean[i]).all():
            raise InputError(f"star {star} has no valid spectrum", "choose another star")
    labels = {n: v[rows] for n in model.labels if (v := stars.label(n)) is not None}
    distance = _distance(model, mean, labels)
    rng = np.random.default_rng(0)
    draws = [_distance(model, mean + spread * rng.standard_normal(mean.shape), labels) for _ in range(NOISE_DRAWS)]
    survey = open_survey(run.store)
    check_rows(survey, stars.embedding)
    check_cleaned(survey.attrs.get("cleaned", ()), model.cleaned)
    missing = (read_rows(survey["flags"], rows) != 0) | ~(read_rows(survey["ivar"], rows) > 0)
    flux = np.where(missing, np.nan, read_rows(survey["flux"], rows).astype(np.float64))
    with np.errstate(divide="ignore"):
        variance = np.where(missing, np.nan, 1 / read_rows(survey["ivar"], rows).astype(np.float64))
    units = dict(survey["wavelength"].attrs)
    out = xr.Dataset(
        {
            "wavelength": ("pixel", survey["wavelength"].values, units),
            "flux_1": ("pixel", flux[0], {"long_name": f"spectrum of {first}"}),
            "flux_2": ("pixel", flux[1], {"long_name": f"spectrum of {second}"}),
            "difference": ("pixel", flux[1] - flux[0], {"long_name": "second less first"}),
            "difference_error": ("pixel", np.sqrt(variance.sum(axis=0)), {"long_name": "its standard error"}),
        }
    )
    out.attrs = {
        "star_1": first,
        "star_2": second,
        "metric": name,
        "n_features": model.n_features,
        "distance": distance,
        "distance_error": float(np.std(draws, ddof=1)),
    }
    likeness = stored_likeness(run, name)
    if likeness is not None and likeness["n_features"] == model.n_features:
        from chemscale.rsca.likeness import Likeness

        known = Likeness.from_json(likeness)
        out.attrs |= {"log_ratio": float(known.log_ratio(distance)), "caution": known.caution}
    if prior is not None:
        chance = model.probability(distance, prior)
        for key, value in zip(("probability", "probability_low", "probability_high"), chance, strict=True):
            out.attrs[key] = float(value)
    return out


def _distance(model: LikenessModel, coords: np.ndarray, labels: dict[str, np.ndarray]) -> float:
    x = model.features(coords, labels)
    return float(np.linalg.norm(x[1] - x[0]))
