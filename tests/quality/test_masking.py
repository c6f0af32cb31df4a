"""A mask is seen by readers, changes no pixel, replaces the one before, and survives an append."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from helpers import make_survey

from chemscale import open_survey, write_survey
from chemscale.embedding.fit import fit_survey
from chemscale.errors import InputError
from chemscale.quality import masking
from chemscale.quality.masking import mask_survey
from chemscale.schema import Flag


@pytest.fixture()
def store(tmp_path):
    path = tmp_path / "s.zarr"
    write_survey(make_survey(300, 4, 6, n_pixels=60), path)
    return str(path)


def test_windows_and_errors_are_flagged_on_reading_only(store):
    before = open_survey(store)
    flags, ivar, wave = before["flags"].values, before["ivar"].values, before["wavelength"].values
    limit = float(1 / np.sqrt(np.median(ivar[ivar > 0])))
    found = mask_survey(store, find=(), windows=[(wave[10] - 1e-3, wave[13] - 1e-3)], max_error=limit)
    assert found["windows"][0]["pixels"] == [10, 13]
    assert (found["revision"], found["changed"]) == (1, True)
    expected = flags.copy()
    expected[:, 10:13] |= int(Flag.USER)
    expected[ivar < np.float32(1 / limit**2)] |= int(Flag.LARGE_ERROR)
    after = open_survey(store)
    np.testing.assert_array_equal(after["flags"].values, expected)
    np.testing.assert_array_equal(after["flags"].isel(star=slice(7, 19)).values, expected[7:19])
    np.testing.assert_array_equal(after["flux"].values, before["flux"].values)
    np.testing.assert_array_equal(before["flags"].values, flags)  # who had it open sees what was there
    assert not fit_survey(after, n_components=2).pixel_used_[10:13].any()
    again = mask_survey(store, find=(), windows=[(wave[10] - 1e-3, wave[13] - 1e-3)], max_error=limit)
    assert not again["changed"]
    mask_survey(store, find=())
    np.testing.assert_array_equal(open_survey(store)["flags"].values, flags)


def test_found_windows_do_not_depend_on_the_mask_before(store, monkeypatch):
    flags = open_survey(store)["flags"].values
    seen = []

    def finder(survey, **options):
        seen.append(survey["flags"].values)
        return [(20, 25)], None

    monkeypatch.setitem(masking.FINDERS, "extinction", (Flag.INTERSTELLAR, finder))
    first = mask_survey(store, dry_run=True)
    assert not first["changed"] and open_survey(store).attrs["revision"] == 0
    assert mask_survey(store)["windows"][0]["reason"] == "INTERSTELLAR"
    assert (open_survey(store)["flags"].values[:, 20:25] & int(Flag.INTERSTELLAR)).all()
    assert not mask_survey(store)["changed"]
    for array in seen:
        np.testing.assert_array_equal(array, flags)


def test_refusals(store):
    with pytest.raises(InputError, match="holds no pixel"):
        mask_survey(store, find=(), windows=[(1.0, 2.0)])
    with pytest.raises(InputError, match="cannot be found"):
        mask_survey(store, find=("colour",))
    with pytest.raises(InputError, match="positive"):
        mask_survey(store, find=(), max_error=-1.0)


def test_the_verb(store):
    wave = open_survey(store)["wavelength"].values
    window = f"{wave[5] - 1e-3}:{wave[9] - 1e-3}"
    command = [sys.executable, "-m", "chemscale", "mask", store]
    done = subprocess.run([*command, "--window", window, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["windows"][0]["pixels"] == [5, 9]
    wrong = subprocess.run([*command, "--window", "5"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "LOW:HIGH" in wrong.stderr
    # too few stars to look for bands: the data cannot answer that
    assert subprocess.run(command, capture_output=True, text=True).returncode == 4
    assert subprocess.run([*command, "--clear"], capture_output=True, text=True).returncode == 0
    assert open_survey(store).attrs["revision"] == 2
