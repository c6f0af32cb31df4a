"""Doppelganger rate against the number of clusters the metric is trained on (Figure 5)."""

from __future__ import annotations

import numpy as np

from chemscale.errors import DataError
from chemscale.rsca.doppelganger import Evaluation
from chemscale.rsca.metric import RSCA
from chemscale.studies import style
from chemscale.studies.registry import Study, StudyContext, StudyResult
from chemscale.studies.restarts import wide


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


def own_rate(evaluation: Evaluation, chosen: np.ndarray, k: int) -> float:
    """Global rate of the clusters in `chosen`, each under a metric trained on the others of them (the paper's curve).

    NaN where one of these metrics has fewer than k degrees of freedom.
    """
    names = [evaluation.names[j] for j in chosen]
    inside = np.isin(evaluation.clusters, names)
    matrices = {}
    for name in names:
        train = inside & (evaluation.clusters != name)
        if train.sum() - (len(names) - 1) < k:
            return np.nan
        matrices[name] = evaluation.fit(RSCA, k=k, train=train).matrix()
    try:
        return evaluation.rates(k=k, matrices=matrices).overall
    except DataError:  # no pair of these clusters passes the cuts
        return np.nan


#: The two curves: which clusters a metric that a subset trained is rated on.
CURVES = {
    "own": (own_rate, "the subset's own, each left out in turn"),
    "others": (held_out_rate, "those outside the subset"),
}


def compute(context: StudyContext) -> StudyResult:
    """Random subsets of 1 .. N clusters for several K, rated on their own clusters and on the others."""
    settings = context.settings
    wanted = settings["components"]
    wanted = [int(k) for k in (wanted if isinstance(wanted, list | tuple) else str(wanted).split(","))]
    evaluation, note = wide(context, max(wanted), int(settings["stars"]))
    if evaluation is context.sample.evaluation:
        evaluation = thin(context, int(settings["max_field"]))
    n_clusters, repeats = len(evaluation.names), int(settings["repeats"])
    if n_clusters < 3:
        raise DataError(f"{n_clusters} clusters", "the study needs at least three")
    have = evaluation.members.shape[1]
    ks = [k for k in wanted if k <= have] or [have]
    rng = np.random.default_rng(int(settings["seed"]))
    sizes = np.arange(1, n_clusters)
    subsets = {n: [rng.choice(n_clusters, n, replace=False) for _ in range(repeats)] for n in sizes}
    rows = []
    for curve, (rate, _) in CURVES.items():
        for k in ks:
            for n in (*sizes, n_clusters) if curve == "own" else sizes:
                drawn = subsets[n] if n < n_clusters else [np.arange(n_clusters)]
                rates = np.array([rate(evaluation, chosen, k) for chosen in drawn])
                good = rates[np.isfinite(rates)]
                mean = good.mean() if len(good) else np.nan
                scatter = good.std(ddof=1) if len(good) > 1 else np.nan
                rows.append((curve, k, n, mean, scatter, scatter / np.sqrt(max(len(good), 1)), len(good), len(drawn)))
    keys = ("curve", "components", "clusters", "rate", "scatter", "rate_error", "n_subsets", "n_drawn")
    table = {key: np.array([r[i] for r in rows]) for i, key in enumerate(keys)}
    if not np.isfinite(table["rate"]).any():
        raise DataError("no subset of clusters has enough members to fit a metric", "lower dataset_size.components")
    fig, axes = style.figure("page", 0.42, 1, 2, sharey=True)
    for ax, (curve, (_, what)) in zip(axes, CURVES.items(), strict=True):
        for i, k in enumerate(ks):
            mine = (table["curve"] == curve) & (table["components"] == k) & (table["n_subsets"] >= 1)
            x, y, e = (table[key][mine] for key in ("clusters", "rate", "rate_error"))
            look = {"color": style.CYCLE[i], "marker": style.MARKERS[i], "ls": style.DASHES[i]}
            ax.plot(x, y, label=f"K = {k}", **look)
            e = np.nan_to_num(e)
            ax.fill_between(x, np.maximum(y - e, 1e-5), y + e, color=style.CYCLE[i], alpha=0.2, lw=0)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set_xlabel("clusters in the subset")
        ax.set_title(f"rated: {what}")
    style.rate_axis(axes[0].yaxis)
    axes[0].set_ylabel("doppelganger rate")
    axes[0].legend()
    numbers: dict[str, float] = {}
    for k in ks:
        for curve, n in (("own", n_clusters), ("others", n_clusters - 1)):
            row = (table["curve"] == curve) & (table["components"] == k) & (table["clusters"] == n)
            numbers[f"rate_K{k}_{curve}_with_{n}_clusters"] = float(table["rate"][row][0])
    return StudyResult(
        figure=fig,
        table=table,
        columns={
            "curve": "own: the subset's clusters, each rated by the others of it (the paper); others: those outside",
            "components": "PPCA components K",
            "clusters": "clusters in the subset",
            "rate": "mean over subsets of the global rate; empty where no subset could be fitted",
            "scatter": "standard deviation over subsets (clusters rated differ too)",
            "rate_error": "standard error of the mean over subsets",
            "n_subsets": "random subsets that could be fitted (K degrees of freedom or more)",
            "n_drawn": "random subsets drawn",
        },
        numbers=numbers,
        caption=(
            f"Rates against the number of clusters in random subsets ({repeats} of each size). Left, as in the paper: "
            "the subset's own clusters, each under a metric trained on the others of it. Right: clusters outside the "
            "subset. Subsets with fewer than K degrees of freedom cannot be fitted; the table counts them. "
            "Bands: standard error of the mean over subsets." + note
        ),
    )


STUDY = Study(
    "dataset_size",
    "What more clusters would bring",
    "de Mijolla & Ness 2021, Figure 5",
    compute,
    {"components": "10,20,30,50,60", "stars": 4000, "repeats": 50, "max_field": 10_000, "seed": 0},
)
