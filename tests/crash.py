"""Ends a command at its k-th file operation: by a kill, as a machine that stops, or by an error of the disk.

Operations are what the interpreter's audit events show: files opened for writing, directories made and removed, files
renamed, linked and removed. A command runs in a fork of the test, so that a kill costs milliseconds.
"""

from __future__ import annotations

import json
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
        0: the process ends there. Otherwise that ``errno``.
    lasting : bool
        The error comes at all later operations that need space as well.
    """

    def __init__(self, root: Path, at: int = 0, error: int = 0, *, lasting: bool = True):
        self.root, self.at, self.error, self.lasting, self.count = str(root), at, error, lasting, 0

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        """The audit hook."""
        if not self._counts(event, args):
            return
        self.count += 1
        if not self.at or self.count < self.at:
            return
        if not self.error:
            if self.count == self.at:
                os._exit(KILLED)
        elif event in ("open", "os.mkdir", "os.rename") if self.lasting else self.count == self.at:
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


def child(command: Callable[[], Any], fault: Fault | None = None) -> tuple[int, dict[str, Any]]:
    """Run `command` in a fork.

    Returns
    -------
    (int, dict)
        Exit status, and ``count`` of operations, ``value`` (what the command returned) or ``error`` in words. An error
        that is not meant for people begins with ``traceback``.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        said, status = _run(command, fault)
        os.write(writing, json.dumps(said).encode())
        os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status, json.loads(text) if text else {"count": None}


def _run(command: Callable[[], Any], fault: Fault | None) -> tuple[dict[str, Any], int]:
    import dask

    from chemscale.errors import ChemscaleError, of_the_machine

    said: dict[str, Any] = {}
    status = 0
    if fault is not None:
        sys.addaudithook(fault)
    try:
        with dask.config.set(scheduler="synchronous"):  # a fork has none of the threads of a pool
            said["value"] = command()
    except ChemscaleError as err:
        said["error"], status = str(err), REFUSED
    except BaseException as err:
        known = of_the_machine(err)
        said["error"] = str(known) if known else "traceback: " + "".join(traceback.format_exception(err))
        status = BROKEN
    if fault is not None:
        said["count"], fault.root = fault.count, "\0"
    return said, status


def count(command: Callable[[], Any], root: Path) -> int:
    """File operations of an undisturbed command."""
    status, said = child(lambda: command() and None, Fault(root))
    assert status == 0, said
    return int(said["count"])


def sample(n: int, most: int) -> list[int]:
    """At most so many of the operations 1 to `n`, spread evenly, the first and the last among them."""
    return sorted({1 + round(i * (n - 1) / (most - 1)) for i in range(most)}) if n > most else list(range(1, n + 1))
