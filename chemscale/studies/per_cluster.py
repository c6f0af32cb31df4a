"""Distances inside each cluster against distances to field stars (Figures 9 and 10, Appendix E)."""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist, pdist

from chemscale.errors import ChemscaleError
from chemscale.rsca.doppelganger import Evaluation
from chemscale.rsca.pairs import Candidates
from chemscale.studies import style
from chemscale.studies.elements import abundance_features, species
from chemscale.studies.registry import Study, StudyContext, StudyResult

#: Distances to field stars kept for a histogram.
_MAX_PAIRS = 200_000
_BINS = 24


def cluster_distances(
    evaluation: Evaluation, n_features: int | None
) -> dict[str, tuple[np.ndarray, np.ndarray, float]]:
    """For each cluster: sibling distances, distances to comparable field stars (a sample), and the rate."""
    maps = evaluation.matrices("rsca", n_features=n_features)
    rates = evaluation.rates(matrices=maps).per_cluster
    n = len(evaluation.field)
    candidates = Candidates(n, evaluation.covariates, evaluation.groups, evaluation.cuts)
    rng = np.random.default_rng(0)
    out = {}
    for j, name in enumerate(evaluation.names):
        members = evaluation.members[evaluation.groups[j]] @ maps[name]
        rows, allowed = candidates.rows[j], candidates.allowed[j]
        rows = np.arange(n) if isinstance(rows, slice) else rows
        most = max(1, _MAX_PAIRS // len(members))
        if len(rows) > most:
            pick = np.sort(rng.choice(len(rows), most, replace=False))
            rows, allowed = rows[pick], None if allowed is None else allowed[pick]
        d = cdist(np.asarray(evaluation.field[rows], float) @ maps[name], members)
        out[name] = (pdist(members), d[allowed] if allowed is not None else d.ravel(), rates[name])
    return out


def compute(context: StudyContext) -> StudyResult:
    """Histograms of both distances for every cluster, from spectra and from the abundance subset."""
    sample = context.sample
    n = context.settings["n_features"]
    n = min(int(n), sample.n_components) if n else None
    inputs = {"spectra": cluster_distances(sample.evaluation, n)}
    note = ""
    try:
        values = abundance_features(sample, species(sample, subset=True))
        inputs["abundances"] = cluster_distances(sample.evaluate(values), None)
        if lacking := int(np.sum(~np.isfinite(values).all(axis=1))):
            note = f" {lacking:,} stars lack one of the seven species and are in no panel of abundances."
    except ChemscaleError as err:
        note = f" Abundances are left out: {err.message}."
    names = sorted(inputs["spectra"], key=lambda c: -len(inputs["spectra"][c][0]))
    keys = ("input", "cluster", "rate", "median_distance", "bin_low", "bin_high", "siblings", "field")
    table: dict[str, list] = {k: [] for k in keys}
    columns = min(4, len(names)) if len(inputs) == 1 else 2
    rows = -(-len(names) // columns)
    fig, axes = style.figure("page", 0.125 * rows + 0.12, rows, columns * len(inputs), squeeze=False)
    for ax in axes.flat:
        ax.set_visible(False)
    for p, (name, clusters) in enumerate(inputs.items()):
        for i, c in enumerate(names):
            if c not in clusters:
                continue
            siblings, field, rate = clusters[c]
            ax = axes[i // columns, p * columns + i % columns]
            ax.set_visible(True)
            top = max(np.quantile(field, 0.95) if len(field) else 0, 1.2 * siblings.max())
            bins = np.linspace(0, top, _BINS + 1)
            counts = [np.histogram(v, bins)[0] / max(len(v), 1) for v in (siblings, field)]
            ax.stairs(counts[1], bins, color=style.CYCLE[2], fill=True, alpha=0.4, label="member and field star")
            ax.stairs(counts[0], bins, color=style.CYCLE[0], lw=1.1, label="siblings")
            ax.axvline(np.median(siblings), color="black", ls="--", lw=0.7)
            ax.set_yticks([])
            ax.set_xlim(0, top)
            ax.tick_params(labelsize=6)
            rate_text = f"{rate:.4f}" if np.isfinite(rate) else "no pairs"
            style.panel_letter(ax, f"{c}\n{rate_text}", where="upper right")
            for b in range(_BINS):
                cell = (name, c, rate, np.median(siblings), bins[b], bins[b + 1], counts[0][b], counts[1][b])
                for key, value in zip(table, cell, strict=True):
                    table[key].append(value)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=2)
    titles = {"spectra": "distance in RSCA features", "abundances": "distance in abundances"}
    sides = ("left: ", "right: ") if len(inputs) == 2 else ("",)
    fig.supxlabel("      ".join(side + titles[p] for side, p in zip(sides, inputs, strict=True)), fontsize=8)
    fig.supylabel("share of pairs per bin", fontsize=8)
    numbers: dict[str, float] = {"clusters": len(names)}
    for name, clusters in inputs.items():
        rates = np.array([v[2] for v in clusters.values()])
        good, after = rates[np.isfinite(rates)], "" if name == "spectra" else f"_{name}"
        numbers |= {f"{k}_cluster_rate{after}": float(f(good)) for k, f in (("median", np.median), ("worst", np.max))}
    return StudyResult(
        figure=fig,
        table=table,
        columns={
            "input": "spectra or abundances (7 species)",
            "cluster": "cluster",
            "rate": "doppelganger rate of the cluster, from a metric that has not seen it; empty without a pair",
            "median_distance": "median distance of its siblings: the threshold",
            "bin_low": "lower edge of the distance bin",
            "bin_high": "upper edge",
            "siblings": "share of sibling pairs in the bin",
            "field": "share of (member, comparable field star) pairs in the bin",
        },
        numbers=numbers,
        caption=(
            "For each cluster, distances between siblings (blue line) and between its members and field stars of like "
            "extinction and velocity (green); dashed: the median sibling distance. The number is the cluster's "
            "doppelganger rate, from a metric that has not seen the cluster." + note
        ),
    )


STUDY = Study(
    "per_cluster",
    "Every cluster against the field",
    "de Mijolla & Ness 2021, Figures 9 and 10",
    compute,
    {"n_features": 0},
)
