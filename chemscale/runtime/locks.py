"""One writer at a time: a lock file that says who holds it, also where ``flock`` does not work.

The file is made with ``O_EXCL``, which is atomic on local disks and on NFS. It names host, process and time, so that
a second writer can say whom it waits for; a lock whose process has ended on this host is taken over. Readers never
look at it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from chemscale.errors import StoreError

_mutex = threading.Lock()
#: Locks this process holds: path -> the thread that holds it, and how often it took it.
_held: dict[str, list[int]] = {}
#: Seconds after which an empty file beside a lock is of a writer that died while it made it.
_LEFT = 60.0


@contextmanager
def lock(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Hold the lock file `path` for the block; taking it again in the same thread is fine.

    Parameters
    ----------
    what : str
        What is written, for the message another writer gets.

    Raises
    ------
    StoreError
        Another process holds it: the message says which, where, and since when. Or another thread of this one.
    """
    key, me = f"{os.getpid()}:{os.path.abspath(path)}", threading.get_ident()
    with _mutex:
        holder = _held.get(key)
        if holder is None:
            _take(Path(path), what)
            _held[key] = [me, 1]
        elif holder[0] == me:
            holder[1] += 1
        else:
            raise StoreError(f"{what} is being written by another thread of this process", "wait for it")
    try:
        yield
    finally:
        with _mutex:
            _held[key][1] -= 1
            if not _held[key][1]:
                del _held[key]
                Path(path).unlink(missing_ok=True)


def this_process() -> dict[str, Any]:
    """What a lock says of its holder."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]])[:200],
    }


def _take(path: Path, what: str) -> None:
    content = json.dumps(this_process()).encode()
    for _ in range(5):
        # the content is there from the first moment: written beside, then linked to the name
        beside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}")
        beside.write_bytes(content)
        try:
            os.link(beside, path)
            _remove_leftovers(path)
            return
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            if _take_without_links(path, content):
                _remove_leftovers(path)
                return
        finally:
            beside.unlink(missing_ok=True)
        holder = read_holder(path)
        if holder is None:
            continue  # it has just been given back
        if not is_gone(holder):
            pid, host, since, command = (_inert(holder.get(k)) for k in ("pid", "host", "since", "command"))
            raise StoreError(
                f"{what} is being written by process {pid} on {host} since {since} ({command})",
                f"wait for it; if that process is gone for good (another host, a lost node), remove {path}",
            )
        _remove_stale(path, holder)
    raise StoreError(f"{what}: several processes ask for the lock at once", "run the command again")


def _remove_leftovers(path: Path) -> None:
    """Remove what writers that were killed while they asked for the lock left beside it; for whoever holds it."""
    name = re.compile(re.escape(path.name) + r"\.(stale-)?[0-9a-f]{12}")
    for file in path.parent.iterdir():
        if name.fullmatch(file.name):
            with contextlib.suppress(OSError):
                holder = read_holder(file)
                if (holder and is_gone(holder)) or (holder == {} and time.time() - file.stat().st_mtime > _LEFT):
                    file.unlink(missing_ok=True)


def _take_without_links(path: Path, content: bytes) -> bool:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    return True


def _remove_stale(path: Path, holder: dict[str, Any]) -> None:
    """Remove the lock of a process that is gone, and no other's that took its place in the meantime."""
    aside = path.with_name(f"{path.name}.stale-{uuid.uuid4().hex[:12]}")
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, aside)
        if read_holder(aside) == holder:
            aside.unlink()
        else:  # somebody else was faster: theirs goes back
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
            aside.unlink()


def _inert(value: Any) -> str:
    """Text of a lock file as a terminal may show it: no control characters, not long."""
    return "".join(c if c.isprintable() else "?" for c in str(value))[:200]


def read_holder(path: Path) -> dict[str, Any] | None:
    """Who holds a lock; None where nobody does."""
    try:
        holder = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def is_gone(holder: dict[str, Any]) -> bool:
    """Whether the process that took a lock is known to have ended."""
    if holder.get("host") != socket.gethostname():
        return False
    try:
        started = psutil.Process(int(holder["pid"])).create_time()
    except (psutil.NoSuchProcess, KeyError, ValueError, TypeError):
        return True
    except psutil.AccessDenied:
        return False
    return abs(started - float(holder.get("started", started))) > 1.0
