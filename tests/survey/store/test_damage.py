"""Whatever is damaged in a store, `verify` names it, and nothing that reads gives a number from it."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toysource import ToySource, write_files

from chemscale.errors import StoreError
from chemscale.quality.masking import mask_survey
from chemscale.runtime.files import Folder
from chemscale.survey.info import store_info
from chemscale.survey.ingest.append import append
from chemscale.survey.ingest.ingestion import ingest
from chemscale.survey.store.layout import Layout
from chemscale.survey.store.open import open_survey
from chemscale.survey.store.verify import verify

SMALL = Layout(chunk_stars=4, shard_stars=8, label_stars=16)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A store of two revisions with hidden rows and a mask."""
    where = tmp_path_factory.mktemp("whole")
    files = write_files(where / "spectra", n=30)
    (files / "star0011.npy").write_bytes(b"broken")
    ingest(ToySource(files), where / "s.zarr", layout=SMALL)
    more = write_files(where / "more", n=40, seed=5)
    for i in (*range(3), *range(8, 30)):
        (more / f"star{i:04d}.npy").unlink()
    append(ToySource(more), where / "s.zarr", replace_existing=True)
    wave = open_survey(where / "s.zarr").wavelength.values
    mask_survey(where / "s.zarr", find=(), windows=[(float(wave[3]), float(wave[6]))])
    assert verify(where / "s.zarr").ok
    return where / "s.zarr"


def everything(path: Path) -> dict[str, Any]:
    """All that a command could read."""
    survey = open_survey(path)
    out: dict[str, Any] = {str(name): np.asarray(survey[name].values) for name in survey.variables}
    info = store_info(path)
    return out | {
        "attrs": repr(survey.attrs),
        "info": {k: v for k, v in info.items() if k not in ("n_files", "size_bytes")},
    }


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k], equal_nan=a[k].dtype.kind == "f")
        if isinstance(a[k], np.ndarray) else a[k] == b[k] for k in a)  # fmt: skip


def flip(folder: Folder, name: str, rng: random.Random) -> None:
    data = bytearray(folder.read(name))
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    folder.write(name, bytes(data))


def cut(folder: Folder, name: str, rng: random.Random) -> None:
    data = folder.read(name)
    folder.write(name, data[: rng.randrange(len(data))])


def lose(folder: Folder, name: str, rng: random.Random) -> None:
    folder.remove(name)


def exchange(folder: Folder, name: str, rng: random.Random) -> None:
    """With another file of its kind that says something else."""
    tail = name.rpartition("/")[2]
    mine = folder.read(name)
    others = [n for n, _ in folder.walk() if n != name and n.rpartition("/")[2] == tail and folder.read(n) != mine]
    near = [n for n in others if n.split("/c/")[0] == name.split("/c/")[0]] or others
    if not near:
        return cut(folder, name, rng)
    other = rng.choice(near)
    theirs = folder.read(other)
    folder.write(name, theirs)
    folder.write(other, mine)
    return None


def replaced_by_json(folder: Folder, name: str, rng: random.Random) -> None:
    """Something that parses, and is not what was there."""
    folder.write(name, rng.choice([b"[]", b"{}", b"null", b'{"format": "chemscale-survey", "version": 1}', b"3"]))


DAMAGES: list[Callable[[Folder, str, random.Random], None]] = [flip, cut, lose, exchange, replaced_by_json]


@pytest.mark.parametrize("n", [20, pytest.param(150, marks=pytest.mark.slow)])
def test_random_damage_is_named_and_never_read(whole, tmp_path, n):
    rng = random.Random()
    seed = rng.randrange(10**9)
    rng.seed(seed)
    expected = everything(whole)
    names = sorted(n for n, _ in Folder(whole).walk())
    for k in range(n):
        path = tmp_path / f"s{k}.zarr"
        shutil.copytree(whole, path)
        name, damage = rng.choice(names), DAMAGES[k % len(DAMAGES)]
        damage(Folder(path), name, rng)
        what = f"seed {seed}, damage {k}: {damage.__name__} of {name}"
        try:
            report = verify(path)
        except StoreError as err:
            assert name.endswith("root.json") and (
                "damaged" in str(err) or "unfinished" in str(err) or "version" in str(err)
            ), what
        else:
            superseded = "hidden-0000" in name
            named = [f"{f.group}/{f.file}".lstrip("/") for f in report.faults]
            assert name in named or superseded, (what, report.faults)
        expected["attrs"] = expected["attrs"].replace(str(whole), str(path))
        expected["info"]["path"] = str(path)
        try:
            found = everything(path)
        except StoreError:
            pass
        else:
            assert same(found, expected), what
        expected["attrs"] = expected["attrs"].replace(str(path), str(whole))
        shutil.rmtree(path)
