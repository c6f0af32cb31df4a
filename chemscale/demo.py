"""The whole journey on a simulated survey, through the same commands a user types.

Simulate a release of FITS files -> ingest -> fit -> evaluate -> train, infer, anomalies, flags -> report. Every
step prints its command line first, so that the demo is also a lesson.
"""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from chemscale.errors import InputError
from chemscale.runtime.run import Run
from chemscale.schema import PAPER_SUBSET

MARKER = ".chemscale-demo"
Invoke = Callable[[list[str]], None]


@dataclass(frozen=True)
class Size:
    """How large a demo is."""

    stars: int
    clusters: int
    components: int
    lowres_stars: int
    training: tuple[str, ...]
    studies: tuple[str, ...]


FULL = Size(
    4000,
    22,
    40,  # as many as the basis of the searched metric has: one fit serves both
    4000,
    ("--preset", "quick"),
    ("dimensionality", "features", "ablation", "kept_dimensions", "per_cluster"),
)
TINY = Size(400, 8, 10, 1800, ("--preset", "quick", "--epochs", "3"), ("kept_dimensions", "per_cluster"))


@dataclass
class Outcome:
    """What a demo produced."""

    report: Path
    rates: dict[str, float]
    n_stars: int
    n_clusters: int
    seconds: float
    commands: list[list[str]] = field(default_factory=list)


def prepare(out: Path) -> None:
    """Empty the demo's folder; a folder the demo did not make is never touched.

    Raises
    ------
    InputError
        `out` exists and is not an earlier demo.
    """
    if out.exists():
        if not out.is_dir() or (any(out.iterdir()) and not (out / MARKER).exists()):
            raise InputError(f"{out} exists and is not an earlier demo", "choose another --out")
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / MARKER).write_text("made by `chemscale demo`; replaced by the next one\n", encoding="utf-8")


def run_demo(out: Path, invoke: Invoke, *, size: Size = FULL, seed: int = 1, say: Callable[[str], None]) -> Outcome:
    """Run the journey below `out`.

    Parameters
    ----------
    out : Path
        Folder for everything; an earlier demo there is replaced.
    invoke : callable
        Runs one `chemscale` command line given as a list of words.
    say : callable
        Shows a line to the user.

    Returns
    -------
    Outcome
    """
    start = time.perf_counter()
    prepare(out)
    release, survey, run = out / "release", out / "survey.zarr", out / "run"
    lowres, vae = out / "lowres.zarr", out / "vae"
    commands: list[list[str]] = []

    def step(title: str, *words: object) -> None:
        command = [str(w) for w in words]
        commands.append(command)
        say(f"\n{title}\n$ chemscale {shlex.join(command)}")
        invoke(command)

    step(
        "An APOGEE-like survey, written as the FITS files a release is made of",
        *("simulate", "--stars", size.stars, "--clusters", size.clusters, "--seed", seed, "--as-release", release),
    )
    allstar, members = next(release.glob("allStar-*.fits")), next(release.glob("occam_member-*.fits"))
    step(
        "The files, read into one chunked, checksummed store",
        *("ingest", "apogee", "--spectra", release, "--allstar", allstar, "--members", members, "--out", survey),
    )
    step(
        "Masked PPCA of the spectra, and the metric learned from the clusters",
        *("rsca", "fit", survey, "--run", run, "--components", size.components, "--metric", "auto"),
    )
    step("How often does a stranger look like a sibling?", "rsca", "evaluate", "--run", run)
    without_refits = {
        "ablation": "restarts=0",
        "kept_dimensions": "restarts=0",
        "dimensionality": f"components={size.components}",
    }
    for study in size.studies:
        fewer = ("--option", f"{study}.{without_refits[study]}") if study in without_refits else ()  # minutes of refits
        step(f"Study: {study}", "study", study, "--run", run, *fewer)
    step(
        "Low-resolution spectra of metal-poor stars for the autoencoder",
        *("simulate", "--grid", "lowres", "--population", "metal-poor", "--clusters", 0, "--seed", seed),
        *("--stars", size.lowres_stars, "--out", lowres),
    )
    step(
        "A physics-constrained variational autoencoder",
        *("vae", "train", lowres, "--run", vae, *size.training),
    )
    step("Its latents for every star", "vae", "infer", lowres, "--run", vae)
    step("Spectra it cannot explain", "anomalies", "--run", vae)
    step("Stars rich or poor in an element", "flags", "--run", vae)
    step("The autoencoder's page", "report", "--run", vae)

    opened = Run.open(run)
    floor = noise_free_floor(opened, release / "truth.npz")
    evaluation = opened.load_json("evaluation.json")
    evaluation["floor"] = floor
    opened.save_json("evaluation.json", evaluation)
    step("Everything on one page", "report", "--run", run)
    return Outcome(
        report=run / "report.html",
        rates=headline(evaluation),
        n_stars=evaluation["n_field"] + evaluation["n_members"],
        n_clusters=evaluation["n_clusters"],
        seconds=time.perf_counter() - start,
        commands=commands,
    )


def headline(evaluation: dict[str, Any]) -> dict[str, float]:
    """The rates of the closing table, by what people call them; the recommended metric leads."""
    best = evaluation["recommended"]
    kept = f" top {best['n_features']}" if best.get("n_features") and best["metric"] == "paper" else ""
    rates = {
        f"spectra, recommended metric ({best['metric']}{kept})": best["rate"],
        "spectra, raw": evaluation["raw"],
        "spectra, scaled": evaluation["scaled"],
        "spectra, RSCA": evaluation["rsca"],
        f"spectra, RSCA top {evaluation['n_features']}": evaluation["rsca_top"],
    }
    baselines = evaluation.get("abundances") or {}
    if baselines:
        _, best = min(baselines.items(), key=lambda item: item[1]["rsca"])
        rates[f"measured abundances ({len(best['species'])} species, RSCA)"] = best["rsca"]
    rates["noise-free floor (true abundances)"] = evaluation["floor"]
    return rates


def noise_free_floor(run: Run, truth_file: Path) -> float:
    """Doppelganger rate of the true abundances of the paper's seven species: what perfect chemistry would reach.

    The truth was kept beside the simulated survey and no fit has read it.

    Parameters
    ----------
    run : Run
        With an embedding, which says who is field and who is member.
    truth_file : Path
        ``truth.npz`` of a simulated release (`star_id`, `abundance` (star, element)).
    """
    from chemscale.rsca.stars import RunStars, text

    stars = RunStars.read(run)
    with np.load(truth_file, allow_pickle=False) as truth:
        row = {str(s): i for i, s in enumerate(truth["star_id"])}
        columns = [str(e) for e in truth["element"]]
        abundance = truth["abundance"].astype(np.float64)[:, [columns.index(e) for e in PAPER_SUBSET]]
    iron = abundance[:, [PAPER_SUBSET.index("Fe")]]
    abundance = np.where(np.array(PAPER_SUBSET) == "Fe", abundance, abundance - iron)
    ids = text(stars.embedding["star_id"])
    abundance = abundance[[row[i] for i in ids]]
    engine = stars.evaluate(abundance[stars.field_rows], abundance[stars.member_rows])
    return engine.rates("rsca").overall
