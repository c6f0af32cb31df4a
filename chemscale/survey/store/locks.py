"""One writer a store: the second is told who is writing, since when, and how to go on when that one is dead.

The lock of a store is a file, or an object, beside it. Partitions of one ingestion write side by side: each has a lock
of its own, and everybody else waits for all of them. Readers take no lock.
"""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chemscale.errors import StoreError
from chemscale.runtime.files import Folder
from chemscale.runtime.locks import is_gone, lock, this_process

#: What a disk says no with.
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM}
#: Objects that this process holds as locks.
_HELD: set[str] = set()


@contextlib.contextmanager
def writing(folder: Folder, *, partition: str = "") -> Iterator[None]:
    """Hold the lock of the store in `folder` for the block.

    Parameters
    ----------
    partition : str
        Name of one of several writers that work side by side.

    Raises
    ------
    StoreError
        Somebody else is writing there.
    """
    parent, _, base = folder.root.rpartition("/")
    beside, whole = Folder(parent or "/"), f"{base}.lock"
    mine = f"{whole}-{partition}" if partition else whole
    with _held(beside, mine, folder.root):
        for name in beside.list():
            stands_in_the_way = name == whole if partition else name.startswith(f"{whole}-")
            if stands_in_the_way and (holder := _holder(beside, name)):
                raise _refused(beside, name, folder.root, holder)
        try:
            yield
        except OSError as err:
            if err.errno not in _OF_THE_DISK:
                raise
            raise StoreError(
                f"cannot write {err.filename or folder.root}: {err.strerror}",
                "make room (or mend the disk or the permissions), then run again with --resume",
            ) from err


@contextlib.contextmanager
def _held(beside: Folder, name: str, store: str) -> Iterator[None]:
    if not beside.remote:
        try:
            Path(beside.root).mkdir(parents=True, exist_ok=True)
            taken = lock(beside.where(name), store)
            taken.__enter__()
        except OSError as err:
            raise StoreError(
                f"cannot write {beside.where(name)}: {err.strerror or err}", "make room, or choose another path"
            ) from err
        try:
            yield
        finally:
            taken.__exit__(None, None, None)
        return
    if holder := _holder(beside, name):
        raise _refused(beside, name, store, holder)
    me = json.dumps(this_process()).encode()
    beside.write(name, me)
    if (there := beside.read(name)) != me:  # object stores put without a condition: the last one has it
        raise _refused(beside, name, store, json.loads(there))
    _HELD.add(beside.where(name))
    try:
        yield
    finally:
        _HELD.discard(beside.where(name))
        with contextlib.suppress(Exception):  # a server that is gone: the next process here sees that this one is, too
            beside.remove(name)


def _holder(beside: Folder, name: str) -> dict[str, Any] | None:
    """Who holds a lock; None where nobody does, or a process that has ended."""
    try:
        holder = json.loads(beside.read(name))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    mine = {k: holder.get(k) for k in ("host", "pid")} == {k: this_process()[k] for k in ("host", "pid")}
    left = mine and beside.remote and beside.where(name) not in _HELD
    return None if left or is_gone(holder) else holder


def _refused(beside: Folder, name: str, store: str, holder: dict[str, Any]) -> StoreError:
    return StoreError(
        f"{store} is being written by process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')}"
        f" ({holder.get('command')})",
        f"wait for it; if that process is gone for good (another host, a lost node), remove {beside.where(name)}",
    )
