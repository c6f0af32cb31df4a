"""Ingestion: every star in its row or in the list of rejections, and a resumed job as good as an undisturbed one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from toysource import ToySource, write_files

from chemscale.errors import DataError, InputError, ResumeError, StoreError
from chemscale.runtime.files import Folder
from chemscale.runtime.jobs import Inputs, parse_partition
from chemscale.schema import Flag, validate
from chemscale.survey.ingest.estimate import estimate
from chemscale.survey.ingest.ingestion import finalise, ingest
from chemscale.survey.ingest.planning import plan_ingest
from chemscale.survey.store.layout import Layout
from chemscale.survey.store.open import open_survey

SMALL = Layout(chunk_stars=4, shard_stars=8, label_stars=16)


def tree(path: str | Path) -> dict[str, bytes]:
    folder = Folder(path)
    return {name: folder.read(name) for name, _ in folder.walk()}


@pytest.fixture
def files(tmp_path) -> Path:
    return write_files(tmp_path / "spectra")


def test_every_star_in_its_row(tmp_path, files):
    summary = ingest(ToySource(files), tmp_path / "s.zarr", layout=SMALL)
    assert summary.complete and summary.n_stars == 60 and summary.n_rejected == 0 and summary.n_shards == 8
    ds = validate(open_survey(tmp_path / "s.zarr"))
    assert ds.attrs["survey"] == "toyfiles"
    assert list(ds.star_id.values) == [f"star{i:04d}" for i in range(60)]
    np.testing.assert_array_equal(ds.teff.values, 4000.0 + np.arange(60))
    flux = ds.flux.values
    for i in (0, 17, 59):
        raw = np.load(files / f"star{i:04d}.npy")
        np.testing.assert_array_equal(flux[i], raw[0].astype("f4"))
    flags = ds.flags.values
    assert np.all(flags[:, :3] & Flag.GAP) and np.all(flags[:, 5] & Flag.LARGE_ERROR) and not flags[:, 6:].any()
    assert summary.clusters == {"Toy 1": 12}
    assert summary.bytes_read == sum(f.stat().st_size for f in files.iterdir())


def test_bad_files_leave_empty_slots_that_nobody_sees(tmp_path, files):
    (files / "star0003.npy").write_bytes(b"not an array")
    (files / "star0009.npy").write_bytes(b"")
    np.save(files / "star0020.npy", np.full((2, 40), np.nan))
    np.save(files / "star0021.npy", np.ones((2, 39)))
    summary = ingest(ToySource(files), tmp_path / "s.zarr", layout=SMALL)
    bad = {3, 9, 20, 21}
    assert {r.star_id for r in summary.rejected} == {f"star{i:04d}" for i in bad}
    assert all(r.reason for r in summary.rejected) and summary.n_stars == 56
    ds = validate(open_survey(tmp_path / "s.zarr", chunk_stars=4))
    good = [i for i in range(60) if i not in bad]
    assert list(ds.star_id.values) == [f"star{i:04d}" for i in good]
    np.testing.assert_array_equal(
        ds.flux.values[:, 10], [np.load(files / f"star{i:04d}.npy")[0, 10].astype("f4") for i in good]
    )
    np.testing.assert_array_equal(ds.isel(star=slice(15, 22)).flux.values, ds.flux.values[15:22])
    assert sum(ds.flux.chunks[0]) == 56
    kept = json.loads((tmp_path / "s.zarr/_chemscale/rejected.json").read_text())
    assert len(kept) == 4


def test_a_whole_shard_of_bad_files(tmp_path, files):
    for i in range(8, 16):
        (files / f"star{i:04d}.npy").write_bytes(b"x")
    ingest(ToySource(files), tmp_path / "s.zarr", layout=SMALL)
    ds = open_survey(tmp_path / "s.zarr")
    assert ds.flux.shape[0] == 52 and np.isfinite(ds.flux.values).all()


def test_reader_that_raises_costs_one_star(tmp_path, files):
    summary = ingest(ToySource(files, raise_on="star0033"), tmp_path / "s.zarr", layout=SMALL)
    assert [r.star_id for r in summary.rejected] == ["star0033"]
    assert "RuntimeError: this reader has a bug" in summary.rejected[0].reason
    np.testing.assert_array_equal(open_survey(tmp_path / "s.zarr").teff.values, 4000 + np.delete(np.arange(60), 33))


@pytest.mark.parametrize("mode", ["wrong shape", "wrong ids"])
def test_source_that_breaks_the_protocol_is_named(tmp_path, files, mode):
    with pytest.raises(InputError, match="toyfiles"):
        ingest(ToySource(files, mode=mode), tmp_path / "s.zarr", layout=SMALL)


@pytest.mark.parametrize("failures", [1, 2])
def test_what_reads_back_differently_is_written_again_then_an_error(tmp_path, files, monkeypatch, failures):
    """A disk that loses a bit of ivar, once or always."""
    whole = Folder.checksum
    lost = []

    def checksum(folder, name):
        crc, size = whole(folder, name)
        if name == "ivar/c/3/0" and len(lost) < failures:
            lost.append(name)
            return crc ^ 1, size
        return crc, size

    monkeypatch.setattr(Folder, "checksum", checksum)
    if failures == 1:
        ingest(ToySource(files), tmp_path / "s.zarr", layout=SMALL)
    else:
        with pytest.raises(StoreError, match="ivar/c/3/0: what was read back differs"):
            ingest(ToySource(files), tmp_path / "s.zarr", layout=SMALL)
        ingest(ToySource(files), tmp_path / "s.zarr", layout=SMALL, resume=True)
    assert len(lost) == failures
    monkeypatch.undo()
    ingest(ToySource(files), tmp_path / "whole", layout=SMALL)
    assert tree(tmp_path / "s.zarr") == tree(tmp_path / "whole")


def test_nothing_readable_leaves_nothing(tmp_path, files):
    for f in files.iterdir():
        f.write_bytes(b"x")
    with pytest.raises(DataError, match="none of 60"):
        ingest(ToySource(files), tmp_path / "s.zarr", layout=SMALL)
    assert not (tmp_path / "s.zarr").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no star"):
        ingest(ToySource(tmp_path / "empty"), tmp_path / "s.zarr")


@pytest.mark.parametrize("limit", [1, 0.02])
def test_max_bad_stops_and_resumes(tmp_path, files, limit):
    for i in (1, 2, 30):
        (files / f"star{i:04d}.npy").write_bytes(b"x")
    out = tmp_path / "s.zarr"
    with pytest.raises(DataError, match="max-bad"):
        ingest(ToySource(files), out, layout=SMALL, max_bad=limit)
    with pytest.raises(StoreError, match="unfinished"):
        open_survey(out)
    assert ingest(ToySource(files), out, layout=SMALL, max_bad=3, resume=True).n_stars == 57


def test_duplicate_and_hostile_identifiers(tmp_path, files):
    class Hostile(ToySource):
        def plan(self):
            plan = super().plan()
            from chemscale.survey.sources.base import Item

            ids = ["../../x", "<script>alert(1)</script>", "é☆", "same", "same", "", "a\x00b", "\udcff", "/etc/passwd"]
            plan.items[: len(ids)] = [Item(s, i.path, i.labels) for s, i in zip(ids, plan.items)]
            return plan

    out = tmp_path / "deep" / "s.zarr"
    summary = ingest(Hostile(files), out, layout=SMALL)
    assert summary.n_stars == 58
    assert {r.reason.split(";")[0] for r in summary.rejected} == {"duplicate star identifier", "no star identifier"}
    ids = list(open_survey(out).star_id.values)
    assert ids[:4] == ["../../x", "<script>alert(1)</script>", "é☆", "same"]
    assert {p.name for p in tmp_path.iterdir()} == {"deep", "spectra"}


class Stop(BaseException):
    """What a killed job looks like from inside."""


class DyingSource(ToySource):
    """Stops the whole job at some star, once."""

    def __init__(self, spectra, die_at: int = 0):
        super().__init__(spectra)
        object.__setattr__(self, "_die_at", die_at)

    def describe(self):
        return ToySource(self.spectra).describe()

    def read(self, items, wavelength, elements):
        for item in items:
            if int(item.star_id[4:]) == self._die_at:
                raise Stop
        return super().read(items, wavelength, elements)


def test_resume_is_bit_identical(tmp_path, files):
    (files / "star0040.npy").write_bytes(b"x")
    ingest(ToySource(files), tmp_path / "whole", layout=SMALL)
    whole = tree(tmp_path / "whole")
    for die_at in (0, 9, 30, 59):
        out = tmp_path / f"cut{die_at}"
        with pytest.raises(Stop):
            ingest(DyingSource(files, die_at), out, layout=SMALL)
        (out / "flux" / "c" / "99").mkdir(parents=True, exist_ok=True)
        (out / "_chemscale" / "x.partial-0123456789ab").write_bytes(b"half a file")
        with pytest.raises(StoreError, match="unfinished"):
            open_survey(out)
        with pytest.raises(StoreError, match="unfinished"):
            ingest(ToySource(files), out, layout=SMALL)
        summary = ingest(ToySource(files), out, layout=SMALL, resume=True)
        assert summary.n_shards_kept == die_at // 8
        assert tree(out) == whole
    again = ingest(ToySource(files), tmp_path / "whole", layout=SMALL, resume=True)
    assert again.complete and again.n_stars == 59 and tree(tmp_path / "whole") == whole


def test_damage_between_the_jobs_is_mended(tmp_path, files):
    out = tmp_path / "s"
    ingest(ToySource(files), tmp_path / "whole", layout=SMALL)
    with pytest.raises(Stop):
        ingest(DyingSource(files, 40), out, layout=SMALL)
    (out / "flux/c/1/0").write_bytes(b"")
    (out / "ivar/c/2/0").unlink()
    (out / "_chemscale/shards/000003.json").write_bytes(b"{half")
    ingest(ToySource(files), out, layout=SMALL, resume=True)
    assert tree(out) == tree(tmp_path / "whole")


def test_interrupted_before_the_header(tmp_path, files):
    out = tmp_path / "s"
    ingest(ToySource(files), tmp_path / "whole", layout=SMALL)
    out.mkdir()
    (out / "_chemscale").mkdir()
    (out / "_chemscale" / "inputs.npz").write_bytes((tmp_path / "whole/_chemscale/inputs.npz").read_bytes())
    ingest(ToySource(files), out, layout=SMALL, resume=True)
    assert tree(out) == tree(tmp_path / "whole")


def test_resume_says_what_changed(tmp_path, files):
    out = tmp_path / "s"
    with pytest.raises(Stop):
        ingest(DyingSource(files, 40), out, layout=SMALL)
    with pytest.raises(ResumeError, match=r"max_error: was 0.05, is 0.1"):
        ingest(ToySource(files), out, layout=SMALL, resume=True, max_error=0.1)
    with pytest.raises(ResumeError, match=r"delay: was 0.0, is 0.001"):
        ingest(ToySource(files, delay=0.001), out, layout=SMALL, resume=True)
    with pytest.raises(ResumeError, match=r"layout.shard_stars: was 8, is 16"):
        ingest(ToySource(files), out, layout=Layout(4, 16, 16), resume=True)
    (files / "star0007.npy").write_bytes(b"another file")
    with pytest.raises(ResumeError, match=r"1 file\(s\) changed in size: .*star0007"):
        ingest(ToySource(files), out, layout=SMALL, resume=True)
    write_files(files)
    np.save(files / "star9999.npy", np.ones((2, 40)))
    with pytest.raises(ResumeError, match=r"1 input\(s\) are new: star9999"):
        ingest(ToySource(files), out, layout=SMALL, resume=True)


def test_partitions(tmp_path, files):
    ingest(ToySource(files), tmp_path / "whole", layout=SMALL)
    out = tmp_path / "parts"
    for k in (3, 1):
        summary = ingest(ToySource(files), out, layout=SMALL, partition=f"{k}/3")
        assert not summary.complete
    with pytest.raises(StoreError, match=r"3 of 8 shards are not written: 1, 4, 7; .* of 3 partitions: 2"):
        finalise(out)
    ingest(ToySource(files), out, layout=SMALL, partition=(2, 3))
    assert finalise(out).complete
    assert tree(out) == tree(tmp_path / "whole")
    for text in ("0/3", "4/3", "x/3", "3"):
        with pytest.raises(InputError, match="partition"):
            parse_partition(text)


def test_plan_only_writes_nothing(tmp_path, files):
    before = set(tmp_path.rglob("*"))
    plan = estimate(plan_ingest(ToySource(files), layout=SMALL), workers=2, sample=10)
    assert plan["n_stars"] == 60 and plan["n_shards"] == 8 and plan["seconds"] > 0
    assert plan["sample"] | {"read_seconds": 0, "all_seconds": 0} == {
        "stars": 10,
        "readable": 10,
        "read_seconds": 0,
        "all_seconds": 0,
    }
    assert plan["bytes_to_read"] == sum(f.stat().st_size for f in files.iterdir())
    assert set(tmp_path.rglob("*")) == before


def test_unwritable_place_is_a_clear_error(tmp_path, files):
    (tmp_path / "plain").write_text("a file, not a folder")
    with pytest.raises(StoreError, match="cannot write"):
        ingest(ToySource(files), tmp_path / "plain" / "s.zarr", layout=SMALL)


def test_inputs_name_what_changed():
    then = Inputs.of(["a", "b", "c"], ["pa", "pb", "pc"])
    now = Inputs.of(["a", "c", "d"], ["pa", "pc", "pd"])
    assert now.changes(then, ["a", "c", "d"], ["pa", "pc", "pd"]) == [
        "1 input(s) of then are gone (or renamed)",
        "1 input(s) are new: d (pd)",
    ]
    swapped = Inputs.of(["b", "a", "c"], ["pb", "pa", "pc"])
    assert swapped.changes(then, ["b", "a", "c"], ["pb", "pa", "pc"]) == ["the inputs are listed in another order"]
    back = Inputs.unpack(then.pack())
    assert back.digest() == then.digest() != now.digest()


SCRIPT = """
import sys
sys.path.insert(0, {here!r})
from toysource import ToySource
from chemscale.survey.ingest.ingestion import ingest
from chemscale.survey.store.layout import Layout
if __name__ == "__main__":
    source, layout = ToySource({files!r}, delay=0.002), Layout(4, 8, 16)
    if {workers!r}:
        from chemscale.runtime.cluster import connect
        options = dict(workers={workers!r}, threads=1) if isinstance({workers!r}, int) else dict(timeout=5)
        with connect({workers!r} if isinstance({workers!r}, str) else "local", **options) as client:
            ingest(source, {out!r}, layout=layout, client=client, resume=True, progress=False)
    else:
        ingest(source, {out!r}, layout=layout, resume=True, progress=False)
