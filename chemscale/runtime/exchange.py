"""Two names on a disk that are exchanged in one step, where the system can do that."""

from __future__ import annotations

import ctypes
import errno
import os
import sys

#: What `renameat2` says where the file system, or the kernel, does not know the exchange.
_UNKNOWN = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}


def exchange(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Exchange two names in one step; False where that is not possible here (only Linux can, not on every disk).

    Raises
    ------
    OSError
        The disk says no.
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if call is None:
        return False
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if call(here, os.fsencode(one), here, os.fsencode(other), swap) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNKNOWN:
        return False
    raise OSError(code, os.strerror(code), os.fspath(one))
