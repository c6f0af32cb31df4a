"""Siblings observed together or apart: does the metric see the night rather than the star? (Figure 8, Appendix C)."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from chemscale.errors import ChemscaleError, DataError
from chemscale.rsca.doppelganger import Evaluation
from chemscale.studies import style
from chemscale.studies.elements import abundance_features, species
from chemscale.studies.registry import Study, StudyContext, StudyResult


def visit_dates(text: str) -> frozenset[str]:
    """Dates of a star's visits.

    A visit is written ``apred-plate-mjd-fiber`` (APOGEE), of which plate and date tell who was observed together; any
    other text counts as a date or plate itself.
    """
    dates = set()
    for visit in str(text).split(","):
        parts = visit.strip().split("-")
        if len(parts) >= 4:
            dates.add("-".join(parts[-3:-1]))
        elif visit.strip():
            dates.add(visit.strip())
    return frozenset(dates)


def pair_kinds(visits: list[frozenset[str]], clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of siblings and whether they were observed together (1), apart (0) or partly together (-1).

    Returns
    -------
    (first, second, kind) : integer arrays
    """
    first, second, kind = [], [], []
    for cluster in np.unique(clusters):
        for a, b in combinations(np.flatnonzero(clusters == cluster), 2):
            if visits[a] and visits[b]:
                first.append(a)
                second.append(b)
                kind.append(1 if visits[a] == visits[b] else -1 if visits[a] & visits[b] else 0)
    return np.array(first, int), np.array(second, int), np.array(kind, int)


def distances(evaluation: Evaluation, first: np.ndarray, second: np.ndarray, n_features: int | None) -> np.ndarray:
    """Distances of the pairs, each under the metric fitted without the pair's cluster."""
    maps = evaluation.matrices("rsca", n_features=n_features)
    out = np.empty(len(first))
    for cluster, matrix in maps.items():
        mine = evaluation.clusters[first] == cluster
        out[mine] = np.linalg.norm(
            (evaluation.members[first[mine]] - evaluation.members[second[mine]]) @ matrix, axis=1
        )
    return out


def difference(
    values: np.ndarray, together: np.ndarray, clusters: np.ndarray, draws: int, seed: int
) -> dict[str, float]:
    """Median distance apart less together, in units of the median; error and p-value by cluster.

    The error draws clusters with replacement. The p-value permutes the labels together/apart within clusters, so
    that a cluster observed in one night cannot by itself look like an effect.
    """
    rng = np.random.default_rng(seed)
    names = np.unique(clusters)
    rows = {c: np.flatnonzero(clusters == c) for c in names}

    def statistic(v: np.ndarray, t: np.ndarray) -> float:
        if not t.any() or t.all():
            return np.nan
        return float((np.median(v[~t]) - np.median(v[t])) / np.median(v))

    observed = statistic(values, together)
    boot = []
    for _ in range(draws):
        pick = np.concatenate([rows[c] for c in rng.choice(names, len(names))])
        boot.append(statistic(values[pick], together[pick]))
    shuffled = []
    for _ in range(draws):
        label = together.copy()
        for r in rows.values():
            label[r] = rng.permutation(label[r])
        shuffled.append(statistic(values, label))
    null = np.array(shuffled)
    p = float((1 + np.sum(np.abs(null - np.nanmean(null)) >= abs(observed - np.nanmean(null)))) / (1 + draws))
    return {"difference": observed, "difference_error": float(np.nanstd(boot, ddof=1)), "p_value": p}


def compute(context: StudyContext) -> StudyResult:
    """Distances of sibling pairs observed together and apart, from spectra and from abundances."""
    sample, settings = context.sample, context.settings
    if sample.visits is None or not np.any(sample.visits[sample.n_field :] != ""):
        raise DataError("the members have no visit dates", "ingest a survey with a `visits` variable")
    keep = sample.n_components
    inputs = {"spectra": (sample.evaluation, min(int(settings["n_features"]), keep))}
    note = ""
    try:
        subset = species(sample, subset=True)
        evaluation = sample.evaluate(abundance_features(sample, subset))
        if len(evaluation.members) != len(sample.evaluation.members):
            raise DataError("some members lack abundances", "")
        inputs["abundances"] = (evaluation, len(subset))
    except ChemscaleError as err:
        note = f" Abundances are left out: {err.message}."
    visits = [visit_dates(v) for v in sample.visits[sample.n_field :]]
    clusters = sample.evaluation.clusters
    first, second, kind = pair_kinds(visits, clusters)
    counted = kind >= 0
    if not (kind == 1).any() or not (kind == 0).any():
        raise DataError(
            f"{int(np.sum(kind == 1))} sibling pairs were observed together and {int(np.sum(kind == 0))} apart",
            "the study needs both kinds",
        )
    first, second, together = first[counted], second[counted], kind[counted] == 1
    rows: dict[str, list] = {k: [] for k in ("input", "cluster", "star_1", "star_2", "together", "distance")}
    ids = sample.star_id[sample.n_field :]
    fig, axes = style.figure("page", 0.36, 1, len(inputs), squeeze=False)
    numbers: dict[str, float] = {"pairs_together": int(together.sum()), "pairs_apart": int((~together).sum())}
    numbers["pairs_partly_together_left_out"] = int(np.sum(kind == -1))
    for ax, (name, (evaluation, n)) in zip(axes[0], inputs.items(), strict=True):
        d = distances(evaluation, first, second, n)
        result = difference(d, together, clusters[first], int(settings["draws"]), int(settings["seed"]))
        numbers |= {f"{name}_{k}": v for k, v in result.items()}
        bins = np.linspace(0, np.quantile(d, 0.98), 26)
        for chosen, label, colour, hatch in ((together, "together", 0, ""), (~together, "apart", 1, "////")):
            look = {"color": style.CYCLE[colour], "histtype": "step", "hatch": hatch, "density": True}
            ax.hist(d[chosen], bins, label=f"observed {label} ({chosen.sum():,} pairs)", lw=1.2, **look)
            ax.axvline(np.median(d[chosen]), color=style.CYCLE[colour], ls=style.DASHES[colour + 1], lw=0.9)
        ax.set_xlabel(f"distance between siblings, {name}")
        ax.set_ylabel("density")
        ax.set_ylim(top=1.3 * ax.get_ylim()[1])
        ax.legend()
        columns = (name, clusters[first], ids[first], ids[second], together.astype(int), d)
        for key, value in zip(rows, columns, strict=True):
            rows[key] += [value] * len(d) if isinstance(value, str) else list(value)
    return StudyResult(
        figure=fig,
        table=rows,
        columns={
            "input": "spectra (RSCA features) or abundances (7 species)",
            "cluster": "cluster of the pair",
            "star_1": "first star",
            "star_2": "second star",
            "together": "1 = same visits, 0 = no visit in common",
            "distance": "distance under the metric fitted without the pair's cluster",
        },
        numbers=numbers,
        caption=(
            "Distances of sibling pairs observed together and apart; dashed lines are medians. Pairs whose visits "
            "overlap in part are left out. If spectra showed a larger difference than abundances, the metric would "
            "be reading instrument rather than chemistry. `difference` is in units of the median distance." + note
        ),
    )


STUDY = Study(
    "together",
    "Siblings observed together and apart",
    "de Mijolla & Ness 2021, Figure 8 (Appendix C)",
    compute,
    {"n_features": 30, "draws": 500, "seed": 0},
)
