"""Noise-free spectra beside the truth, and judging latents by the truth instead of labels."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from chemscale.errors import InputError
from chemscale.simulation.truth import read_noise_free, read_truth, truth_path
from chemscale.survey.store.open import open_survey
from chemscale.vae.evaluate import judged_against
from chemscale.vae.truth import read_truth as read_spectra


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> str:
    """300 halo stars with their noise-free spectra."""
    out = str(tmp_path_factory.mktemp("noise-free") / "h.zarr")
    line = f"simulate --stars 300 --grid lowres --population halo --seed 5 --noise-free --workers 0 --out {out}"
    done = subprocess.run([sys.executable, "-m", "chemscale", *line.split()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def test_noise_free_spectra_differ_from_the_observed_by_their_errors(store):
    ds = open_survey(store)
    ids = np.asarray(ds["star_id"].values)[::-3]
    clean = read_noise_free(store, ids)
    observed = ds.isel(star=slice(None, None, -3))
    pull = (observed["flux"].values - clean) * np.sqrt(observed["ivar"].values)
    assert np.std(pull) == pytest.approx(1.0, abs=0.03)
    np.testing.assert_array_equal(read_spectra(truth_path(store), ids, clean.shape[1]), clean)
    assert "flux_true" not in read_truth(store)


def test_truth_judges_where_there_is_one(store):
    ds = open_survey(store)
    ids = np.asarray(ds["star_id"].values)
    columns, kind = judged_against(ds, store, ids)
    assert kind == "truth"
    truth = read_truth(store, ids)
    np.testing.assert_allclose(columns["teff"], truth["teff"].values)
    np.testing.assert_allclose(columns["c_fe"], ds["c_fe"].values, atol=1e-5)  # the halo's abundances are exact
    labels, kind = judged_against(ds, store, ids, "labels")
    assert kind == "labels"
    assert np.std(labels["teff"] / columns["teff"] - 1) == pytest.approx(0.02, rel=0.2)
    with pytest.raises(InputError, match="no truth"):
        judged_against(ds, None, ids, "truth")
    with pytest.raises(InputError, match="truth or labels"):
        judged_against(ds, store, ids, "fate")
