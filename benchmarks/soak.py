"""A local cluster at work for a long time: file descriptors, threads, memory and scheduler state must stay flat.

    python benchmarks/soak.py [--minutes 30] [--workers 1] [--out benchmarks/results/soak.json]

In a loop: a table of spectra is ingested over the store, a basis and a metric are fitted, doppelganger rates and
siblings asked for, latents inferred with a model trained once, all on one cluster. After every round the client's
process, each worker and the scheduler are looked at. The first third of the rounds warms up; over the rest a line is
fitted to each number, and the numbers of the last third are set beside those of the middle. Exit status 1 where
descriptors, threads or tasks left on the scheduler grow, or memory by more than --mib-per-hour.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from growth import REGIONS, survey

import chemscale
from chemscale.rsca.evaluate import evaluate_run
from chemscale.rsca.pipeline import fit_run
from chemscale.runtime.cluster import connect
from chemscale.survey.sources.table import TableSource

STARS, PIXELS = 3000, 300


def source(folder: Path) -> Path:
    """A table of spectra."""
    ds = survey(STARS, PIXELS).load()
    names = ("flux", "ivar", "flags", "star_id", "cluster", "teff", "logg", "fe_h", "snr", "extinction")
    text = {"star_id", "cluster"}
    file = folder / "spectra.npz"
    arrays = {n: ds[n].values.astype(str) if n in text else ds[n].values for n in names}
    np.savez(file, wavelength=ds["wavelength"].values, **arrays)
    return file


def one_round(folder: Path, file: Path, client: Any) -> None:
    """What a user does with a survey, once."""
    store, run, vae = folder / "survey.zarr", folder / "run", folder / "vae"
    chemscale.ingest(TableSource(str(file)), store, client=client, overwrite=store.exists(), progress=False)
    done = fit_run(str(store), run, components=8, overwrite=True)
    evaluate_run(done.path)
    chemscale.siblings("T0000003", run, n=5)
    if not (vae / "vae" / "model.json").exists():
        regions = folder / "regions.json"
        regions.write_text(json.dumps(REGIONS))
        settings = {"epochs": 1, "batch": 128, "decoder_finetune_epochs": 1, "label_pretrain_epochs": 1}
        model = {"n_components": 8, "hidden": (32, 16), "decoder": (16,)}
        chemscale.train_vae(
            str(store), vae, model=model, settings=settings, regions=str(regions), scale=False, device="cpu"
        )
    chemscale.infer_vae(str(store), vae, client=client, overwrite=True)


def look(process: psutil.Process) -> dict[str, float]:
    """Descriptors, threads and MiB of a process."""
    with process.oneshot():
        return {
            "fds": process.num_fds(),
            "threads": process.num_threads(),
            "mib": process.memory_info().rss / 2**20,
        }


def scheduler_state(dask_scheduler: Any) -> dict[str, int]:
    """What a scheduler still knows."""
    s = dask_scheduler
    known = {"tasks": len(s.tasks), "clients": len(s.clients), "workers": len(s.workers)}
    return known | {"groups": len(s.task_groups), "prefixes": len(s.task_prefixes), "events": len(s.get_events())}


def everything(client: Any) -> dict[str, float]:
    """All numbers of a moment."""
    gc.collect()
    found = {f"client {k}": v for k, v in look(psutil.Process()).items()}
    pids = sorted(client.run(os.getpid).values())
    for number, pid in enumerate(pids):
        found |= {f"worker {number} {k}": v for k, v in look(psutil.Process(pid)).items()}
    return found | {f"scheduler {k}": v for k, v in client.run_on_scheduler(scheduler_state).items()}


def judge(rounds: list[dict[str, float]], hours: list[float], mib_per_hour: float) -> dict[str, dict[str, Any]]:
    """For each number: first value, medians of the middle and the last third, growth in an hour, whether it is flat."""
    third = len(rounds) // 3
    out = {}
    for key in rounds[0]:
        values = np.array([r.get(key, np.nan) for r in rounds], dtype=float)
        middle, last = np.median(values[third : 2 * third]), np.median(values[2 * third :])
        slope = float(np.polyfit(hours[third:], values[third:], 1)[0])
        flat = slope <= mib_per_hour if key.endswith("mib") else last <= middle + 1
        out[key] = {
            "first": values[0],
            "middle third": float(middle),
            "last third": float(last),
            "most": float(np.nanmax(values)),
            "growth in an hour": slope,
            "flat": bool(flat),
        }
    return out


def main() -> int:
    """Work, look, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--mib-per-hour", type=float, default=200.0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="chemscale-soak-"))
    rounds, hours = [], []
    try:
        file = source(folder)
        with connect("local", workers=args.workers, threads=1, memory="2 GiB") as client:
            began = time.monotonic()
            while len(rounds) < 6 or time.monotonic() - began < 60 * args.minutes:
                one_round(folder, file, client)
                rounds.append(everything(client))
                hours.append((time.monotonic() - began) / 3600)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    judged = judge(rounds, hours, args.mib_per_hour)
    result = {
        "command": f"python benchmarks/soak.py --minutes {args.minutes:g} --workers {args.workers}",
        "rounds": len(rounds),
        "stars": STARS,
        "numbers": judged,
        "flat": all(j["flat"] for j in judged.values()),
    }
    text = json.dumps(result, indent=1) + "\n"
    sys.stdout.write(text)
    if args.out:
        args.out.write_text(text)
    return 0 if result["flat"] else 1


if __name__ == "__main__":
    sys.exit(main())
