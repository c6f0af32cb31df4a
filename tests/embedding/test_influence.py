"""Components that rest on one star are found and named, whatever the blocks."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from chemscale.embedding import influence
from chemscale.embedding.influence import resting_on_one_star, words


def embedding(n: int = 500) -> xr.Dataset:
    coords = np.random.default_rng(1).standard_normal((n, 4)).astype("f4")
    coords[77, 1], coords[402, 3], coords[5] = 40.0, -60.0, np.nan
    names = np.array([f"S{i}" for i in range(n)], dtype=object)
    return xr.Dataset({"coords": (("star", "component"), coords)}, {"star_id": ("star", names)}).chunk(star=100)


@pytest.mark.parametrize("size", [64, 65_536])
def test_components_on_one_star_are_named(monkeypatch, size):
    monkeypatch.setattr(influence, "BLOCK_STARS", size)
    ds = embedding()
    used = np.ones(500, bool)
    found = resting_on_one_star(ds, used)
    assert [(r.component, r.star_id) for r in found] == [(2, "S77"), (4, "S402")]
    assert found[1].share == pytest.approx(3600 / (3600 + 498), rel=0.05)
    assert words(found).startswith("component 4 rests with 87 % on the star S402, component 2")
    assert words(found, 1).endswith("S402, 1 more on single stars")
    used[[77, 402]] = False
    assert resting_on_one_star(ds, used) == []
    assert words([]) == ""
