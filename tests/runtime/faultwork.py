"""Work for the fault tests, importable on workers: each shard writes its own file and says who did it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np

from chemscale.errors import InputError


def block(shard: int, size: int = 2000) -> np.ndarray:
    """What shard number `shard` must contain: depends on nothing but its number."""
    return np.random.default_rng(shard).normal(size=size)


def write(item: dict) -> dict:
    """Write shard ``item['shard']``, under faults named in `item`; returns who wrote it."""
    shard, out = item["shard"], Path(item["out"])
    with open(out / "attempts.log", "a", encoding="utf-8") as log:
        log.write(f"{shard}\n")
    if item.get("sleep"):
        time.sleep(item["sleep"])
    if shard in item.get("poison", ()):
        os.kill(os.getpid(), signal.SIGKILL)
    once = out / f"failed-once-{shard}"
    if shard in item.get("kill_once", ()) and not once.exists():
        once.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if shard in item.get("flaky", ()) and not once.exists():
        once.touch()
        raise OSError("the file system hiccuped")
    if shard in item.get("bad", ()):
        raise InputError(f"shard {shard}: the grid is wrong", "give it another")
    if shard in item.get("hungry", ()) and not once.exists():
        once.touch()
        hoard = []
        while True:  # the nanny ends this worker at its memory limit
            hoard.append(np.ones(4_000_000))
            time.sleep(0.02)
    part = out / f".{shard}.{os.getpid()}.part"
    with open(part, "wb") as f:
        np.save(f, block(shard))
    os.replace(part, out / f"{shard}.npy")
    return {"shard": shard, "pid": os.getpid(), "host": os.uname().nodename}


def items(out: Path, n: int, **faults) -> dict[str, dict]:
    """`n` shards that write below `out`."""
    return {f"shard-{i:03d}": {"shard": i, "out": str(out), **faults} for i in range(n)}


def check(out: Path, n: int, missing: tuple[int, ...] = ()) -> None:
    """Every shard but `missing` is there and holds what it must."""
    for i in range(n):
        file = out / f"{i}.npy"
        if i in missing:
            assert not file.exists()
        else:
            np.testing.assert_array_equal(np.load(file), block(i))


def attempts(out: Path) -> list[int]:
    """Shards in the order in which workers began them."""
    return [int(line) for line in (out / "attempts.log").read_text(encoding="utf-8").split()]
