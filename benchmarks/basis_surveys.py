"""Surveys through the commands, for :mod:`basis_quality`: simulated ones with hits, and real repeats."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from blind import command

from chemscale.embedding.influence import ALONE


def alone(coords: np.ndarray) -> int:
    """Components that rest with more than :data:`~chemscale.embedding.influence.ALONE` on one star."""
    squares = np.square(coords[np.isfinite(coords[:, 0])])
    return int(np.count_nonzero(squares.max(axis=0) / squares.sum(axis=0) > ALONE))


def survey(args: argparse.Namespace, keep: Callable[[str, dict], None]) -> None:
    """Simulated surveys with hits through the commands: rates, components on one star."""
    from chemscale.embedding.product import open_embedding

    args.work.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        store, run = str(args.work / f"q{seed}.zarr"), str(args.work / f"q{seed}-run")
        shutil.rmtree(run, ignore_errors=True)
        kind = ("--emulator", args.emulator) if args.emulator else ()
        size = ("--stars", str(args.stars), "--clusters", "22", "--seed", str(seed), "--hits", str(args.hits))
        if not Path(store).exists():
            command("chemscale", "simulate", *size, *kind, "--out", store)
        command("chemscale", "rsca", "fit", store, "--run", run, *args.options)
        rates = json.loads(command("chemscale", "rsca", "evaluate", "--run", run, "--json"))
        embedding = open_embedding(f"{run}/embedding.zarr")
        coords = embedding["coords"].values[embedding["role"].values != "unused"]
        stages = json.loads((Path(run) / "manifest.json").read_text())["stages"]
        facts = stages["ppca"]["facts"]
        kind_name = "emulator" if args.emulator else "lines"
        keep(
            f"survey {kind_name} {seed}",
            {
                "rates": {n: rates[n] for n in ("raw", "rsca", "rsca_top", "rsca_held_out")},
                "components": int(coords.shape[1]),
                "on_one_star": alone(coords),
                "outliers": facts["outliers"],
                "verdict": facts["verdict"],
                "wall_s": {n: s["wall_s"] for n, s in stages.items()},
            },
        )
        if not args.keep:
            shutil.rmtree(store)


def components(args: argparse.Namespace, keep: Callable[[str, dict], None]) -> None:
    """Rates of runs by metric, and with the first k of their components; and what the others choose for a cluster."""
    from chemscale.rsca.components import steps
    from chemscale.rsca.registry import METRICS
    from chemscale.rsca.stars import RunStars
    from chemscale.runtime.run import Run

    for path in args.runs:
        engine = RunStars.read(Run.open(path)).evaluation
        ks = steps(engine.members.shape[1])
        found = [engine.rates("rsca", k=k) for k in ks]
        weight = np.array([found[0].n_members[c] for c in engine.names], float)
        table = np.array([[r.per_cluster[c] for c in engine.names] for r in found])  # (k, cluster)
        others = (table @ weight)[:, None] - table * weight  # sums over all clusters but one
        picked = np.argmin(others, axis=0)
        nested = float(np.average(table[picked, np.arange(len(weight))], weights=weight))
        best = int(np.argmin([r.overall for r in found]))
        keep(
            f"components {Path(path).name}",
            {
                "rate_by_k": {str(k): round(r.overall, 5) for k, r in zip(ks, found)},
                "best": ks[best],
                "chosen_without_each_cluster": sorted({ks[i] for i in picked}),
                "nested_rate": nested,
                "all": found[-1].overall,
                "metrics": {name: round(engine.rates(name).overall, 5) for name in METRICS},
            },
        )


def lamost(args: argparse.Namespace, keep: Callable[[str, dict], None]) -> None:
    """Repeats of a star as siblings, DR10 stars as field; this release and the other on the same files."""
    for name, python in (("chemscale", sys.executable), ("other", args.base)):
        if not python:
            continue
        tool, data = str(Path(python).parent / "chemscale"), args.data
        store = str(args.work / f"lamost-{name}.zarr")
        args.work.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(store, ignore_errors=True)
        spectra = [w for d in ("lamost_dr10/spectra", "lamost_repeats/spectra") for w in ("--spectra", str(data / d))]
        members = ("--members", str(data / "lamost_repeats" / "groups.csv"))
        keys = ("--member-key", "file", "--member-column", "group")
        labels = ("--labels", str(data / "lamost_dr10" / "labels.csv"))
        command(tool, "ingest", "lamost", *spectra, *labels, *members, *keys, "--out", store)
        for how in ("recommended", "paper") if name == "chemscale" else ("",):
            for k in (20, 30):
                run = f"{store}-run"
                shutil.rmtree(run, ignore_errors=True)
                options = ("--recipe", how) if how else ()
                command(tool, "rsca", "fit", store, "--run", run, "--components", str(k), *options)
                rates = json.loads(command(tool, "rsca", "evaluate", "--run", run, "--json"))
                facts = json.loads((Path(run) / "manifest.json").read_text())["stages"]["ppca"]["facts"]
                wanted = ("raw", "rsca", "rsca_held_out", "rsca_top", "rsca_without_cross_validation")
                kept = {n: rates[n] for n in wanted if n in rates}
                keep(f"lamost {how or name} K={k}", kept | {"basis": facts.get("verdict", facts.get("converged"))})
