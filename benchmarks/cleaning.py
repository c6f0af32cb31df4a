"""What `chemscale clean` brings: the paper's recipe and `--metric auto` on the same survey before and after.

Surveys of :mod:`worlds` in memory, on the basis of :mod:`metric_small`, which is fitted anew to the cleaned spectra.
Rates are leave-one-cluster-out, differences paired over clusters; `leak` is the largest correlation of a kept
feature with extinction or velocity; `rsca_top_alike` compares with field stars within 0.01 mag in A_K instead of the
paper's 0.05, among which extinction tells nobody apart:

    python benchmarks/cleaning.py --emulator hband_emulator.npz --worlds banded persistent tilted --seeds 51 52

Writes ``benchmarks/results/cleaning.json``: one record a survey and choice of variables.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from metric_small import LABELS, PAPER_COMPONENTS, on_basis
from worlds import WORLDS, make

from chemscale.quality.cleaning import find_effects, members_spread
from chemscale.rsca.auto import choose_metric
from chemscale.rsca.auto_run import auto_representations
from chemscale.rsca.doppelganger import Evaluation
from chemscale.rsca.pairs import PairCuts
from chemscale.rsca.uncertainty import paired

RESULTS = Path(__file__).parent / "results" / "cleaning.json"
#: Difference in extinction, mag, that hides nothing.
ALIKE = 0.01
COVARIATES = ("extinction", "radial_velocity")


def rated(arrays: dict[str, np.ndarray], auto: bool) -> tuple[dict[str, Any], dict[str, float]]:
    """Rates by method, and the largest correlation of the paper's three kept features with each covariate."""
    stars, continuum = on_basis(arrays)
    engine = stars.evaluation
    rates = {"rsca": engine.rates("rsca", k=PAPER_COMPONENTS)}
    rates["rsca_top"] = engine.rates("rsca", k=PAPER_COMPONENTS, n_features=3)
    alike = Evaluation(
        stars.field, stars.members, stars.clusters, stars.covariates, PairCuts(max_delta_extinction=ALIKE)
    )
    maps = engine.matrices("rsca", k=PAPER_COMPONENTS, n_features=3)
    rates["rsca_top_alike"] = alike.rates(k=PAPER_COMPONENTS, matrices=maps)
    metric = engine.fit("rsca", k=PAPER_COMPONENTS)
    features = metric.transform(np.asarray(stars.field)[:, :PAPER_COMPONENTS], 3)
    follows = stars.correlations(features, stars.field_rows, COVARIATES)
    if auto:
        rates["auto"] = choose_metric(auto_representations(stars, continuum)[0]).rates
    return rates, {name: max(map(abs, values)) for name, values in follows.items()}


def as_survey(arrays: dict[str, np.ndarray]) -> xr.Dataset:
    """The arrays as a survey in memory."""
    with np.errstate(over="ignore"):
        ivar = np.where(arrays["error"] < 1e5, 1 / arrays["error"].astype(np.float64) ** 2, 0).astype(np.float32)
    columns: dict[str, Any] = {n: ("star", arrays[n].astype(float)) for n in (*LABELS, "fibre")}
    pixels = {"flux": arrays["flux"], "ivar": ivar, "flags": np.zeros(ivar.shape, np.uint8)}
    return xr.Dataset(
        columns
        | {n: (("star", "wavelength"), v) for n, v in pixels.items()}
        | {"cluster": ("star", arrays["cluster"])},
        coords={"wavelength": arrays["wavelength"]},
    )


def main() -> None:
    """Clean the surveys asked for and add them to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emulator", required=True)
    parser.add_argument("--worlds", nargs="+", choices=sorted(WORLDS), default=["banded", "persistent", "tilted"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[51])
    parser.add_argument("--stars", type=int, default=2_500, help="Field stars.")
    parser.add_argument("--of", nargs="+", default=["extinction radial_velocity", "fibre"], help="Choices: 'a b' ...")
    parser.add_argument("--paper", action="store_true", help="The paper's recipe alone, which takes seconds.")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)  # clusters without a pair within the cuts
    for world, seed in [(w, s) for w in args.worlds for s in args.seeds]:
        arrays = make(WORLDS[world], seed, args.emulator, args.stars)
        survey = as_survey(arrays)
        before, leak = rated(arrays, not args.paper)
        for choice in args.of:
            effects, facts = find_effects(survey, choice.split())
            clean = effects.take_off(arrays["flux"].copy(), {n: arrays[n] for n in effects.covariates})
            after, kept = rated(arrays | {"flux": clean}, not args.paper)
            record: dict[str, Any] = {"share": facts["share"], "chance": facts["chance"]}
            record |= {"members_spread": members_spread(survey, effects), "leak": {"before": leak, "after": kept}}
            for name, r in before.items():
                change = paired(after[name].per_cluster, r.per_cluster, r.n_members)
                record[name] = {"before": r.overall, "after": after[name].overall, "difference": change}
            known = json.loads(args.out.read_text()) if args.out.exists() else {}
            known[f"{world} {seed}, {choice}"] = record
            args.out.write_text(json.dumps(known, indent=1) + "\n")
            print(world, seed, choice, json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
