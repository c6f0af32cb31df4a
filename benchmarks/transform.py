"""`chemscale rsca transform` against the embedding pass over the same spectra.

    python benchmarks/studies.py build STORE RUN --pixels 500 --stars 1000000
    python benchmarks/transform.py STORE RUN

Both are timed in turn, in this process: the embedding of every star with its variances and labels to Zarr, and features
of every star with distances from the training field to a FITS table. Writes ``benchmarks/results/transform.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from chemscale.embedding.product import embed_survey
from chemscale.rsca.applied import LikenessModel
from chemscale.rsca.tables import write_table
from chemscale.runtime.run import Run
from chemscale.survey.store.open import open_survey

RESULTS = Path(__file__).parent / "results" / "transform.json"


def main() -> None:
    """Time both and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("run")
    parser.add_argument("--metric", choices=["paper", "auto"], default="paper")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    model = LikenessModel.of_run(Run.open(args.run), args.metric)
    taken: dict[str, list[float]] = {"embedding": [], "transform": []}
    with tempfile.TemporaryDirectory(prefix="chemscale-transform-", dir=Path(args.run).resolve().parent) as folder:
        for _ in range(args.rounds):
            start = time.perf_counter()
            embed_survey(open_survey(args.store), model.basis, f"{folder}/embedding.zarr", overwrite=True)
            taken["embedding"].append(time.perf_counter() - start)
            start = time.perf_counter()
            found = model.transform(open_survey(args.store))
            write_table(found.reset_coords("star_id"), f"{folder}/features.fits")
            taken["transform"].append(time.perf_counter() - start)
            print({name: round(values[-1], 2) for name, values in taken.items()}, flush=True)
    survey = open_survey(args.store)
    least = {name: min(values) for name, values in taken.items()}
    record = {
        "command": f"python benchmarks/transform.py STORE RUN --metric {args.metric}",
        "stars": int(survey.sizes["star"]),
        "pixels": int(survey.sizes["wavelength"]),
        "components": int(model.basis.n_components),
        "cores": len(os.sched_getaffinity(0)),
        "seconds": {name: [round(v, 2) for v in values] for name, values in taken.items()},
        "ratio": round(least["transform"] / least["embedding"], 3),
    }
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
