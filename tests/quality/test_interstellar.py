"""Windows are found where bands were planted, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import make_survey
from hypothesis import given, settings
from hypothesis import strategies as st

from chemscale.errors import DataError
from chemscale.quality.interstellar import (
    interstellar_windows,
    residual_spectrum,
    score,
    select_windows,
    velocity_windows,
    window_mask,
)
from chemscale.schema import variable_attrs

BANDS = ((60, 14), (300, 20))


@pytest.fixture(scope="module")
def survey():
    """600 pixels with two absorption bands growing with extinction, and a residual that grows with speed."""
    ds = make_survey(n_field=900, n_clusters=2, members=3, n_pixels=600, seed=4).load()
    rng = np.random.default_rng(0)
    extinction = np.where(rng.random(906) < 0.5, rng.uniform(0, 0.004, 906), rng.uniform(0.1, 1.2, 906))
    pixel, flux = np.arange(600), ds["flux"].values.astype(float)
    for centre, width in BANDS:
        depth = 0.03 * extinction * rng.uniform(0.6, 1.4, 906)
        flux -= depth[:, None] * np.exp(-0.5 * ((pixel - centre) / (width / 4)) ** 2)
    speed = ds["radial_velocity"].values
    flux[:, 450:480] += np.where(np.abs(speed) > 40, 0.02, 0.0)[:, None] * rng.choice([-1, 1], (906, 1))
    ds["flux"] = (ds["flux"].dims, flux.astype(np.float32), ds["flux"].attrs)
    ds["extinction"] = ("star", extinction.astype(np.float32), variable_attrs("extinction"))
    return ds


def truth(pixels=600):
    return window_mask([(c - w // 2, c + w // 2) for c, w in BANDS], pixels)


def test_bands_are_found_and_little_else(survey):
    windows, ds = interstellar_windows(survey, n_components=8)
    found = ds["window"].values
    assert len(windows) == 2
    assert found[truth()].mean() == 1.0  # recall
    assert truth()[found].mean() > 0.4  # the rest is the margin around each band
    assert ds["residual"].values[60] < -0.005 < ds["control"].values[60]


def test_any_chunking_gives_the_same_residual(survey):
    low, high = survey["extinction"].values < 0.005, survey["extinction"].values > 0.5
    whole = residual_spectrum(survey, low, high, n_components=6)
    parts = residual_spectrum(survey.chunk({"star": 100}), low, high, n_components=6)
    for name in ("residual", "absolute_residual", "error", "n_high"):
        np.testing.assert_allclose(parts[name], whole[name], atol=2e-4)  # a fiftieth of the bands


def test_residual_against_a_plain_projection(survey):
    """With the basis refitted by plain PCA on gap-filled spectra the mean residual is nearly the same."""
    flux, bad = survey["flux"].values, (survey["flags"].values != 0) | ~(survey["ivar"].values > 0)
    filled = np.where(bad, np.where(bad, 0, flux).sum(0) / np.maximum((~bad).sum(0), 1), flux)
    low, high = survey["extinction"].values < 0.005, survey["extinction"].values > 0.5
    mean = filled[low].mean(0)
    _, _, axes = np.linalg.svd(filled[low] - mean, full_matrices=False)
    x = filled[high] - mean
    residual = (x - x @ axes[:6].T @ axes[:6]).mean(0)
    ds = residual_spectrum(survey, low, high, n_components=6)
    good = np.isfinite(ds["residual"].values)
    assert np.corrcoef(residual[good], ds["residual"].values[good])[0, 1] > 0.8


def test_velocity_windows_see_the_pixels_that_follow_speed(survey):
    _, ds = velocity_windows(survey, low=20.0, high=45.0, n_components=8)
    found = ds["window"].values
    assert found[452:478].mean() > 0.9
    assert found[:440].mean() < 0.02


def test_no_band_no_window():
    clean = make_survey(n_field=700, n_clusters=2, members=3, n_pixels=400, seed=9)
    windows, _ = interstellar_windows(clean, low=0.15, high=0.3, n_components=8)
    assert windows == []


def test_too_few_stars_say_so(survey):
    with pytest.raises(DataError, match="widen the limits"):
        interstellar_windows(survey, low=1e-6, n_components=8)
    with pytest.raises(DataError, match="no extinction"):
        interstellar_windows(survey.drop_vars("extinction"), n_components=8)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-30, 30), min_size=20, max_size=200), st.integers(0, 12), st.integers(0, 8))
def test_windows_are_ordered_disjoint_and_hold_every_wide_peak(values, merge, pad):
    x = np.repeat(np.array(values), 5)
    windows = select_windows(x, merge=merge, pad=pad)
    mask = window_mask(windows, len(x))
    flat = [edge for w in windows for edge in w]
    assert flat == sorted(flat) and len(set(flat)) == len(flat)
    assert mask[np.abs(x) > 8].all()
    assert not windows or np.nanmax(np.abs(x)[mask]) > 8


def test_score_is_scale_free_and_keeps_gaps():
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, 500)
    x[100:120] = np.nan
    s = score(x)
    assert np.isnan(s[100:120]).all()
    np.testing.assert_allclose(score(3e-4 * x)[:100], s[:100])
