"""Inference of two installations side by side, alternating: processor and wall time a star.

    python benchmarks/side_by_side.py STORE MODEL --other /path/to/other/bin/python --repeat 5

MODEL is the folder of a model (RUN/vae) that both can read, or --other-model one for the other installation: an earlier
release reads no model with an axis map, but the same one without it. Each turn runs the one and then the other in a
process of its own, which infers the survey once to warm up and then `--times` times. Ratios of the medians count;
processor time is the figure to believe on a machine that does other work too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from chemscale.bench.scaling import provenance
from chemscale.runtime.jsonio import write_json

CHILD = """
import json, sys, tempfile, time
from pathlib import Path
import chemscale
from chemscale.vae.inference import infer_survey
store, model, times = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
ds = chemscale.open_survey(store)
rows = []
with tempfile.TemporaryDirectory() as folder:
    for k in range(times + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        infer_survey(ds, model, Path(folder) / "latents.zarr", store=store, overwrite=True, device="cpu")
        rows.append([time.perf_counter() - wall, time.process_time() - cpu])
print(json.dumps({"stars": int(ds.sizes["star"]), "seconds": rows[1:]}))
"""


def repeated(store: str, stars: int, folder: str) -> str:
    """A store of so many stars, those of `store` over and over: what a run costs once must not weigh."""
    import dask
    import numpy as np
    import xarray as xr

    import chemscale
    from chemscale.survey.ingest.datasets import write_survey

    ds = chemscale.open_survey(store)
    copies = [ds] * (-(-stars // ds.sizes["star"]))
    whole = xr.concat(copies, "star", data_vars="minimal", coords="minimal").isel(star=slice(0, stars))
    ids = np.array([f"R{i:09d}" for i in range(stars)], dtype=object)
    whole["star_id"] = ("star", ids, ds["star_id"].attrs)
    path = Path(folder) / "survey.zarr"
    with dask.config.set(scheduler="synchronous"):
        write_survey(whole, path)
    return str(path)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("model", type=Path)
    parser.add_argument("--other", required=True, help="Python of the other installation.")
    parser.add_argument("--other-model", type=Path, help="Its model, where it cannot read MODEL.")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--stars", type=int, default=0, help="Repeat the survey's stars up to so many.")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = repeated(args.store, args.stars, folder) if args.stars else args.store
        result = compare(store, args)
    print(json.dumps(result, indent=1))
    if args.out:
        write_json(args.out, result | provenance())


def compare(store: str, args: argparse.Namespace) -> dict[str, Any]:
    """Medians of both, and their ratios."""
    found: dict[str, list[list[float]]] = {"this": [], "other": []}
    for _ in range(args.repeat):
        for name, python, model in (
            ("this", sys.executable, args.model),
            ("other", args.other, args.other_model or args.model),
        ):
            # -P: never the chemscale of the folder that this is started in
            command = [python, "-P", "-c", CHILD, store, str(model), str(args.times)]
            told = json.loads(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            )
            found[name] += [[1e6 * t / told["stars"] for t in row] for row in told["seconds"]]
    rows = {}
    for name, values in found.items():
        wall, cpu = zip(*values)
        middle = {"wall_us_a_star": statistics.median(wall), "cpu_us_a_star": statistics.median(cpu)}
        rows[name] = middle | {"least_cpu_us_a_star": min(cpu), "n": len(values)}
    ratios = {key: rows["other"][key] / rows["this"][key] for key in rows["this"] if key != "n"}
    return {"rows": rows, "other_over_this": ratios}


if __name__ == "__main__":
    main()
