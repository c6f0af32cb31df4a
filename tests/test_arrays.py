"""The shared rules on plain arrays agree with what they say, whatever the shape of the input."""

from __future__ import annotations

import itertools
import threading

import dask.array as da
import numpy as np
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from chemscale.arrays import cut_at, cut_every, missing_pixels, runs_of_true, scratch


def test_a_pixel_is_missing_for_three_reasons_in_any_kind_of_array():
    flux = np.array([[1.0, np.nan, np.inf, 1.0, 1.0, 1.0]], "f4")
    ivar = np.array([[5.0, 5.0, 5.0, 0.0, np.nan, 5.0]], "f4")
    flags = np.array([[0, 0, 0, 0, 0, 16]], "u1")
    expected = [[False, True, True, True, True, True]]
    assert missing_pixels(flux, ivar, flags).tolist() == expected
    assert missing_pixels(flux, ivar, flags, bits=1).tolist()[0][5] is False
    assert missing_pixels(flux, ivar).tolist()[0][5] is False
    lazy = missing_pixels(*(da.from_array(a, chunks=(1, 2)) for a in (flux, ivar, flags)))
    assert isinstance(lazy, da.Array) and lazy.compute().tolist() == expected
    labelled = missing_pixels(*(xr.DataArray(a, dims=("star", "wavelength")) for a in (flux, ivar, flags)))
    assert labelled.dims == ("star", "wavelength") and labelled.values.tolist() == expected


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), max_size=40))
def test_runs_give_the_mask_back(mask):
    runs = runs_of_true(np.array(mask, bool))
    back = np.zeros(len(mask), bool)
    for start, stop in runs:
        assert stop > start and not back[start:stop].any()
        back[start:stop] = True
    assert back.tolist() == mask and all(b[0] > a[1] for a, b in itertools.pairwise(runs))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 9))
def test_cuts_cover_the_rows_once(start, stop, size):
    edges = [*range(0, 60, size), 60]
    for cuts in (list(cut_every(start, stop, size)), list(cut_at(start, stop, edges))):
        assert [row for _, low, high in cuts for row in range(low, high)] == list(range(start, stop))
        assert all(which * size <= low < high <= (which + 1) * size for which, low, high in cuts)
    assert list(cut_at(3, 9, [0, 5, 5, 20])) == [(0, 3, 5), (2, 5, 9)], "an empty range is passed over"


def test_scratch_belongs_to_its_thread():
    mine = scratch("rows", (3, 4), np.float32)
    assert np.shares_memory(mine, scratch("rows", (2, 2), np.uint8))
    others = []
    thread = threading.Thread(target=lambda: others.append(scratch("rows", (3, 4), np.float32)))
    thread.start()
    thread.join()
    assert not np.shares_memory(mine, others[0])
