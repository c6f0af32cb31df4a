"""Killed at any file operation, or out of space: readers see the old store, the new one or an error that says so, and
the command repeated ends with the very files of an undisturbed one."""

from __future__ import annotations

import errno
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toysource import ToySource, write_files

from chemscale.errors import ChemscaleError
from chemscale.quality.masking import mask_survey
from chemscale.runtime.files import Folder
from chemscale.survey.ingest.append import append
from chemscale.survey.ingest.datasets import write_survey
from chemscale.survey.ingest.ingestion import ingest
from chemscale.survey.ingest.repair import repair
from chemscale.survey.store.layout import Layout
from chemscale.survey.store.open import open_survey
from chemscale.survey.store.replace import under_way
from chemscale.survey.store.verify import verify

sys.path.insert(0, str(Path(__file__).parents[2]))
import crash

SMALL = Layout(chunk_stars=4, shard_stars=8, label_stars=16)
#: Points of a command that the default suite tries.
POINTS = 6


def tree(path: Path) -> dict[str, bytes]:
    return {name: Folder(path).read(name) for name, _ in Folder(path).walk()}


def seen(path: Path) -> dict[str, Any] | str:
    """What a reader sees: all values, or the error."""
    try:
        survey = open_survey(path)
        return {str(v): np.asarray(survey[v].values).tobytes() for v in ("flux", "ivar", "flags", "teff")} | {
            "stars": list(survey.star_id.values)
        }
    except ChemscaleError as err:
        return str(err)


@dataclass
class Case:
    """A command on the store ``s.zarr`` of a folder, and how it is repeated."""

    prepare: Callable[[Path], None]
    command: Callable[[Path], Any]
    repeat: Callable[[Path], Any]


def new_survey(where: Path) -> Any:
    return open_survey(where.parent / "other.zarr")


def damaged(where: Path) -> None:
    before(where)
    folder = Folder(where / "s.zarr")
    for name in ("flux/c/1/0", "teff/c/0", "_chemscale/statistics.json", "snr/zarr.json"):
        data = bytearray(folder.read(name))
        data[len(data) // 3] ^= 4
        folder.write(name, bytes(data))


def before(where: Path) -> None:
    shutil.copytree(where.parent / "old.zarr", where / "s.zarr")


def nothing(where: Path) -> None:
    pass


def more(where: Path) -> ToySource:
    return ToySource(where.parent / "more")


def carried_on(w: Path) -> Any:
    """As the error asks for: --resume where the overwrite was interrupted, --overwrite where it had not begun."""
    begun = under_way(Folder(w / "s.zarr"))
    return ingest(more(w), w / "s.zarr", layout=SMALL, overwrite=not begun, resume=begun)


CASES = {
    "ingest": Case(
        nothing,
        lambda w: ingest(more(w), w / "s.zarr", layout=SMALL),
        lambda w: ingest(more(w), w / "s.zarr", layout=SMALL, resume=True),
    ),
    "ingest over a store": Case(
        before,
        lambda w: ingest(more(w), w / "s.zarr", layout=SMALL, overwrite=True),
        lambda w: ingest(more(w), w / "s.zarr", layout=SMALL, overwrite=True),
    ),
    "ingest over a store, resumed": Case(
        before,
        lambda w: ingest(more(w), w / "s.zarr", layout=SMALL, overwrite=True),
        lambda w: carried_on(w),
    ),
    "append": Case(
        before,
        lambda w: append(more(w), w / "s.zarr", replace_existing=True),
        lambda w: append(more(w), w / "s.zarr", replace_existing=True, resume=True),
    ),
    "write_survey": Case(
        nothing,
        lambda w: write_survey(new_survey(w), w / "s.zarr", layout=SMALL),
        lambda w: write_survey(new_survey(w), w / "s.zarr", layout=SMALL, overwrite=True),
    ),
    "write_survey over a store": Case(
        before,
        lambda w: write_survey(new_survey(w), w / "s.zarr", layout=SMALL, overwrite=True),
        lambda w: write_survey(new_survey(w), w / "s.zarr", layout=SMALL, overwrite=True),
    ),
    "mask": Case(
        before,
        lambda w: mask_survey(w / "s.zarr", find=(), max_error=0.005),
        lambda w: mask_survey(w / "s.zarr", find=(), max_error=0.005),
    ),
    "verify --repair": Case(damaged, lambda w: repair(w / "s.zarr"), lambda w: repair(w / "s.zarr")),
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    """Sources, a store made of one of them, and a Dataset's store."""
    where = tmp_path_factory.mktemp("shop")
    files = write_files(where / "spectra", n=20)
    (files / "star0011.npy").write_bytes(b"broken")
    write_files(where / "more", n=22, seed=3)
    ingest(ToySource(files), where / "old.zarr", layout=SMALL)
    ingest(ToySource(where / "more"), where / "other.zarr", layout=SMALL)
    return where


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    monkeypatch.setattr("chemscale.survey.sources.base.get_source", lambda name: {"toyfiles": ToySource}[name])


def undisturbed(shop: Path, name: str) -> tuple[Any, Any, dict[str, bytes], int]:
    """What readers see before and after a command, its files, and its number of operations."""
    case, where = CASES[name], shop / f"whole {name}"
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir()
    case.prepare(where)
    old = seen(where / "s.zarr")
    n = crash.count(lambda: case.command(where), where)
    assert [p.name for p in where.iterdir()] == ["s.zarr"]
    return old, seen(where / "s.zarr"), tree(where / "s.zarr"), n


def disturbed(shop: Path, name: str, k: int, error: int, whole: tuple[Any, Any, dict[str, bytes], int]) -> None:
    old, new, files, _ = whole
    case, where = CASES[name], shop / f"{name} {k} {error}"
    where.mkdir()
    case.prepare(where)
    what = f"{name}, operation {k}, errno {error}"
    status, said = crash.child(lambda: case.command(where) and None, crash.Fault(where, k, error))
    assert status == (crash.KILLED if not error else crash.REFUSED) or (error and status == 0), (what, said)
    now = seen(where / "s.zarr")
    assert isinstance(now, str) or now in (old, new), what
    if error and case.prepare is before and status:
        assert now == old, (what, now)
    case.repeat(where)
    assert tree(where / "s.zarr") == files, what
    assert [p.name for p in where.iterdir()] == ["s.zarr"], what
    assert verify(where / "s.zarr", deep=False).ok
    shutil.rmtree(where)


@pytest.mark.parametrize("name", CASES)
def test_killed_at_file_operations(shop, name):
    whole = undisturbed(shop, name)
    for k in crash.sample(whole[3], POINTS):
        disturbed(shop, name, k, 0, whole)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("name", CASES)
def test_out_of_space_at_file_operations(shop, name, error):
    whole = undisturbed(shop, name)
    for k in crash.sample(whole[3], 2):
        disturbed(shop, name, k, error, whole)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", CASES)
def test_killed_and_out_of_space_at_every_file_operation(shop, name):
    whole = undisturbed(shop, name)
    for k in range(1, whole[3] + 1):
        for error in (0, errno.ENOSPC, errno.EIO):
            disturbed(shop, name, k, error, whole)
