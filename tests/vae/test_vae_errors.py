"""Stated errors of latents are those that the spectra's noise bears out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from chemscale.vae.checkpoint import build_like, load_model
from chemscale.vae.data import read_rows
from chemscale.vae.errors import LEAST, STARS, correlated_noise, measure_errors, residual_correlation
from chemscale.vae.inference import infer_arrays
from chemscale.vae.prepare import look_at, unseen_rows


def coloured(n: int, pixels: int, rng: np.random.Generator) -> np.ndarray:
    """Noise of unit variance whose neighbours correlate at 0.5."""
    white = rng.standard_normal((n, pixels + 1))
    return (white[:, 1:] + white[:, :-1]) / np.sqrt(2)


def test_correlation_of_residuals_is_found_between_gaps():
    rng = np.random.default_rng(0)
    pull = coloured(200, 500, rng)
    there = rng.random(pull.shape) > 0.2
    found = residual_correlation(np.where(there, pull, 1e6), there, 4)
    assert found == pytest.approx([1, 0.5, 0, 0, 0], abs=0.03)


def test_noise_has_the_correlation_asked_for():
    noise = correlated_noise(np.array([2.0, 1.0, 0.0, 0.0]), (400, 300), np.random.default_rng(1))
    assert noise.var() == pytest.approx(2.0, rel=0.05)
    neighbours = (noise[:, 1:] * noise[:, :-1]).mean()
    assert neighbours == pytest.approx(2 / 3, rel=0.1)  # tapered to zero at the last lag


def test_repeats_scatter_by_no_more_than_the_stated_errors(toy, toy_run):
    model, record = load_model(toy_run / "vae")
    flux, weight = read_rows(toy, 0, 600, floor=record["train"]["floor"])
    rng = np.random.default_rng(2)
    again = flux + np.where(weight > 0, rng.standard_normal(flux.shape) * 0.01, 0).astype("f4")  # noise of the toy
    with torch.no_grad():
        one, two = (model.encode(model.features(torch.from_numpy(x), torch.from_numpy(weight))) for x in (flux, again))
        sigma = torch.diagonal(one.covariance, dim1=1, dim2=2).sqrt()
    scatter = ((two.mean - one.mean) / sigma).numpy()
    # the toy model's own misfit counts as noise: errors may be too large by it, never too small
    assert np.all((np.std(scatter, 0) > 0.25) & (np.std(scatter, 0) < 1.25)), np.std(scatter, 0)


def test_errors_are_those_of_stars_never_trained_on(toy, toy_run):
    model, record = load_model(toy_run / "vae")
    survey = look_at(toy, record["held_out"], record["split_seed"])
    floor, seed = record["train"]["floor"], record["train"]["seed"]
    flux, weight, rows = unseen_rows(survey, STARS, LEAST, seed, floor)
    assert len(rows) >= LEAST and not survey.trained[rows].any()
    found = measure_errors(model, flux, weight, seed)
    np.testing.assert_allclose(model.error_scale.numpy(), found.factors, rtol=1e-3)
    assert survey.trained[unseen_rows(survey, STARS, 10_000, seed, floor)[2]].all()  # too few are held out


def test_factors_grow_with_correlated_noise(toy, toy_run):
    model, record = load_model(toy_run / "vae")
    flux, weight = read_rows(toy, 0, 600, floor=record["train"]["floor"])
    noise = coloured(*flux.shape, np.random.default_rng(3)) * 0.02
    plain = measure_errors(model, flux, weight).factors
    correlated = measure_errors(model, np.where(weight > 0, flux + noise, flux).astype("f4"), weight).factors
    assert np.all(correlated > 1.1 * plain)


def test_models_without_factors_state_the_encoders_errors(toy_run):
    model, _ = load_model(toy_run / "vae")
    assert not torch.equal(model.error_scale, torch.ones(3))
    weights = {k: v for k, v in model.state_dict().items() if not k.startswith("error_")}
    old = build_like(model.config, model.pixels, weights)
    assert torch.equal(old.error_scale, torch.ones(3))
    assert torch.equal(old.error_factor(torch.tensor([-5.0, 0.0, 2.0])), torch.ones(3, 3))


def test_w_and_the_labels_it_predicts_have_errors(toy_run):
    summary = json.loads((toy_run / "vae" / "summary.json").read_text())
    assert all(e > 0 for e in summary["auxiliary_error"])
    assert 1 < summary["label_error"]["teff"] < 500  # K, of stars between 4500 and 6500


def test_errors_of_noisier_spectra_are_larger_by_what_their_noise_does(toy, toy_run):
    model, record = load_model(toy_run / "vae")
    flux, weight = read_rows(toy, 0, 600, floor=record["train"]["floor"])
    rng = np.random.default_rng(4)
    poor = weight / 9.0  # three times the noise
    noise = rng.standard_normal((2, *flux.shape)) * np.sqrt(np.where(poor > 0, 1 / np.where(poor > 0, poor, 1), 0))
    noise[0] *= np.sqrt(8 / 9)
    one = np.where(weight > 0, flux + noise[0], flux).astype("f4")
    found = [infer_arrays(model, x.astype("f4"), poor) for x in (one, one + noise[1])]
    sigma = np.sqrt(np.diagonal(found[0]["covariance"], axis1=1, axis2=2))
    pull = (found[1]["mean"] - found[0]["mean"]) / sigma
    width = np.median(np.abs(pull), 0) / 0.6745
    assert np.all((width > 0.25) & (width < 1.3)), width
    usual = infer_arrays(model, flux, weight)
    before = np.sqrt(np.diagonal(usual["covariance"], axis1=1, axis2=2))
    assert np.all(np.median(sigma, 0) > 1.3 * np.median(before, 0))


def test_factors_lie_between_those_of_the_levels_measured(toy_run):
    model, _ = load_model(toy_run / "vae")
    levels, factors = model.error_levels, model.error_by_level
    assert torch.all(levels[1:] >= levels[:-1])
    assert torch.allclose(model.error_factor(levels[-2:-1]), factors[-2:-1], rtol=1e-4)
    assert torch.allclose(model.error_factor(levels[-1:] + 3), factors[-1:], rtol=1e-4)
    middle = model.error_factor((levels[-2:-1] + levels[-1:]) / 2)
    assert torch.allclose(middle, (factors[-2:-1] * factors[-1:]).sqrt(), rtol=1e-3)
