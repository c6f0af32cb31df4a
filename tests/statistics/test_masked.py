"""Masked statistics against plain NumPy, for any chunking."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chemscale.errors import InputError
from chemscale.statistics import masked


def spectra(n=300, p=12, seed=0, missing=0.2):
    rng = np.random.default_rng(seed)
    values = 1 + 0.1 * rng.normal(size=(n, p)) @ rng.normal(size=(p, p))
    mask = rng.random((n, p)) < missing
    mask[:, 3] = True
    values[rng.random((n, p)) < 0.02] = np.nan
    return values, mask, rng.uniform(0.5, 2, (n, p))


def lazy(*arrays, rows=70, columns=5):
    return [da.from_array(a, chunks=(rows, columns)) for a in arrays]


def valid(values, mask):
    return np.ma.array(values, mask=mask | ~np.isfinite(values))


@pytest.mark.parametrize("weighted", [False, True])
def test_moments(weighted):
    values, mask, weights = spectra()
    good = valid(values, mask)
    w = np.ma.array(weights if weighted else np.ones_like(values), mask=good.mask)
    mean = np.ma.average(good, axis=0, weights=w)
    variance = np.ma.average((good - mean) ** 2, axis=0, weights=w)
    args = (values, mask, weights) if weighted else (values, mask)
    for result in (masked.masked_moments(*args), masked.masked_moments(*lazy(*args))):
        np.testing.assert_array_equal(np.asarray(result.count), good.count(axis=0))
        np.testing.assert_allclose(np.asarray(result.mean), mean.filled(np.nan), rtol=1e-12)
        np.testing.assert_allclose(np.asarray(result.variance), variance.filled(np.nan), rtol=1e-10)
    assert isinstance(masked.masked_moments(*lazy(*args)).mean, da.Array)


def test_no_cancellation_far_from_zero():
    values = 1e8 + np.random.default_rng(0).normal(size=(1000, 3))
    result = masked.masked_moments(da.from_array(values, chunks=(13, 3)))
    np.testing.assert_allclose(result.variance.compute(), values.var(axis=0), rtol=1e-6)


def test_covariance_of_pairs():
    values, mask, _ = spectra()
    good = valid(values, mask)
    expected = np.full((12, 12), np.nan)
    for d in range(12):
        for e in range(12):
            both = ~(good.mask[:, d] | good.mask[:, e])
            if both.any():
                x, y = values[both, d], values[both, e]
                expected[d, e] = np.mean((x - x.mean()) * (y - y.mean()))
    for result in (masked.masked_covariance(values, mask), masked.masked_covariance(*lazy(values, mask))):
        np.testing.assert_allclose(np.asarray(result.covariance), expected, atol=1e-12)
    complete = masked.masked_covariance(np.nan_to_num(values)).covariance
    np.testing.assert_allclose(complete, np.cov(np.nan_to_num(values).T, bias=True), atol=1e-12)


def test_quantiles_and_mad():
    values, mask, _ = spectra(n=4000)
    good = valid(values, mask).filled(np.nan)
    seen = ~np.isnan(good).all(axis=0)
    spread = np.nanmax(good[:, seen], axis=0) - np.nanmin(good[:, seen], axis=0)
    for arrays in ((values, mask), lazy(values, mask, rows=900)):
        q = np.asarray(masked.masked_quantiles(arrays[0], [0.1, 0.5, 0.9], arrays[1]))
        exact = np.nanquantile(good[:, seen], [0.1, 0.5, 0.9], axis=0)
        assert np.all(np.abs(q[:, seen] - exact) < 3 * spread / masked.BINS)
        assert np.isnan(q[:, ~seen]).all()
        median, mad = (np.asarray(a) for a in masked.masked_median_mad(arrays[0], arrays[1]))
        centre = np.nanmedian(good[:, seen], axis=0)
        assert np.all(np.abs(median[seen] - centre) < 3 * spread / masked.BINS)
        exact_mad = 1.4826022 * np.nanmedian(np.abs(good[:, seen] - centre), axis=0)
        assert np.all(np.abs(mad[seen] - exact_mad) < 5 * spread / masked.BINS)


def test_quantiles_with_a_range_take_one_lazy_pass():
    values, _, _ = spectra(n=2001)
    out = masked.masked_quantiles(da.from_array(values, chunks=(250, -1)), 0.5, range=(-1.0, 3.0), bins=4096)
    assert isinstance(out, da.Array)
    np.testing.assert_allclose(out.compute(), np.nanmedian(values, axis=0), atol=5e-3)


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 1000),
    rows=st.integers(1, 90),
    columns=st.integers(1, 6),
    missing=st.floats(0, 1),
)
def test_any_chunking_and_mask(seed, rows, columns, missing):
    values, mask, weights = spectra(n=80, p=6, seed=seed, missing=missing)
    one = masked.masked_moments(values, mask, weights)
    two = masked.masked_moments(*lazy(values, mask, weights, rows=rows, columns=columns))
    for a, b in zip(one, two):
        np.testing.assert_allclose(np.asarray(b), a, rtol=1e-9, atol=1e-12)


def test_wrong_input_is_refused():
    values, mask, _ = spectra()
    with pytest.raises(InputError, match="mask has shape"):
        masked.masked_moments(values, mask[:5])
    with pytest.raises(InputError, match="between 0 and 1"):
        masked.masked_quantiles(values, 1.5)
    with pytest.raises(InputError, match="low must be below"):
        masked.masked_quantiles(values, 0.5, range=(1, 0))
    with pytest.raises(InputError, match="dimension"):
        masked.masked_moments(values[0])
