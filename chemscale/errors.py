"""Errors a user may meet. Each says what was wrong, where, and what to do about it."""

from __future__ import annotations


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
