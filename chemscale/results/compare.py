"""Two runs side by side: settings that differ, rates with paired differences, shared neighbours, latents."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from chemscale.errors import StoreError
from chemscale.results.run import RunResults, open_latents
from chemscale.rsca.neighbours import SiblingIndex
from chemscale.rsca.siblings import SiblingSearch
from chemscale.rsca.stars import cleaned_of, text
from chemscale.runtime.run import Run
from chemscale.survey.store.cleaning import in_words

#: Neighbours of a star that are compared, and stars they are compared for.
NEIGHBOURS, SAMPLE = 10, 500


def compare(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> dict[str, Any]:
    """What differs between two runs.

    Parameters
    ----------
    a, b : path
        Run directories.

    Returns
    -------
    dict
        `settings`: key -> values in a and b, where they differ. `rates`: method -> rate in `a` and `b`, mean of the
        paired differences b - a over the clusters that both rated, its standard error, and the number of clusters.
        `neighbours`: share of the nearest :data:`NEIGHBOURS` stars that both name, of a sample of common stars, the
        share that chance would give, and `metrics`: the recommended metric of each run, which says who is near.
        `latents`: name -> correlation over common stars.
        Parts that one of the runs lacks are absent, and named in `absent` with the reason.

    Raises
    ------
    StoreError
        One of them is not a run.
    """
    first, second = RunResults(a), RunResults(b)
    out: dict[str, Any] = {"a": str(first.path), "b": str(second.path), "absent": {}}
    out["settings"] = differing(_settings(first), _settings(second))
    for part, function in (("rates", _rates), ("neighbours", _neighbours), ("latents", _latents)):
        try:
            out[part] = function(first, second)
        except StoreError as err:
            out["absent"][part] = err.message
    return out


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Keys whose values differ -> both values, None where one has none."""
    return {k: [a.get(k), b.get(k)] for k in sorted({*a, *b}) if a.get(k) != b.get(k)}


def _settings(run: Run) -> dict[str, Any]:
    flat: dict[str, Any] = {"store": run.manifest.get("store")}
    for stage, entry in run.manifest.get("stages", {}).items():
        for key, value in (entry.get("settings") or {}).items():
            if key != "key":  # a digest of the others
                flat[f"{stage}.{key}"] = value
    flat["spectra"] = in_words(cleaned_of(run))
    return flat | {f"version of {k}": v for k, v in (run.manifest.get("versions") or {}).items()}


def _rates(a: Run, b: Run) -> dict[str, Any]:
    found = []
    for run in (a, b):
        run.need("evaluation.json", f"chemscale rsca evaluate --run {run.path}")
        found.append(run.load_json("evaluation.json"))
    out = {}
    clusters = [c for c in found[0]["per_cluster"] if c in found[1]["per_cluster"]]
    methods = [m for m in next(iter(found[0]["per_cluster"].values()), {}) if m != "n_members" and m in found[1]]
    for method in methods:
        pairs = [[e["per_cluster"][c].get(method) for e in found] for c in clusters]
        values = np.array([p for p in pairs if None not in p], float).reshape(-1, 2)
        difference = values[:, 1] - values[:, 0]
        n = len(difference)
        error = float(difference.std(ddof=1) / np.sqrt(n)) if n > 1 else None
        out[method] = {
            "a": found[0].get(method),
            "b": found[1].get(method),
            "difference": float(difference.mean()) if n else None,
            "error": error,
            "clusters": n,
        }
    return out


def _neighbours(a: RunResults, b: RunResults) -> dict[str, Any]:
    searches = [SiblingSearch.open(run.path) for run in (a, b)]
    indexes = [s.index for s in searches]
    common = np.intersect1d(indexes[0].star_id, indexes[1].star_id)
    k = min(NEIGHBOURS, len(common) - 1)
    if k < 1:
        raise StoreError("the runs have no stars in common", "compare runs on the same survey")
    rows = [np.array([i.row_of(str(s)) for s in common]) for i in indexes]
    both = [SiblingIndex(i.features[r], common) for i, r in zip(indexes, rows)]
    sample = np.unique(np.linspace(0, len(common) - 1, min(SAMPLE, len(common))).astype(int))
    first, second = both
    shared = [
        len(np.intersect1d(first.nearest(int(s), k, None)[0], second.nearest(int(s), k, None)[0])) / k for s in sample
    ]
    return {
        "shared": float(np.mean(shared)),
        "chance": k / (len(common) - 1),
        "neighbours": k,
        "stars": len(sample),
        "metrics": [f"{s.metric}, {s.n_features} features" for s in searches],
    }


def _latents(a: RunResults, b: RunResults) -> dict[str, float]:
    first, second = open_latents(a.path), open_latents(b.path)
    common, i, j = np.intersect1d(first["star"].values, second["star"].values, return_indices=True)
    names = [n for n in text(first["latent"]) if n in set(text(second["latent"]))]
    if len(common) < 3 or not names:
        raise StoreError("the latents have fewer than three stars or no name in common", "compare runs on one survey")
    out = {}
    for name in names:
        x = first["latents"].sel(latent=name).values[i]
        y = second["latents"].sel(latent=name).values[j]
        good = np.isfinite(x) & np.isfinite(y)
        out[str(name)] = float(np.corrcoef(x[good], y[good])[0, 1])
    return out
