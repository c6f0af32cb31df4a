"""Pipelines from one file: checked before anything runs, resumed after anything happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from chemscale.cli import command
from chemscale.errors import InputError
from chemscale.pipeline import execute, plan
from chemscale.pipeline import file as files
from chemscale.pipeline.execute import StageFailed
from chemscale.simulation.clusters import cluster_sizes

PIPELINE = """
[pipeline]
store = "survey.zarr"
run = "run"
retries = 1

{cluster}

[simulate]
stars = 400
clusters = 4
seed = 3
grid = "lowres"

[fit]
components = 6

[evaluate]
"""


def write(folder: Path, cluster: str = "", text: str = PIPELINE) -> Path:
    path = folder / "pipeline.toml"
    path.write_text(text.format(cluster=cluster))
    return path


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "needs `store`"),
        ('[pipeline]\nstore = "s"\nrun = "r"\n', "no stage"),
        ('[pipeline]\nstore = "s"\nrun = "r"\nretry = 1\n[fit]\n', "unknown key 'retry'"),
        ('[pipeline]\nstore = "s"\nrun = "r"\n[ingets]\n', "did you mean .ingest"),
        ('[pipeline]\nstore = "s"\nrun = "r"\n[ingest]\n', "needs `source`"),
        ('[pipeline]\nstore = "s"\nrun = "r"\n[ingest]\nsource = "apogge"\n', "not installed here"),
        ('[pipeline]\nstore = "s"\nrun = "r"\n[fit]\ncomponent = 3\n', "did you mean 'components'"),
        ('[pipeline]\nstore = "s"\nrun = "r"\n[fit]\ncomponents = [3, 4]\n', "takes one value"),
        ('[pipeline]\nstore = "s"\nrun = "r"\n[cluster]\nkin = 1\n[fit]\n', "did you mean 'kind'"),
    ],
)
def test_bad_files_are_refused_before_anything_runs(tmp_path, text, match):
    path = tmp_path / "p.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=match):
        files.load(path, command())


def test_commands_and_order(tmp_path):
    pipeline = files.load(write(tmp_path), command())
    assert [s.name for s in pipeline.stages] == ["simulate", "fit", "evaluate"]
    assert pipeline.stages[1].arguments[:2] == ("rsca", "fit")
    assert "--components" in pipeline.stages[1].arguments
    assert [s.name for s in files.select(pipeline, "fit", None)] == ["fit", "evaluate"]
    with pytest.raises(InputError, match="comes after"):
        files.select(pipeline, "evaluate", "fit")
    with pytest.raises(InputError, match="no stage 'report'"):
        files.select(pipeline, "report")


def test_a_changed_setting_changes_the_stage_and_those_after_it(tmp_path):
    before = files.load(write(tmp_path), command())
    after = files.load(write(tmp_path, text=PIPELINE.replace("components = 6", "components = 5")), command())
    same = [a.fingerprint == b.fingerprint for a, b in zip(before.stages, after.stages)]
    assert same == [True, False, False]


def test_dry_run_of_a_survey_that_is_not_there(tmp_path):
    planned = plan.plan(files.load(write(tmp_path), command()))
    assert [r["status"] for r in planned["stages"]] == ["to do"] * 3
    assert not (tmp_path / "run").exists()
    assert [r["stars"] for r in planned["stages"]] == [400 + sum(cluster_sizes(4))] * 3
    fit = planned["stages"][1]
    assert 0 < fit["seconds"] < fit["seconds_at_most"] and fit["memory_bytes"] > 4e8


@pytest.mark.parametrize(
    ("stage", "more"),
    [("fit", "components = 60"), ("train", "epochs = 900"), ("train", 'preset = "paper"'), ("infer", "")],
)
def test_estimates_follow_what_they_depend_on(tmp_path, stage, more):
    """More stars, components and epochs take longer; twice the workers half as long, but for the start."""

    def seconds(stars: int, workers: int, table: str) -> float:
        text = f"[pipeline]\nstore = 's'\nrun = 'r'\n[cluster]\nworkers = {workers}\nthreads = 1\n"
        text += f"[simulate]\nstars = {stars}\n[{stage}]\n{table}\n"
        return plan.plan(files.load(write(tmp_path, text=text), command()))["stages"][1]["seconds"]

    one = seconds(100_000, 1, "")
    assert seconds(400_000, 1, "") > 3 * one
    assert one / 2 < seconds(100_000, 2, "") < 0.6 * one
    if more:
        assert seconds(100_000, 1, more) > 1.5 * one


@pytest.mark.slow
def test_a_stage_that_cannot_work_is_not_retried(tmp_path):
    text = PIPELINE.replace("components = 6", "components = 4000")
    pipeline = files.load(write(tmp_path, text=text), command())
    with pytest.raises(StageFailed, match="stage fit ended with status 4 after 1 attempt") as caught:
        execute.run(pipeline)
    assert caught.value.exit_code == 4
    state = json.loads((tmp_path / "run/pipeline.json").read_text())["stages"]
    assert (state["simulate"]["status"], state["fit"]["status"]) == ("done", "failed")
    assert "remedy" in (tmp_path / "run/logs/fit.log").read_text()


@pytest.mark.slow
def test_whole_journey_then_nothing_to_do_then_one_stage_anew(tmp_path):
    """Local cluster: products, records and reports are there; a second call runs nothing."""
    path = write(tmp_path, cluster='[cluster]\nkind = "local"\nworkers = 1\nthreads = 1\n')
    before = {row["stage"]: row for row in plan.plan(files.load(path, command()))["stages"]}
    state = execute.run(files.load(path, command()))
    for stage, entry in state.items():  # less than four times what it took; a busy machine may take far longer
        assert entry["wall_s"] / 60 < before[stage]["seconds"] < 4 * entry["wall_s"], stage
    peak = max(state["fit"]["worker_peak_bytes"].values())
    assert peak / 4 < before["fit"]["memory_bytes"] < 4 * peak
    assert {s: e["status"] for s, e in state.items()} == {"simulate": "done", "fit": "done", "evaluate": "done"}
    assert state["fit"]["worker_peak_bytes"]
    rates = json.loads((tmp_path / "run/evaluation.json").read_text())
    stamp = state["fit"]["started"]
    planned = plan.plan(files.load(path, command()))
    assert [r["status"] for r in planned["stages"]] == ["done"] * 3
    assert planned["stages"][1]["seconds"] == state["fit"]["wall_s"]
    assert execute.run(files.load(path, command()))["fit"]["started"] == stamp
    again = execute.run(files.load(path, command()), first="evaluate")
    assert again["fit"]["started"] == stamp
    assert json.loads((tmp_path / "run/evaluation.json").read_text())["rsca"] == rates["rsca"]
    for file in tmp_path.rglob("*"):
        if file.is_file():
            assert b"PRIVATE KEY" not in file.read_bytes(), file


def start(path: Path) -> subprocess.Popen:
    code = "from chemscale.cli import main; main()"
    return subprocess.Popen([sys.executable, "-c", code, "run", str(path)], stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_a_pipeline_that_is_stopped_or_killed_resumes(tmp_path, how):
    """SIGTERM of the driver, or the loss of driver, scheduler and workers at once."""
    text = PIPELINE.replace("stars = 400", "stars = 12000").replace("components = 6", "components = 8")
    path = write(tmp_path, cluster='[cluster]\nkind = "local"\nworkers = 2\nthreads = 1\n', text=text)
    process = start(path)
    store = tmp_path / "survey.zarr"
    deadline = time.monotonic() + 200
    while not list(store.rglob("done/*")) and not list(store.rglob("*marker*")) and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
        if store.exists() and sum(1 for f in store.rglob("*") if f.is_file()) > 12:
            break
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    if how == "SIGTERM":
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) != 0
    else:
        for member in family:  # the machine goes down
            try:
                os.kill(member.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.wait(60)
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive, alive
    done = subprocess.run(
        [sys.executable, "-m", "chemscale", "run", str(path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    import chemscale

    ds = chemscale.open_survey(str(store))
    assert ds.sizes["star"] == 12000 + sum(1 for c in ds["cluster"].values if c)
    assert np.isfinite(json.loads((tmp_path / "run/evaluation.json").read_text())["rsca"])
