"""Full disks and object stores that go away: a clear error, then a resumed job as good as an undisturbed one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import make_survey
from objectstore import KEY, MotoServer, S3rverServer, Server
from toysource import ToySource, write_files

from chemscale.errors import StoreError
from chemscale.runtime.files import Folder
from chemscale.survey.ingest.datasets import write_survey
from chemscale.survey.ingest.ingestion import ingest
from chemscale.survey.store.layout import Layout
from chemscale.survey.store.open import open_survey
from chemscale.survey.store.verify import verify

SMALL = Layout(chunk_stars=4, shard_stars=8, label_stars=16)


def tree(path: str | Path) -> dict[str, bytes]:
    folder = Folder(path)
    return {name: folder.read(name) for name, _ in folder.walk()}


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    where = tmp_path / "disk"
    where.mkdir()
    mount = shutil.which("mount")
    if not mount or os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    done = subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(where)], capture_output=True)
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs: {done.stderr.decode()}")
    yield where
    subprocess.run(["umount", "-l", str(where)], check=False)


def test_full_disk_then_resume(tmp_path, small_disk):
    files = write_files(tmp_path / "spectra", n=400)
    ingest(ToySource(files), tmp_path / "whole", layout=SMALL)
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"\1" * 700_000)
    out = small_disk / "s.zarr"
    with pytest.raises(StoreError, match="No space left") as caught:
        ingest(ToySource(files), out, layout=SMALL)
    assert "--resume" in caught.value.remedy
    with pytest.raises(StoreError, match="unfinished"):
        open_survey(out)
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    ingest(ToySource(files), out, layout=SMALL, resume=True)
    assert tree(out) == tree(tmp_path / "whole")
    assert verify(out).ok


# --------------------------------------------------------------------- object stores


@pytest.fixture(params=["moto", "s3rver"])
def s3(request, tmp_path, monkeypatch) -> Iterator[Server]:
    pytest.importorskip("s3fs")
    if request.param == "moto":
        for needed in ("moto", "flask", "boto3"):
            pytest.importorskip(needed)
        server: Server = MotoServer()
    else:
        command = os.environ.get("CHEMSCALE_TEST_S3RVER") or shutil.which("s3rver")
        if not command:
            pytest.skip("no s3rver: `npm install s3rver` and put it on PATH, or name it in CHEMSCALE_TEST_S3RVER")
        server = S3rverServer(command, tmp_path / "s3")
    for key, value in server.environment().items():
        monkeypatch.setenv(key, value)
    server.start()
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    yield server
    server.end()


def test_object_store(tmp_path, s3):
    ds = make_survey(n_field=60)
    path = write_survey(ds, "s3://surveys/deep/a.zarr", layout=Layout(16, 32, 64))
    back = open_survey(path, chunk_stars=32)  # whole shards: s3rver answers suffix ranges with a byte too many
    np.testing.assert_array_equal(back.flux.values, ds.flux.values)
    assert list(back.star_id.values) == list(ds.star_id.values)
    assert verify(path).ok
    with pytest.raises(StoreError, match="already exists"):
        write_survey(ds, path)
    with pytest.raises(StoreError, match="no survey store"):
        open_survey("s3://surveys/deep/b.zarr")
    local = write_survey(ds, tmp_path / "a.zarr", layout=Layout(16, 32, 64))
    assert tree(local) == tree(path)


def test_object_store_killed_and_restarted(tmp_path, s3):
    files = write_files(tmp_path / "spectra", n=120)
    ingest(ToySource(files), tmp_path / "whole", layout=SMALL)

    def fault() -> None:
        time.sleep(0.7)
        s3.kill()
        time.sleep(2.0)
        s3.start()

    saboteur = threading.Thread(target=fault)
    saboteur.start()
    ingest(ToySource(files, delay=0.0), "s3://surveys/cut.zarr", layout=SMALL)
    saboteur.join()
    assert tree("s3://surveys/cut.zarr") == tree(tmp_path / "whole")


def test_object_store_that_stays_away_is_a_clear_error(tmp_path, s3, monkeypatch):
    monkeypatch.setattr("chemscale.runtime.files.RETRY_WAITS", (0.01,))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    files = write_files(tmp_path / "spectra", n=60)
    timer = threading.Timer(1.0, s3.kill)
    timer.start()
    with pytest.raises(StoreError, match="no answer"):
        ingest(ToySource(files, delay=0.02), "s3://surveys/cut.zarr", layout=SMALL)
    timer.join()
    s3.start()
    ingest(ToySource(files, delay=0.02), "s3://surveys/cut.zarr", layout=SMALL, resume=True)
    ingest(ToySource(files, delay=0.02), tmp_path / "same", layout=SMALL)
    assert tree("s3://surveys/cut.zarr") == tree(tmp_path / "same")


def test_credentials_never_reach_the_store(tmp_path, s3):
    import pickle

    path = write_survey(make_survey(n_field=30), "s3://surveys/a.zarr")
    for blob in (*tree(path).values(), pickle.dumps(Folder(path)), pickle.dumps(open_survey(path))):
        assert KEY.encode() not in blob and s3.url.encode() not in blob


if sys.platform == "win32":
    pytest.skip("POSIX signals", allow_module_level=True)
