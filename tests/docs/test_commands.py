"""Every command that README and the pages print runs, as it is printed, in a folder that holds what it names."""

from __future__ import annotations

import os
import shlex
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from astropy.table import Table
from click.testing import CliRunner
from pages import BLOCK, PAGES, ROOT, RUN, blocks, documented
from survey.sources.releases import write_lamost
from toyrun import toy_survey

from chemscale.cli import command
from chemscale.rsca.evaluate import evaluate_run
from chemscale.rsca.pipeline import fit_run
from chemscale.survey.ingest.datasets import write_survey
from chemscale.survey.store.open import open_survey

#: Commands that cannot run here, and why. They are parsed all the same.
NOT_RUN = {
    "demo": "tests/test_demo.py runs it",
    "ingest apogee --spectra /data/dr17 --allstar allStar-dr17.fits --members occam_member-DR17.fits --out "
    "/scratch/apogee.zarr --cluster slurm.toml": "needs DR17 and a Slurm cluster",
    "rsca fit /scratch/apogee.zarr --run /scratch/dr17 --components 30 --cluster slurm.toml": "needs a Slurm cluster",
    "rsca evaluate --run /scratch/dr17": "needs DR17",
    "study all --run /scratch/dr17": "needs DR17",
    "report --run /scratch/dr17": "needs DR17",
    "ingest apogee --spectra /data/dr17 --out s3://bucket/apogee.zarr": "needs DR17 and an object store",
    "rsca fit s3://bucket/apogee.zarr --run ./run --cluster kubernetes.toml": "needs an object store and Kubernetes",
    "ingest apogee --spectra redux/ --out apogee.zarr --cluster slurm.toml": "needs a Slurm cluster",
    "vae train apogee.zarr --groups examples/apogee_six_elements.toml --run six": "needs the whole H band",
    "bench scaling --workers 1,2,4,8 --stars 16384 --out .": "hours; tests/bench runs it small",
    "bench gpu --stars 320000 --out .": "minutes; tests/bench runs it small",
    "bench scheduler --workers 10,100,300 --out .": "minutes; tests/bench runs it small",
    "rsca fit lamost.zarr --run run --device cuda": "needs a GPU",
    "simulate --stars 12000 --clusters 22 --seed 1 --out simulated.zarr": "a gigabyte",
}
#: Commands of more than some five seconds.
SLOW = (
    "report --run run --studies",
    "study dimensionality",
    "rsca fit lamost.zarr",
    "plot spectra vae",
    "study dataset_size",
    "rsca fit apogee.zarr --run better",
    "run pipeline.toml",
)
#: Settings that fit the small survey: two epochs, and a false-alarm rate that a hundred held-out stars can calibrate.
SETTINGS = {
    "CHEMSCALE_VAE_TRAIN_EPOCHS": "2",
    "CHEMSCALE_VAE_TRAIN_PRESET": "quick",
    "CHEMSCALE_ANOMALIES_FALSE_ALARM": "0.2",
}
#: The folder is prepared by these, whose products the others use.
FIRST = ("vae train lamost.zarr --run vae", "vae infer lamost.zarr --run vae", "anomalies --run vae", "flags --run vae")
#: Stars that the pages name, given to members of the small survey.
STARS = ("2M19203303+3755558", "2M19213390+3750202", "STAR_A", "STAR_B", "STAR_ID")
#: Pages whose commands need those before them: test_docs.py runs them from top to bottom.
WHOLE = ("docs/tutorial.md", "docs/howto/try.md")
COMMANDS = list(dict.fromkeys(shlex.join(words) for page, words in documented() if page not in WHOLE))
PYTHON = [
    pytest.param(code, id=f"{page.name}:{k}")
    for page in PAGES
    if page.name not in ("tutorial.md", "CONTRIBUTING.md") and not any(page.match(f"docs/{name}") for name in RUN)
    for k, (_, _, code) in enumerate(blocks(page, "python"))
]


