"""Every flipped byte of a store is found and named, and repair restores the very bytes."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from helpers import make_survey
from toysource import ToySource, write_files

from chemscale.errors import ResumeError, StoreError
from chemscale.runtime.files import Folder
from chemscale.survey.info import bars, pixel_statistics, store_info
from chemscale.survey.ingest.append import append
from chemscale.survey.ingest.datasets import write_survey
from chemscale.survey.ingest.ingestion import ingest
from chemscale.survey.ingest.repair import repair
from chemscale.survey.store.layout import Layout
from chemscale.survey.store.open import open_survey
from chemscale.survey.store.verify import verify

SMALL = Layout(chunk_stars=4, shard_stars=8, label_stars=16)


@pytest.fixture
def store(tmp_path, monkeypatch) -> Folder:
    """A store of 30 toy stars whose source can be found by name."""
    monkeypatch.setattr("chemscale.survey.sources.base.get_source", lambda name: {"toyfiles": ToySource}[name])
    files = write_files(tmp_path / "spectra", n=30)
    (files / "star0011.npy").write_bytes(b"broken")
    ingest(ToySource(files), tmp_path / "s.zarr", layout=SMALL)
    return Folder(tmp_path / "s.zarr")


def flip(folder: Folder, name: str, at: int, bit: int = 0) -> bytes:
    original = folder.read(name)
    data = bytearray(original)
    data[at] ^= 1 << bit
    folder.write(name, bytes(data))
    return original


def test_whole_store(store):
    report = verify(store.root)
    assert report.ok and report.n_stars == 29
    assert report.n_files == len(list(store.walk())) - 1  # all but the root record, which checks itself


def test_a_flipped_byte_in_any_file_is_found(store):
    rng = random.Random(0)
    for name, size in list(store.walk()):
        original = flip(store, name, rng.randrange(size), rng.randrange(8))
        try:
            report = verify(store.root, deep=False)
        except StoreError as err:
            assert "damaged" in str(err), name  # root record or header
        else:
            assert not report.ok, name
            assert any(f.file == name or name.startswith("_chemscale") for f in report.faults), (name, report.faults)
        store.write(name, original)
    assert verify(store.root).ok


@pytest.mark.parametrize("name", ["flux/c/1/0", "ivar/c/3/0", "flags/c/0/0"])
def test_file_chunk_and_stars_are_named_and_repaired(store, name):
    shard = int(name.split("/")[2])
    size = store.size(name)
    original = flip(store, name, size // 8)  # in the first of two chunks
    (fault,) = verify(store.root).faults
    assert (fault.file, fault.chunk, fault.shard) == (name, 0, shard)
    assert fault.stars == (shard * 8, shard * 8 + 4)
    assert f"{name}, chunk 0, stars {shard * 8} to {shard * 8 + 3} (star{shard * 8:04d} .." in str(fault)
    report = repair(store.root)
    assert report.ok and len(report.repaired) == 1
    assert store.read(name) == original and verify(store.root).ok


def test_index_size_and_absence(store):
    original = flip(store, "flux/c/0/0", store.size("flux/c/0/0") - 3)
    (fault,) = verify(store.root).faults
    assert fault.stars == (0, 8) and "index" in fault.what
    store.write("flux/c/0/0", original[:-7])
    assert "bytes" in verify(store.root).faults[0].what
    store.remove("flux/c/0/0")
    (fault,) = verify(store.root).faults
    assert fault.what == "missing" and fault.stars == (0, 8)
    assert repair(store.root).ok
    assert store.read("flux/c/0/0") == original


@pytest.mark.parametrize(
    "names", [("flux/c/0/0", "flux/c/1/0"), ("flags/c/0/0", "flux/c/2/0"), ("teff/c/0", "source_file/c/0")]
)
def test_exchanged_files_are_found_never_read_and_repaired(store, names):
    """Chunks end with their CRC32C, and that of a file of such chunks depends on nothing but their lengths."""
    before = {name: store.read(name) for name in names}
    for name, other in zip(names, reversed(names), strict=True):
        store.write(name, before[other])
    assert set(names) <= {f.file for f in verify(store.root, deep=False).faults}
    for name in names:
        with pytest.raises(StoreError, match="cannot read"):
            open_survey(store.root)[name.split("/")[0]].values
    assert repair(store.root).ok
    assert {name: store.read(name) for name in names} == before


def test_labels_and_metadata_are_repaired(store):
    for name in ("teff/c/1", "star_id/c/0", "status/c/1", "flux/zarr.json", "snr/zarr.json"):
        original = flip(store, name, store.size(name) // 2)
        assert not verify(store.root).ok
        report = repair(store.root)
        assert report.ok, report.faults
        assert store.read(name) == original


def test_repair_refuses_changed_inputs(store, tmp_path):
    flip(store, "flux/c/1/0", 30)
    np.save(tmp_path / "spectra" / "star0009.npy", np.ones((2, 41)))
    with pytest.raises(ResumeError, match="star0009"):
        repair(store.root)


def test_datasets_cannot_be_repaired(tmp_path):
    folder = Folder(write_survey(make_survey(n_field=20), tmp_path / "d.zarr"))
    flip(folder, "flux/c/0/0", 30)
    with pytest.raises(StoreError, match="written from a dataset"):
        repair(folder.root)


def test_the_ledger_is_repaired(store):
    """Every small file but the three that say what all the others should be; also several at once."""
    before = {name: store.read(name) for name, _ in store.walk()}
    unique = {"_chemscale/plan.json", "_chemscale/shards.json", "_chemscale/root.json"}
    small = [n for n in before if "/c/" not in n or n.startswith(("wavelength", "element"))]
    ledger = [n for n in small if n not in unique and "hidden" not in n]
    assert len(ledger) > 10
    for names in [[n] for n in ledger] + [ledger]:
        for name in names:
            flip(store, name, len(before[name]) // 2)
        assert not verify(store.root, deep=False).ok
        report = repair(store.root)
        assert report.ok, (names, report.faults)
        assert {n: store.read(n) for n, _ in store.walk()} == before, names


def test_lists_of_hidden_rows_are_repaired(store, tmp_path):
    """Of the first revision, of a later one, and of rows that a later one supersedes."""
    more = write_files(tmp_path / "more", n=35)
    for i in range(25):
        (more / f"star{i:04d}.npy").unlink()
    (more / "star0033.npy").write_bytes(b"broken")
    append(ToySource(more), store.root, replace_existing=True)
    hidden = [n for n, _ in store.walk() if "hidden-0001" in n]
    assert len(hidden) == 2
    for name in hidden:
        original = flip(store, name, store.size(name) - 8)
        assert repair(store.root).ok
        assert store.read(name) == original


def test_the_page_of_a_damaged_store_says_what_to_do(store):
    flip(store, "_chemscale/statistics.json", 0)
    with pytest.raises(StoreError, match=r"statistics\.json") as caught:
        store_info(store.root)
    assert "--repair" in caught.value.remedy


def test_info_of_every_pixel_is_that_of_its_valid_values(store):
    survey = open_survey(store.root)
    flux = np.ma.array(survey["flux"].values, mask=(survey["flags"].values != 0) | ~(survey["ivar"].values > 0))
    found = pixel_statistics(store.root)
    seen = ~flux.mask.all(axis=0)
    assert [v is not None for v in found["mean"]] == seen.tolist()
    for name, expected in (("mean", flux.mean(axis=0)), ("scatter", flux.std(axis=0))):
        np.testing.assert_allclose(np.array(found[name], float)[seen], expected[seen], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found["used_share"], flux.count(axis=0) / len(flux))
    json.dumps(found)


def test_info(store):
    info = store_info(store.root)
    assert info["n_stars"] == 29 and info["n_rejected"] == 1 and info["n_pixels"] == 40
    # of 40 pixels 3 are gaps and one is too noisy
    assert info["censored_fraction"]["gap"] == pytest.approx(3 / 40)
    assert info["censored_fraction"]["large_error"] == pytest.approx(1 / 40)
    assert info["used_fraction"] == pytest.approx(36 / 40)
    assert sum(info["coverage_histogram"]) == 29 and info["coverage_histogram"][-2] == 29
    assert info["labels"]["teff"] == {
        "present": 29,
        "min": 4000.0,
        "p5": pytest.approx(np.percentile(np.delete(4000.0 + np.arange(30), 11), 5)),
        "median": 4015.0,
        "p95": pytest.approx(np.percentile(np.delete(4000.0 + np.arange(30), 11), 95)),
        "max": 4029.0,
        "units": "K",
    }
    assert info["size_bytes"] == sum(size for _, size in store.walk())
    assert info["clusters"] == {"Toy 1": 6}
    json.dumps(info)


def test_bars():
    assert bars([0, 1, 2]) == " ▄█" and bars([]) == ""
