"""Doppelganger rate when only the N most scaled features are kept (Table 1)."""

from __future__ import annotations

from typing import Any

import numpy as np

from chemscale.rsca.uncertainty import bootstrap
from chemscale.studies import style
from chemscale.studies.registry import Study, StudyContext, StudyResult
from chemscale.studies.restarts import fitted_on, restarts


def compute(context: StudyContext) -> StudyResult:
    """Rates for 1, 2, ... features; with restarts of the basis where `restarts` > 0."""
    sample = context.sample
    k = sample.n_components
    kept = [*range(1, min(10, k) + 1), *(n for n in (12, 15, 20, 25) if n < k)]
    kept += [k] if k not in kept else []
    rates = [sample.evaluation.rates("rsca", n_features=n) for n in kept]
    values = np.array([r.overall for r in rates])
    errors = np.array([bootstrap(r)[0] for r in rates])
    table: dict[str, Any] = {"kept": kept, "rate": values, "rate_error": errors}
    columns = {
        "kept": "features kept, most scaled first",
        "rate": "global doppelganger rate, leave-one-cluster-out",
        "rate_error": "standard error, clusters drawn with replacement",
    }
    n_restarts = int(context.settings["restarts"])
    if n_restarts:
        n_stars = int(context.settings["restart_stars"])
        runs = restarts(context, n_restarts, n_stars, k)
        again = np.array([[r.evaluation.rates("rsca", n_features=min(n, k)).overall for n in kept] for r in runs])
        table |= {"restart_mean": again.mean(0), "restart_scatter": again.std(0, ddof=1)}
        columns |= {
            "restart_mean": f"mean over {n_restarts} bases refitted on {fitted_on(n_stars)} with other seeds",
            "restart_scatter": "standard deviation over those bases",
        }
    fig, ax = style.figure(aspect=0.72)
    low = np.minimum(errors, 0.9 * values)
    x = np.arange(len(kept))
    ax.errorbar(x, values, (low, errors), marker="o", color=style.CYCLE[0], label="this run's basis", capsize=1.5)
    if n_restarts:
        ax.errorbar(
            x + 0.15,
            table["restart_mean"],
            np.minimum(table["restart_scatter"], 0.9 * np.asarray(table["restart_mean"])),
            ls="",
            marker="s",
            color=style.CYCLE[1],
            label=f"{n_restarts} restarts (scatter)",
            capsize=1.5,
        )
        ax.legend()
    ax.set_xticks(x, [str(n) for n in kept])
    ax.xaxis.minorticks_off()
    style.rate_axis(ax.yaxis)
    ax.set_xlabel("features kept")
    ax.set_ylabel("doppelganger rate")
    best = int(np.argmin(values))
    numbers = {"best_kept": kept[best], "best_rate": float(values[best]), "best_rate_error": float(errors[best])}
    numbers |= {f"rate_with_{n}": float(values[kept.index(n)]) for n in (1, 2, 3, 4, k) if n in kept}
    ended = ""
    if n_restarts:
        numbers |= {"restarts": n_restarts, "restarts_converged": sum(r.converged for r in runs)}
        ended = f"{context.basis}; {numbers['restarts_converged']} of {n_restarts} restarts converged"
    return StudyResult(
        figure=fig,
        basis=ended,
        table=table,
        columns=columns,
        numbers=numbers,
        caption=(
            "Global doppelganger rate when all but the N most scaled features are discarded: where the curve flattens, "
            "further features add little about birth siblings. Bars: standard error over clusters"
            + (", and scatter between restarts of the basis." if n_restarts else ".")
        ),
    )


STUDY = Study(
    "kept_dimensions",
    "How many features carry the information",
    "de Mijolla & Ness 2021, Table 1",
    compute,
    {"restarts": 10, "restart_stars": 4000},
)
