"""Raw, scaled and transformed distances on spectra, all abundances and the 7-species subset (Figure 4)."""

from __future__ import annotations

from typing import Any

import numpy as np

from chemscale.errors import ChemscaleError
from chemscale.rsca.registry import METRICS
from chemscale.rsca.uncertainty import bootstrap
from chemscale.studies import style
from chemscale.studies.elements import abundance_features, species
from chemscale.studies.registry import Study, StudyContext, StudyResult
from chemscale.studies.restarts import fitted_on, restarts


def compute(context: StudyContext) -> StudyResult:
    """Rates of every representation under every registered metric, each leave-one-cluster-out."""
    sample, settings = context.sample, context.settings
    tops = sorted({min(int(n), sample.n_components) for n in str(settings["n_features"]).split(",")})
    inputs = {"spectra": sample.evaluation}
    left_out = []
    for name, subset in (("all abundances", False), ("abundance subset", True)):
        try:
            inputs[name] = sample.evaluate(abundance_features(sample, species(sample, subset)))
        except ChemscaleError as err:
            left_out.append(f"{name}: {err.message}")
    rows = []
    for name, evaluation in inputs.items():
        for method in METRICS:
            rates = evaluation.rates(method)
            rows.append((name, method, evaluation.members.shape[1], rates.overall, *bootstrap(rates)))
        if name == "spectra":
            for n in tops:
                rates = evaluation.rates("rsca", n_features=n)
                rows.append((name, f"rsca top {n}", sample.n_components, rates.overall, *bootstrap(rates)))
    keys = ("input", "method", "dimensions", "rate", "rate_error", "rate_low", "rate_high")
    table: dict[str, list[Any]] = {key: [row[i] for row in rows] for i, key in enumerate(keys)}
    again, ended = _again(context, tops)
    n_stars = int(context.settings["restart_stars"])
    for i, key in enumerate(("restart_mean", "restart_scatter")):
        table[key] = [again[row[1]][i] if row[0] == "spectra" and again else np.nan for row in rows]

    fig, ax = style.figure(aspect=0.75)
    names = list(inputs)
    shown = [*METRICS, *(f"rsca top {n}" for n in tops)]
    for m, method in enumerate(shown):
        mine = [(names.index(r[0]), r[3], r[4]) for r in rows if r[1] == method]
        x, y, e = (np.array(v, float) for v in zip(*mine, strict=True))
        low = np.minimum(e, 0.9 * y)  # a logarithmic axis cannot show a bar that reaches zero
        label = METRICS[method].legend if method in METRICS else method.replace("rsca", "on transformed,")
        offset = 0.14 * (m - 2)
        if method in again:
            mean, scatter = again[method]
            ax.errorbar(offset + 0.05, mean, scatter, color="black", marker="_", capsize=1.5, ms=3, lw=0.8)
        ax.errorbar(x + offset, y, (low, e), ls="", marker=style.MARKERS[m], color=style.CYCLE[m], label=label, ms=5)
    ax.set_xticks(range(len(names)), names)
    ax.xaxis.minorticks_off()
    ax.set_xlim(-0.6, len(names) - 0.4)
    ax.set_ylabel("doppelganger rate")
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    ax.set_ylim(low, high * (high / low) ** 0.35)  # room for the legend
    style.rate_axis(ax.yaxis)
    ax.legend(ncols=2, loc="upper center", columnspacing=0.6, handletextpad=0.1, handlelength=1.6, borderpad=0.2)
    renamed = {"raw": "raw", "scaled": "scaled", "rsca": "transformed", "rsca_held_out": "held_out"}
    numbers = {f"{r[0]} {renamed.get(r[1], r[1].replace('rsca', 'transformed'))}".replace(" ", "_"): r[3] for r in rows}
    caption = (
        "Global doppelganger rates of three representations: distances on the representation as it is, after scaling "
        "each dimension, and after every step of RSCA; beside it RSCA with scales of held-out clusters. "
        "Bars: standard error over clusters."
    )
    if again:
        caption += f" Black, beside: mean and scatter of {settings['restarts']} bases refitted on random stars."
    if left_out:
        caption += " Left out: " + "; ".join(left_out) + "."
    return StudyResult(
        figure=fig,
        table=table,
        columns={
            "input": "representation the distance is measured on",
            "method": "raw, scaled (step 4 alone), rsca (steps 2-4) or rsca_held_out (scales of held-out clusters)",
            "dimensions": "dimensions of the representation",
            "rate": "global doppelganger rate, leave-one-cluster-out",
            "rate_error": "standard error, clusters drawn with replacement",
            "rate_low": "16th percentile",
            "rate_high": "84th percentile",
            "restart_mean": f"mean over bases refitted on {fitted_on(n_stars)} with other seeds (spectra only)",
            "restart_scatter": "standard deviation over those bases",
        },
        numbers=numbers,
        caption=caption,
        basis=ended,
    )


def _again(context: StudyContext, tops: list[int]) -> tuple[dict[str, tuple[float, float]], str]:
    """Mean and scatter of every method's rate over bases refitted with other seeds, and how their fits ended."""
    n = int(context.settings["restarts"])
    if not n:
        return {}, ""
    runs = restarts(context, n, int(context.settings["restart_stars"]), context.sample.n_components)
    options: dict[str, dict[str, Any]] = {method: {"method": method} for method in METRICS}
    options |= {f"rsca top {k}": {"method": "rsca", "n_features": k} for k in tops}
    out = {}
    for name, option in options.items():
        rates = [r.evaluation.rates(**option).overall for r in runs]
        out[name] = (float(np.mean(rates)), float(np.std(rates, ddof=1)) if n > 1 else np.nan)
    return out, f"{context.basis}; {sum(r.converged for r in runs)} of {n} restarts converged"


STUDY = Study(
    "ablation",
    "What each step brings, and abundances instead of spectra",
    "de Mijolla & Ness 2021, Figure 4",
    compute,
    {"n_features": "3,4", "restarts": 10, "restart_stars": 4000},
)
