"""A non-linear metric on top of `--metric auto`: a contrastive map with few parameters, judged against `auto` itself.

For every cluster the committee of `auto` is chosen without it, and its eight leading features f are mapped to
``f + R f + Q q(f)``, with q(f) the ten products of the four leading ones. R and Q (144 numbers) minimise a
neighbourhood-component loss over the other clusters' members: siblings against 200 field stars of like temperature and
gravity (random ones without labels), pulled to zero by `--penalty` times their squares. `linear` has R alone;
`ensemble` stacks maps of both penalties and four draws of half of the clusters,
`linear ensemble` the same with R alone; `nearest` (:mod:`chemscale.rsca.contrastive`) has R alone, against the
200 nearest field stars. Rates are of the cluster left out:

    python benchmarks/contrastive.py --emulator hband_emulator.npz --worlds isochrone tilted --seeds 31

With ``--run RUN`` the stars are those of a run of ``rsca fit --metric auto`` (:mod:`repeats` leaves two).
Writes ``benchmarks/results/contrastive.json``: one record a survey and choice of labels.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from blind import HIDDEN, hide
from metric_small import survey
from scipy.optimize import minimize
from worlds import WORLDS

from chemscale.rsca.auto import COMMITTEE, Search, default_ks
from chemscale.rsca.auto_run import AUTO_FIELD, auto_representations, run_continuum
from chemscale.rsca.committee import committee_map
from chemscale.rsca.contrastive import refine
from chemscale.rsca.pairs import count_close, median_pair_distance
from chemscale.rsca.rates import DoppelgangerRates
from chemscale.rsca.representation import Representation
from chemscale.rsca.stars import RunStars
from chemscale.rsca.uncertainty import paired
from chemscale.runtime.run import Run

RESULTS = Path(__file__).parent / "results" / "contrastive.json"
FEATURES, CURVED, NEGATIVES, DRAWS = 8, 4, 200, 4
#: Field stars count for so many of their like: the negatives are a sample.
NEGATIVE_WEIGHT = 10.0
PENALTIES = (0.1, 1.0)


def expanded(f: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Features (n, 8) with the products of the four leading ones, in the leading one's scale: (n, 18)."""
    i, j = np.triu_indices(CURVED)
    u = f[:, :CURVED] / spread[:CURVED]
    return np.concatenate([f, u[:, i] * u[:, j] - (i == j)], axis=1)


def fit_map(
    x: np.ndarray, clusters: np.ndarray, field: np.ndarray, negatives: np.ndarray, penalty: float, linear: bool
) -> np.ndarray:
    """The map (18, 8) of expanded features of members and field stars; `negatives` (n, 200) rows of the field."""
    n, p = x.shape
    start = np.concatenate([np.eye(FEATURES), np.zeros((p - FEATURES, FEATURES))])
    free = np.ones_like(start, bool)
    free[FEATURES:] = not linear
    one, two = np.nonzero((clusters[:, None] == clusters) & ~np.eye(n, dtype=bool))
    near = x[one] - x[two]
    far = (x[:, None] - field[negatives]).reshape(-1, p)
    diff = np.concatenate([near, far])
    owner = np.concatenate([one, np.repeat(np.arange(n), negatives.shape[1])])
    order = np.argsort(owner, kind="stable")
    diff, owner, sibling = diff[order], owner[order], (np.arange(len(owner)) < len(one))[order]
    bounds = np.flatnonzero(np.diff(owner, prepend=-1))
    extra = np.where(sibling, 0.0, np.log(NEGATIVE_WEIGHT))

    def total(logits: np.ndarray) -> np.ndarray:
        top = np.maximum.reduceat(logits, bounds)
        sums = np.add.reduceat(np.exp(logits - np.repeat(top, np.diff([*bounds, len(owner)]))), bounds)
        return (np.log(sums) + top)[np.cumsum(np.isin(np.arange(len(owner)), bounds)) - 1]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        change = np.zeros_like(start)
        change[free] = flat
        matrix = start + change
        mapped = diff @ matrix
        logits = -0.25 * np.einsum("ij,ij->i", mapped, mapped)
        among, siblings = total(logits + extra), total(np.where(sibling, logits, -np.inf))
        value = np.sum((among - siblings)[bounds])
        pull = np.exp(logits + extra - among) - np.where(sibling, np.exp(logits - siblings), 0.0)
        gradient = -0.5 * diff.T @ (pull[:, None] * mapped)
        gradient += 2 * penalty * n * change
        return float(value + penalty * n * np.sum(change**2)), gradient[free]

    found = minimize(loss, np.zeros(int(free.sum())), jac=True, method="L-BFGS-B", options={"maxiter": 60}).x
    out = start.copy()
    out[free] += found
    return out


def like_field(stars: RunStars, rng: np.random.Generator) -> np.ndarray:
    """Field stars of like temperature and gravity of each member (n_members, 200); random ones without labels."""
    labels = [v for name in ("teff", "logg") if (v := stars.label(name)) is not None]
    n_field, n = len(stars.field_rows), len(stars.member_rows)
    if not labels:
        return np.stack([rng.choice(n_field, NEGATIVES, replace=False) for _ in range(n)])
    u = np.stack([v / np.nanstd(v[stars.field_rows]) for v in labels], axis=1)
    gap = np.linalg.norm(u[stars.member_rows][:, None] - u[stars.field_rows], axis=2)
    return np.argsort(np.nan_to_num(gap, nan=np.inf), axis=1)[:, :NEGATIVES]


