"""Overwriting: the old store stays until the new one is whole, and whoever has the old one open gets an error."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import make_survey
from toysource import ToySource, write_files

from chemscale.errors import ChemscaleError, DataError, StoreError
from chemscale.quality.masking import mask_survey
from chemscale.runtime.files import Folder
from chemscale.survey.ingest.datasets import write_survey
from chemscale.survey.ingest.ingestion import finalise, ingest
from chemscale.survey.store import replace
from chemscale.survey.store.layout import Layout
from chemscale.survey.store.open import open_survey
from chemscale.survey.store.verify import verify

SMALL = Layout(chunk_stars=4, shard_stars=8, label_stars=16)


def tree(path: Path) -> dict[str, bytes]:
    return {name: Folder(path).read(name) for name, _ in Folder(path).walk()}


@pytest.fixture
def files(tmp_path) -> Path:
    return write_files(tmp_path / "spectra", n=30)


@pytest.fixture
def store(tmp_path, files) -> Path:
    ingest(ToySource(files), tmp_path / "s.zarr", layout=SMALL)
    return tmp_path / "s.zarr"


class Broken(ToySource):
    """Fails in some way after the store's path was looked at."""

    def __init__(self, spectra, when):
        super().__init__(spectra)
        self.when = when

    def plan(self):
        if self.when == "plan":
            raise DataError("the catalogue is damaged")
        return super().plan()

    def read(self, items, wavelength, elements):
        raise DataError("a file of it cannot be read")


@pytest.mark.parametrize("when", ["plan", "read"])
def test_an_overwrite_that_fails_leaves_the_old_store(store, files, when):
    before = tree(store)
    with pytest.raises(ChemscaleError):
        ingest(Broken(files, when), store, overwrite=True)
    assert tree(store) == before and verify(store).ok


def test_an_overwrite_of_nothing_readable_leaves_the_old_store(store, tmp_path):
    before = tree(store)
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "star0000.npy").write_bytes(b"broken")
    with pytest.raises(DataError, match="none of 1 inputs"):
        ingest(ToySource(bad), store, overwrite=True)
    assert tree(store) == before
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith("s.zarr")) == ["s.zarr"]


@pytest.mark.parametrize("exchange", [True, False], ids=["at once", "two renames"])
def test_overwriting_gives_what_a_new_store_would_be(store, tmp_path, exchange, monkeypatch):
    if not exchange:
        monkeypatch.setattr(replace, "exchange", lambda a, b: False)
    more = write_files(tmp_path / "more", n=41, seed=8)
    ingest(ToySource(more), tmp_path / "fresh.zarr", layout=SMALL)
    ingest(ToySource(more), store, layout=SMALL, overwrite=True)
    assert tree(store) == tree(tmp_path / "fresh.zarr")
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith("s.zarr")) == ["s.zarr"]


def test_an_interrupted_overwrite_is_carried_on(store, tmp_path, files, monkeypatch):
    from chemscale.survey.ingest import ingestion

    before = tree(store)
    more = write_files(tmp_path / "more", n=41, seed=8)
    ingest(ToySource(more), tmp_path / "fresh.zarr", layout=SMALL)
    calls = []
    original = ingestion.write_shard_task

    def dies(task):
        calls.append(task.shard)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(task)

    monkeypatch.setattr(ingestion, "write_shard_task", dies)
    with pytest.raises(KeyboardInterrupt):
        ingest(ToySource(more), store, layout=SMALL, overwrite=True)
    monkeypatch.undo()
    assert tree(store) == before, "readers see the old one"
    summary = ingest(ToySource(more), store, layout=SMALL, resume=True)
    assert summary.n_shards_kept == 2 and summary.path == str(store)
    assert tree(store) == tree(tmp_path / "fresh.zarr")


def test_partitions_overwrite_together(store, tmp_path):
    more = write_files(tmp_path / "more", n=41, seed=8)
    ingest(ToySource(more), tmp_path / "fresh.zarr", layout=SMALL)
    before = tree(store)
    for k in (1, 2, 3):
        ingest(ToySource(more), store, layout=SMALL, overwrite=True, partition=(k, 3))
        assert tree(store) == before
    finalise(store)
    assert tree(store) == tree(tmp_path / "fresh.zarr")


@pytest.mark.parametrize("loaded", [False, True], ids=["lazy", "labels loaded"])
def test_a_survey_filtered_onto_itself(tmp_path, loaded):
    ds = make_survey(n_field=60)
    path = tmp_path / "s.zarr"
    write_survey(ds, path, layout=Layout(16, 16, 16))
    part = open_survey(path).isel(star=slice(5, 40))
    if loaded:
        part["teff"].load()
    write_survey(part, path, overwrite=True)
    back = open_survey(path)
    np.testing.assert_array_equal(back.flux.values, ds.flux.values[5:40])
    assert list(back.star_id.values) == list(ds.star_id.values[5:40])
    with pytest.raises(StoreError, match="replaced or changed since it was opened"):
        part.flux.values


def test_a_dataset_that_fails_midway_leaves_the_old_store(store):
    before = tree(store)
    ds = open_survey(store)
    bad = ds.assign(flux=ds.flux + 1)
    (store / "flux/c/2/0").unlink()
    with pytest.raises(StoreError):
        write_survey(bad, store, overwrite=True)
    (store / "flux/c/2/0").write_bytes(before["flux/c/2/0"])
    assert tree(store) == before and not Path(f"{store}.replacement").exists()


