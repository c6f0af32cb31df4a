"""Every command that writes a run or a file from one: what it does to a small survey, and how its product is read.

Each writes where an older product of the same command lies, made with other settings, so that old and new answers
can be told apart.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from helpers import make_survey

from chemscale.report.html import build_report
from chemscale.results.export import export
from chemscale.rsca.applied import LikenessModel, open_model
from chemscale.rsca.elements import elements_run
from chemscale.rsca.evaluate import evaluate_run
from chemscale.rsca.nuisance import nuisance_run
from chemscale.rsca.pipeline import fit_run
from chemscale.rsca.siblings import siblings, write_neighbours
from chemscale.rsca.tables import write_table
from chemscale.runtime.cluster import current_client
from chemscale.runtime.run import Run
from chemscale.studies.registry import run_study
from chemscale.survey.ingest.datasets import write_survey
from chemscale.survey.store.open import open_survey
from chemscale.vae import pipeline as vae
from chemscale.vae.checkpoint import load_model

sys.path.insert(0, str(Path(__file__).parents[1] / "vae"))
from vae_toy import FAST, FAST_MODEL, TOY_REGIONS, toy_survey

#: What products say of when they were made and how long it took: no two are alike in that.
TIMES = re.compile(rb'"(seconds|stars_per_s)": [-+.e0-9]+|\d{4}-\d\d-\d\d \d\d:\d\d UTC')


def digest(data: bytes | str) -> str:
    return hashlib.sha256(data if isinstance(data, bytes) else data.encode()).hexdigest()


def products(folder: Path) -> dict[str, str]:
    """Digest of every file of the products below a folder.

    A run's own books do not count, nor what a killed writer of a file outside of a run left under a hidden name.
    """
    found = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        books = file.name == "manifest.json" or file.name.startswith(".lock.json")
        left = file.parent == folder and ".partial-" in file.name
        if file.is_file() and not books and not left:
            found[name] = digest(TIMES.sub(b"", file.read_bytes()))
    return found


@dataclass(frozen=True)
class Command:
    """A command on the stores and the run of a folder.

    Attributes
    ----------
    act : callable
        Does it, in a folder that `older` has prepared; repeated as it is.
    read : callable
        What a reader of its product is told.
    older : callable
        Makes the inputs, and a product of other settings.
    """

    act: Callable[[Path], Any]
    read: Callable[[Path], str]
    older: Callable[[Path], Any]


def _survey(f: Path) -> None:
    write_survey(make_survey(150, 5, 5, n_pixels=40, seed=3), f / "s.zarr")


def _fit(f: Path, components: int = 4, metric: str = "paper") -> None:
    fit_run(str(f / "s.zarr"), f / "run", components=components, metric=metric)


def _run(f: Path) -> None:
    _survey(f)
    _fit(f)
    evaluate_run(f / "run")


def _auto(f: Path) -> None:
    _survey(f)
    _fit(f, 4, "auto")


def _train(f: Path, epochs: int) -> None:
    settings = {**FAST, "epochs": epochs, "late_label_weight": 0.0}
    options = {"model": FAST_MODEL, "settings": settings, "regions": TOY_REGIONS, "scale": False}
    vae.train(str(f / "v.zarr"), f / "vae", overwrite=True, **options)


def _trained(f: Path) -> None:
    write_survey(toy_survey(320), f / "v.zarr")
    _train(f, 2)


def _latents(f: Path) -> None:
    _trained(f)
    vae.infer(str(f / "v.zarr"), f / "vae")


def _judged_by_flat_spectra(f: Path) -> None:
    """Another evaluation of the same latents: against noise-free spectra that are 1 everywhere."""
    np.save(f / "white.npy", np.ones((320, 240), dtype=np.float32))
    vae.evaluate(f / "vae", truth=f / "white.npy")


def _other_weights(f: Path) -> None:
    _latents(f)
    _train(f, 1)


def _with(make: Callable[[Path], Any], *then: Callable[[Path], Any]) -> Callable[[Path], None]:
    def prepare(f: Path) -> None:
        make(f)
        for command in then:
            command(f)

    return prepare


def _elements(f: Path, n_features: int) -> None:
    wave = open_survey(f / "s.zarr")["wavelength"].values
    windows = [("Fe", wave[1], wave[9]), ("Mg", wave[11], wave[18]), ("Si", wave[25], wave[35])]
    lines = [f"{name},{low},{high}" for name, low, high in windows]
    (f / "windows.csv").write_text("\n".join(["element,low,high", *lines]) + "\n")
    elements_run(f / "run", windows=f / "windows.csv", components=4, n_features=n_features)


def _transform(f: Path, ending: str, n_features: int) -> None:
    model = open_model(f / "run", "paper")
    model.n_features = n_features
    found = model.transform(open_survey(f / "s.zarr"))
    write_table(found.reset_coords("star_id"), f / f"features{ending}")


def _export_model(f: Path, n_features: int) -> None:
    model = LikenessModel.of_run(Run.open(f / "run"), "paper")
    model.n_features = n_features
    model.save(f / "model.safetensors")


def _read_siblings(f: Path) -> str:
    return digest(str(siblings("S000045", f / "run", n=5).load().to_dict()))


def _read_json(*where: str, key: str = "") -> Callable[[Path], str]:
    def read(f: Path) -> str:
        content = Run.open(f / where[0]).load_json(where[1])
        return json.dumps(content[key] if key else content, sort_keys=True)

    return read


def _read_dataset(run: str, name: str) -> Callable[[Path], str]:
    def read(f: Path) -> str:
        ds: xr.Dataset = Run.open(f / run).open_dataset(name).load()
        return digest(str({v: ds[v].values.tolist() for v in sorted(map(str, ds.variables))}))

    return read


def _read_bytes(name: str) -> Callable[[Path], str]:
    return lambda f: digest(TIMES.sub(b"", (f / name).read_bytes()))


def _read_study(f: Path) -> str:
    folder = f / "run" / "studies" / "dimensionality"
    names = ("figure.png", "figure.pdf", "data.csv", "summary.json")
    return digest(b"".join(TIMES.sub(b"", (folder / n).read_bytes()) for n in names))


def _read_model(f: Path) -> str:
    _, record = load_model(f / "vae" / "vae")
    return str(record["sha256"])


def _read_latents(f: Path) -> str:
    return digest(vae.latents(f / "vae")[0]["mean"].values.tobytes())


COMMANDS: dict[str, Command] = {
    "rsca fit, first": Command(lambda f: _fit(f), _read_siblings, _survey),
    "rsca fit": Command(lambda f: _fit(f, 5), _read_siblings, _run),
    "rsca fit --metric auto": Command(lambda f: _fit(f, 5, "auto"), _read_json("run", "auto.json"), _auto),
    "rsca evaluate": Command(
        lambda f: evaluate_run(f / "run", n_features=2), _read_json("run", "evaluation.json", key="rsca_top"), _run
    ),
    "rsca neighbours": Command(
        lambda f: write_neighbours(f / "run", 4),
        _read_dataset("run", "siblings.zarr"),
        _with(_run, lambda f: write_neighbours(f / "run", 3)),
    ),
    "rsca elements": Command(
        lambda f: _elements(f, 1),
        _read_dataset("run", "elements.zarr"),
        _with(_run, lambda f: _elements(f, 2)),
    ),
    "rsca nuisance": Command(
        lambda f: nuisance_run(f / "run", n_groups=5, n_remove=1, n_features=2),
        _read_json("run", "nuisance_radial_velocity.json"),
        _with(_run, lambda f: nuisance_run(f / "run", n_groups=5, n_remove=2, n_features=2)),
    ),
    "rsca export": Command(
        lambda f: _export_model(f, 2), _read_bytes("model.safetensors"), _with(_run, lambda f: _export_model(f, 1))
    ),
    "rsca transform": Command(
        lambda f: _transform(f, ".fits", 2),
        _read_bytes("features.fits"),
        _with(_run, lambda f: _transform(f, ".fits", 1)),
    ),
    "export": Command(
        lambda f: export(f / "run", f / "stars.fits", features=2),
        _read_bytes("stars.fits"),
        _with(_run, lambda f: export(f / "run", f / "stars.fits", features=1)),
    ),
    "study": Command(
        lambda f: run_study("dimensionality", f / "run", {"n_features": 2}),
        _read_study,
        _with(_run, lambda f: run_study("dimensionality", f / "run", {"n_features": 1})),
    ),
    "report": Command(
        lambda f: build_report(f / "run", n_spectra=20),
        _read_bytes("run/report.html"),
        _with(_run, lambda f: build_report(f / "run", n_spectra=10)),
    ),
    "vae train": Command(lambda f: _train(f, 1), _read_model, _trained),
    # the latents that are there belong to other weights: their values must not be given
    "vae infer": Command(
        lambda f: vae.infer(str(f / "v.zarr"), f / "vae", overwrite=True, client=current_client()),
        _read_latents,
        _other_weights,
    ),
    "vae evaluate": Command(
        lambda f: vae.evaluate(f / "vae", against="labels"),
        _read_json("vae", "vae_evaluation.json"),
        _with(_latents, _judged_by_flat_spectra),
    ),
    "anomalies": Command(
        lambda f: vae.anomalies(f / "vae", false_alarm=0.1),
        _read_json("vae", "anomalies.json", key="flagged"),
        _with(_latents, lambda f: vae.anomalies(f / "vae", false_alarm=0.2)),
    ),
    "flags": Command(
        lambda f: vae.flags(f / "vae", survey_labels=False),
        _read_json("vae", "flags.json"),
        _with(_latents, lambda f: vae.flags(f / "vae")),
    ),
}
