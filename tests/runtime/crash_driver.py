"""Ends a command at its k-th file operation, then asks the readers, then repeats the command.

File operations (opening for writing, renaming, removing, making and removing folders, linking) are seen by an audit
hook, so that Zarr's and the standard library's count like our own. Every command runs in a child forked from a process
that has imported everything and started no thread.

    python crash_driver.py FOLDER COMMAND HOW POINTS      HOW: kill, ENOSPC, EIO; prints one JSON document
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers import make_survey
from vae_toy import FAST, FAST_MODEL, TOY_REGIONS, toy_survey

from chemscale.errors import ChemscaleError, of_the_machine
from chemscale.rsca.evaluate import evaluate_run
from chemscale.rsca.pipeline import fit_run
from chemscale.rsca.siblings import siblings, write_neighbours
from chemscale.runtime.run import Run
from chemscale.survey.ingest.datasets import write_survey
from chemscale.vae import pipeline as vae

KILLED = 97
_STATE: dict[str, Any] = {"root": None, "count": 0, "at": None, "how": "kill"}


def _hook(event: str, args: tuple[Any, ...]) -> None:
    root = _STATE["root"]
    if root is None or event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link"):
        return
    if event == "open":
        path, _, flags = args
        if not isinstance(path, str | bytes | os.PathLike) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
    path = os.fsdecode(args[0]) if not isinstance(args[0], int) else ""
    if not os.path.abspath(path).startswith(root):
        return
    _STATE["count"] += 1
    if _STATE["count"] == _STATE["at"]:
        if _STATE["how"] == "kill":
            os._exit(KILLED)
        raise OSError(getattr(errno, _STATE["how"]), os.strerror(getattr(errno, _STATE["how"])), path)


def child(
    work: Callable[[], Any], root: Path | None = None, at: int | None = None, how: str = "kill"
) -> tuple[int, dict]:
    """Run `work` in a forked child: (exit status, {"count", "value" or "error"})."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        out: dict[str, Any] = {}
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        if root is not None:
            sys.addaudithook(_hook)
            _STATE.update(root=str(root), at=at, how=how)
        status = 0
        try:
            out["value"] = work()
        except ChemscaleError as err:
            out["error"], status = f"{err}", err.exit_code
        except BaseException as err:
            known = of_the_machine(err)
            out["error"] = f"{known}" if known else "traceback: " + traceback.format_exc()
            status = 1
        _STATE["root"] = None
        out["count"] = _STATE["count"]
        os.write(writing, json.dumps(out).encode())
        os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status, json.loads(text) if text else {"count": None}


def products(run: Path) -> dict[str, str]:
    """Digest of every file of the products of a run; its own books and what was left unfinished do not count."""
    found = {}
    for file in sorted(run.rglob("*")):
        name = file.relative_to(run).as_posix()
        books = (
            name == "manifest.json"
            or name.startswith(".lock.json")
            or "checkpoint" in name
            or name.endswith("summary.json")
        )
        if file.is_file() and not books and "checkpoint" not in name:
            found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def _siblings(folder: Path) -> Any:
    found = siblings("S000045", folder / "run", n=5)
    text = str(found.load().to_dict())
    return hashlib.sha256(text.encode()).hexdigest()


def _rates(folder: Path) -> Any:
    return Run.open(folder / "run").load_json("evaluation.json")["rsca_top"]


def _neighbours(folder: Path) -> Any:
    return hashlib.sha256(Run.open(folder / "run").open_dataset("siblings.zarr")["row"].values.tobytes()).hexdigest()


def _latents(folder: Path) -> Any:
    return hashlib.sha256(vae.latents(folder / "vae")[0]["mean"].values.tobytes()).hexdigest()


def _anomalies(folder: Path) -> Any:
    return Run.open(folder / "vae").load_json("anomalies.json")["flagged"]


def _flags(folder: Path) -> Any:
    return hashlib.sha256(json.dumps(Run.open(folder / "vae").load_json("flags.json")).encode()).hexdigest()


