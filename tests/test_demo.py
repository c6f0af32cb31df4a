"""The journey of the README: `chemscale demo --tiny`, and the Python lines a reader copies."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from chemscale.demo import MARKER, prepare
from chemscale.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
EXE = [sys.executable, "-m", "chemscale"]


def chemscale(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*EXE, *words], cwd=cwd, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    done = chemscale("demo", "--tiny", "--out", "out", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "out", json.loads(done.stdout), done.stderr


def test_demo_ends_with_rates_report_and_next_steps(demo):
    out, result, shown = demo
    rates = result["rates"]
    assert Path(out / "run" / "report.html").stat().st_size > 100_000
    assert rates["spectra, RSCA"] < rates["spectra, raw"]
    assert rates["noise-free floor (true abundances)"] < rates["spectra, RSCA"]
    assert "try next:" in shown
    assert "report.html" in shown


def test_demo_leaves_every_product_and_a_manifest(demo):
    out, _, _ = demo
    stages = json.loads((out / "run" / "manifest.json").read_text())["stages"]
    assert {"select", "ppca", "embed", "metric", "evaluate"} <= set(stages)
    assert all(s["status"] == "done" and s["peak_memory_mb"] > 0 for s in stages.values())
    for product in (
        "run/ppca.zarr",
        "run/embedding.zarr",
        "run/evaluation.json",
        "vae/latents.zarr",
        "vae/report.html",
    ):
        assert (out / product).exists(), product


def test_evaluate_prints_the_documented_json(demo):
    out, _, _ = demo
    done = chemscale("rsca", "evaluate", "--run", str(out / "run"), "--n-features", "3", "--json", cwd=out)
    result = json.loads(done.stdout)
    keys = {"raw", "scaled", "rsca", "rsca_top", "per_cluster", "n_field", "n_members", "n_clusters"}
    assert keys <= set(result)
    assert len(result["per_cluster"]) == result["n_clusters"]


def test_python_of_the_readme_runs(tmp_path, monkeypatch):
    made = chemscale(
        "simulate", "--stars", "300", "--clusters", "8", "--seed", "2", "--out", "simulated.zarr", cwd=tmp_path
    )
    assert made.returncode == 0, made.stderr
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    assert code is not None
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code[1], "README.md", "exec"), names)
    assert 0 <= names["rates"].overall <= 1
    assert names["z"].shape[1] == 10


def test_a_folder_that_is_not_a_demo_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="not an earlier demo"):
        prepare(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "precious"
    again = tmp_path / "demo"
    prepare(again)
    (again / "old").write_text("x")
    prepare(again)
    assert [p.name for p in again.iterdir()] == [MARKER]
