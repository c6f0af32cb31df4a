"""`chemscale simulate`: a survey from a seed, as a store or as a tree of FITS files."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from chemscale.cli.options import AsJson, Cluster, ReadWorkers, client_for

Clusters = Annotated[
    int | None,
    typer.Option("--clusters", min=0, help="Open clusters, with 185 members in 22; by default 22 in a disc, else 0."),
]


def register(app: typer.Typer) -> None:
    """Add the verb to the app."""
    app.command("simulate")(simulate)


def simulate(
    stars: Annotated[int, typer.Option("--stars", min=0, help="Field stars; members come on top.")] = 12_000,
    clusters: Clusters = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Equal seeds give equal surveys.")] = 0,
    out: Annotated[str | None, typer.Option("--out", metavar="STORE", help="Store to write.")] = None,
    as_release: Annotated[
        str | None, typer.Option("--as-release", metavar="DIR", help="Write an APOGEE-like FITS release instead.")
    ] = None,
    emulator: Annotated[
        str | None, typer.Option("--emulator", metavar="FILE.npz", help="Spectra from an emulator file.")
    ] = None,
    grid: Annotated[
        str | None, typer.Option("--grid", help="hband or lowres; by default the emulator's, else hband.")
    ] = None,
    population: Annotated[
        str, typer.Option("--population", help="disc, uniform, or (lowres) halo, metal-poor, carbon-rich.")
    ] = "disc",
    instrument: Annotated[str, typer.Option("--instrument", help="auto, full, noise or none.")] = "auto",
    noise_free: Annotated[
        bool, typer.Option("--noise-free", help="Keep the spectra without noise in the store of the truth.")
    ] = False,
    hits: Annotated[
        float,
        typer.Option("--hits", metavar="RATE", min=0, help="Fraction of pixels with an unflagged hit or bad sky line."),
    ] = 0.0,
    resume: Annotated[bool, typer.Option("--resume", help="Carry on with an unfinished store.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    workers: ReadWorkers = None,
    cluster: Cluster = None,
    as_json: AsJson = False,
) -> None:
    """Simulate a survey: giants of a disc, open clusters, spectra from physics, an instrument.

    The truth is kept apart: STORE.truth.zarr, or truth.npz in the release's folder.

    Example: chemscale simulate --stars 12000 --clusters 22 --seed 1 --out survey.zarr
    """
    from chemscale.errors import InputError
    from chemscale.simulation.emulator import Emulator
    from chemscale.simulation.generator import Simulation

    if (out is None) == (as_release is None):
        raise InputError("give either --out STORE or --as-release DIR")
    file = _full(emulator)
    if grid is None:
        grid = Emulator(file).grid_name if file else "hband"
    if clusters is None:
        clusters = 22 if population == "disc" else 0
    simulation = Simulation(stars, clusters, seed, grid, population, instrument, file, hits)
    if as_release is not None:
        given = [n for n, v in (("--resume", resume), ("--noise-free", noise_free), ("--cluster", cluster)) if v]
        if given:
            raise InputError(f"{given[0]} goes with --out alone", "leave it out, or write a store")
        _release(simulation, as_release, overwrite, workers, as_json)
    else:
        assert out is not None
        _store(simulation, out, resume, overwrite, noise_free, workers, cluster, as_json)


def _full(path: str | None) -> str | None:
    from chemscale.cli.surveys import full_path as full

    return full(path)


def _store(
    simulation: Any,
    out: str,
    resume: bool,
    overwrite: bool,
    noise_free: bool,
    workers: int | None,
    cluster: str | None,
    as_json: bool,
) -> None:
    import os

    from chemscale.cli.ingest import n_workers
    from chemscale.cli.summary import show_summary
    from chemscale.errors import StoreError
    from chemscale.simulation.truth import truth_path, write_truth
    from chemscale.survey.ingest.ingestion import ingest
    from chemscale.survey.ingest.planning import plan_ingest
    from chemscale.survey.sources.simulated import SimulatedSource

    if not (overwrite or resume) and "://" not in out and os.path.exists(truth_path(out)):
        raise StoreError(f"{truth_path(out)} exists", "choose another --out, or --overwrite")
    source = SimulatedSource(**simulation.settings())
    if workers is None and cluster is None:
        workers = n_workers(None, simulation.n_stars)
    job = plan_ingest(source)
    with client_for(workers, cluster) as client:
        summary = ingest(source, out, client=client, overwrite=overwrite, resume=resume, job=job)
    if summary.complete:
        write_truth(simulation, truth_path(out), overwrite=overwrite or resume, noise_free=noise_free)
    show_summary(summary, as_json)


def _release(simulation: Any, folder: str, overwrite: bool, workers: int | None, as_json: bool) -> None:
    import shlex

    from rich.markup import escape

    from chemscale.cli import console, echo_json
    from chemscale.simulation.release import write_release

    done = write_release(folder, simulation, overwrite=overwrite, processes=workers, progress=None)
    if as_json:
        echo_json(done)
    else:
        console.print(f"[green]release written:[/] {escape(folder)}", highlight=False, soft_wrap=True)
        files = f"{escape(done['allstar'])}, {escape(done['members'])}"
        console.print(f"{done['n_files']:,} spectra, {files}", highlight=False, soft_wrap=True)
        words = ["chemscale", "ingest", "apogee", "--spectra", folder, "--allstar", done["allstar"]]
        words += ["--members", done["members"], "--out", "survey.zarr"]
        console.print(f"next: {escape(shlex.join(words))}", highlight=False, soft_wrap=True)
