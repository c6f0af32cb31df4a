"""Products switch whole, know what they were made from, and count a part as done by its mark only."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import xarray as xr
import zarr

from chemscale.errors import ResumeError, StoreError
from chemscale.runtime import product as products
from chemscale.runtime.product import ResumableProduct, faults, identity_of, switch
from chemscale.runtime.run import Run


def dataset(value: float) -> xr.Dataset:
    return xr.Dataset({"a": ("x", np.full(4, value)), "b": ("y", np.arange(3))}, attrs={"model": "m"})


@pytest.fixture(params=["exchange", "two renames"])
def way(request, monkeypatch):
    if request.param == "two renames":
        monkeypatch.setattr(products, "exchange", lambda one, other: False)
    return request.param


def test_a_new_product_takes_the_place_of_the_old_one_whole(tmp_path, way):
    run = Run.create(tmp_path / "run")
    run.save_dataset("ppca.zarr", dataset(1))
    first = run.identity("ppca.zarr")
    run.save_dataset("ppca.zarr", dataset(2))
    assert run.open_dataset("ppca.zarr")["a"].values.tolist() == [2] * 4
    assert run.open_dataset("ppca.zarr").attrs == {"model": "m"}
    assert run.identity("ppca.zarr") != first
    run.save_dataset("ppca.zarr", dataset(1))
    assert run.identity("ppca.zarr") == first, "equal content, equal identity"
    assert sorted(os.listdir(run.path)) == ["manifest.json", "ppca.zarr"]


def test_a_failed_write_leaves_the_old_product(tmp_path):
    run = Run.create(tmp_path / "run")
    run.save_dataset("ppca.zarr", dataset(1))
    bad = dataset(2).assign(c=("z", np.array([object()], dtype=object)))
    with pytest.raises(Exception, match="object"):
        run.save_dataset("ppca.zarr", bad)
    assert run.open_dataset("ppca.zarr")["a"].values.tolist() == [1] * 4
    run.save_dataset("ppca.zarr", dataset(3))
    assert sorted(os.listdir(run.path)) == ["manifest.json", "ppca.zarr"], "what the failure left is gone"


def test_a_product_made_from_another_input_is_refused_with_the_command_that_mends_it(tmp_path):
    run = Run.create(tmp_path / "run")
    run.save_dataset("ppca.zarr", dataset(1))
    run.save_dataset("embedding.zarr", dataset(5))
    run.save_dataset("rsca.zarr", dataset(6))
    run.save_json("evaluation.json", {"raw": 0.1})
    assert run.load_json("evaluation.json") == {"raw": 0.1}
    run.save_dataset("embedding.zarr", dataset(7))
    with pytest.raises(StoreError, match=r"rsca\.zarr was made from another embedding\.zarr") as caught:
        run.open_dataset("rsca.zarr")
    assert f"rsca fit STORE --run {run.path}" in caught.value.remedy
    with pytest.raises(StoreError, match=r"evaluation\.json was made from another embedding\.zarr"):
        run.load_json("evaluation.json")
    run.save_dataset("embedding.zarr", dataset(5))
    assert run.load_json("evaluation.json") == {"raw": 0.1}, "the same content again is the same input"


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "attribute", "swap", "not json"])
def test_every_damage_is_named_when_the_product_is_opened(tmp_path, damage):
    run = Run.create(tmp_path / "run")
    run.save_dataset("ppca.zarr", dataset(1))
    folder = run.path / "ppca.zarr"
    chunk = next(f for f in sorted(folder.rglob("c/*")) if f.is_file())
    if damage == "flip":
        data = bytearray(chunk.read_bytes())
        data[len(data) // 2] ^= 1
        chunk.write_bytes(data)
    elif damage == "truncate":
        chunk.write_bytes(chunk.read_bytes()[:-1])
    elif damage == "remove":
        chunk.unlink()
    elif damage == "swap":
        other = [f for f in sorted(folder.rglob("c/*")) if f.is_file()][1]
        shutil.copy(other, chunk)
    elif damage == "attribute":
        zarr.open_group(str(folder), mode="r+").attrs["model"] = "other"
    else:
        (folder / "zarr.json").write_text("{half")
    with pytest.raises(StoreError, match=r"damaged|missing"):
        run.open_dataset("ppca.zarr")
    assert faults(folder, everything=True)


def test_a_changed_number_in_a_json_product_is_found(tmp_path):
    run = Run.create(tmp_path / "run")
    file = run.save_json("evaluation.json", {"raw": 0.25, "n": np.int64(3)})
    with open(file) as f:
        content = json.load(f)
    content["raw"] = 0.5
    with open(file, "w") as f:
        json.dump(content, f)
    with pytest.raises(StoreError, match="damaged"):
        run.load_json("evaluation.json")


def test_products_without_a_record_are_read_as_they_are(tmp_path):
    run = Run.create(tmp_path / "run")
    dataset(1).to_zarr(run.file("ppca.zarr"), zarr_format=3, consolidated=False)
    (run.path / "evaluation.json").write_text('{"raw": 0.1}')
    assert run.open_dataset("ppca.zarr")["a"].values.tolist() == [1] * 4
    assert run.load_json("evaluation.json") == {"raw": 0.1}
    assert identity_of(run.path / "ppca.zarr") is None


def create(path: str) -> None:
    zarr.create_group(path).create_array("a", shape=(4,), chunks=(2,), dtype="f8", fill_value=np.nan)


def test_a_part_counts_by_its_mark_not_by_its_data(tmp_path):
    new = ResumableProduct(tmp_path / "p.zarr", {"model": 1})
    new.restart(create)
    zarr.open_group(new.folder, mode="r+")["a"][:] = 1.0
    new.mark(1)
    again = ResumableProduct(tmp_path / "p.zarr", {"model": 1})
    assert again.carry_on() == {1}
    with pytest.raises(ResumeError, match=r"another model.*\(model\)"):
        ResumableProduct(tmp_path / "p.zarr", {"model": 2}).carry_on()
    assert not again.is_finished() and not (tmp_path / "p.zarr").exists()
    (tmp_path / "p.zarr.partial/product/a/c/0.12ab.partial").write_bytes(b"half")  # Zarr's, of a killed worker
    again.finish({})
    assert again.is_finished() and os.listdir(tmp_path) == ["p.zarr"]
    assert not list(tmp_path.rglob("*.partial"))


def test_a_product_whose_beginning_was_interrupted_was_never_begun(tmp_path):
    new = ResumableProduct(tmp_path / "p.zarr", {})

    def killed(path: str) -> None:
        create(path)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        new.restart(killed)
    assert not new.begun()
    with pytest.raises(ResumeError, match="nothing was begun"):
        new.carry_on()


def test_switch_makes_a_product_that_was_not_there(tmp_path, way):
    (tmp_path / "new").mkdir()
    switch(tmp_path / "new", tmp_path / "p")
    assert os.listdir(tmp_path) == ["p"]


def test_a_switch_takes_along_what_a_killed_one_left(tmp_path):
    for name in ("study", "study.old-0123456789ab", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data.csv").write_text(name)
    (tmp_path / "study.older").mkdir()  # a neighbour
    switch(tmp_path / "new", tmp_path / "study")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["study", "study.older"]
    assert (tmp_path / "study" / "data.csv").read_text() == "new"
