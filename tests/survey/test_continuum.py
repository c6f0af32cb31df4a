"""Running-quantile normalisation: what must not change it, and what must."""

from __future__ import annotations

import numpy as np
import pytest

from chemscale.survey.continuum import running_quantile

WAVE = 10 ** np.arange(3.6021, 3.9494, 1e-4)


def lines(rng: np.random.Generator, n: int = 150) -> np.ndarray:
    centres = rng.uniform(WAVE[0], WAVE[-1], n)
    depth = rng.uniform(0.02, 0.4, n)
    return 1 - np.clip(np.sum(depth[:, None] * np.exp(-0.5 * ((WAVE - centres[:, None]) / 3.0) ** 2), axis=0), 0, 0.9)


def tilt(a: float, b: float) -> np.ndarray:
    x = (WAVE - 6000) / 3000
    return np.exp(a * x + b * x**2) * 120.0


def test_flux_calibration_and_reddening_cancel():
    spectrum = lines(np.random.default_rng(0))
    ivar = np.full_like(WAVE, 1e4)
    flux = np.stack([spectrum * tilt(0, 0), spectrum * tilt(0.8, -0.4), spectrum * tilt(-0.7, 0.5)])
    out, _, _ = running_quantile(WAVE, flux, ivar / flux**2 * spectrum**2)
    inner = slice(100, -100)
    assert np.abs(out[1:, inner] - out[0, inner]).max() < 0.02
    assert np.abs(out[1:, inner] - out[0, inner]).mean() < 0.003
    assert 0.97 < np.median(out[0]) < 1.03


def test_noise_does_not_lift_the_continuum():
    """A plain 80 % quantile of pixels at S/N 10 sits 8 % high; binned means must not."""
    rng = np.random.default_rng(1)
    spectrum = lines(rng)
    clean = running_quantile(WAVE, spectrum, np.full_like(WAVE, 1e6))[2]
    sigma = 0.1
    noisy = spectrum + rng.normal(0, sigma, (40, len(WAVE)))
    level = running_quantile(WAVE, noisy, np.full(noisy.shape, sigma**-2))[2]
    naive = np.quantile(noisy, 0.8) / np.quantile(spectrum, 0.8) - 1
    bias = np.mean(level / clean) - 1
    assert naive > 0.04
    assert abs(bias) < 0.02


def test_errors_scale_with_the_flux():
    rng = np.random.default_rng(2)
    flux = lines(rng) * tilt(0.3, 0.1)
    ivar = rng.uniform(0.5, 2, len(WAVE))
    out, out_ivar, continuum = running_quantile(WAVE, flux, ivar)
    np.testing.assert_allclose(out * np.sqrt(out_ivar), flux * np.sqrt(ivar), rtol=1e-5)
    np.testing.assert_allclose(out, flux / continuum, rtol=1e-6)
    # a spectrum in other units gives the same answer
    again = running_quantile(WAVE, flux * 1e-17, ivar * 1e34)
    np.testing.assert_allclose(again[0], out, rtol=1e-5)
    np.testing.assert_allclose(again[1], out_ivar, rtol=1e-5)


def test_gaps_neither_pull_nor_leak():
    flux = np.full_like(WAVE, 5.0)
    ivar = np.ones_like(WAVE)
    gap = (WAVE > 5800) & (WAVE < 6400)
    flux[gap], ivar[gap] = -1e30, 0.0
    flux[(WAVE > 7000) & (WAVE < 7002)] = np.nan
    out, out_ivar, continuum = running_quantile(WAVE, flux, ivar)
    known = np.isfinite(continuum)
    np.testing.assert_allclose(continuum[known], 5.0, rtol=1e-6)
    assert np.all(out_ivar[gap] == 0)
    deep = (WAVE > 5990) & (WAVE < 6210)
    assert np.isnan(continuum[deep]).all()
    good = ~gap & np.isfinite(flux)
    np.testing.assert_allclose(out[good & known], 1.0, rtol=1e-6)
    assert known[good].mean() > 0.98


def test_one_confident_pixel_does_not_speak_for_its_bin():
    flux = np.full_like(WAVE, 1.0)
    ivar = np.full_like(WAVE, 100.0)
    flux[1000::40], ivar[1000::40] = 50.0, 1e12  # cosmic rays with a tiny error
    _, _, continuum = running_quantile(WAVE, flux, ivar, quantile=0.3)
    assert np.median(continuum[900:2000]) < 1.1


def test_undefined_continuum_leaves_no_information():
    for flux, ivar in (
        (np.zeros_like(WAVE), np.ones_like(WAVE)),
        (np.full_like(WAVE, -3.0), np.ones_like(WAVE)),
        (np.full_like(WAVE, np.nan), np.ones_like(WAVE)),
        (np.ones_like(WAVE), np.zeros_like(WAVE)),
    ):
        out, out_ivar, _ = running_quantile(WAVE, flux, ivar)
        assert not out.any() and not out_ivar.any()


def test_a_block_is_its_rows():
    rng = np.random.default_rng(4)
    flux = np.stack([lines(rng) * tilt(*rng.normal(0, 0.3, 2)) for _ in range(5)])
    ivar = rng.uniform(0, 2, flux.shape)
    whole = running_quantile(WAVE, flux, ivar)
    for i in range(5):
        for a, b in zip(whole, running_quantile(WAVE, flux[i], ivar[i])):
            np.testing.assert_allclose(a[i], b, rtol=1e-12)


def test_parameters_are_checked():
    with pytest.raises(ValueError, match="shapes disagree"):
        running_quantile(WAVE, np.ones(3), np.ones(3))
    with pytest.raises(ValueError, match="quantile"):
        running_quantile(WAVE, np.ones_like(WAVE), np.ones_like(WAVE), quantile=1.0)
