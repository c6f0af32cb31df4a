"""The whole chain from FITS files to the report in one pipeline: killed twice on the way, resumed, watched."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import chemscale

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

CLI = [sys.executable, "-m", "chemscale"]
ORDER = ["ingest", "mask", "fit", "evaluate", "train", "infer", "anomalies", "flags", "report"]
PIPELINE = """
[pipeline]
store = "survey.zarr"
run = "run"
retries = 1

[cluster]
kind = "local"
workers = 2
threads = 1

[ingest]
source = "apogee"
spectra = ["release"]
allstar = "{allstar}"
members = ["{members}"]

[mask]
low = 0.2
high = 0.5
components = 8

[fit]
components = 10

[evaluate]

[train]
preset = "quick"
epochs = 3

[infer]

[anomalies]
false_alarm = 0.02

[flags]

[report]
spectra = 20
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A release of FITS files and a pipeline beside it."""
    made = tmp_path_factory.mktemp("chain")
    run("simulate", "--stars", "1200", "--clusters", "8", "--seed", "5", "--as-release", "release", cwd=made)
    allstar, members = (next((made / "release").glob(f"{n}-*.fits")) for n in ("allStar", "occam_member"))
    text = PIPELINE.format(allstar=allstar.relative_to(made), members=members.relative_to(made))
    (made / "pipeline.toml").write_text(text)
    return made


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess:
    done = subprocess.run([*CLI, *words], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return done


def state(folder: Path) -> dict:
    try:
        return json.loads((folder / "run/pipeline.json").read_text())["stages"]
    except FileNotFoundError:
        return {}


def kill_during(folder: Path, stage: str, how: int, after: float = 0.0) -> None:
    """Start the pipeline, end it in the middle of `stage`: by SIGTERM of the driver, or all its processes at once."""
    process = subprocess.Popen([*CLI, "run", "pipeline.toml"], cwd=folder, stderr=subprocess.PIPE, text=True)
    while state(folder).get(stage, {}).get("status") != "running":
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    time.sleep(after)
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    if how == signal.SIGTERM:
        process.send_signal(how)
    else:
        for member in family:
            try:
                os.kill(member.pid, how)
            except ProcessLookupError:
                continue
    assert process.wait(90) != 0
    process.stderr.close()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive, alive


def test_the_chain_killed_and_resumed(folder):
    planned = json.loads(run("run", "pipeline.toml", "--dry-run", "--json", cwd=folder).stdout)
    assert [r["stage"] for r in planned["stages"]] == ORDER
    assert planned["stages"][0]["stars"] > 1200 and planned["stages"][0]["seconds"] > 0
    kill_during(folder, "fit", signal.SIGKILL, after=3)
    once = {k: state(folder)[k]["started"] for k in ("ingest", "mask")}
    kill_during(folder, "train", signal.SIGTERM, after=6)
    assert state(folder)["train"]["status"] == "stopped"
    run("run", "pipeline.toml", cwd=folder)
    entries = state(folder)
    assert [(k, e["status"]) for k, e in entries.items()] == [(k, "done") for k in ORDER]
    assert {k: entries[k]["started"] for k in once} == once, "what was done is not done again"
    for product in ("ppca.zarr", "embedding.zarr", "rsca.zarr", "evaluation.json", "latents.zarr", "anomalies.json"):
        assert (folder / "run" / product).exists(), product
    assert (folder / "run/report.html").stat().st_size > 100_000
    survey = chemscale.open_survey(folder / "survey.zarr")
    assert survey.sizes["star"] == chemscale.open_embedding(folder / "run/embedding.zarr").sizes["star"] > 1200
    again = run("run", "pipeline.toml", cwd=folder)
    assert again.stderr.count("done already") == len(ORDER)


def test_what_can_be_seen_of_it(folder):
    """Structured log, a performance report and the workers' memory for each stage, speed against the storage."""
    entries = state(folder)
    if set(entries) != set(ORDER):
        pytest.skip("the chain has not run")
    log = [json.loads(line) for line in (folder / "run/logs/pipeline.jsonl").read_text().splitlines()]
    assert all({"time", "level", "logger", "message"} <= set(entry) for entry in log)
    finished = {e["facts"]["stage"]: e for e in log if "facts" in e}
    assert set(finished) == set(ORDER)
    for stage in ("ingest", "fit", "infer"):
        peaks = entries[stage]["worker_peak_bytes"]
        # On so small a survey a worker may be left without work; the other has NumPy and a block in memory.
        assert len(peaks) == 2 and all(2e7 < p < 4e9 for p in peaks.values()) and max(peaks.values()) > 1e8
        assert finished[stage]["facts"]["worker_peak_bytes"] == peaks
        text = finished[stage]["message"]
        assert re.fullmatch(rf"{stage}: 1,\d+ stars in [\d.]+ (s|min) \(\S+ stars/s.*\)", text), text
    assert "% of what the storage gives one reader" in finished["fit"]["message"]
    for stage in ORDER:
        report = folder / "run/performance" / f"{stage}.html"
        assert "Bokeh" in report.read_text() or "bokeh" in report.read_text()
    assert "\x1b[" not in (folder / "run/logs/fit.log").read_text(), "no bars where nobody watches"
    planned = json.loads(run("run", "pipeline.toml", "--dry-run", "--json", cwd=folder).stdout)
    for row in planned["stages"]:
        assert row["status"] == "done" and row["seconds"] == entries[row["stage"]]["wall_s"]


def test_no_credential_was_left(folder):
    for file in folder.rglob("*"):
        if file.is_file() and file.suffix != ".fits":
            assert b"PRIVATE KEY" not in file.read_bytes(), file