@pytest.mark.parametrize("what", ["moved", "removed", "overwritten"])
def test_open_readers_of_a_store_that_is_no_more_fail(store, tmp_path, files, what):
    survey = open_survey(store, chunk_stars=4)
    flags, stars = survey.flags.values, open_survey(store).star_id.values
    survey.flux[:4].values, survey.teff[:3].values
    if what == "moved":
        store.rename(tmp_path / "elsewhere.zarr")
    elif what == "removed":
        shutil.rmtree(store)
    else:
        others = write_files(tmp_path / "others", n=30, seed=77)
        ingest(ToySource(others), store, layout=SMALL, overwrite=True)
    with pytest.raises(StoreError, match="since it was opened"):
        survey.flux.values
    for name, old in (("flags", flags), ("star_id", stars)):
        try:
            found = survey[name].values
        except StoreError as err:
            assert "since it was opened" in str(err)
        else:  # the new store's file happens to be the old one's, byte by byte
            np.testing.assert_array_equal(found, old)
    if what == "overwritten":
        assert open_survey(store).flux.values.shape[0] == 30


HOLDER = """
import sys, time
from chemscale.quality.masking import mask_survey
from chemscale.runtime.files import Folder
from chemscale.survey.store.locks import writing
with writing(Folder(sys.argv[1]), partition=sys.argv[2]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("partition", ["", "1-of-3"])
def test_a_second_writer_is_told_who_writes_and_a_dead_one_does_not_stop_it(store, files, partition):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(store), partition], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    try:
        with pytest.raises(StoreError, match=f"is being written by process {process.pid} on .* since 20") as caught:
            ingest(ToySource(files), store, layout=SMALL, overwrite=True)
        assert f"remove {store}.lock" in caught.value.remedy
        with pytest.raises(StoreError, match="is being written by"):
            mask_survey(store, find=(), max_error=0.1)
        assert open_survey(store).sizes["star"] == 30, "readers never wait"
    finally:
        process.kill()
        process.wait()
    ingest(ToySource(files), store, layout=SMALL, overwrite=True)
    assert not Path(f"{store}.lock").exists()


def test_a_lock_of_another_host_is_never_taken(store, files):
    lock = Path(f"{store}.lock")
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": 1.0, "since": "2020-01-01"}))
    with pytest.raises(StoreError, match="process 1 on elsewhere since 2020-01-01"):
        ingest(ToySource(files), store, layout=SMALL, overwrite=True)
    lock.unlink()
    ingest(ToySource(files), store, layout=SMALL, overwrite=True)


WRITER = """
import os, sys
from toysource import ToySource
from chemscale.errors import StoreError
from chemscale.survey.ingest.ingestion import ingest
from chemscale.survey.store.layout import Layout
if sys.argv[3] == "no links":
    def no(*args, **kwargs):
        raise OSError(95, "no hard links, no flock")
    os.link = no
print("ready", flush=True)
for line in sys.stdin:
    try:
        ingest(ToySource(sys.argv[1]), sys.argv[2], layout=Layout(4, 8, 16), overwrite=True, progress=False)
        print("done", flush=True)
    except StoreError as err:
        print("refused" if "is being written by" in str(err) else err, flush=True)
"""


def two_writers(store, tmp_path, files, *, rounds: int, links: str) -> None:
    more = write_files(tmp_path / "more", n=41, seed=8)
    for source in (files, more):
        ingest(ToySource(source), tmp_path / f"{source.name}.zarr", layout=SMALL)
    results = [tree(tmp_path / f"{source.name}.zarr") for source in (files, more)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", WRITER]
    both = [subprocess.Popen([*command, str(s), str(store), links], env=env, **pipes) for s in (files, more)]
    try:
        assert [p.stdout.readline() for p in both] == ["ready\n"] * 2
        said = set()
        for _ in range(rounds):
            for p in both:
                p.stdin.write("go\n")
                p.stdin.flush()
            for _ in range(5):
                assert open_survey(store).sizes["star"] in (30, 41), "readers never wait and never see a mixture"
            answers = [p.stdout.readline().strip() for p in both]
            assert "done" in answers and set(answers) <= {"done", "refused"}, answers
            assert tree(store) in results
            assert {p.name for p in store.parent.glob(f"{store.name}*")} == {store.name}
            said.update(answers)
        assert "refused" in said or rounds < 5
    finally:
        for p in both:
            p.stdin.close()
            assert p.wait(60) == 0


def test_two_writers_at_once_leave_one_whole_result(store, tmp_path, files):
    two_writers(store, tmp_path, files, rounds=2, links="links")


@pytest.mark.slow
@pytest.mark.parametrize("links", ["links", "no links"])
def test_two_writers_at_once_fifty_times(store, tmp_path, files, links):
    two_writers(store, tmp_path, files, rounds=50, links=links)


def test_what_is_no_store_is_never_overwritten_not_even_empty_folders(tmp_path, files):
    (tmp_path / "mine" / "plans").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("keep\n")
    for path in (tmp_path / "mine", tmp_path / "notes.txt"):
        with pytest.raises(StoreError, match="is not a chemscale store, so it is not overwritten"):
            ingest(ToySource(files), path, layout=SMALL, overwrite=True)
    assert (tmp_path / "mine" / "plans").is_dir() and (tmp_path / "notes.txt").read_text() == "keep\n"
    (tmp_path / "begun" / "flux").mkdir(parents=True)  # an ingestion that was killed before its first file
    ingest(ToySource(files), tmp_path / "begun", layout=SMALL, overwrite=True)
