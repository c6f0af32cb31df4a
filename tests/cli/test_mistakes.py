"""Ten typical mistakes: each ends with a message that says what was wrong and a remedy, and with its exit status.

The list of the documentation (troubleshooting) is this list.
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import make_survey

from chemscale import cli
from chemscale.errors import (
    ClusterError,
    DataError,
    InputError,
    OutOfMemory,
    StoreError,
    of_the_machine,
)
from chemscale.survey.ingest.datasets import write_survey

MISTAKES = (
    "wrong path",
    "wrong survey",
    "typo in a key",
    "missing extra",
    "out of memory",
    "no clusters",
    "too few stars",
    "unreachable scheduler",
    "GPU asked but absent",
    "incompatible store version",
)


def explained(result, error: type, *parts: str) -> None:
    """One error line, one remedy line, no traceback; `parts` are in them."""
    assert result.returncode == error.exit_code, result.stderr
    assert "Traceback" not in result.stderr
    text = " ".join(result.stderr.split())
    assert re.search(r"error: \S.* remedy: \S", text), text
    for part in parts:
        assert part in text, (part, text)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A survey with clusters."""
    path = tmp_path_factory.mktemp("mistakes") / "survey.zarr"
    write_survey(make_survey(n_field=60, n_clusters=3, n_pixels=40), path)
    return path


def wrong_path(chemscale, store, tmp_path, monkeypatch):
    explained(
        chemscale("rsca", "fit", tmp_path / "nowhere.zarr", "--run", tmp_path / "r"), StoreError, "no survey store"
    )
    explained(chemscale("report", "--run", tmp_path / "norun"), StoreError, "not a chemscale run", "rsca fit")
    explained(chemscale("info", tmp_path), StoreError, "not a chemscale store", "chemscale ingest")
    done = chemscale("ingest", "apogee", "--spectra", tmp_path / "none", "--out", tmp_path / "a.zarr")
    explained(done, InputError, "no such directory")


def wrong_survey(chemscale, store, tmp_path, monkeypatch):
    (tmp_path / "redux").mkdir()
    (tmp_path / "redux" / "aspcapStar-r12-2M00000000+0000000.fits").write_bytes(b"")
    done = chemscale("ingest", "lamost", "--spectra", tmp_path / "redux", "--out", tmp_path / "l.zarr")
    explained(done, DataError, "none of 1 inputs could be read", "chemscale ingest apogee")
    (tmp_path / "dr10").mkdir()
    (tmp_path / "dr10" / "spec-55859-F5902_sp01-034.fits").write_bytes(b"")
    done = chemscale("ingest", "apogee", "--spectra", tmp_path / "dr10", "--out", tmp_path / "a.zarr")
    explained(done, InputError, "no aspcapStar files", "chemscale ingest lamost")


def typo_in_a_key(chemscale, store, tmp_path, monkeypatch):
    done = chemscale("--set", "rsca.fit.componets=3", "rsca", "fit", store, "--run", tmp_path / "r")
    explained(done, InputError, "unknown key 'rsca.fit.componets'", "'rsca.fit.components'")
    (tmp_path / "c.toml").write_text('[cluster]\nkind = "local"\nwokers = 2\n')
    done = chemscale("rsca", "fit", store, "--run", tmp_path / "r", "--cluster", tmp_path / "c.toml")
    explained(done, InputError, "unknown cluster key 'wokers'", "'workers'")
    explained(chemscale("study", "ablaton", "--run", tmp_path / "r"), InputError, "'ablaton'", "'ablation'")
    option = chemscale("rsca", "fit", store, "--run", tmp_path / "r", "--componets", 3)
    assert option.returncode == 2 and "--components" in option.stderr
    verb = chemscale("inof", store)
    assert verb.returncode == 2 and "info" in verb.stderr


def missing_extra(chemscale, store, tmp_path, monkeypatch):
    fitted(chemscale, store, tmp_path / "run")
    monkeypatch.setitem(sys.modules, "faiss", None)
    done = chemscale("rsca", "neighbours", "--run", tmp_path / "run", "--k", 3, "--method", "faiss")
    explained(done, InputError, "faiss", "chemscale[index]")
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "t.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    done = chemscale("ingest", "table", tmp_path / "t.h5", "--out", tmp_path / "t.zarr")
    explained(done, InputError, "h5py", "chemscale[hdf5]")


def out_of_memory(chemscale, store, tmp_path, monkeypatch):
    monkeypatch.setattr("chemscale.rsca.pipeline.fit_run", lambda *a, **k: np.empty((1 << 25, 1 << 25)))
    done = chemscale("rsca", "fit", store, "--run", tmp_path / "r")
    explained(done, OutOfMemory, "out of memory", "--workers 1")

    from distributed.scheduler import KilledWorker

    def killed(*_, **__):
        raise KilledWorker("embed-7", SimpleNamespace(address="tls://10.0.0.7:4000"), 3)

    monkeypatch.setattr("chemscale.rsca.pipeline.fit_run", killed)
    explained(chemscale("rsca", "fit", store, "--run", tmp_path / "r"), OutOfMemory, "embed-7", "--workers 1")


