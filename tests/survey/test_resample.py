"""Rebinning: conservation, agreement with specutils, masks, and a Monte Carlo of the variances."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chemscale.survey.resample import Rebinner, pixel_edges


def grids(seed: int, n_in: int = 300, n_out: int = 170) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    before = np.cumsum(rng.uniform(0.3, 1.7, n_in)) + 5000
    after = np.cumsum(rng.uniform(0.5, 2.5, n_out)) + 5010
    return before, after[after < before[-1] - 5]


@pytest.mark.parametrize("seed", range(4))
def test_equals_specutils(seed):
    pytest.importorskip("specutils")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import astropy.units as u
        from astropy.nddata import InverseVariance
        from specutils import Spectrum
        from specutils.manipulation import FluxConservingResampler

        before, after = grids(seed)
        rng = np.random.default_rng(seed + 100)
        flux, ivar = rng.normal(1, 0.3, len(before)), rng.uniform(1, 50, len(before))
        spectrum = Spectrum(flux=flux * u.Jy, spectral_axis=before * u.AA, uncertainty=InverseVariance(ivar / u.Jy**2))
        theirs = FluxConservingResampler()(spectrum, after * u.AA)
    mine, mine_ivar, _ = Rebinner(before, after)(flux, ivar)
    inside = slice(1, -1)  # specutils estimates the outermost edges in its own way
    np.testing.assert_allclose(mine[inside], theirs.flux.value[inside], rtol=1e-10)
    np.testing.assert_allclose(mine_ivar[inside], theirs.uncertainty.array[inside], rtol=1e-8)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(2, 60), st.integers(2, 60))
def test_the_integral_is_conserved(seed, n_in, n_out):
    rng = np.random.default_rng(seed)
    before = np.cumsum(rng.uniform(0.2, 3.0, n_in))
    edges = pixel_edges(before)
    # an output grid whose edges end exactly where the input's do
    cuts = np.sort(rng.uniform(edges[0], edges[-1], n_out - 1))
    cuts = np.concatenate([[edges[0]], cuts, [edges[-1]]])
    if np.min(np.diff(cuts)) < 1e-6:
        return
    flux = rng.normal(0, 1, n_in)
    after = (cuts[1:] + cuts[:-1]) / 2
    rebinner = Rebinner(before, after, min_coverage=1e-9)
    out, ivar, _ = rebinner(flux, np.ones(n_in))
    # edges of `after` are half-way points, so compare against an independent integral of the step function
    out_edges = pixel_edges(after)
    cumulative = np.concatenate([[0.0], np.cumsum(flux * np.diff(edges))])
    low, high = np.clip(out_edges[:-1], edges[0], edges[-1]), np.clip(out_edges[1:], edges[0], edges[-1])
    truth = np.interp(high, edges, cumulative) - np.interp(low, edges, cumulative)
    np.testing.assert_allclose(out * (high - low), truth, atol=1e-9 * max(1, np.abs(cumulative).max()))
    assert np.all(ivar[high > low] > 0)


def test_same_grid_changes_nothing():
    before, _ = grids(0)
    rng = np.random.default_rng(1)
    flux, ivar = rng.normal(1, 1, len(before)), rng.uniform(0.1, 9, len(before))
    flags = rng.integers(0, 8, len(before)).astype(np.uint8)
    out = Rebinner(before, before)(flux, ivar, flags)
    np.testing.assert_allclose(out[0], flux, rtol=1e-12)
    np.testing.assert_allclose(out[1], ivar, rtol=1e-12)
    np.testing.assert_array_equal(out[2], flags)


def test_variance_is_that_of_noise():
    before = np.arange(400.0)
    after = np.arange(20.3, 380, 1.7)
    rng = np.random.default_rng(3)
    sigma = rng.uniform(0.5, 2.0, len(before))
    draws = rng.normal(0, sigma, (4000, len(before)))
    out, ivar, _ = Rebinner(before, after)(draws, np.broadcast_to(sigma**-2, draws.shape))
    np.testing.assert_allclose(out.std(axis=0) ** 2 * ivar[0], 1.0, atol=0.12)


def test_bad_pixels_spoil_nothing():
    before = np.arange(100.0)
    flux = np.full(100, 2.0)
    ivar = np.full(100, 4.0)
    flags = np.zeros(100, np.uint8)
    flux[50], flux[51], flux[52], ivar[70:80] = np.nan, 1e38, np.inf, 0.0
    ivar[51] = 0.0
    flags[70:80] = 8
    out, out_ivar, out_flags = Rebinner(before, np.arange(10.25, 90))(flux, ivar, flags)
    known = out_ivar > 0
    np.testing.assert_allclose(out[known], 2.0)
    assert np.all(out[~known] == 0) and np.all(np.isfinite(out)) and np.all(np.isfinite(out_ivar))
    centres = np.arange(10.25, 90)
    assert not known[(centres > 70.5) & (centres < 78.5)].any()
    assert np.all(out_flags[(centres > 70.5) & (centres < 78.5)] == 8)
    assert out_flags[centres < 69].max() == 0


def test_outside_the_input_there_is_nothing():
    out, ivar, _ = Rebinner(np.arange(10.0), np.arange(-20.0, 30.0))(np.ones(10), np.ones(10))
    centres = np.arange(-20.0, 30.0)
    assert np.all(ivar[(centres < -1) | (centres > 10)] == 0)
    assert np.all(out[(centres >= 0) & (centres < 10)] == 1)
    disjoint = Rebinner(np.arange(10.0), np.arange(50.0, 60.0))(np.ones(10), np.ones(10), np.ones(10, np.uint8))
    assert not any(a.any() for a in disjoint)


def test_many_spectra_at_once():
    before, after = grids(5)
    rng = np.random.default_rng(6)
    flux, ivar = rng.normal(1, 1, (7, len(before))), rng.uniform(0, 9, (7, len(before)))
    flags = rng.integers(0, 255, flux.shape).astype(np.uint8)
    together = Rebinner(before, after)(flux, ivar, flags)
    for i in range(7):
        for whole, one in zip(together, Rebinner(before, after)(flux[i], ivar[i], flags[i])):
            np.testing.assert_array_equal(whole[i], one)


@pytest.mark.parametrize("centres", [[1.0], [1.0, 1.0], [2.0, 1.0], [1.0, np.nan]])
def test_grids_that_are_none(centres):
    with pytest.raises(ValueError, match="strictly increasing"):
        pixel_edges(centres)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="must end in 10 pixels"):
        Rebinner(np.arange(10.0), np.arange(5.0))(np.ones(9), np.ones(9))
    with pytest.raises(ValueError, match="min_coverage"):
        Rebinner(np.arange(10.0), np.arange(5.0), min_coverage=0)
