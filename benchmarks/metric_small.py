"""`--metric auto` on many small surveys, in memory: minutes instead of hours for a table over worlds and seeds.

As :mod:`metric_worlds`, but the basis is a weighted PCA of 40 components of all stars (missing pixels filled from it,
four rounds) instead of `rsca fit`, and nothing is written but the results. The paper's recipe is rated on the first 30
components of the same basis. Rates are nested leave-one-cluster-out, with all labels and with none:

    python benchmarks/metric_small.py --emulator hband_emulator.npz --worlds few isochrone --seeds 31 32 33

Where listed members are strangers (the world `wrong`) the rate counts them as siblings, and no metric makes it zero:
`floor` is the rate of the same list under maps learned from the true members alone, `auto_true_members` and
`floor_true_members` are those of the true members. `slope` is the likeness's on unseen clusters before any isotonic
step, without the pairs of doubtful members; `slope_listed` counts every listed pair as siblings, and
`slope_true_members` those of the true members alone.

Writes ``benchmarks/results/metric_small.json``: one record a survey and choice of labels.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from blind import HIDDEN, hide
from worlds import WORLDS, World, make

from chemscale.errors import DataError
from chemscale.rsca.auto import AutoResult, choose_metric
from chemscale.rsca.auto_run import auto_representations
from chemscale.rsca.companions import SiblingGroups
from chemscale.rsca.likeness import Likeness, calibrate
from chemscale.rsca.pair_model import held_out_ratios, trust_of
from chemscale.rsca.pairs import count_close, median_pair_distance
from chemscale.rsca.representation import Representation, continuum_directions
from chemscale.rsca.stars import ABUNDANCE, RunStars

RESULTS = Path(__file__).parent / "results" / "metric_small.json"
COMPONENTS, PAPER_COMPONENTS = 40, 30
LABELS = ("teff", "logg", "fe_h", "alpha_m", "snr", "radial_velocity", "extinction")
#: Pixel scatter beyond the reported errors that the weights of spectra allow for.
FLOOR = 0.01


def basis(flux: np.ndarray, missing: np.ndarray, weight: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean (P,) and components (k, P) of spectra (n, P) with a weight each."""
    x = np.where(missing, np.nan, flux).astype(np.float32)
    mean = np.nanmean(x, axis=0)
    x -= mean
    x[missing] = 0
    axes = np.linalg.qr(np.random.default_rng(0).standard_normal((x.shape[1], k)))[0].T.astype(np.float32)
    for rounds in (3, 1, 1, 1):
        for _ in range(rounds):
            z = (x * weight[:, None] ** 2) @ axes.T
            axes = np.linalg.qr((z.T @ x).T)[0].T
        x[missing] = ((x @ axes.T) @ axes)[missing]
    order = np.linalg.svd((x @ axes.T) * weight[:, None], full_matrices=False)[2]
    return mean, order @ axes


def survey(world: World, seed: int, emulator: str, n_field: int) -> tuple[RunStars, np.ndarray]:
    """Stars of one survey on its basis, and the directions of continuum errors."""
    return on_basis(make(world, seed, emulator, n_field))


def on_basis(arrays: dict[str, np.ndarray]) -> tuple[RunStars, np.ndarray]:
    """Stars of the survey in these arrays on its basis, and the directions of continuum errors."""
    missing = ~(arrays["error"] < 1e5)
    used = missing.mean(axis=0) < 0.5
    error, gone = arrays["error"][:, used], missing[:, used]
    weight = 1 / np.hypot(np.median(error, axis=1), FLOOR)
    mean, axes = basis(arrays["flux"][:, used], gone, weight, COMPONENTS)
    x = np.where(gone, 0, arrays["flux"][:, used] - mean)
    z = x @ axes.T
    z = (np.where(gone, z @ axes, x)) @ axes.T  # missing pixels as the basis has them
    variance = np.where(gone, 0, error**2) @ (axes**2).T
    whole = np.zeros((2, COMPONENTS, len(used)))
    whole[0][:, used], whole[1][0, used] = axes, mean
    columns = {name: ("star", arrays[name].astype(float)) for name in (*LABELS, "stranger") if name in arrays}
    held = {"coords": z, "coords_variance": variance}
    embedding = xr.Dataset(
        columns | {name: (("star", "component"), da.from_array(v, chunks=-1)) for name, v in held.items()}
    )
    cluster = arrays["cluster"].astype(str)
    field, binary = np.flatnonzero(cluster == ""), np.char.startswith(cluster, "Binary")
    members, pairs = np.flatnonzero((cluster != "") & ~binary), np.flatnonzero(binary)
    stars = RunStars(embedding, field, members, z[field].astype(float), z[members].astype(float), cluster[members])
    if len(pairs):
        stars.sibling_rows = pairs
        stars.siblings = SiblingGroups(z[pairs].astype(float), cluster[pairs], np.ones(len(pairs)))
    stars._abundances_read = True
    for j, element in enumerate(arrays["element"]):
        stars._labels[f"{ABUNDANCE}{element}"] = arrays["abundance"][:, j].astype(float)
    return stars, continuum_directions(whole[0], whole[1][0], used)


