"""Abundance baselines: every species, the 7-species subset, and a search for the best subset (section 4.5)."""

from __future__ import annotations

import warnings

import numpy as np

from chemscale.errors import ChemscaleError
from chemscale.rsca.doppelganger import Evaluation
from chemscale.rsca.metric import RSCA
from chemscale.rsca.moments import FieldMoments
from chemscale.rsca.uncertainty import bootstrap
from chemscale.studies import style
from chemscale.studies.elements import abundance_features, species
from chemscale.studies.registry import Study, StudyContext, StudyResult
from chemscale.studies.sample import Sample


def greedy(evaluation: Evaluation, train: np.ndarray, max_species: int) -> list[int]:
    """Species (columns) picked one by one for the lowest leave-one-cluster-out rate over the `train` clusters.

    Stops when no further species lowers the rate.
    """
    chosen: list[int] = []
    best = np.inf
    names = [evaluation.names[j] for j in train]
    while len(chosen) < max_species:
        options = [j for j in range(evaluation.members.shape[1]) if j not in chosen]
        if not options:
            break
        rates = [_rate(evaluation, [*chosen, j], names) for j in options]
        i = int(np.argmin(rates))
        if not rates[i] < best:
            break
        best = rates[i]
        chosen.append(options[i])
    return chosen


def _rate(evaluation: Evaluation, columns: list[int], names: list[str]) -> float:
    """Leave-one-cluster-out rate over `names`, trained on `names` alone, with RSCA on the chosen columns."""
    summary = evaluation.rates(matrices=_maps(evaluation, columns, names, names))
    return summary.overall


def _maps(evaluation: Evaluation, columns: list[int], train: list[str], rated: list[str]) -> dict[str, np.ndarray]:
    """Linear maps from all columns, using `columns` only, for each rated cluster, trained without it."""
    moments, d = evaluation.moments, evaluation.members.shape[1]
    chosen = FieldMoments(moments.n, moments.mean[columns], moments.covariance[np.ix_(columns, columns)])
    maps = {}
    for cluster in rated:
        use = np.isin(evaluation.clusters, [c for c in train if c != cluster])
        matrix = np.zeros((d, len(columns)))
        fitted = RSCA().fit(chosen, evaluation.members[use][:, columns], evaluation.clusters[use])
        matrix[columns] = fitted.matrix()
        maps[cluster] = matrix
    return maps


def _thin(sample: Sample, values: np.ndarray, max_field: int) -> Evaluation:
    rows = np.arange(sample.n_field)
    if sample.n_field > max_field:
        rows = np.linspace(0, sample.n_field - 1, max_field).astype(np.int64)
    keep = np.zeros(len(values), bool)
    keep[rows] = keep[sample.n_field :] = True
    return sample.evaluate(np.where(keep[:, None], values, np.nan))


def compute(context: StudyContext) -> StudyResult:
    """Rates of the baselines and of a nested search: each cluster is rated by species chosen without it."""
    sample, settings = context.sample, context.settings
    everything = species(sample)
    rows: list[tuple[str, str, int, float, float, float, float]] = []

    def add(
        name: str, chosen: list[str], evaluation: Evaluation, matrices: dict[str, np.ndarray] | None = None
    ) -> None:
        rates = evaluation.rates("rsca", matrices=matrices)
        rows.append((name, " ".join(chosen), len(chosen), rates.overall, *bootstrap(rates)))

    add("every species", everything, sample.evaluate(abundance_features(sample, everything, relative=False)))
    note = ""
    try:
        subset = species(sample, subset=True)
        add("paper's seven", subset, sample.evaluate(abundance_features(sample, subset)))
    except ChemscaleError as err:
        note = f" The 7-species subset is left out: {err.message}."
    relative = abundance_features(sample, everything, relative="Fe" in everything)
    search = _thin(sample, relative, int(settings["max_field"]))
    every = list(range(len(search.names)))
    limit = int(settings["max_species"])
    maps: dict[str, np.ndarray] = {}
    counts = np.zeros(len(everything))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # clusters without pairs inside the cuts are named once, by the baselines
        folds = np.array_split(np.random.default_rng(0).permutation(every), min(int(settings["folds"]), len(every)))
        for fold in folds:  # nested: the species that rate a cluster are chosen without it
            chosen = greedy(search, np.setdiff1d(every, fold), limit)
            counts[chosen] += 1
            maps |= _maps(search, chosen, search.names, [search.names[j] for j in fold])
        final = greedy(search, np.array(every), limit)
    found = [everything[j] for j in final]
    rates = search.rates(matrices=maps)
    rows.append(("search, nested", " ".join(found), len(found), rates.overall, *bootstrap(rates)))
    optimistic = _rate(search, final, search.names)
    keys = ("baseline", "species", "n_species", "rate", "rate_error", "rate_low", "rate_high")
    table = {key: [r[i] for r in rows] for i, key in enumerate(keys)}

    fig, axes = style.figure("page", 0.34, 1, 2, width_ratios=(1, 1.7))
    x = np.arange(len(rows))
    y, e = np.array(table["rate"]), np.array(table["rate_error"])
    axes[0].errorbar(x, y, (np.minimum(e, 0.9 * y), e), ls="", marker="o", color=style.CYCLE[0], ms=5)
    axes[0].set_xticks(x, [r[0].replace(", ", "\n").replace(" ", "\n", 1) for r in rows])
    axes[0].xaxis.minorticks_off()
    axes[0].set_xlim(-0.6, len(rows) - 0.4)
    axes[0].set_ylabel("doppelganger rate")
    order = np.argsort(-counts, kind="stable")
    axes[1].bar(range(len(order)), 100 * counts[order] / len(folds), color=style.CYCLE[0])
    axes[1].set_xticks(range(len(order)), [style.plain(everything[j]) for j in order], rotation=60)
    axes[1].xaxis.minorticks_off()
    axes[1].set_ylabel("chosen in the folds (%)")
    return StudyResult(
        figure=fig,
        table=table,
        columns={
            "baseline": "set of species",
            "species": "species, [X/H] for every species, otherwise [X/Fe] and [Fe/H]",
            "n_species": "how many",
            "rate": "global doppelganger rate of RSCA on the abundances, leave-one-cluster-out",
            "rate_error": "standard error, clusters drawn with replacement",
            "rate_low": "16th percentile",
            "rate_high": "84th percentile",
        },
        numbers={
            **{r[0].replace(",", "").replace(" ", "_").replace("'", ""): r[3] for r in rows},
            "found": " ".join(found),
            "rate_of_found_not_nested": optimistic,
        },
        caption=(
            "RSCA on abundances. The search adds species while the rate falls; each cluster is rated by species chosen "
            f"without it, in {len(folds)} folds. Right: in how many folds a species is chosen." + note
        ),
    )


STUDY = Study(
    "abundances",
    "Abundance baselines and the best subset of species",
    "de Mijolla & Ness 2021, section 4.5",
    compute,
    {"folds": 5, "max_field": 10000, "max_species": 8},
)