def rate(stars: RunStars, continuum: np.ndarray | None, brief: bool) -> dict[str, Any]:
    """Nested rates of `auto` and of every map on top of it, with paired differences."""
    forms: Mapping[str, Representation] = auto_representations(stars, continuum)[0]
    first = next(iter(forms.values()))
    evaluation, k = first.evaluation, first.evaluation.members.shape[1]
    search = Search(forms, default_ks(k))
    rng = np.random.default_rng(0)
    negatives = like_field(stars, rng)
    counts: dict[str, list[Any]] = {}
    thresholds: dict[str, list[float]] = {}
    for j in range(len(evaluation.names)):
        chosen = [search.candidates[i] for i in search.order(without=j)[:COMMITTEE]]
        views = {name: form.view((j,)) for name, form in forms.items()}
        matrix = committee_map(views, chosen, (j,), k)
        field = np.concatenate([v.field_coords() - v.evaluation.moments.mean for v in views.values()], axis=1) @ matrix
        members = np.concatenate([v.centred for v in views.values()], axis=1) @ matrix
        far = [v.rows(j) for v in views.values()]
        rows, allowed = np.concatenate([r[0] for r in far], axis=1) @ matrix, far[0][1]
        values, axes = np.linalg.eigh(np.cov(field.T))
        turn, spread = axes[:, ::-1], np.sqrt(np.maximum(values[::-1], 1e-12))
        parts = [expanded(v @ turn[:, :FEATURES], spread) for v in (field, members, rows)]
        train = evaluation.clusters != evaluation.names[j]
        x, names, some = parts[1][train], evaluation.clusters[train], negatives[train]
        maps = {"auto": [], "start": [np.eye(parts[0].shape[1], FEATURES)]}
        maps["nearest"] = []
        nearest = refine(field - field.mean(axis=0), members[train], names)
        for penalty in () if brief else PENALTIES:
            maps[f"linear, penalty {penalty}"] = [fit_map(x, names, parts[0], some, penalty, True)]
            maps[f"quadratic, penalty {penalty}"] = [fit_map(x, names, parts[0], some, penalty, False)]
        for draw in range(0 if brief else DRAWS):
            kept = np.isin(names, rng.permutation(np.unique(names))[draw % 2 :: 2])
            kept = kept if kept.sum() > 20 else np.ones(len(names), bool)
            for name, linear in (("ensemble", False), ("linear ensemble", True)):
                maps.setdefault(name, [])
                maps[name] += [fit_map(x[kept], names[kept], parts[0], some[kept], p, linear) for p in PENALTIES]
        group = evaluation.groups[j]
        for name, stacked in maps.items():
            if name == "auto":
                own, others = members[group], rows
            elif name == "nearest":
                own, others = members[group] @ nearest, rows @ nearest
            else:
                own, others = (np.concatenate([v @ m for m in stacked], axis=1) for v in (parts[1][group], parts[2]))
            thresholds.setdefault(name, []).append(median_pair_distance(own))
            counts.setdefault(name, []).append(count_close(others, own, thresholds[name][-1], allowed))
    rates: dict[str, DoppelgangerRates] = {
        name: evaluation.summary(
            list(range(len(evaluation.names))),
            np.array(found, dtype=np.int64),
            thresholds[name],
            method=name,
            n_features=None,
            leave_one_out=True,
        )
        for name, found in counts.items()
    }
    auto = rates["auto"]
    return {
        name: {"rate": r.overall, "less_auto": paired(r.per_cluster, auto.per_cluster, auto.n_members)}
        for name, r in rates.items()
    }


def note(path: Path, key: str, record: dict[str, Any]) -> None:
    """Add a record to the results."""
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | {key: record}, indent=1) + "\n")
    print(key, json.dumps(record), flush=True)


def main() -> None:
    """Rate the surveys asked for and add them to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emulator", default="")
    parser.add_argument("--run", nargs="*", default=[], help="Runs instead of simulated surveys.")
    parser.add_argument("--worlds", nargs="+", choices=sorted(WORLDS), default=["isochrone", "tilted"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[31])
    parser.add_argument("--labels", nargs="+", choices=["all", *HIDDEN], default=["all", "none"])
    parser.add_argument("--brief", action="store_true", help="The shipped refinement alone.")
    parser.add_argument("--stars", type=int, default=2_500, help="Field stars.")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)  # clusters without a pair within the cuts
    for path in args.run:
        run = Run.open(path)
        stars = RunStars.read(run, "embedding_auto.zarr", max_field=AUTO_FIELD)
        note(args.out, Path(path).name, rate(stars, run_continuum(run), args.brief))
    for world, seed in [] if args.run else [(w, s) for s in args.seeds for w in args.worlds]:
        stars, continuum = survey(WORLDS[world], seed, args.emulator, args.stars)
        for choice in args.labels:
            some = replace(stars, _labels=dict(stars._labels))
            some = some if choice == "all" else hide(some, HIDDEN[choice])
            note(args.out, f"{world} {seed} {choice}", rate(some, continuum, args.brief))


if __name__ == "__main__":
    main()
