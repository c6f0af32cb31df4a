"""Doppelganger rate against the number of clusters the metric is trained on (Figure 5)."""

from __future__ import annotations

import numpy as np

from chemscale.errors import DataError
from chemscale.rsca.doppelganger import Evaluation
from chemscale.rsca.metric import RSCA
from chemscale.studies import style
from chemscale.studies.registry import Study, StudyContext, StudyResult


def thin(context: StudyContext, max_field: int) -> Evaluation:
    """The evaluation on at most `max_field` evenly spaced field stars (moments of those stars)."""
    sample = context.sample
    if sample.n_field <= max_field:
        return sample.evaluation
    rows = np.linspace(0, sample.n_field - 1, max_field).astype(np.int64)
    return Evaluation(sample.coords[rows], sample.coords[sample.n_field :], sample.clusters, sample.covariates.at(rows))


def held_out_rate(evaluation: Evaluation, chosen: np.ndarray, k: int) -> float:
    """Global rate of the clusters not in `chosen` under a metric trained on `chosen`; NaN where it cannot be fitted.

    A metric on k components needs at least k degrees of freedom inside the training clusters.
    """
    train = np.isin(evaluation.clusters, [evaluation.names[j] for j in chosen])
    if train.sum() - len(chosen) < k:
        return np.nan
    matrix = evaluation.fit(RSCA, k=k, train=train).matrix()
    others = [c for j, c in enumerate(evaluation.names) if j not in set(chosen.tolist())]
    try:
        return evaluation.rates(k=k, matrices=dict.fromkeys(others, matrix)).overall
    except DataError:  # no pair of the clusters left passes the cuts
        return np.nan


def compute(context: StudyContext) -> StudyResult:
    """Random subsets of 1 .. N-1 clusters for several K."""
    settings = context.settings
    evaluation = thin(context, int(settings["max_field"]))
    n_clusters, repeats = len(evaluation.names), int(settings["repeats"])
    if n_clusters < 3:
        raise DataError(f"{n_clusters} clusters", "the study needs at least three")
    wanted = settings["components"]
    wanted = [int(k) for k in (wanted if isinstance(wanted, list | tuple) else str(wanted).split(","))]
    ks = [k for k in wanted if k <= context.sample.n_components] or [context.sample.n_components]
    rng = np.random.default_rng(int(settings["seed"]))
    sizes = np.arange(1, n_clusters)
    subsets = {n: [rng.choice(n_clusters, n, replace=False) for _ in range(repeats)] for n in sizes}
    rows = []
    for k in ks:
        for n in sizes:
            rates = np.array([held_out_rate(evaluation, chosen, k) for chosen in subsets[n]])
            good = rates[np.isfinite(rates)]
            if len(good) >= max(2, repeats // 2):  # fewer would be a choice of the richest subsets
                rows.append((k, n, good.mean(), good.std(ddof=1), good.std(ddof=1) / np.sqrt(len(good)), len(good)))
    if not rows:
        raise DataError("no subset of clusters has enough members to fit a metric", "lower dataset_size.components")
    keys = ("components", "clusters", "rate", "scatter", "rate_error", "n_subsets")
    table = {key: np.array([r[i] for r in rows]) for i, key in enumerate(keys)}
    fig, ax = style.figure(aspect=0.78)
    for i, k in enumerate(ks):
        mine = table["components"] == k
        x, y, e = (table[key][mine] for key in ("clusters", "rate", "rate_error"))
        look = {"color": style.CYCLE[i], "marker": style.MARKERS[i], "ls": style.DASHES[i]}
        ax.plot(x, y, label=f"K = {k}", **look)
        ax.fill_between(x, np.maximum(y - e, 1e-5), y + e, color=style.CYCLE[i], alpha=0.2, lw=0)
    style.rate_axis(ax.yaxis)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_xlabel("clusters the metric is trained on")
    ax.set_ylabel("doppelganger rate of the others")
    ax.legend()
    last = {k: float(table["rate"][table["components"] == k][-1]) for k in ks if (table["components"] == k).any()}
    return StudyResult(
        figure=fig,
        table=table,
        columns={
            "components": "PPCA components K",
            "clusters": "clusters in the training subset",
            "rate": "mean over subsets of the global rate of the clusters left out",
            "scatter": "standard deviation over subsets (clusters rated differ too)",
            "rate_error": "standard error of the mean over subsets",
            "n_subsets": "random subsets that could be fitted (K degrees of freedom or more)",
        },
        numbers={f"rate_K{k}_with_{n_clusters - 1}_clusters": v for k, v in last.items()},
        caption=(
            f"Rate of clusters the metric has not seen, against the number of clusters it was trained on ({repeats} "
            "random subsets each). A curve starts where subsets hold at least K degrees of freedom. "
            "Bands: standard error of the mean over subsets."
        ),
    )


STUDY = Study(
    "dataset_size",
    "What more clusters would bring",
    "de Mijolla & Ness 2021, Figure 5",
    compute,
    {"components": "10,20,30,50", "repeats": 50, "max_field": 30000, "seed": 0},
)
