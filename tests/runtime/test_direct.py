"""Files past the page cache: to the byte, and the ordinary way where a file system does not know it."""

from __future__ import annotations

import errno
import os

import pytest

from chemscale.runtime import direct


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, direct.BUFFER, direct.BUFFER + 4097])
def test_round_trip(tmp_path, size):
    content = os.urandom(size)
    file = direct.DirectFile(tmp_path / "a")
    for at in range(0, size, 100_001):
        file.write(memoryview(content)[at : at + 100_001])
    file.finish(sync=True)
    file.close()
    assert (tmp_path / "a").read_bytes() == content
    assert b"".join(direct.read_pieces(tmp_path / "a")) == content


@pytest.mark.skipif(not getattr(os, "O_DIRECT", 0), reason="no O_DIRECT here")
@pytest.mark.parametrize("where", ["open", "write"])
def test_a_file_system_that_refuses(tmp_path, monkeypatch, where):
    """EINVAL when the file is opened (after making it, as some do), or only when something is written or read."""
    really = {"open": os.open, "write": os.write, "readv": os.readv}
    asked = []

    def refuse(handle) -> None:
        import fcntl

        asked.append(handle)
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no")

    def opened(path, flags, *mode):
        handle = really["open"](path, flags, *mode)
        if flags & os.O_DIRECT:
            os.close(handle)
            raise OSError(errno.EINVAL, "no")
        return handle

    if where == "open":
        monkeypatch.setattr(direct.os, "open", opened)
    else:
        monkeypatch.setattr(direct.os, "write", lambda h, b: (refuse(h), really["write"](h, b))[1])
        monkeypatch.setattr(direct.os, "readv", lambda h, b: (refuse(h), really["readv"](h, b))[1])
    content = os.urandom(direct.BUFFER + 77)
    file = direct.DirectFile(tmp_path / "a")
    file.write(content)
    file.finish(sync=False)
    assert b"".join(direct.read_pieces(tmp_path / "a")) == content
    assert bool(asked) == (where == "write")


def test_an_existing_file_is_never_written_over(tmp_path):
    (tmp_path / "a").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        direct.DirectFile(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"mine"
