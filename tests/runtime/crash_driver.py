"""Ends a command at its k-th file operation, then asks the readers, then repeats the command.

Every command runs in a child forked from a process that has imported everything and started no thread.

    python crash_driver.py FOLDER COMMAND HOW[,HOW...] POINTS

HOW: kill, ENOSPC (from that operation on), EIO (at that one). POINTS: operations tried, evenly spread, or A:B:STEP.
Prints a JSON document a line.
"""

from __future__ import annotations

import errno
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import crash
from commands import COMMANDS, products


def tried(total: int, points: str) -> list[int]:
    """Operations of `total` that are tried."""
    if ":" not in points:
        return crash.sample(total, int(points))
    first, last, step = (int(p) if p else None for p in points.split(":"))
    return list(range(1, total + 1))[slice((first or 1) - 1, last, step)]


def main(folder: Path, name: str, hows: list[str], points: str) -> Iterator[dict[str, Any]]:
    """Try operations of the command; what went wrong, by operation."""
    command = COMMANDS[name]
    base, here = folder / "base", folder / "work"  # a run knows where its survey is: always at the same place
    here.mkdir(parents=True)
    status, said = crash.child(lambda: command.older(here) and None)
    assert status == 0, said
    shutil.copytree(here, base)
    old = crash.child(lambda: command.read(here))[1].get("value")
    total = crash.count(lambda: command.act(here), here)
    status, said = crash.child(lambda: command.read(here))
    assert status == 0, said
    new, expected = said["value"], products(here)
    assert old != new, "the older product must be another"
    for how in hows:
        bad: list[list[Any]] = []
        seen = {"old": 0, "new": 0, "error": 0}
        chosen = tried(total, points)
        for at in chosen:
            shutil.rmtree(here)
            shutil.copytree(base, here)
            fault = crash.Fault(here, at, 0 if how == "kill" else getattr(errno, how), lasting=how == "ENOSPC")
            _, said = crash.child(lambda: command.act(here) and None, fault)
            if said.get("error", "").startswith("traceback"):
                bad.append([at, "the command", said["error"]])
            _, answer = crash.child(lambda: command.read(here))
            if "error" in answer:
                seen["error"] += 1
                if answer["error"].startswith("traceback"):
                    bad.append([at, "a reader", answer["error"]])
            elif old is not None and answer["value"] == old:
                seen["old"] += 1
            elif answer["value"] == new:
                seen["new"] += 1
            else:
                bad.append([at, "a reader", f"neither old nor new: {answer}"])
            status, said = crash.child(lambda: command.act(here) and None)
            if status != 0:
                bad.append([at, "repeating", said.get("error")])
            elif (found := products(here)) != expected:
                bad.append([at, "repeating", sorted(k for k in {*found, *expected} if found.get(k) != expected.get(k))])
        yield {
            "command": name,
            "how": how,
            "operations": total,
            "tried": len(chosen),
            "answers": seen,
            "bad": bad,
        }


if __name__ == "__main__":
    for result in main(Path(sys.argv[1]).resolve(), sys.argv[2], sys.argv[3].split(","), sys.argv[4]):
        print(json.dumps(result), flush=True)