def slopes(result: AutoResult, groups: list[np.ndarray], true: np.ndarray | None) -> dict[str, float]:
    """Slopes of the likeness on unseen clusters before any correction.

    Without the pairs of doubtful members, with all listed pairs, and with those of `true` members (n_members,) bool,
    where it is known which these are: the same predictions each time.
    """
    try:
        found = Likeness.fit(result.pairs, result.metric.matrix.shape[1])
    except DataError:
        return {}
    out = {"slope": found.correction.slope, "slope_listed": found.listed_slope}
    if true is not None:
        near = trust_of([true[g].astype(float) for g in groups], [np.empty(0, np.int64)] * len(groups))[0]
        known = replace(result.pairs, trust=(near, result.pairs.as_listed().trusted()[1]))
        out["slope_true_members"] = calibrate(*held_out_ratios(result.pairs), weights=known.weights()).slope
    return out


def without(stars: RunStars, true: np.ndarray) -> RunStars:
    """The stars whose clusters have their true members alone, those of which two or more are left."""
    names, counts = np.unique(stars.clusters[true], return_counts=True)
    kept = true & np.isin(stars.clusters, names[counts >= 2])
    some = {"member_rows": stars.member_rows, "members": stars.members, "clusters": stars.clusters}
    return replace(stars, **{name: values[kept] for name, values in some.items()})


def rate_of(forms: Mapping[str, Representation], learned: AutoResult, rated: np.ndarray) -> float:
    """Nested rate of some of the listed members, (n_members,) bool, under maps learned on the same coordinates.

    A cluster that the learning did not know is rated with the metric of all clusters.
    """
    counts, weights = [], []
    for j, name in enumerate(next(iter(forms.values())).names):
        views = [form.view((j,)) for form in forms.values()]
        group = views[0].groups[j]
        use, rows = rated[group], [view.rows(j) for view in views]
        if use.sum() < 2:
            continue
        matrix = learned.maps.get(name, learned.metric.matrix)
        members = np.concatenate([view.centred[group][use] for view in views], axis=1) @ matrix
        far = np.concatenate([r[0] for r in rows], axis=1) @ matrix
        allowed = rows[0][1] if rows[0][1] is None else rows[0][1][:, use]
        counts.append(count_close(far, members, median_pair_distance(members), allowed))
        weights.append(int(use.sum()))
    close, compared = np.array(counts).T
    some = compared > 0
    return float(np.average(close[some] / compared[some], weights=np.array(weights)[some]))


def rate(stars: RunStars, continuum: np.ndarray) -> dict[str, Any]:
    """The paper's recipe and `auto`, nested."""
    out: dict[str, Any] = {}
    engine = stars.evaluation
    for name, kept in (("rsca", None), ("rsca_top", 3)):
        try:
            out[name] = engine.rates("rsca", k=PAPER_COMPONENTS, n_features=kept).overall
        except DataError:  # fewer degrees of freedom than components
            out[name] = None
    start = time.perf_counter()
    forms = auto_representations(stars, continuum)[0]
    result = choose_metric(forms)
    out |= {"auto": result.rates.overall}
    stranger = stars.label("stranger")
    true = None if stranger is None or not stranger.any() else stranger[stars.member_rows] == 0
    out |= slopes(result, next(iter(forms.values())).groups, true)
    if true is not None:
        knowing = choose_metric(auto_representations(without(stars, true), continuum)[0])
        out |= {
            "auto_true_members": rate_of(forms, result, true),
            "belonging": [float(result.belonging[v].mean()) for v in (true, ~true)],
            "floor": rate_of(forms, knowing, np.ones(len(true), bool)),
            "floor_true_members": rate_of(forms, knowing, true),
        }
    return out | {
        "best": result.table[0]["candidate"],
        "search_s": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    """Rate the surveys asked for and add them to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emulator", required=True)
    parser.add_argument("--worlds", nargs="+", choices=sorted(WORLDS), default=sorted(WORLDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[31])
    parser.add_argument("--labels", nargs="+", choices=["all", *HIDDEN], default=["all", "none"])
    parser.add_argument("--stars", type=int, default=2_500, help="Field stars.")
    parser.add_argument("--binaries", type=int, default=0, help="Wide binaries: rated with them and without.")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)  # clusters without a pair within the cuts
    known = json.loads(args.out.read_text()) if args.out.exists() else {}
    for world, seed in [(w, s) for s in args.seeds for w in args.worlds]:
        kind = replace(WORLDS[world], binaries=args.binaries)
        stars, continuum = survey(kind, seed, args.emulator, args.stars)
        for choice in args.labels:
            some = replace(stars, _labels=dict(stars._labels))
            some = some if choice == "all" else hide(some, HIDDEN[choice])
            key = f"{world} {seed} {choice}"
            if args.binaries:
                known[f"{key}, {args.binaries} binaries"] = rate(some, continuum)
                key += f", the same survey without its {args.binaries} binaries"
                some = replace(some, siblings=None, sibling_rows=np.empty(0, np.int64))
            known[key] = rate(some, continuum)
            print(json.dumps(known), flush=True)
            args.out.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
