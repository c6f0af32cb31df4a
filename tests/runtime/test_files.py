"""Files that appear whole or not at all, and memory that is kept for a while."""

from __future__ import annotations

import os
import subprocess
import sys

import google_crc32c
import pytest

from chemscale.errors import StoreError
from chemscale.runtime.files import Folder, written_beside


@pytest.mark.parametrize("remote", [False, True])
def test_a_file_in_pieces(tmp_path, remote):
    folder = Folder(f"memory://{tmp_path.name}" if remote else tmp_path)
    content = os.urandom(700_001)
    with folder.writing("a/b") as file:
        for at in range(0, len(content), 99_999):
            file.put(content[at : at + 99_999])
        assert not folder.exists("a/b")
        file.commit(sync=True)
    assert folder.read("a/b") == content
    assert folder.checksum("a/b") == (google_crc32c.value(content), len(content))
    folder.remove_tree("a")


def test_without_a_commit_there_is_nothing(tmp_path):
    folder = Folder(tmp_path)
    with pytest.raises(OSError, match="spectra"), folder.writing("a/b") as file:
        file.put(b"some")
        raise OSError("a trouble with the spectra, not with this file")
    assert [n for n, _ in folder.walk()] == []
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot write"):
        folder.write("file/x", b"")


SCRIPT = """
import ctypes, resource
from chemscale.runtime.memory import keep_freed_memory

def faults(n=200):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(n):
        buffer = bytearray(1 << 20)
        del buffer
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
with keep_freed_memory(), keep_freed_memory():
    inside = faults()
print(before, inside, faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_freed_memory_is_kept_and_given_back():
    env = os.environ | {"MALLOC_TRIM_THRESHOLD_": "65536"}
    run = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=True)
    before, inside, after = map(int, run.stdout.split())
    if before < 10_000:
        pytest.skip("this C library does not give freed memory back anyway")
    assert inside < before / 10 and after > before / 2


def test_a_file_written_beside_takes_its_name_whole_and_an_error_leaves_the_old_one(tmp_path):
    target = tmp_path / "table.fits"
    target.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), written_beside(target) as beside:
        beside.write_bytes(b"half")
        assert beside.suffix == ".fits" and target.read_bytes() == b"old"
        raise ZeroDivisionError
    with pytest.raises(StoreError, match=r"cannot write .*table.fits: No space left"), written_beside(target):
        raise OSError(28, "No space left on device")
    assert [f.name for f in tmp_path.iterdir()] == ["table.fits"] and target.read_bytes() == b"old"
    with written_beside(target) as beside:
        beside.write_bytes(b"new")
    assert [f.name for f in tmp_path.iterdir()] == ["table.fits"] and target.read_bytes() == b"new"
