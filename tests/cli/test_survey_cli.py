"""`ingest`, `info`, `verify`, `finalise` as typed: exit statuses, JSON, plan-only, append."""

from __future__ import annotations

import json

import numpy as np
import pytest

from chemscale.runtime.files import Folder
from chemscale.survey.store.open import open_survey


def write_npz(path, first: int, n: int, pixels: int = 50):
    rng = np.random.default_rng(first)
    np.savez(
        path,
        flux=1 + 0.1 * rng.standard_normal((n, pixels)),
        error=np.full((n, pixels), 0.01),
        wavelength=15000.0 + np.arange(pixels),
        star_id=np.array([f"T{first + i:03d}" for i in range(n)]),
        teff=np.linspace(4000, 5000, n),
    )
    return path


@pytest.fixture
def table(tmp_path):
    return write_npz(tmp_path / "t.npz", 0, 40)


def test_table_to_store_and_back(chemscale, tmp_path, table):
    out = tmp_path / "t.zarr"
    plan = chemscale("ingest", "table", table, "--medium", "vacuum", "--out", out, "--plan-only", "--json")
    assert plan.returncode == 0, plan.stderr
    assert json.loads(plan.stdout)["n_stars"] == 40 and not out.exists()
    done = chemscale("ingest", "table", table, "--medium", "vacuum", "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["n_stars"] == 40
    again = chemscale("ingest", "table", table, "--medium", "vacuum", "--out", out)
    assert again.returncode == 3 and "already exists" in again.stderr and "remedy" in again.stderr
    page = chemscale("info", out)
    assert page.returncode == 0 and "40" in page.stdout and "teff" in page.stdout
    assert json.loads(chemscale("info", out, "--json").stdout)["n_stars"] == 40
    assert "scatter of the flux" in chemscale("info", out, "--pixels").stdout
    more = write_npz(tmp_path / "u.npz", 39, 11)
    refused = chemscale("ingest", "table", more, "--medium", "vacuum", "--out", out, "--append")
    assert refused.returncode == 2 and "T039" in refused.stderr and "--replace" in refused.stderr
    added = chemscale("ingest", "table", more, "--medium", "vacuum", "--out", out, "--append", "--replace")
    assert added.returncode == 0, added.stderr
    assert open_survey(out).sizes["star"] == 50


def test_verify_and_repair(chemscale, tmp_path, table):
    out = tmp_path / "t.zarr"
    assert chemscale("ingest", "table", table, "--medium", "vacuum", "--out", out).returncode == 0
    folder = Folder(out)
    original = folder.read("flux/c/0/0")
    folder.write("flux/c/0/0", original[:100] + bytes([original[100] ^ 1]) + original[101:])
    broken = chemscale("verify", out)
    assert broken.returncode == 3 and "flux/c/0/0, chunk 0, stars 0 to 39" in broken.stderr.replace("\n", " ")
    assert json.loads(chemscale("verify", out, "--json").stdout)["ok"] is False
    mended = chemscale("verify", out, "--repair")
    assert mended.returncode == 0, mended.stderr
    assert folder.read("flux/c/0/0") == original and chemscale("verify", out).returncode == 0


def test_nothing_readable_is_an_error(chemscale, tmp_path):
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / "aspcapStar-r12-l33-X.fits").write_bytes(b"not FITS")
    out = tmp_path / "s.zarr"
    done = chemscale("ingest", "apogee", "--spectra", tmp_path / "release", "--out", out)
    assert done.returncode == 4 and "none of 1 inputs could be read" in done.stderr and not out.exists()
    assert chemscale("info", out).returncode == 3


def test_partition_then_finalise(chemscale, tmp_path, table):
    out = tmp_path / "t.zarr"
    missing = chemscale("finalise", out)
    assert missing.returncode == 3
    for k in (1, 2):
        part = chemscale("ingest", "table", table, "--medium", "vacuum", "--out", out, "--partition", f"{k}/2")
        assert part.returncode == 0, part.stderr
    closed = chemscale("finalise", out, "--json")
    assert closed.returncode == 0 and json.loads(closed.stdout)["complete"]
