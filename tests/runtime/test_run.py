"""Run directories: manifests survive failures and never mix surveys."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from chemscale.errors import InputError, StoreError
from chemscale.runtime.run import Run


def test_stage_records_time_memory_settings_and_facts(tmp_path):
    run = Run.create(tmp_path / "run", store="s3://bucket/survey.zarr")
    with run.stage("fit", {"k": np.int64(3)}) as stage:
        stage.note(n_stars=np.int32(7), rate=np.float32(0.5), bad=np.nan)
    entry = Run.open(tmp_path / "run").manifest["stages"]["fit"]
    assert entry["status"] == "done"
    assert entry["settings"] == {"k": 3}
    assert entry["facts"] == {"n_stars": 7, "rate": 0.5, "bad": None}
    assert entry["peak_memory_mb"] > 1
    assert entry["wall_s"] >= 0
    assert "numpy" in entry["versions"]
    assert run.store == "s3://bucket/survey.zarr"


def test_a_failed_stage_is_recorded_and_the_error_goes_on(tmp_path):
    run = Run.create(tmp_path / "run")
    with pytest.raises(ValueError, match="boom"), run.stage("fit"):
        raise ValueError("boom")
    entry = Run.open(tmp_path / "run").manifest["stages"]["fit"]
    assert entry["status"] == "failed"
    assert "boom" in entry["error"]


def test_a_run_is_not_mixed_with_another_survey(tmp_path):
    Run.create(tmp_path / "run", store=str(tmp_path / "a.zarr"))
    again = Run.create(tmp_path / "run", store=str(tmp_path / "a.zarr"))
    assert again.store.endswith("a.zarr")
    with pytest.raises(InputError, match=r"another survey .*a\.zarr"):
        Run.create(tmp_path / "run", store=str(tmp_path / "b.zarr"))


def test_a_directory_with_other_things_is_refused(tmp_path):
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(InputError, match="not a chemscale run"):
        Run.create(tmp_path)
    assert (tmp_path / "precious.txt").read_text() == "x"


def test_opening_what_is_not_a_run_says_so(tmp_path):
    with pytest.raises(StoreError, match="is not a chemscale run"):
        Run.open(tmp_path)
    (tmp_path / "manifest.json").write_text("{half")
    with pytest.raises(StoreError, match="cannot be read"):
        Run.open(tmp_path)


def test_missing_product_names_the_command(tmp_path):
    run = Run.create(tmp_path / "run")
    with pytest.raises(StoreError, match="chemscale rsca fit"):
        run.need("ppca.zarr", "chemscale rsca fit STORE --run RUN")
    with pytest.raises(StoreError, match="no survey store"):
        _ = run.store


def test_a_product_opens_with_every_variable_in_one_order(tmp_path):
    run = Run.create(tmp_path / "run", store="survey.zarr")
    values = {"score": ("star", np.arange(3.0)), "auxiliary": (("star", "auxiliary"), np.ones((3, 2)))}  # as of latents
    run.save_dataset("anomalies.zarr", xr.Dataset({"chi2": ("star", np.ones(3)), **values}))
    found = run.open_dataset("anomalies.zarr")
    assert list(found.data_vars) == ["chi2", "score"] and found["auxiliary"].shape == (3, 2)
