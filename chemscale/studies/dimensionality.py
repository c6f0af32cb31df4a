"""Doppelganger rate against the number of PPCA components, with and without cross-validation (Figure 2)."""

from __future__ import annotations

from typing import Any

import numpy as np

from chemscale.rsca.components import steps
from chemscale.rsca.uncertainty import bootstrap
from chemscale.studies import style
from chemscale.studies.registry import Study, StudyContext, StudyResult
from chemscale.studies.restarts import wide


def compute(context: StudyContext) -> StudyResult:
    """Rates for the first k components of a basis, for every k of :func:`~chemscale.rsca.components.steps`."""
    settings = context.settings
    tops = [int(n) for n in str(settings["n_features"]).split(",")]
    evaluation, note = wide(context, int(settings["components"]), int(settings["stars"]))
    ks = steps(evaluation.members.shape[1])
    kinds: dict[str, dict[str, Any]] = {
        "cross_validated": {"leave_one_out": True},
        "not_cross_validated": {"leave_one_out": False},
        **{f"top_{n}": {"leave_one_out": True, "n_features": n} for n in tops},
    }
    values: dict[str, list[float]] = {f"{kind}{part}": [] for kind in kinds for part in ("", "_error")}
    for k in ks:
        for kind, options in kinds.items():
            options = {**options, **({"n_features": min(options["n_features"], k)} if "n_features" in options else {})}
            rates = evaluation.rates("rsca", k=k, **options)
            values[kind].append(rates.overall)
            values[f"{kind}_error"].append(bootstrap(rates)[0])
    best = int(np.argmin(values["cross_validated"]))
    fig, ax = style.figure(aspect=0.75)
    looks = (
        ("cross_validated", "every feature, cross-validated"),
        ("not_cross_validated", "every feature, not cross-validated"),
        *((f"top_{n}", f"top {n} features, cross-validated") for n in tops),
    )
    for (kind, name), colour, marker, dash in zip(looks, style.CYCLE, style.MARKERS, style.DASHES):
        y, e = np.array(values[kind]), np.array(values[f"{kind}_error"])
        ax.plot(ks, y, color=colour, marker=marker, ls=dash, label=name)
        ax.fill_between(ks, np.maximum(y - e, 1e-5), y + e, color=colour, alpha=0.15, lw=0)
    style.rate_axis(ax.yaxis)
    ax.set_xlabel("PPCA components K")
    ax.set_ylabel("doppelganger rate")
    ax.legend(frameon=True, framealpha=0.85, edgecolor="none")  # lines of small surveys fall through its place
    return StudyResult(
        figure=fig,
        table={"components": ks, **values},
        columns={
            "components": "PPCA components used",
            "cross_validated": "global rate, leave-one-cluster-out, every feature",
            "cross_validated_error": "its standard error, clusters drawn with replacement",
            "not_cross_validated": "global rate when the metric has seen the cluster it is rated on",
            "not_cross_validated_error": "its standard error",
            **{f"top_{n}": f"global rate, leave-one-cluster-out, the {n} most scaled features" for n in tops},
            **{f"top_{n}_error": "its standard error" for n in tops},
        },
        numbers={
            "best_components": ks[best],
            "best_rate": values["cross_validated"][best],
            "best_rate_error": values["cross_validated_error"][best],
            "rate_not_cross_validated_there": values["not_cross_validated"][best],
            "most_components": ks[-1],
            "rate_with_most": values["cross_validated"][-1],
        },
        caption=(
            "Global doppelganger rate against the number of principal components. The gap between the curves with and "
            "without cross-validation is overfitting to the clusters. Bands: standard error over clusters." + note
        ),
    )


STUDY = Study(
    "dimensionality",
    "Rate against PCA dimensionality",
    "de Mijolla & Ness 2021, Figure 2",
    compute,
    {"components": 60, "stars": 4000, "n_features": "3,4"},
)
