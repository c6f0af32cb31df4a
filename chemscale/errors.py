"""Errors a user may meet. Each says what was wrong, where, and what to do about it."""

from __future__ import annotations

import errno


class ChemscaleError(Exception):
    """Base of every error chemscale raises on purpose.

    Parameters
    ----------
    message : str
        What was wrong and where (file, star, key).
    remedy : str
        What the user can do; shown on its own line by the command line.
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str = ""):
        self.message = message
        self.remedy = remedy
        super().__init__(f"{message}\n  remedy: {remedy}" if remedy else message)

    def __reduce__(self):  # keep both parts when a worker's error travels to the client
        return type(self), (self.message, self.remedy)


class InputError(ChemscaleError):
    """The input is not what it should be (wrong grid, missing column, no such file)."""

    exit_code = 2


class StoreError(ChemscaleError):
    """A store is missing, incomplete, damaged or of another version."""

    exit_code = 3


class DataError(ChemscaleError):
    """The data cannot answer the question (no clusters, no field stars, too few stars)."""

    exit_code = 4


class ResumeError(ChemscaleError):
    """A resumed job differs from the one that was started."""

    exit_code = 5


class ClusterError(ChemscaleError):
    """The Dask cluster cannot be reached or started."""

    exit_code = 6


class OutOfMemory(ChemscaleError):
    """A process of this machine or a worker ran out of memory."""

    exit_code = 7


class MissingExtra(InputError):
    """A part that was asked for needs an optional package.

    Parameters
    ----------
    what : str
        What needs it.
    package : str
        The distribution that is missing.
    extra : str
        The extra of chemscale that brings it.
    """

    def __init__(self, what: str, package: str, extra: str):
        self.parts = (what, package, extra)
        super().__init__(f"{what}: the package {package} is not installed", f"pip install 'chemscale[{extra}]'")

    def __reduce__(self):
        return type(self), self.parts


def of_the_machine(err: BaseException) -> ChemscaleError | None:
    """What the machine says no to, in words: memory, disk, permissions; None for any other error.

    Recognised by name where the class lives in a package that need not be imported (Dask, torch).
    """
    name, text = type(err).__name__, str(err)
    less = "fewer workers or threads (--workers 1), fewer --components, smaller batches, or a machine with more memory"
    if name == "KilledWorker":
        return OutOfMemory(
            f"workers died again and again on the same task, most often for want of memory: {text[:300]}",
            f"{less}; `memory` and `threads` in [cluster]",
        )
    if isinstance(err, MemoryError) or name == "OutOfMemoryError" or "can't allocate memory" in text:
        return OutOfMemory(f"out of memory: {text or 'this process could not get more'}", f"{less}; `chemscale doctor`")
    if isinstance(err, PermissionError):
        return ChemscaleError(f"not allowed to touch {err.filename or text}", "use another path, or change its mode")
    if isinstance(err, OSError) and err.errno == errno.ENOSPC:
        return ChemscaleError(f"no space left: {err.filename or text}", "free some; what was finished is kept")
    if isinstance(err, OSError) and err.errno in (errno.EIO, errno.EDQUOT, errno.EROFS):
        return ChemscaleError(
            f"the disk does not take or give the data ({err.strerror}): {err.filename or text}",
            "look at the disk or the quota, then run the command again; what was finished is kept",
        )
    return None
