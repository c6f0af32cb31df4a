"""Latents against the survey's labels, on stars never trained on (paper section 4, appendix E)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from chemscale.errors import DataError, InputError
from chemscale.schema import APOGEE_ELEMENTS
from chemscale.vae.calibrate import DEGREES, fit_calibration
from chemscale.vae.flags import PRINTED, apply

#: Latent -> (survey variable, name in the results).
LABELS = {"metal": ("fe_h", "fe_h"), "alpha": ("alpha_m", "alpha_fe"), "carbon": ("c_fe", "c_fe")}
#: Alpha elements whose mean stands for [alpha/Fe] where only abundances are known.
ALPHA = ("O", "Mg", "Si", "S", "Ca", "Ti")
#: Classes in labels, for precision and recall (paper section 4.3).
CLASSES = {
    "cemp": {"fe_h": ("<", -1.0), "c_fe": (">", 0.7)},
    "alpha_poor": {"fe_h": ("<", -1.0), "alpha_fe": ("<", 0.0)},
}
#: Kinds of stars the paper tells the error of reconstructions for (section 4.1), by their labels.
KINDS: dict[str, dict[str, tuple[str, float]]] = {
    "alpha_poor": CLASSES["alpha_poor"],
    "carbon_rich": {"c_fe": (">", 0.7)},
    "solar_like": {"fe_h": (">", -0.5), "alpha_fe": ("<", 0.2), "c_fe": ("<", 0.3)},
}
#: Stars the gradient-boosted regressors are trained and tested on, at most.
BOOSTED = 12_000


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation over rows where both are finite; NaN for fewer than three."""
    good = np.isfinite(a) & np.isfinite(b)
    if good.sum() < 3 or np.ptp(a[good]) == 0 or np.ptp(b[good]) == 0:
        return float("nan")
    return float(np.corrcoef(a[good], b[good])[0, 1])


def boosted_r2(z: np.ndarray, target: np.ndarray, seed: int = 0) -> float:
    """R^2 of a gradient-boosted regressor from z, on a half it was not fitted to.

    0 is the dummy that predicts the mean; worse than the dummy counts as 0.
    """
    from sklearn.ensemble import HistGradientBoostingRegressor

    good = np.isfinite(z).all(1) & np.isfinite(target)
    rows = np.flatnonzero(good)
    if rows.size < 100:
        return float("nan")
    rows = np.random.default_rng(seed).permutation(rows)[:BOOSTED]
    half = rows.size // 2
    model = HistGradientBoostingRegressor(random_state=seed).fit(z[rows[:half]], target[rows[:half]])
    test = target[rows[half:]]
    residual = np.mean((test - model.predict(z[rows[half:]])) ** 2)
    dummy = np.mean((test - target[rows[:half]].mean()) ** 2)
    return float(max(0.0, 1.0 - residual / dummy))


def label_of(latent: str) -> str:
    """Name of the abundance a latent stands for in the results; '' for one that stands for none.

    >>> label_of("carbon"), label_of("Mg"), label_of("Fe"), label_of("speed")
    ('c_fe', 'mg_fe', 'fe_h', '')
    """
    if latent in LABELS:
        return LABELS[latent][1]
    return ("fe_h" if latent == "Fe" else f"{latent.lower()}_fe") if latent in APOGEE_ELEMENTS else ""


