"""Doppelganger rate against the number of PPCA components, with and without cross-validation (Figure 2)."""

from __future__ import annotations

from typing import Any

import numpy as np

from chemscale.rsca.components import steps
from chemscale.rsca.uncertainty import bootstrap
from chemscale.studies import style
from chemscale.studies.registry import Study, StudyContext, StudyResult


def compute(context: StudyContext) -> StudyResult:
    """Rates for the first k components of the run's basis, for every k of :func:`~chemscale.rsca.components.steps`."""
    evaluation, top = context.sample.evaluation, int(context.settings["n_features"])
    ks = steps(context.sample.n_components)
    kinds: dict[str, dict[str, Any]] = {
        "cross_validated": {"leave_one_out": True},
        "not_cross_validated": {"leave_one_out": False},
        "top": {"leave_one_out": True, "n_features": top},
    }
    values: dict[str, list[float]] = {f"{kind}{part}": [] for kind in kinds for part in ("", "_error")}
    for k in ks:
        for kind, options in kinds.items():
            options = {**options, **({"n_features": min(top, k)} if kind == "top" else {})}
            rates = evaluation.rates("rsca", k=k, **options)
            values[kind].append(rates.overall)
            values[f"{kind}_error"].append(bootstrap(rates)[0])
    best = int(np.argmin(values["cross_validated"]))
    fig, ax = style.figure(aspect=0.75)
    looks = (
        ("cross_validated", "every feature, cross-validated"),
        ("not_cross_validated", "every feature, not cross-validated"),
        ("top", f"top {top} features, cross-validated"),
    )
    for (kind, name), colour, marker, dash in zip(looks, style.CYCLE, style.MARKERS, style.DASHES):
        y, e = np.array(values[kind]), np.array(values[f"{kind}_error"])
        ax.plot(ks, y, color=colour, marker=marker, ls=dash, label=name)
        ax.fill_between(ks, np.maximum(y - e, 1e-5), y + e, color=colour, alpha=0.15, lw=0)
    style.rate_axis(ax.yaxis)
    ax.set_xlabel("PPCA components K")
    ax.set_ylabel("doppelganger rate")
    ax.legend()
    return StudyResult(
        figure=fig,
        table={"components": ks, **values},
        columns={
            "components": "PPCA components used",
            "cross_validated": "global rate, leave-one-cluster-out, every feature",
            "cross_validated_error": "its standard error, clusters drawn with replacement",
            "not_cross_validated": "global rate when the metric has seen the cluster it is rated on",
            "not_cross_validated_error": "its standard error",
            "top": f"global rate, leave-one-cluster-out, the {top} most scaled features",
            "top_error": "its standard error",
        },
        numbers={
            "best_components": ks[best],
            "best_rate": values["cross_validated"][best],
            "best_rate_error": values["cross_validated_error"][best],
            "rate_not_cross_validated_there": values["not_cross_validated"][best],
        },
        caption=(
            "Global doppelganger rate against the number of principal components. The gap between the curves with and "
            "without cross-validation is overfitting to the clusters. Bands: standard error over clusters."
        ),
    )


STUDY = Study(
    "dimensionality",
    "Rate against PCA dimensionality",
    "de Mijolla & Ness 2021, Figure 2",
    compute,
    {"n_features": 3},
)
