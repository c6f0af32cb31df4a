"""Correlations of latents with labels over several catalogues, with their scatter (Table 1 of the VAE paper).

``chemscale study vae_table1 --catalogues 5`` simulates five of the paper's catalogues, trains on each and judges each
by its truth; they are kept below the run, and one that is finished is not made again. With ``--run`` of a simulated
survey the run counts as the first, and the others are made like it: its simulation and recipe with other seeds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from chemscale.errors import DataError
from chemscale.runtime.run import Run
from chemscale.simulation.generator import Simulation
from chemscale.simulation.truth import truth_path, write_truth
from chemscale.studies import style
from chemscale.studies.registry import Study, StudyContext, StudyResult
from chemscale.studies.vae_common import SYMBOLS, Z_NAMES, Held, correlations, held
from chemscale.survey.ingest.ingestion import ingest
from chemscale.survey.ingest.planning import plan_ingest
from chemscale.survey.sources.simulated import SimulatedSource
from chemscale.vae import pipeline
from chemscale.vae.checkpoint import read_record
from chemscale.vae.regions import RegionSet

#: Where a run keeps the catalogues that are made for it.
FOLDER = "catalogues"


def compute(context: StudyContext) -> StudyResult:
    """|r| of every latent and label: mean and scatter over this run, those of the setting `runs`, and those made."""
    own = context.run.has(f"{pipeline.FOLDER}/model.json")
    others = [r.strip() for r in str(context.settings["runs"]).split(",") if r.strip()]
    found = [held(context)] if own else []
    found += [held(StudyContext(Run.open(r))) for r in others]
    found += [_made(context, k, own) for k in range(len(found), int(context.settings["catalogues"]))]
    if not found:
        raise DataError("no catalogue to judge", "train on one first, or make some with --catalogues 5")
    tables = [correlations(f) for f in found]
    keys = [k for k in tables[0] if all(k in t for t in tables)]
    values = np.array([[t[k] for k in keys] for t in tables])
    mean = values.mean(0)
    # one catalogue has no scatter between catalogues: the error of r over its stars stands in
    stars = int(found[0].out.sum())
    error = values.std(0, ddof=1) if len(tables) > 1 else (1 - mean**2) / np.sqrt(max(stars - 2, 1))
    latents = list(dict.fromkeys(k[0] for k in keys))
    labels = [s for s in SYMBOLS if any(k[1] == s for k in keys)]
    grid = np.array([[mean[keys.index((a, b))] for b in labels] for a in latents])
    fig, ax = style.figure(aspect=0.55)
    image = ax.imshow(grid, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    for i, a in enumerate(latents):
        for j, b in enumerate(labels):
            text = f"{grid[i, j]:.3f}\n$\\pm${error[keys.index((a, b))]:.3f}"
            ax.text(j, i, text, ha="center", va="center", fontsize=7, color="white" if grid[i, j] > 0.6 else "black")
    ax.set_xticks(range(len(labels)), [SYMBOLS[s] for s in labels])
    ax.set_yticks(range(len(latents)), [Z_NAMES.get(n, n) for n in latents])
    ax.minorticks_off()
    ax.tick_params(length=0)
    fig.colorbar(image, ax=ax, label="|r|")
    kind = "scatter between catalogues" if len(tables) > 1 else "error of r over the stars of one catalogue"
    return StudyResult(
        figure=fig,
        table={"latent": [k[0] for k in keys], "label": [k[1] for k in keys], "r": mean, "r_error": error},
        columns={
            "latent": "latent",
            "label": "survey label",
            "r": "absolute Pearson correlation over held-out stars, mean of the catalogues",
            "r_error": kind,
        },
        numbers={
            "catalogues": len(tables),
            **{f"r_{label}": float(mean[keys.index((name, label))]) for _, name, label in found[0].pairs},
        },
        caption=f"Absolute correlation of latents (rows) with labels; {len(tables)} catalogue(s); uncertainty: {kind}.",
    )


def _made(context: StudyContext, number: int, own: bool) -> Held:
    """Latents of catalogue `number`, which is simulated, trained on and inferred where it is not there yet."""
    settings = context.settings
    recipe: dict[str, Any] = {"preset": str(settings["preset"])}
    train: dict[str, Any] = {}
    if own:
        simulated = context.survey.attrs.get("simulation")
        if not isinstance(simulated, dict):
            raise DataError("this run's survey is not simulated", "leave --run out to make the paper's catalogues")
        made = simulated | {"seed": int(simulated["seed"]) + number}
        record = read_record(context.run.path / pipeline.FOLDER / "model.json")
        regions, train = RegionSet.from_dict(record["regions"]), dict(record["train"])
        recipe |= {"model": record["model"], "regions": regions, "scale": False}
    else:
        emulator = str(Path(str(settings["emulator"])).resolve()) if settings["emulator"] else None
        seed = int(settings["seed"]) + number
        made = Simulation(int(settings["stars"]), 0, seed, "lowres", "halo", emulator=emulator).settings()
    simulation = Simulation(**made)
    store = context.run.path / FOLDER / f"{number}.zarr"
    run = context.run.path / FOLDER / f"run-{number}"
    store.parent.mkdir(exist_ok=True)
    if not Path(truth_path(str(store))).exists():
        source = SimulatedSource(**simulation.settings())
        ingest(source, str(store), overwrite=True, job=plan_ingest(source))
        write_truth(simulation, truth_path(str(store)), overwrite=True)
    pipeline.train(str(store), run, settings={**train, "seed": simulation.seed}, resume=True, **recipe)
    pipeline.infer(str(store), run)
    return held(StudyContext(Run.open(run)))


STUDY = Study(
    "vae_table1",
    "Correlations over catalogues",
    "Signor et al. 2025, Table 1",
    compute,
    {"catalogues": 1, "runs": "", "stars": 40_000, "seed": 0, "emulator": "", "preset": "default"},
)