def label_columns(survey: xr.Dataset, latents: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Per-star labels of a survey under the names of the results; those it has.

    [Fe/H], [alpha/Fe] and [C/Fe] come from `abundance` ([X/H]) where the survey has no such
    label: alpha is the mean of the :data:`ALPHA` species a star has. Latents named after an element add its
    [X/Fe].
    """
    found = {}
    for variable, name in [*LABELS.values(), ("teff", "teff"), ("logg", "logg"), ("snr", "snr")]:
        if variable in survey.variables:
            column = np.asarray(survey[variable].values, dtype=np.float64)
            if np.isfinite(column).any():
                found[name] = column
    if "abundance" in survey.variables:
        species = [str(e) for e in survey["element"].values]
        table = np.asarray(survey["abundance"].values, dtype=np.float64)
        iron = found.get("fe_h", table[:, species.index("Fe")] if "Fe" in species else None)
        if iron is not None:
            found.setdefault("fe_h", iron)
            if "C" in species:
                found.setdefault("c_fe", table[:, species.index("C")] - iron)
            for element in (n for n in latents if n in species and label_of(n) not in found):
                found[label_of(element)] = table[:, species.index(element)] - iron
            columns = [species.index(e) for e in ALPHA if e in species]
            known = np.isfinite(table[:, columns])
            if known.any():
                total = np.where(known, table[:, columns], 0.0).sum(1)
                with np.errstate(invalid="ignore"):
                    found.setdefault("alpha_fe", total / np.where(known.any(1), known.sum(1), np.nan) - iron)
    return {k: v for k, v in found.items() if np.isfinite(v).any()}


def truth_columns(store: str | None, star_id: np.ndarray, latents: Sequence[str] = ()) -> dict[str, np.ndarray] | None:
    """True labels of a simulated survey in the order of `star_id`; None where the store has no truth beside it.

    Raises
    ------
    InputError
        A star the truth does not have.
    """
    from chemscale.simulation.truth import read_truth, truth_path

    if not store or not Path(truth_path(store)).exists():
        return None
    truth = read_truth(store, star_id)
    fe_h = np.asarray(truth["fe_h"].values, dtype=np.float64)
    species = [str(e) for e in truth["element"].values]
    table = np.asarray(truth["abundance"].values, dtype=np.float64)
    elements = {label_of(n): table[:, species.index(n)] - fe_h for n in latents if n in species and n != "Fe"}
    same = {k: np.asarray(truth[k].values, dtype=np.float64) for k in ("alpha_fe", "teff", "logg", "snr")}
    return {"fe_h": fe_h, "c_fe": table[:, species.index("C")] - fe_h, **elements, **same}


def judged_against(
    survey: xr.Dataset, store: str | None, star_id: np.ndarray, against: str = "", latents: Sequence[str] = ()
) -> tuple[dict[str, np.ndarray], str]:
    """What latents are judged by, and its name: the truth of a simulated survey where there is one, else its labels.

    Parameters
    ----------
    store : str or None
        Path of the survey's store.
    against : {'', 'truth', 'labels'}
        '' takes the truth where there is one.
    latents : sequence of str
        Names of the latents: elements among them are added.

    Raises
    ------
    InputError
        Another word, or no truth where it is asked for.
    """
    if against not in ("", "truth", "labels"):
        raise InputError(f"against {against!r}", "use truth or labels")
    found = None if against == "labels" else truth_columns(store, star_id, latents)
    if found is None and against == "truth":
        raise InputError(f"{store} has no truth beside it", "only simulated surveys have one; use --against labels")
    return (label_columns(survey, latents), "labels") if found is None else (found, "truth")


def precision_recall(flagged: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Precision and recall (paper eqs. A.6, A.7); NaN where undefined."""
    hit = float((flagged & truth).sum())
    return {
        "precision": hit / flagged.sum() if flagged.any() else float("nan"),
        "recall": hit / truth.sum() if truth.any() else float("nan"),
        "flagged": int(flagged.sum()),
        "true": int(truth.sum()),
    }


def class_truth(labels: Mapping[str, np.ndarray], cuts: Mapping[str, tuple[str, float]]) -> np.ndarray | None:
    """Stars that belong to a class by their labels; None where a label is not known."""
    truth: np.ndarray | None = None
    for name, (side, position) in cuts.items():
        if name not in labels:
            return None
        one = labels[name] < position if side == "<" else labels[name] > position
        truth = one if truth is None else truth & one
    return truth


def evaluate(
    ds: xr.Dataset,
    survey: xr.Dataset,
    held_out: np.ndarray,
    truth: np.ndarray | None = None,
    judged: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Every number of the evaluation, from ``latents.zarr`` and the survey's labels.

    Parameters
    ----------
    ds : xarray.Dataset
        ``latents.zarr``.
    survey : xarray.Dataset
        The survey it was made from: the same stars in the same order.
    held_out : ndarray of bool (n,)
        Stars the numbers are about; calibrations use the others.
    truth : ndarray (n, 2), optional
        Distance of every star's reconstruction from its noise-free spectrum, and the spectrum's norm, see
        :func:`chemscale.vae.truth.noise_free_l2`.
    judged : mapping, optional
        True labels (n,) by the names of :func:`label_columns`, which the latents and flags of the held-out stars are
        judged by; calibrations always use the survey's labels of the others. Default: the survey's labels.

    Returns
    -------
    dict
        `r_fe_h`, `r_alpha_fe`, `r_c_fe`: absolute Pearson correlation with the matching latent;
        `r2_teff`, `r2_logg`: R^2 of a gradient-boosted regressor from z, above the dummy;
        `relative_l2`: ||x - x_hat|| / ||x||, mean over stars, to the noise-free spectra: measured where
        `truth` is given, else the errors' share taken away star by star (`relative_l2_kind` says which;
        zero where the errors explain all); with `truth` also `relative_l2_classes`, by :data:`KINDS` of stars, and
        `relative_l2_squared`, the ratio of sums of squares that the paper's eq. A.5 prints;
        `relative_l2_observed`: to the spectra as observed, noise and all; `noise_l2`: what the errors alone would
        give; `rmse_*`: dex, after a line through the latent fitted to the stars trained on; `rmse_map_*`: after the
        calibration the flags use;
        `correlations`: latent x label table (paper Table 1); `flags`: precision and recall (Table 2),
        calibrated and by plain k-sigma cuts; `label_rmse`: Teff, log g from w.

    Raises
    ------
    DataError
        Latents of another survey, or no held-out stars.
    """
    n = int(ds.sizes["star"])
    if n != survey.sizes.get("star"):
        raise DataError(f"{n} latents, {survey.sizes.get('star')} stars in the survey", "run inference on this survey")
    if not held_out.any():
        raise DataError("no held-out stars", "train with a held-out fraction above 0")
    names = [str(x) for x in ds["latent"].values]
    labels = label_columns(survey, names)
    judged = labels if judged is None else judged
    z = np.asarray(ds["mean"].values, dtype=np.float64)
    chi2 = np.asarray(ds["chi2"].values)
    l2 = np.asarray(ds["relative_l2"].values)
    noise = np.asarray(ds["noise_l2"].values, dtype=np.float64)
    parts = [str(p) for p in ds["part"].values]
    result: dict[str, Any] = {
        "n_stars": n,
        "n_held_out": int(held_out.sum()),
        **_whole_l2(l2[held_out, 0], noise[held_out, 0], None if truth is None else truth[held_out], judged, held_out),
        "relative_l2_groups": {p: float(np.nanmean(l2[held_out, k])) for k, p in enumerate(parts)},
        "chi2_groups": {p: float(np.nanmedian(chi2[held_out, k])) for k, p in enumerate(parts)},
    }
    w = np.asarray(ds["auxiliary"].values, dtype=np.float64)
    variance = np.diagonal(np.asarray(ds["covariance"].values, dtype=np.float64), axis1=1, axis2=2)
    given: dict[str, np.ndarray] = {}
    for k, latent in enumerate(names):
        name = label_of(latent)
        if name not in labels or name not in judged:
            continue
        result[f"r_{name}"] = abs(pearson(z[held_out, k], judged[name][held_out]))
        given[latent] = np.where(held_out, np.nan, labels[name])
        if np.isfinite(given[latent]).sum() < 2:
            continue
        # the paper's univariate line, then the map the flags use
        for key, degrees in (("rmse", (0,)), ("rmse_map", DEGREES)):
            line = fit_calibration(z, w, variance, k, given[latent], degrees)
            value, _ = line.apply(z[held_out], w[held_out], variance[held_out])
            result[f"{key}_{name}"] = float(np.sqrt(np.nanmean((value - judged[name][held_out]) ** 2)))
    result["correlations"] = {
        latent: {name: pearson(z[held_out, k], column[held_out]) for name, column in judged.items() if name != "snr"}
        for k, latent in enumerate(names)
    }
    predicted = np.asarray(ds["label"].values)
    label_names = [str(x) for x in ds["label_name"].values]
    result["label_rmse"] = {}
    for j, name in enumerate(label_names):
        if name in judged:
            result[f"r2_{name}"] = boosted_r2(z[held_out], judged[name][held_out])
            error = predicted[held_out, j] - judged[name][held_out]
            result["label_rmse"][name] = float(np.sqrt(np.nanmean(error**2)))
    result["flags"] = _flag_quality(ds, names, labels, given, held_out, judged)
    return result


def label_correlations(ds: xr.Dataset, survey: xr.Dataset, held_out: np.ndarray) -> dict[str, float]:
    """Absolute correlation of each latent with the survey's own label, over held-out stars."""
    names = [str(x) for x in ds["latent"].values]
    labels = label_columns(survey, names)
    z = np.asarray(ds["mean"].values, dtype=np.float64)
    pairs = [(k, label_of(n)) for k, n in enumerate(names)]
    return {name: abs(pearson(z[held_out, k], labels[name][held_out])) for k, name in pairs if name in labels}


def _whole_l2(
    observed: np.ndarray,
    noise: np.ndarray,
    truth: np.ndarray | None,
    judged: Mapping[str, np.ndarray],
    held_out: np.ndarray,
) -> dict[str, Any]:
    """Errors of held-out stars' reconstructions; `observed`, `noise` and `truth` are theirs, `judged` everyone's."""
    found = {"relative_l2_observed": float(np.nanmean(observed)), "noise_l2": float(np.nanmean(noise))}
    if truth is None:
        without = np.sqrt(np.maximum(observed.astype(np.float64) ** 2 - noise**2, 0.0))
        return {"relative_l2": float(np.nanmean(without)), "relative_l2_kind": "noise subtracted", **found}
    distance, norm = truth.T
    classes = {}
    for name, cuts in KINDS.items():
        inside = class_truth(judged, cuts)
        if inside is not None and (mine := inside[held_out] & np.isfinite(distance)).any():
            classes[name] = float(np.mean(distance[mine] / norm[mine]))
    return {
        "relative_l2": float(np.nanmean(distance / norm)),
        "relative_l2_kind": "noise-free truth",
        "relative_l2_classes": classes,
        "relative_l2_squared": float(np.nansum(distance**2) / np.nansum(norm**2)),
        **found,
    }


def _flag_quality(
    ds: xr.Dataset,
    names: list[str],
    labels: Mapping[str, np.ndarray],
    given: Mapping[str, np.ndarray],
    held_out: np.ndarray,
    judged: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """Precision and recall over held-out stars: in dex, calibrated on the others; and by plain k-sigma cuts.

    Of these `_sigma` cuts where the class's definition lies, `_printed` as the paper's text has it.
    """
    truths = {name: class_truth(judged, cuts) for name, cuts in CLASSES.items()}
    if all(t is None for t in truths.values()):
        return {}
    # plain cuts sit where the class's definition lies in this population's labels; labels give the signs alone
    rules: dict[str, dict[str, Any]] = {}
    for name, cuts in CLASSES.items():
        sigma = {}
        for label, (side, position) in cuts.items():
            if label in labels:
                latent = next(k for k, v in LABELS.items() if v[1] == label)
                column = labels[label][~held_out]
                sigma[latent] = (side, float((position - np.nanmean(column)) / np.nanstd(column)))
        rules[f"{name}_sigma"] = {"sigma": sigma}
        rules[f"{name}_printed"] = {"sigma": PRINTED[name]}
    usable = {k: v for k, v in rules.items() if all(n in names for n in v["sigma"]) and v["sigma"]}
    verdict = apply(ds, names, rules=usable, abundances=given)
    found = {}
    for name, member in verdict.member.items():
        truth = truths.get(name.removesuffix("_sigma").removesuffix("_printed"))
        if truth is not None:
            found[name] = precision_recall(member[held_out], truth[held_out])
    return found
