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
    with pytest.raises(InputError, match="dimension"):
        masked.masked_moments(values[0])