def small_survey() -> xr.Dataset:
    """700 field stars and 8 clusters, half of the stars behind dust, with the stars that the pages name."""
    ds = toy_survey(n_field=700, n_pixels=120)
    rng = np.random.default_rng(3)
    n = ds.sizes["star"]
    dust = np.where(rng.random(n) < 0.4, 0.001, rng.uniform(0.3, 1.0, n)).astype("f4")
    ids = ds["star_id"].values.copy()
    ids[np.flatnonzero(ds["cluster"].values == "Cluster 0")[: len(STARS)]] = STARS
    changed = {"extinction": dust, "star_id": ids}
    abundance = ds["abundance"].values + rng.normal(0, 0.1, ds["abundance"].shape).astype("f4")
    flux = ds["flux"].values.copy()
    for k in range(ds.sizes["element"]):  # lines of its own for every element
        flux[:, 13 * k : 13 * k + 6] -= 0.4 * abundance[:, [k]]
    ds = ds.assign({k: ("star", v, ds[k].attrs) for k, v in changed.items()})
    return ds.assign({k: (ds[k].dims, v, ds[k].attrs) for k, v in {"abundance": abundance, "flux": flux}.items()})


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with every file, store and run that a documented command names."""
    folder = tmp_path_factory.mktemp("documented")
    ds = small_survey()
    for name in ("survey", "apogee", "new", "simulated", "mine"):
        write_survey(ds, folder / f"{name}.zarr")
    for name in ("run", "better", "mine", "cleaned"):
        evaluate_run(fit_run(str(folder / "survey.zarr"), folder / name, components=14).path)
    spectra = {name: ds[name].values for name in ("flux", "ivar", "wavelength", "teff", "fe_h")}
    for name in ("spectra", "new"):
        np.savez(folder / f"{name}.npz", **spectra, star_id=ds["star_id"].values.astype(str))
    for name in ("ids.txt", "mine.txt"):
        (folder / name).write_text("\n".join(STARS) + "\n")
    low, high = ds["wavelength"].values[[10, 50]]
    (folder / "lines.csv").write_text(f"element,low,high\nMg,{low},{high}\n")
    invoke(folder, "simulate --stars 120 --clusters 8 --seed 1 --as-release redux")
    for kind in ("allStar", "occam_member"):
        next((folder / "redux").glob(f"{kind}-*.fits")).rename(folder / f"{kind}.fits")
    lamost = [write_lamost(folder / "dr10" / f"spec-{k}.fits") for k in range(4)]
    lamost += [write_lamost(folder / "repeats" / f"spec-{k}.fits") for k in "ab"]
    for name in ("labels", "dr10_labels"):
        (folder / f"{name}.csv").write_text("".join(["file,teff,logg\n", *(f"{p.name},5000,4\n" for p in lamost)]))
    (folder / "groups.csv").write_text("file,group\nspec-a.fits,7\nspec-b.fits,7\n")
    invoke(folder, "simulate --grid lowres --stars 300 --clusters 6 --seed 1 --out lamost.zarr")
    more = ("rsca elements --run run", "rsca export --run run --out model.safetensors", "export run --out stars.fits")
    for line in (*FIRST, *more):
        invoke(folder, line)
    stores = [open_survey(folder / f"{store}.zarr") for store in ("survey", "lamost")]
    ids = np.concatenate([s["star_id"].values.astype(str) for s in stores])
    mine = Table({"star_id": ids, "APOGEE_ID": ids, "age": np.arange(len(ids)) / 100})
    for name in ("mine.csv", "ages.csv"):
        mine.write(folder / name)
    return folder


def invoke(folder: Path, line: str) -> None:
    """Run a command line of chemscale in a folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        done = CliRunner().invoke(command(), shlex.split(line), env=SETTINGS)
    finally:
        os.chdir(before)
    assert done.exit_code == 0, f"chemscale {line}\n{done.output[-2000:]}\n{done.exception!r}"


def targets(words: list[str]) -> list[str]:
    """What a command makes anew: it is not there before."""
    if words[0] == "run":  # the pipeline of the page
        return ["apogee.zarr", "run"]
    after = dict(pairwise(words))
    makes_run = words[:2] in (["rsca", "fit"], ["vae", "train"])
    return [after[o] for o in ("--out", *(("--run",) if makes_run else ())) if o in after]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "line",
    [
        pytest.param(c, marks=[pytest.mark.slow] if c.startswith(SLOW) else [])
        for c in COMMANDS
        if c not in (*NOT_RUN, *FIRST)
    ],
)
def test_documented_command_runs(line, prepared, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(prepared, folder)
    for made in targets(shlex.split(line)):
        gone = folder / made
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink(missing_ok=True)
    for file in ("slurm.toml", "pipeline.toml"):
        write_titled(file, folder)
    invoke(folder, line)
    for made in targets(shlex.split(line)) if "--dry-run" not in line else ():
        assert (folder / made).exists(), f"chemscale {line} made no {made}"


def write_titled(name: str, folder: Path) -> None:
    """A file that a page shows under its name."""
    for page in PAGES:
        for _, opts, code in BLOCK.findall(page.read_text(encoding="utf-8")):
            if f'title="{name}"' in opts:
                (folder / name).write_text(code)


@pytest.mark.parametrize("code", PYTHON)
def test_documented_python_runs(code, prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    exec(compile(code, "documentation", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("page", sorted({page for page, _ in documented()}))
def test_documented_commands_parse(page):
    """Also those that cannot run here: each option, value and argument is taken by the command it is given to."""
    for words in (w for p, w in documented() if p == page):
        parse(command(), "chemscale", words)
        if "--" in words:  # a command that is handed on
            parse(command(), "chemscale", words[words.index("--") + 1 :])


def parse(node: Any, name: str, words: list[str], parent: Any = None) -> None:
    """Walk down the tree of verbs as Click does, without running anything."""
    if {"--help", "--version"} & set(words):
        return
    context = node.make_context(name, list(words), parent=parent)
    if hasattr(node, "commands"):
        verb, command_, rest = node.resolve_command(context, list(words))
        parse(command_, verb, rest, context)


def test_every_verb_stands_in_the_table_of_the_command_line():
    table = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")

    def verbs(node: Any, *path: str) -> list[str]:
        if hasattr(node, "commands"):
            return [v for name, sub in node.commands.items() for v in verbs(sub, *path, name)]
        return [" ".join(path)]

    # the simulated survey is a source for `chemscale simulate`
    assert [v for v in verbs(command()) if f"`{v}`" not in table and v != "ingest simulated"] == []


def test_what_is_not_run_is_documented_still():
    assert {*NOT_RUN, *FIRST} <= set(COMMANDS)
    assert all(any(c.startswith(s) for c in COMMANDS) for s in SLOW)
    assert ROOT.joinpath("README.md") in PAGES