#: Command -> what it does, the run it writes, how its product is read.
COMMANDS: dict[str, tuple[Callable[[Path], Any], str, Callable[[Path], Any]]] = {
    "first fit": (lambda f: fit_run(str(f / "s.zarr"), f / "run", components=4) and None, "run", _siblings),
    "fit": (lambda f: fit_run(str(f / "s.zarr"), f / "run", components=5) and None, "run", _siblings),
    "evaluate": (lambda f: evaluate_run(f / "run", n_features=2) and None, "run", _rates),
    "neighbours": (lambda f: write_neighbours(f / "run", 4) and None, "run", _neighbours),
    "infer": (lambda f: vae.infer(str(f / "v.zarr"), f / "vae", overwrite=True) and None, "vae", _latents),
    "anomalies": (lambda f: vae.anomalies(f / "vae", false_alarm=0.1) and None, "vae", _anomalies),
    "flags": (lambda f: vae.flags(f / "vae", survey_labels=False) and None, "vae", _flags),
}


def prepare(folder: Path, command: str) -> None:
    """Stores and the run as it is before the command: with an older product, but for a first fit."""
    if command in ("infer", "anomalies", "flags"):
        write_survey(toy_survey(320), folder / "v.zarr")
        settings = {**FAST, "epochs": 2, "late_label_weight": 0.0}
        options = {"model": FAST_MODEL, "settings": settings, "regions": TOY_REGIONS, "scale": False}
        vae.train(str(folder / "v.zarr"), folder / "vae", **options)
        vae.infer(str(folder / "v.zarr"), folder / "vae")
        vae.anomalies(folder / "vae", false_alarm=0.2)
        vae.flags(folder / "vae")
        return
    write_survey(make_survey(150, 5, 5, n_pixels=40, seed=3), folder / "s.zarr")
    if command != "first fit":
        fit_run(str(folder / "s.zarr"), folder / "run", components=4)
        evaluate_run(folder / "run")
        write_neighbours(folder / "run", 3)


def main(folder: Path, command: str, how: str, points: int) -> dict[str, Any]:
    """Try up to `points` operations of the command, evenly spread; what went wrong, by operation."""
    act, name, read = COMMANDS[command]
    base, here = folder / "base", folder / "work"  # a run knows where its survey is: always at the same place
    here.mkdir(parents=True)
    status, said = child(lambda: prepare(here, command))
    assert status == 0, said
    shutil.copytree(here, base)
    old = child(lambda: read(here))[1].get("value")
    status, said = child(lambda: act(here), here)
    assert status == 0, said
    total = said["count"]
    new = child(lambda: read(here))[1]["value"]
    expected = products(here / name)
    tried = sorted({1 + round(i * (total - 1) / max(1, points - 1)) for i in range(min(points, total))})
    bad = []
    seen = {"old": 0, "new": 0, "error": 0}
    for at in tried:
        shutil.rmtree(here)
        shutil.copytree(base, here)
        _, said = child(lambda: act(here), here, at, how)
        if "traceback" in said.get("error", ""):
            bad.append([at, "the command", said["error"]])
        _, answer = child(lambda: read(here))
        if "error" in answer:
            seen["error"] += 1
            if "traceback" in answer["error"]:
                bad.append([at, "a reader", answer["error"]])
        elif answer["value"] in (old, new):
            seen["new" if answer["value"] == new else "old"] += 1
        else:
            bad.append([at, "a reader", f"neither old nor new: {answer}"])
        status, said = child(lambda: act(here))
        if status != 0:
            bad.append([at, "repeating", said.get("error")])
        elif (found := products(here / name)) != expected:
            bad.append([at, "repeating", sorted(k for k in {*found, *expected} if found.get(k) != expected.get(k))])
    return {"command": command, "how": how, "operations": total, "tried": len(tried), "answers": seen, "bad": bad}


if __name__ == "__main__":
    where, which, manner, number = sys.argv[1:]
    print(json.dumps(main(Path(where).resolve(), which, manner, int(number))))