"""


def job(tmp_path: Path, files: Path, out: Path, workers: int | str) -> subprocess.Popen:
    """A process that ingests with so many workers of its own, or on the cluster of that address."""
    script = tmp_path / f"job{workers if isinstance(workers, int) else ''}.py"
    text = SCRIPT.format(here=str(Path(__file__).parents[1]), files=str(files), out=str(out), workers=workers)
    script.write_text(textwrap.dedent(text))
    return subprocess.Popen(
        [sys.executable, str(script)], start_new_session=True, stderr=open(tmp_path / "stderr", "w")
    )


def n_marked(out: Path) -> int:
    """Shards whose marker is written."""
    return len(list((out / "_chemscale" / "shards").glob("*.json")))


def kill_after(process: subprocess.Popen, out: Path, n_markers: int, limit: float = 60) -> None:
    """SIGKILL the whole process group once `n_markers` shards are marked."""
    begun = time.monotonic()
    while time.monotonic() - begun < limit and process.poll() is None:
        if n_marked(out) >= n_markers:
            break
        time.sleep(0.003)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_killed_job_resumes_bit_identical(tmp_path):
    files = write_files(tmp_path / "spectra", n=200)
    ingest(ToySource(files, delay=0.002), tmp_path / "whole", layout=SMALL)
    out = tmp_path / "killed"
    for markers in (1, 7, 19):
        kill_after(job(tmp_path, files, out, 0), out, markers)
        assert not (out / "_chemscale" / "root.json").exists()
    ingest(ToySource(files, delay=0.002), out, layout=SMALL, resume=True)
    assert tree(out) == tree(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_kills_of_job_and_workers(tmp_path):
    import psutil

    files = write_files(tmp_path / "spectra", n=800)
    ingest(ToySource(files, delay=0.002), tmp_path / "whole", layout=SMALL)
    whole = tree(tmp_path / "whole")
    rng = np.random.default_rng(int(time.time()))
    for attempt in range(5):
        out = tmp_path / f"killed{attempt}"
        kill_after(job(tmp_path, files, out, 2), out, int(rng.integers(0, 90)))
        marked = n_marked(out)
        process = job(tmp_path, files, out, 2)
        while process.poll() is None and n_marked(out) <= marked:  # workers are at work, not being born
            time.sleep(0.003)
        time.sleep(float(rng.uniform(0, 0.4)))
        for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            if "spawn_main" in " ".join(child.cmdline()):
                child.kill()
                break
        assert process.wait(300) == 0, (tmp_path / "stderr").read_text()[-4000:]
        assert tree(out) == whole


class Cluster:
    """A scheduler and two workers as processes of their own, on loopback."""

    def __init__(self, tmp_path: Path):
        self.file = tmp_path / "scheduler.json"
        self.file.unlink(missing_ok=True)
        module = [sys.executable, "-m"]
        where = ["--scheduler-file", str(self.file)]
        env = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
        options = {"env": env, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
        scheduler = ["distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
        self.scheduler = subprocess.Popen([*module, *scheduler, *where], **options)
        while not self.file.exists() and self.scheduler.poll() is None:
            time.sleep(0.02)
        worker = ["distributed.cli.dask_worker", *where, "--nworkers", "2", "--nthreads", "1"]
        worker += ["--no-dashboard", "--death-timeout", "20", "--local-directory", str(tmp_path)]
        self.workers = subprocess.Popen([*module, *worker], **options)
        self.address = json.loads(self.file.read_text())["address"]

    def close(self) -> None:
        for process in (self.scheduler, self.workers):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_kills_of_the_scheduler_alone(tmp_path):
    """The job ends with a clear error; resumed on a new cluster, while workers of the old one may still be writing."""
    files = write_files(tmp_path / "spectra", n=800)
    ingest(ToySource(files, delay=0.002), tmp_path / "whole", layout=SMALL)
    whole = tree(tmp_path / "whole")
    rng = np.random.default_rng(int(time.time()))
    for attempt in range(4):
        out = tmp_path / f"killed{attempt}"
        clusters = []
        try:
            for _ in range(1 + attempt):
                clusters.append(cluster := Cluster(tmp_path))
                before = n_marked(out)
                process = job(tmp_path, files, out, cluster.address)
                begun = time.monotonic()
                while n_marked(out) <= before + int(rng.integers(0, 40)) and time.monotonic() - begun < 120:
                    assert process.poll() is None, (tmp_path / "stderr").read_text()[-4000:]
                    time.sleep(0.003)
                cluster.scheduler.kill()
                assert process.wait(120) != 0
                assert "scheduler is lost" in (tmp_path / "stderr").read_text()
                assert not (out / "_chemscale" / "root.json").exists()
            clusters.append(cluster := Cluster(tmp_path))
            assert job(tmp_path, files, out, cluster.address).wait(200) == 0, (tmp_path / "stderr").read_text()[-4000:]
        finally:
            for cluster in clusters:
                cluster.close()
        assert tree(out) == whole
