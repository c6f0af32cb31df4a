"""Calibration of the probability ratio (eq. 5), and the chance that a pair at some distance is a sibling pair."""

from __future__ import annotations

import numpy as np

from chemscale.errors import DataError
from chemscale.rsca.likeness import calibrate, held_out_pairs, sibling_probability
from chemscale.studies import style
from chemscale.studies.dataset_size import thin
from chemscale.studies.registry import Study, StudyContext, StudyResult

_BINS = 12


def shares(siblings: np.ndarray, field: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ln of (share of sibling pairs / share of field pairs) in each bin of distance, and its standard error.

    NaN where a bin holds none of either. The error is that of independent pairs, a lower limit: the pairs of a cluster
    share their stars.
    """
    near, far = (np.histogram(v, edges)[0].astype(float) for v in (siblings, field))
    near[near == 0], far[far == 0] = np.nan, np.nan
    return np.log(near / len(siblings)) - np.log(far / len(field)), np.sqrt(1 / near + 1 / far)


def compute(context: StudyContext) -> StudyResult:
    """Predicted against observed ratios on pairs of held-out clusters; the chance to be siblings, by distance."""
    s = context.settings
    n = min(int(s["n_features"]), context.sample.n_components)
    prior = float(s["prior"])
    evaluation = thin(context, int(s["max_field"]))
    pairs = held_out_pairs(evaluation, n_features=n)
    if len(pairs.siblings) < 50 or not len(pairs.field):
        raise DataError(f"{len(pairs.siblings)} sibling pairs", "a calibration needs fifty, and field pairs")
    result = calibrate(pairs.sibling_ratio, pairs.field_ratio)
    error = np.sqrt(1 / result.n_siblings + 1 / result.n_field)
    edges = np.linspace(
        0, np.quantile(np.r_[pairs.siblings, pairs.field[pairs.field < pairs.siblings.max()]], 0.99), _BINS + 1
    )
    centres = (edges[1:] + edges[:-1]) / 2
    observed, observed_error = shares(pairs.siblings, pairs.field, edges)
    amplitude = np.median(pairs.sibling_ratio + pairs.siblings**2 / 4)  # ln C of eq. (5), a typical cluster's
    predicted = amplitude - centres**2 / 4
    fig, axes = style.figure("page", 0.42, 1, 2)
    span = [
        min(result.predicted.min(), result.observed.min()) - 0.5,
        max(result.predicted.max(), result.observed.max()) + 0.5,
    ]
    axes[0].plot(span, span, color="black", lw=0.7, ls=":", label="calibrated")
    x = np.linspace(span[0], span[1], 200)
    axes[0].plot(x, result.correct(x), color=style.CYCLE[1], ls="--", label="correction")
    axes[0].errorbar(result.predicted, result.observed, error, ls="", marker="o", color=style.CYCLE[0], capsize=1.5)
    axes[0].set_xlabel("ln ratio predicted, eq. (5)")
    axes[0].set_ylabel("ln ratio observed")
    axes[0].set_ylim(*span)
    axes[0].legend(loc="lower right")
    d = np.linspace(0, edges[-1], 200)
    for i, p in enumerate((prior, prior * 10, prior * 100)):
        if p >= 1:
            continue
        look = {"color": style.CYCLE[i], "ls": style.DASHES[i]}
        axes[1].plot(d, sibling_probability(result.correct(amplitude - d**2 / 4), p), label=f"prior {p:g}", **look)
        good = np.isfinite(observed)
        axes[1].plot(
            centres[good], sibling_probability(observed[good], p), ls="", marker=style.MARKERS[i], color=style.CYCLE[i]
        )
    axes[1].set_xlabel(f"distance in the top {n} RSCA features")
    axes[1].set_ylabel("chance to be siblings")
    axes[1].set_ylim(0, 1.02)
    axes[1].legend()
    table = {
        "distance": centres,
        "ln_ratio_observed": observed,
        "ln_ratio_error": observed_error,
        "ln_ratio_predicted": predicted,
        "ln_ratio_corrected": result.correct(predicted),
        "probability": sibling_probability(np.nan_to_num(observed, nan=-700), prior),
        "probability_predicted": sibling_probability(predicted, prior),
        "probability_corrected": sibling_probability(result.correct(predicted), prior),
    }
    table["probability"] = np.where(np.isfinite(observed), table["probability"], np.nan)
    return StudyResult(
        figure=fig,
        table=table,
        columns={
            "distance": f"distance in the {n} most scaled features, centre of the bin",
            "ln_ratio_observed": "ln of the share of sibling pairs over the share of field pairs in the bin",
            "ln_ratio_error": "its standard error for independent pairs (a lower limit)",
            "ln_ratio_predicted": "eq. (5) at that distance",
            "ln_ratio_corrected": "eq. (5), corrected",
            "probability": f"chance that such a pair is a sibling pair, observed, prior {prior:g}",
            "probability_predicted": "the same from eq. (5)",
            "probability_corrected": "the same from eq. (5), corrected",
        },
        numbers={
            "slope": result.slope,
            "intercept": result.intercept,
            "sibling_pairs": len(pairs.siblings),
            "field_pairs": len(pairs.field),
        },
        caption=(
            "Left: the ratio of eq. (5) against what pairs of held-out clusters and comparable field pairs do, in bins "
            "of equal numbers of sibling pairs; dashed: the rising line that corrects it. Right: the chance that a "
            "pair at some distance is a sibling pair, for three prior chances of a random pair; curves from the "
            "corrected eq. (5), points from the pairs themselves."
        ),
    )


STUDY = Study(
    "likeness",
    "How certain siblings are",
    "de Mijolla & Ness 2021, eq. (5)",
    compute,
    {"n_features": 3, "prior": 1e-4, "max_field": 150000},
)
