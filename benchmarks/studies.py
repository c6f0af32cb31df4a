"""Time and memory of the whole study set on a survey of DR16 size: 151,145 field stars, 185 members, K = 60.

    python benchmarks/studies.py build STORE RUN
    python benchmarks/studies.py measure RUN dimensionality features ... --out benchmarks/results/studies.json

`build` writes a linear-Gaussian survey of 8,575 pixels (7,514 used) with all labels the studies ask for, and a run on
it: its basis is fitted on a part of the stars, every star is embedded. `measure` runs ``chemscale study`` on the
studies named, samples the memory of the command and its children, and adds to the results.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import threading
import time
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import psutil
import xarray as xr
from passes import PIXELS, used_pixels

from chemscale.schema import PAPER_ELEMENTS, VARIABLES, Flag, variable_attrs

FIELD, CLUSTERS, MEMBERS, K, CHEMICAL, BLOCK = 151_145, 22, 185, 60, 12, 2048


def latents(field: int) -> tuple[np.ndarray, np.ndarray]:
    """Latents (N, K) of the field stars, then of members, and cluster names.

    The first latents are chemistry and shared within clusters to 5 %.
    """
    rng = np.random.default_rng(0)
    z = rng.standard_normal((field + MEMBERS, K)).astype("f4")
    which = np.sort(np.r_[np.arange(CLUSTERS).repeat(2), rng.integers(0, CLUSTERS, MEMBERS - 2 * CLUSTERS)])
    centres = rng.standard_normal((CLUSTERS, CHEMICAL)).astype("f4")
    z[field:, :CHEMICAL] = centres[which] + 0.05 * z[field:, :CHEMICAL]
    return z, np.array([""] * field + [f"Cluster {i:02d}" for i in which], dtype=object)


def used_of(pixels: int) -> np.ndarray:
    """Used pixels: all but the gaps of the full grid."""
    return used_pixels() if pixels == PIXELS else np.ones(pixels, bool)


def axes(pixels: int) -> np.ndarray:
    """Directions of the latents in flux, (K, used pixels); chemistry is spread over the strong and the weak."""
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.standard_normal((used_of(pixels).sum(), K)))[0].T
    scale = rng.permutation(np.geomspace(2.0, 0.06, K))
    return (basis * scale[:, None]).astype("f4")


def spectra(start: int, z: np.ndarray, basis: np.ndarray, pixels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """flux, ivar, flags of one block of stars."""
    rng = np.random.default_rng([2, start])
    n, used = len(z), used_of(pixels)
    flux, ivar = np.zeros((n, pixels), "f4"), np.zeros((n, pixels), "f4")
    flags = np.full((n, pixels), int(Flag.GAP), "u1")
    sigma = np.exp(rng.normal(np.log(0.008), 0.4, (n, 1))).astype("f4")
    flux[:, used] = 1 + z @ basis + sigma * rng.standard_normal((n, used.sum()), dtype="f4")
    ivar[:, used] = 1 / sigma**2
    flags[:, used] = (rng.random((n, used.sum()), dtype="f4") < 0.03) * np.uint8(Flag.SURVEY_BAD)
    return flux, ivar, flags


def survey(pixels: int, field: int = FIELD) -> xr.Dataset:
    """The lazy survey."""
    z, cluster = latents(field)
    n, rng = len(z), np.random.default_rng(3)
    rows = tuple(min(BLOCK, n - s) for s in range(0, n, BLOCK))
    edges = np.concatenate([[0], np.cumsum(rows)])
    one, basis = dask.delayed(spectra, nout=3), dask.delayed(axes(pixels))
    parts = [one(int(a), z[a:b], basis, pixels) for a, b in itertools.pairwise(edges)]
    data = {}
    for i, (name, dtype) in enumerate((("flux", "f4"), ("ivar", "f4"), ("flags", "u1"))):
        pieces = [da.from_delayed(p[i], (r, pixels), dtype) for p, r in zip(parts, rows, strict=True)]
        data[name] = (("star", "wavelength"), da.concatenate(pieces), variable_attrs(name))
    abundance = z[:, :CHEMICAL] @ rng.normal(0, 0.1, (CHEMICAL, 21)) + 0.02 * rng.standard_normal((n, 21))
    nights = rng.integers(58000, 58040, (n, 2))
    nights[field:] = rng.integers(58000, 58003, MEMBERS)[:, None]  # many siblings are observed together
    columns = {
        "star_id": np.array([f"T{i:07d}" for i in range(n)], dtype=object),
        "cluster": cluster,
        "teff": 4500 + 200 * np.tanh(z[:, -1]),
        "logg": 2.3 + 0.4 * np.tanh(z[:, -2]),
        "fe_h": 0.2 * z[:, 0],
        "alpha_m": 0.1 * z[:, 1],
        "snr": rng.uniform(80, 300, n),
        "radial_velocity": rng.normal(0, 40, n),
        "extinction": rng.gamma(1.0, 0.15, n),
        "visits": np.array([f"r12-5000-{a}-1,r12-5000-{b}-1" for a, b in nights], dtype=object),
        "abundance": abundance,
    }
    for name, values in columns.items():
        spec = VARIABLES[name]
        dtype = object if spec.dtype == "str" else spec.dtype
        data[name] = (spec.dims, np.asarray(values).astype(dtype), variable_attrs(name))
    wave = 10 ** (4.179 + 6e-6 * np.arange(pixels))
    coords = {
        "wavelength": ("wavelength", wave, variable_attrs("wavelength") | {"medium": "vacuum"}),
        "element": ("element", np.array(PAPER_ELEMENTS, dtype=object), variable_attrs("element")),
    }
    return xr.Dataset(data, coords, {"survey": "toy", "normalisation": "continuum-normalised"})


def build(store: str, run_path: str, pixels: int, field: int) -> None:
    """Write the survey; fit its basis on part of the stars, embed all."""
    from chemscale.embedding.fit import fit_survey
    from chemscale.embedding.product import embed_survey
    from chemscale.rsca.metric import RSCA
    from chemscale.rsca.stars import RunStars
    from chemscale.runtime.run import Run
    from chemscale.survey.ingest.datasets import write_survey
    from chemscale.survey.store.open import open_survey

    start = time.perf_counter()
    if not Path(store).exists():
        write_survey(survey(pixels, field), store)
    print(f"store after {time.perf_counter() - start:.0f} s", flush=True)
    ds = open_survey(store)
    member = ds["cluster"].values.astype(str) != ""
    some = member | (np.arange(len(member)) < 4 * BLOCK)
    model = fit_survey(ds, some, n_components=K, tol=0.05, max_iter=12)
    print(f"basis after {time.perf_counter() - start:.0f} s", flush=True)
    run = Run.create(run_path, store=store)
    run.save_dataset("ppca.zarr", model.to_dataset())
    role = np.where(member, "member", "field")
    embed_survey(ds, model, run.file("embedding.zarr"), extra={"role": role}, overwrite=True)
    stars = RunStars.read(run)
    metric = RSCA().fit(stars.field, stars.members, stars.clusters)
    run.save_dataset("rsca.zarr", metric.to_dataset())
    print(f"run after {time.perf_counter() - start:.0f} s", flush=True)


def measure(run: str, names: list[str], out: Path) -> None:
    """Run the studies as a user does."""
    start = time.perf_counter()
    process = subprocess.Popen(
        ["chemscale", "study", *names, "--run", run, "--json"], stdout=subprocess.PIPE, text=True
    )
    me, peak = psutil.Process(process.pid), 0
    text: list[str] = []
    reader = threading.Thread(target=lambda: text.append(process.stdout.read()))  # type: ignore[union-attr]
    reader.start()
    while process.poll() is None:
        total = 0
        for p in [me, *me.children(recursive=True)]:
            try:
                total += p.memory_info().rss
            except psutil.Error:
                continue
        peak = max(peak, total)
        time.sleep(0.1)
    reader.join()
    found = json.loads(text[0])
    known = json.loads(out.read_text()) if out.exists() else {"n_field": FIELD, "components": K, "pieces": []}
    known["pieces"].append(
        {
            "command": f"chemscale study {' '.join(names)} --run RUN",
            "wall_s": round(time.perf_counter() - start, 1),
            "peak_gib": round(peak / 2**30, 2),
            "seconds": {k: v["seconds"] for k, v in found["studies"].items()},
            "left_out": found["left_out"],
            "cores": os.cpu_count(),
        }
    )
    known["wall_s"] = round(sum(p["wall_s"] for p in known["pieces"]), 1)
    known["peak_gib"] = max(p["peak_gib"] for p in known["pieces"])
    out.write_text(json.dumps(known, indent=1) + "\n")
    print(json.dumps(known["pieces"][-1], indent=1))


def main() -> None:
    """Build or measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("build")
    one.add_argument("store")
    one.add_argument("run")
    one.add_argument("--pixels", type=int, default=PIXELS, help="Fewer make a survey whose pixel studies cost less.")
    one.add_argument("--stars", type=int, default=FIELD, help="Field stars.")
    two = verbs.add_parser("measure")
    two.add_argument("run")
    two.add_argument("names", nargs="+")
    two.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "studies.json")
    args = parser.parse_args()
    if args.verb == "build":
        build(args.store, args.run, args.pixels, args.stars)
    else:
        measure(args.run, args.names, args.out)


if __name__ == "__main__":
    main()
