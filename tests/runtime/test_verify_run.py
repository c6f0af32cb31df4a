"""`chemscale verify --run` names every damage of a run."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

from chemscale.cli import build
from chemscale.runtime.files import write_file
from chemscale.runtime.run import Run
from chemscale.runtime.verify_run import verify_run


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    run = Run.create(tmp_path_factory.mktemp("v") / "run")
    rng = np.random.default_rng(1)
    for stage, name in (("ppca", "ppca.zarr"), ("embed", "embedding.zarr"), ("metric", "rsca.zarr")):
        with run.stage(stage):
            run.save_dataset(name, xr.Dataset({"a": (("x", "y"), rng.normal(size=(20, 30)))}))
    with run.stage("evaluate"):
        run.save_json("evaluation.json", {"raw": 0.25})
    with run.stage("study"):
        (run.path / "studies/one").mkdir(parents=True)
        run.save_json("studies/one/summary.json", {"rate": 0.1})
        (run.path / "studies/one/figure.png").write_bytes(rng.bytes(500))
    write_file(run.path / "report.html", b"<p>page</p>")
    run.seal_file(run.path / "report.html")
    return run.path


def test_a_whole_run_has_no_fault_and_no_note(whole):
    report = verify_run(whole)
    assert (report.faults, report.notes) == ([], [])
    assert report.n_files == sum(1 for f in whole.rglob("*") if f.is_file())


def test_a_hundred_damages_are_all_named(whole, tmp_path):
    rng = np.random.default_rng(7)
    files = sorted(f.relative_to(whole) for f in whole.rglob("*") if f.is_file())
    assert len(files) > 12
    missed = []
    for number in range(100):
        run = tmp_path / f"run{number}"
        shutil.copytree(whole, run)
        name = files[rng.integers(len(files))]
        kind = ("flip", "truncate", "remove", "replace")[rng.integers(4)]
        data = bytearray((run / name).read_bytes())
        if kind == "flip":
            data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        elif kind == "truncate":
            del data[rng.integers(len(data)) :]
        elif kind == "replace":
            other = [f for f in files if (whole / f).read_bytes() != bytes(data)]
            data = bytearray((whole / other[rng.integers(len(other))]).read_bytes())
        (run / name).unlink() if kind == "remove" else (run / name).write_bytes(bytes(data))
        os.utime(run, None)
        done = CliRunner().invoke(build(), ["verify", "--run", str(run), "--json"])
        named = done.exit_code == 3 and any(name.parts[0] in f for f in json.loads(done.stdout)["faults"])
        refused = done.exception is not None and str(run) in str(done.exception)  # the manifest itself
        if not (named or refused):
            missed.append((number, str(name), kind, done.stdout))
    assert missed == []


def test_what_an_interrupted_command_left_is_a_note(whole, tmp_path):
    run = Run.open(shutil.copytree(whole, tmp_path / "run"))
    with pytest.raises(KeyboardInterrupt), run.stage("embed"):
        raise KeyboardInterrupt
    (run.path / "embedding.zarr.partial").mkdir()
    report = verify_run(run.path)
    assert report.ok
    assert any("stage embed did not end well" in n for n in report.notes)
    assert any("embedding.zarr.partial: left by an interrupted command" in n for n in report.notes)


def test_a_product_of_another_input_is_a_fault_that_names_the_command(whole, tmp_path):
    run = Run.open(shutil.copytree(whole, tmp_path / "run"))
    run.save_dataset("embedding.zarr", xr.Dataset({"a": ("x", np.arange(3))}))
    faults = verify_run(run.path).faults
    assert len(faults) == 2 and all("made from another embedding.zarr" in f for f in faults)
    assert f"rsca fit STORE --run {run.path}" in faults[1]


def test_verify_wants_a_store_or_a_run(whole):
    done = CliRunner().invoke(build(), ["verify"])
    assert "STORE" in str(done.exception)
