"""A third party's survey, from a package of its own to a store, through the entry point and the command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from chemscale import open_survey
from chemscale.rsca.selection import select_stars
from chemscale.schema import validate
from chemscale.survey.ingest.ingestion import ingest
from chemscale.survey.sources.base import Source, available_sources, get_source


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The example as an installed distribution: a module and its entry-point metadata."""
    site = tmp_path / "site"
    info = site / "textfiles-1.0.dist-info"
    info.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("example_source.py"), site)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: textfiles\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[chemscale.surveys]\ntextfiles = example_source:TextFiles\n")
    monkeypatch.syspath_prepend(str(site))
    yield site
    sys.modules.pop("example_source", None)


@pytest.fixture
def folder(tmp_path):
    """Six stars, one of them without a file and one with a broken file."""
    out = tmp_path / "spectra"
    out.mkdir()
    rng = np.random.default_rng(0)
    wave = np.linspace(4990, 5410, 1200)
    lines = ["star,teff,feh,cluster"]
    for i in range(6):
        lines.append(f"star{i},{5000 + i},{-0.1 * i},{'M 67' if i < 2 else ''}")
        if i < 5:
            np.savetxt(out / f"star{i}.txt", np.stack([wave, rng.normal(1, 0.01, 1200), np.full(1200, 0.01)], axis=1))
    (out / "star4.txt").write_text("not numbers")
    (out / "stars.csv").write_text("\n".join(lines) + "\n")
    return out


def test_example_is_short():
    text = Path(__file__).with_name("example_source.py").read_text()
    assert len(text.splitlines()) <= 60
    page = Path(__file__).parents[2] / "docs/howto/own-survey.md"
    assert f'```python title="example_source.py"\n{text}```' in page.read_text(encoding="utf-8")


def test_plugged_in_by_entry_point(package, folder, tmp_path):
    assert "textfiles" in available_sources()
    source = get_source("textfiles")(folder)
    assert isinstance(source, Source)
    summary = ingest(source, tmp_path / "store.zarr", progress=False)
    assert summary.n_stars == 4
    assert {r.star_id for r in summary.rejected} == {"star4", "star5"}
    ds = open_survey(tmp_path / "store.zarr")
    validate(ds)
    assert ds.sizes["star"] == 4 and ds["wavelength"].attrs["medium"] == "air"
    np.testing.assert_allclose(ds["teff"].values, [5000, 5001, 5002, 5003])
    # 0.35 A pixels become 0.5 A ones: flux kept, errors smaller
    assert abs(float(ds["flux"].mean()) - 1) < 1e-3
    assert 1.0e4 < float(np.median(ds["ivar"].values)) < 3e4
    assert select_stars(ds).clusters == {"M 67": 2}


def test_through_the_command_line(package, folder, tmp_path):
    arguments = ["ingest", "textfiles", "--option", f'folder="{folder}"', "--out", str(tmp_path / "s.zarr"), "--json"]
    command = [sys.executable, "-m", "chemscale", *arguments]
    result = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(package)}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["n_stars"] == 4
