"""What a stranger's run directory, lock or key may hold is refused or inert."""

from __future__ import annotations

import json
import os
import stat

import numpy as np
import pytest
import xarray as xr

from chemscale.errors import ClusterError, StoreError
from chemscale.runtime import credentials
from chemscale.runtime.locks import lock
from chemscale.runtime.product import RECORD, _identity
from chemscale.runtime.run import Run


@pytest.fixture
def run(tmp_path):
    run = Run.create(tmp_path / "run")
    run.save_dataset("ppca.zarr", xr.Dataset({"a": ("x", np.arange(5.0))}))
    return run


@pytest.mark.parametrize("name", ["../../outside", "/etc/hostname", "a/../../../outside", "a/c/0\x1b[2J"])
def test_a_record_that_names_files_outside_is_refused_without_reading_them(run, name):
    file = run.path / "ppca.zarr" / "zarr.json"
    metadata = json.loads(file.read_bytes())
    record = metadata["attributes"].pop(RECORD)
    record["files"][name] = [1, 2]
    record["identity"] = _identity(record, metadata["attributes"])
    metadata["attributes"][RECORD] = record
    file.write_text(json.dumps(metadata))
    os.chmod(run.path.parent, 0o700)
    with pytest.raises(StoreError, match="leads out of the product") as caught:
        run.open_dataset("ppca.zarr")
    assert "\x1b" not in str(caught.value)


def test_a_symbolic_link_in_a_product_is_refused(run, tmp_path):
    chunk = next(f for f in (run.path / "ppca.zarr").rglob("c/*") if f.is_file())
    (tmp_path / "elsewhere").write_bytes(chunk.read_bytes())
    chunk.unlink()
    chunk.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="leads out of the product"):
        run.open_dataset("ppca.zarr")


def test_the_text_of_a_lock_cannot_drive_a_terminal(tmp_path):
    (tmp_path / "lock").write_text(json.dumps({"host": "x\x1b[2J\n", "pid": "1\r", "command": "y" * 10_000}))
    with pytest.raises(StoreError) as caught, lock(tmp_path / "lock", "run"):
        pass
    assert caught.value.message.isprintable() and len(caught.value.message) < 600


def test_a_lock_that_is_not_json_is_nobodys_to_take(tmp_path):
    (tmp_path / "lock").write_text("{half")
    with pytest.raises(StoreError, match="remove"), lock(tmp_path / "lock", "run"):
        pass


def test_a_key_is_private_from_the_first_moment(tmp_path, monkeypatch):
    modes = []
    plain = os.open

    def watched(path, flags, mode=0o777, **options):
        handle = plain(path, flags, mode, **options)
        if str(path).endswith((credentials.KEY_FILE, credentials.CERT_FILE)) and flags & os.O_CREAT:
            modes.append(stat.S_IMODE(os.fstat(handle).st_mode))
        return handle

    monkeypatch.setattr(os, "open", watched)
    before = os.umask(0)  # even where everything else is open to all
    try:
        folder = credentials.write(tmp_path / "tls")
    finally:
        os.umask(before)
    assert modes == [0o600, 0o600] and stat.S_IMODE(folder.stat().st_mode) == 0o700
    os.chmod(folder / credentials.KEY_FILE, 0o644)
    with pytest.raises(ClusterError, match="can be read by others"):
        credentials.read(folder)
    assert "PRIVATE KEY" not in repr(credentials.in_memory())
