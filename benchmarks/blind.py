"""A survey through the commands users type, and `--metric auto` on the same basis with labels hidden from it.

No label enters the basis, so one fit of it serves every choice of labels; only the metric is chosen again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from chemscale.rsca.auto_run import AUTO_FIELD, auto_features, fit_auto
from chemscale.rsca.stars import ABUNDANCE, RunStars
from chemscale.rsca.uncertainty import bootstrap
from chemscale.runtime.run import Run

#: Labels that are hidden, for each choice; "abundances" has all.
HIDDEN: dict[str, tuple[str, ...]] = {
    "labels": (),  # Teff, log g, [Fe/H], [alpha/M]; no single abundances
    "parameters": ("fe_h", "alpha_m"),  # Teff and log g only
    "none": ("fe_h", "alpha_m", "teff", "logg"),
}
KEPT = ("raw", "scaled", "rsca", "rsca_top", "rsca_without_cross_validation", "auto", "n_field", "n_members")


def command(*words: str) -> str:
    """Run a command; its stdout. `chemscale` is the one of this Python, on the search path or not."""
    if words[0] == "chemscale":
        words = (sys.executable, "-m", *words)
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout


def fit_and_evaluate(store: str, run: str, components: int = 30) -> dict[str, Any]:
    """`rsca fit --metric auto` and `rsca evaluate`: rates, the largest leak, passes and wall clock of every stage."""
    command("chemscale", "rsca", "fit", store, "--run", run, "--components", str(components), "--metric", "auto")
    found = json.loads(command("chemscale", "rsca", "evaluate", "--run", run, "--json"))
    stages = json.loads((Path(run) / "manifest.json").read_text())["stages"]
    out = {k: found[k] for k in KEPT}
    out |= {f"abundances_{len(r['species'])}_rsca": r["rsca"] for r in found["abundances"].values()}
    out["auto_minus_rsca_top"] = found["differences"]["auto - rsca_top"]
    out["recommended"] = found["recommended"]
    out["likeness_slope"] = {"rsca_top": found["likeness"].get("slope"), "eq5": found["likeness"].get("slope_eq5")}
    auto = json.loads((Path(run) / "auto.json").read_text())
    out["likeness_slope"]["auto"] = auto["likeness"].get("slope")
    return out | {
        "largest_velocity_or_extinction_correlation": {m: leak(rows) for m, rows in found["correlations"].items()},
        "wall_s": {k: round(v["wall_s"], 1) for k, v in stages.items()},
        "passes": {k: v["facts"]["passes"] for k, v in stages.items() if k.startswith("ppca")},
    }


def leak(correlations: dict[str, list[float]]) -> float:
    """Largest correlation of a kept feature with velocity or extinction."""
    rows = [correlations[c] for c in ("radial_velocity", "extinction") if c in correlations]
    return max((abs(v) for row in rows for v in row), default=float("nan"))


def hide(stars: RunStars, names: tuple[str, ...]) -> RunStars:
    """The stars without single abundances and without the labels `names`."""
    stars._abundances_read = True
    n = stars.embedding.sizes["star"]
    stars._labels = {k: v for k, v in stars._labels.items() if not k.startswith(ABUNDANCE)}
    stars._labels |= {name: np.full(n, np.nan) for name in names}
    return stars


def auto_without(run_path: str, choices: Iterable[str], n_features: int = 3) -> dict[str, dict[str, float]]:
    """`auto` with labels hidden from it: nested rate, standard error over clusters, leak of the kept features."""
    run = Run.open(run_path)
    out = {}
    for choice in choices:
        hidden = HIDDEN[choice]
        start = time.perf_counter()
        stars = hide(RunStars.read(run, "embedding_auto.zarr", max_field=AUTO_FIELD), hidden)
        result, detrendings, _ = fit_auto(run, stars)
        features = auto_features(
            result.metric, detrendings, np.asarray(stars.field), stars, stars.field_rows, n_features
        )
        out[choice] = {
            "auto": result.rates.overall,
            "standard_error": bootstrap(result.rates)[0],
            "largest_velocity_or_extinction_correlation": leak(
                stars.correlations(features, stars.field_rows, ("radial_velocity", "extinction"))
            ),
            "wall_s": round(time.perf_counter() - start, 1),
        }
    return out
