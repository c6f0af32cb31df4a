"""JSON: NumPy made plain, canonical bytes, files replaced whole."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from chemscale.errors import StoreError
from chemscale.runtime.files import write_file
from chemscale.runtime.jsonio import canonical, digest, dump, plain, read_json, write_json


def test_json_is_plain_and_atomic(tmp_path):
    file = tmp_path / "x.json"
    write_json(file, {"a": np.arange(3), "b": float("nan"), "c": (1, 2), "d": tmp_path})
    assert json.loads(file.read_text()) == {"a": [0, 1, 2], "b": None, "c": [1, 2], "d": str(tmp_path)}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
    assert plain({1: {2: np.bool_(True)}}) == {"1": {"2": True}}


def test_digests_ignore_order_and_see_change():
    for compact in (True, False):
        assert digest({"a": 1, "b": [1, 2]}, compact=compact) == digest({"b": [1, 2], "a": 1}, compact=compact)
        assert digest({"a": 1}, compact=compact) != digest({"a": 2}, compact=compact)
    assert digest({"a": np.nan}) != digest({"a": None})


def test_canonical_bytes_are_those_that_earlier_releases_recorded():
    settings = {"b": [1, 2.5, None, True], "a": "ä"}
    assert canonical(settings) == b'{"a": "\\u00e4", "b": [1, 2.5, null, true]}'
    assert canonical(settings, compact=True) == b'{"a":"\\u00e4","b":[1,2.5,null,true]}'
    assert digest(b"raw") == hashlib.sha256(b"raw").hexdigest()
    assert dump({"b": np.float32(0.5), "a": np.arange(2), "c": {3, 1}}).decode().split() == (
        ["{", '"a":', "[", "0,", "1", "],", '"b":', "0.5,", '"c":', "[", "1,", "3", "]", "}"]
    )


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "x.json"
    write_json(file, {"a": 1})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        write_file(file, b"half")
    assert read_json(file) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_file_that_is_gone_or_damaged_is_named_with_its_remedy(tmp_path: Path):
    with pytest.raises(StoreError, match=r"x\.json: missing") as caught:
        read_json(tmp_path / "x.json", "run it again")
    assert caught.value.remedy == "run it again"
    (tmp_path / "x.json").write_text("{half")
    with pytest.raises(StoreError, match=r"x\.json: cannot be read"):
        read_json(tmp_path / "x.json")