def no_clusters(chemscale, store, tmp_path, monkeypatch):
    write_survey(make_survey(n_field=60, n_clusters=0, n_pixels=40), tmp_path / "s.zarr")
    done = chemscale("rsca", "fit", tmp_path / "s.zarr", "--run", tmp_path / "r", "--components", 3)
    explained(done, DataError, "no cluster", "--members")


def too_few_stars(chemscale, store, tmp_path, monkeypatch):
    done = chemscale("rsca", "fit", store, "--run", tmp_path / "r", "--components", 70)
    explained(done, DataError, "60 field stars for 70 components", "fewer components")
    done = chemscale("rsca", "fit", store, "--run", tmp_path / "q", "--components", 20)
    explained(done, DataError, "degrees of freedom", "at most 15 components")


def unreachable_scheduler(chemscale, store, tmp_path, monkeypatch):
    (tmp_path / "c.toml").write_text('[cluster]\nkind = "address"\naddress = "tcp://127.0.0.1:9"\ntimeout = 1\n')
    done = chemscale("rsca", "fit", store, "--run", tmp_path / "r", "--cluster", tmp_path / "c.toml")
    explained(done, ClusterError, "127.0.0.1:9")


def gpu_asked_but_absent(chemscale, store, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    done = chemscale("vae", "train", store, "--run", tmp_path / "r", "--device", "cuda")
    explained(done, InputError, "device 'cuda'", "sees 0 GPU(s)", "--device cpu")
    done = chemscale("vae", "train", store, "--run", tmp_path / "r", "--device", "gpu0")
    explained(done, InputError, "'gpu0'", "cuda")


def incompatible_store_version(chemscale, store, tmp_path, monkeypatch):
    write_survey(make_survey(n_field=20, n_clusters=1, n_pixels=20), tmp_path / "s.zarr")
    root = tmp_path / "s.zarr" / "_chemscale" / "root.json"
    root.write_text(json.dumps(json.loads(root.read_text()) | {"version": 99}))
    done = chemscale("rsca", "fit", tmp_path / "s.zarr", "--run", tmp_path / "r")
    explained(done, StoreError, "version 99", "ingest again")
    fitted(chemscale, store, tmp_path / "run")
    manifest = tmp_path / "run" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"run_version": 99}))
    explained(chemscale("rsca", "evaluate", "--run", tmp_path / "run"), StoreError, "newer chemscale", "upgrade")


def fitted(chemscale, store, run) -> None:
    done = chemscale("rsca", "fit", store, "--run", run, "--components", 3)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_explained(mistake, chemscale, store, tmp_path, monkeypatch):
    globals()[mistake.replace(" ", "_").lower()](chemscale, store, tmp_path, monkeypatch)


def test_more_of_the_machine(chemscale, store, tmp_path, monkeypatch):
    full = OSError(28, "No space left on device", "/data/x")
    assert "no space left: /data/x" in of_the_machine(full).message
    assert "not allowed" in of_the_machine(PermissionError(13, "denied", "/root/x")).message
    assert of_the_machine(ValueError("a bug")) is None

    class OutOfMemoryError(RuntimeError):
        """As torch's."""

    assert isinstance(of_the_machine(OutOfMemoryError("CUDA")), OutOfMemory)


def test_the_documentation_lists_every_mistake():
    from pathlib import Path

    page = (Path(__file__).resolve().parents[2] / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    for mistake in MISTAKES:
        assert f"| {mistake} |" in page, mistake


def test_a_warning_is_a_sentence_without_a_line_of_source(monkeypatch, capsys):
    def warn(**_):
        warnings.warn("no field star passes the [pair] cuts for: M67", stacklevel=1)

    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(cli, "command", lambda _: warn)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        cli.main()
    assert capsys.readouterr().err == "warning: no field star passes the [pair] cuts for: M67\n"


def test_fit_of_one_cluster_says_what_it_is_good_for(chemscale, tmp_path):
    """Distances work; a rate would count on a cluster that the metric has seen."""
    write_survey(made := make_survey(n_field=60, n_clusters=1, n_pixels=40), tmp_path / "s.zarr")
    done = chemscale("rsca", "fit", tmp_path / "s.zarr", "--run", tmp_path / "r", "--components", 3)
    told = " ".join(done.stderr.split())
    assert "6 members of 1 cluster take part" in told and "neither rates nor chances" in told
    assert "next: chemscale rsca siblings STAR_ID" in told
    explained(
        chemscale("rsca", "evaluate", "--run", tmp_path / "r"), DataError, "knows one cluster", "rsca siblings STAR_ID"
    )
    star = str(made["star_id"].values[0])
    assert chemscale("rsca", "siblings", star, "--run", tmp_path / "r", "--n", 3).returncode == 0
