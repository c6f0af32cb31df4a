"""Ends a command at its k-th file operation: by a kill, as a machine that stops, or by an error of the disk.

Operations are what the interpreter's audit events show: files opened for writing, directories made and removed, files
renamed, linked and removed. A command runs in a fork of the test, so that a kill costs milliseconds.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate"}
#: Exit status of a command that was killed; that ended with an error meant for people; with any other.
KILLED, REFUSED, BROKEN = 99, 3, 4


class Fault:
    """What happens at operation `at` (from 1) on files below `root`; counts only, where `at` is 0.

    Parameters
    ----------
    error : int
        0: the process ends there. Otherwise that ``errno``, at this operation and all later ones that need space.
    """

    def __init__(self, root: Path, at: int = 0, error: int = 0):
        self.root, self.at, self.error, self.count = str(root), at, error, 0

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        """The audit hook."""
        if not self._counts(event, args):
            return
        self.count += 1
        if self.at and self.count == self.at and not self.error:
            os._exit(KILLED)
        if self.at and self.count >= self.at and self.error and event in ("open", "os.mkdir", "os.rename"):
            raise OSError(self.error, os.strerror(self.error), str(args[0]))

    def _counts(self, event: str, args: tuple[Any, ...]) -> bool:
        if event == "ctypes.dlsym":
            return args[1] == "renameat2"
        if event == "open":
            flags = args[2] if isinstance(args[2], int) else 0
            return bool(flags & WRITES) and self._below(args[0], -1)
        return event in CHANGES and self._below(args[0], args[-1] if isinstance(args[-1], int) else -1)

    def _below(self, path: Any, folder: int) -> bool:
        if isinstance(path, int):
            return False
        text = os.fsdecode(path)
        return text.startswith(self.root) or (folder >= 0 and not os.path.isabs(text))


def run(command: Callable[[], Any], fault: Fault, said: Path) -> int:
    """Exit status of `command` in a fork; operations done, and the error, in the file `said`."""
    child = os.fork()
    if child == 0:
        status = BROKEN
        try:
            import dask

            sys.addaudithook(fault)
            with dask.config.set(scheduler="synchronous"):  # a fork has none of the threads of a pool
                command()
            status = 0
        except BaseException as err:
            from chemscale.errors import ChemscaleError

            status = REFUSED if isinstance(err, ChemscaleError) else BROKEN
            fault.at = 0
            said.write_text("".join(traceback.format_exception(err)))
        else:
            fault.at = 0
            said.write_text(str(fault.count))
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def count(command: Callable[[], Any], root: Path, said: Path) -> int:
    """File operations of an undisturbed command."""
    status = run(command, Fault(root), said)
    assert status == 0, said.read_text()
    return int(said.read_text())


def sample(n: int, most: int) -> list[int]:
    """At most so many of the operations 1 to `n`, spread evenly, the first and the last among them."""
    return sorted({1 + round(i * (n - 1) / (most - 1)) for i in range(most)}) if n > most else list(range(1, n + 1))
