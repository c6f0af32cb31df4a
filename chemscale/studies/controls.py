"""Controls: clusters that are none, and the velocity and extinction carried by each feature."""

from __future__ import annotations

import numpy as np

from chemscale.rsca.auto_run import fit_auto
from chemscale.rsca.doppelganger import Evaluation
from chemscale.rsca.pairs import PairCovariates
from chemscale.rsca.stars import RunStars
from chemscale.runtime.run import Run
from chemscale.studies import style
from chemscale.studies.dataset_size import thin
from chemscale.studies.features import correlation
from chemscale.studies.registry import Study, StudyContext, StudyResult

#: Field stars the better metric's control is made on, at most: it searches anew each time.
_AUTO_FIELD = 12_000


def shuffled(evaluation: Evaluation, n_features: int, seed: int, strangers: bool = False) -> float:
    """Global rate of clusters that are none.

    With `strangers`, random field stars are dealt into clusters of the same sizes: they are exchangeable with the stars
    they are compared with, so the rate is one half unless the evaluation itself favours siblings. That is the control.

    Otherwise the members are dealt to the clusters anew. They are no such null: stars of open clusters span less of
    chemistry than the field does, so two random members are nearer to each other than to a field star, and the rate
    stays below one half however honest the evaluation is.
    """
    rng = np.random.default_rng(seed)
    names = rng.permutation(evaluation.clusters)
    if not strangers:
        again = Evaluation(evaluation.field, evaluation.members, names, evaluation.covariates, evaluation.cuts)
        return again.rates("rsca", n_features=n_features).overall
    rows = rng.choice(len(evaluation.field), len(names), replace=False)
    rest = np.delete(np.arange(len(evaluation.field)), rows)
    given = evaluation.covariates
    covariates = PairCovariates(
        *(None if v is None else v[r] for v in (given.field_velocity, given.field_extinction) for r in (rest, rows))
    )
    again = Evaluation(evaluation.field[rest], evaluation.field[rows], names, covariates, evaluation.cuts)
    return again.rates("rsca", n_features=n_features).overall


def strangers_auto(run: Run, max_field: int, seed: int) -> float:
    """Rate of the better metric, its whole search included, on random field stars dealt into clusters."""
    stars = RunStars.read(run, "embedding_auto.zarr", max_field=max_field)
    rng = np.random.default_rng(seed)
    chosen = np.zeros(len(stars.field_rows), bool)
    chosen[rng.choice(len(chosen), len(stars.member_rows), replace=False)] = True
    control = RunStars(
        stars.embedding,
        stars.field_rows[~chosen],
        stars.field_rows[chosen],
        stars.field[~chosen],
        stars.field[chosen],
        rng.permutation(stars.clusters),
        stars.n_field_total,
        stars.store,
    )
    return fit_auto(run, control)[0].rates.overall


def compute(context: StudyContext) -> StudyResult:
    """Rates of clusters that are none, and correlations of the kept features with velocity and extinction."""
    sample, settings = context.sample, context.settings
    n = min(int(settings["n_features"]), sample.n_components)
    evaluation = thin(context, int(settings["max_field"]))
    rates = [shuffled(evaluation, n, seed) for seed in range(int(settings["repeats"]))]
    strangers = [shuffled(evaluation, n, seed, strangers=True) for seed in range(int(settings["repeats"]))]
    true = evaluation.rates("rsca", n_features=n).overall
    auto = []
    if context.run.has("auto.json"):
        auto = [strangers_auto(context.run, _AUTO_FIELD, seed) for seed in range(int(settings["auto_repeats"]))]
    z = np.asarray(sample.evaluation.fit("rsca").transform(sample.coords[: sample.n_field].astype(float)))
    covariates = [c for c in ("radial_velocity", "extinction", "snr", "teff", "logg") if c in sample.labels]
    rows = []
    for name in covariates:
        for f in range(z.shape[1]):
            r, e, _ = correlation(z[:, f], sample.field(name))
            rows.append(("correlation", name, f + 1, r, e))
    rows += [("shuffled_members_rate", "", i, r, np.nan) for i, r in enumerate(rates)]
    rows += [("control_rate", "", i, r, np.nan) for i, r in enumerate(strangers)]
    rows += [("control_rate_auto", "", i, r, np.nan) for i, r in enumerate(auto)]
    fig, axes = style.figure("page", 0.36, 1, 2)
    axes[0].hist(rates, np.linspace(0, 1, 41), color=style.CYCLE[5], edgecolor="white", label="members dealt anew")
    axes[0].hist(
        strangers, np.linspace(0, 1, 41), color=style.CYCLE[0], histtype="step", label="control: random field stars"
    )
    for i, rate in enumerate(auto):
        label = "control of the metric chosen by search" if not i else None
        axes[0].plot(rate, 0.5, ls="", marker="D", color=style.CYCLE[3], label=label)
    axes[0].axvline(true, color=style.CYCLE[1], ls="--", label="true clusters")
    axes[0].set_xlabel("doppelganger rate")
    axes[0].axvline(0.5, color="black", lw=0.6, ls=":")
    axes[0].set_ylabel("draws")
    axes[0].set_xlim(0, max(1.0, max(rates)))
    axes[0].set_ylim(0, 1.6 * axes[0].get_ylim()[1])  # room for the legend
    axes[0].legend(loc="upper right")
    for i, name in enumerate(covariates):
        values = [row[3] for row in rows if row[1] == name]
        look = {"color": style.CYCLE[i], "marker": style.MARKERS[i], "ls": style.DASHES[i]}
        axes[1].plot(range(1, len(values) + 1), np.abs(values), label=name.replace("_", " "), **look)
    axes[1].axhline(0.1, color="black", lw=0.6, ls=":")
    axes[1].set_xlabel("RSCA feature")
    axes[1].set_ylabel("|correlation| over field stars")
    axes[1].set_ylim(0, 1.35 * axes[1].get_ylim()[1])
    axes[1].legend(loc="upper right", ncols=2)
    numbers = {"control_rate": float(np.mean(strangers)), "control_rate_scatter": float(np.std(strangers))}
    numbers |= {"true_rate": true, "shuffled_members_rate": float(np.mean(rates))}
    numbers["shuffled_members_rate_scatter"] = float(np.std(rates))
    if auto:
        numbers["control_rate_auto"] = float(np.mean(auto))
    for name in ("radial_velocity", "extinction"):
        if name in covariates:
            numbers[f"largest_correlation_with_{name}"] = float(
                np.nanmax([abs(r[3]) for r in rows if r[1] == name and r[2] <= n])
            )
    return StudyResult(
        figure=fig,
        table={key: [r[i] for r in rows] for i, key in enumerate(("what", "label", "number", "value", "error"))},
        columns={
            "what": "correlation with a label, or rate: random field stars (control), members dealt anew",
            "label": "survey label",
            "number": "feature (1 = most scaled) or draw",
            "value": "correlation or rate",
            "error": "standard error of a correlation",
        },
        numbers=numbers,
        caption=(
            f"Left: rates of clusters that are none (top {n} features). Random field stars in the members' places are "
            "exchangeable with the field, so an evaluation without a leak rates them 0.5 (dotted). Members dealt anew "
            "stay below: cluster stars span less of chemistry than the field. Right: how much of each label the "
            "features carry; the dotted line is 0.1."
        ),
    )


STUDY = Study(
    "controls",
    "Controls: clusters that are none, and leaks",
    "chemscale",
    compute,
    {"n_features": 3, "repeats": 20, "max_field": 30000, "auto_repeats": 2},
)
