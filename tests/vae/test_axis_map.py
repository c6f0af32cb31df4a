"""Latents get the same distribution at every Teff, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from vae_toy import FAST, FAST_MODEL, TOY_REGIONS, toy_survey

from chemscale.vae import pipeline
from chemscale.vae.axis_map import AxisMap, degrees, n_terms, terms
from chemscale.vae.checkpoint import build_like, load_model
from chemscale.vae.evaluate import boosted_r2


@pytest.fixture(scope="module")
def mixed():
    """Latents whose spreads tell Teff together with the first, Teff, and what they stand for."""
    rng = np.random.default_rng(2)
    truth, teff = rng.standard_normal((12_000, 3)), rng.uniform(4000.0, 7000.0, 12_000)
    t = (teff - 5500.0) / 1500.0
    z = truth.copy()
    z[:, 1] = (1.0 + 0.6 * t) * truth[:, 1] + 0.4 * t * truth[:, 0]
    z[:, 2] = np.exp(0.5 * t * np.tanh(truth[:, 0])) * truth[:, 2]
    return z, teff, truth


def mapped(axis_map, z, teff):
    """By the compiled pass, which has to agree with the tensor code that gradients go through."""
    given = torch.from_numpy(z).float(), torch.from_numpy(teff).float()
    with torch.no_grad():
        found, factors = axis_map(*given)
    slowly, widths = axis_map(*given)
    np.testing.assert_allclose(found, slowly, atol=1e-4)
    # the factor has steps, which rounding may put on either side of a star
    assert np.isclose(factors, widths, rtol=1e-3).mean() > 0.999
    return found, factors


def test_what_spreads_tell_of_teff_is_taken_out(mixed):
    z, teff, truth = mixed
    axis_map = AxisMap(3)
    assert axis_map.fit(z[:6000], teff[:6000])
    before = boosted_r2(z[6000:], teff[6000:])
    found, factors = mapped(axis_map, z, teff)
    found = found.numpy().astype(float)
    assert before > 0.1
    assert boosted_r2(found[6000:], teff[6000:]) < 0.02
    for k in range(3):
        r = [abs(np.corrcoef(x[6000:, k], truth[6000:, k])[0, 1]) for x in (z, found)]
        assert r[1] > r[0] - 0.005
        assert found[:, k].std() == pytest.approx(z[:, k].std(), rel=0.1)
    assert np.abs(factors[:, 0].numpy() - 1.0).mean() < 0.1
    wide = factors[:, 1].numpy()
    assert wide[teff < 4300].mean() > 1.5 > 1.0 > wide[teff > 6700].mean()


def test_what_a_shape_tells_of_teff_is_taken_out_and_ranks_stay():
    rng = np.random.default_rng(5)
    truth, teff = rng.standard_normal((12_000, 2)), rng.uniform(4000.0, 7000.0, 12_000)
    z = truth.copy()
    unseen = (teff < 5000.0) & (truth[:, 1] < 0.0)
    z[:, 1] = np.where(unseen, -0.7 + 0.02 * truth[:, 1], truth[:, 1])
    axis_map = AxisMap(2)
    assert axis_map.fit(z[:6000], teff[:6000])
    found = mapped(axis_map, z, teff)[0].numpy().astype(float)
    axis_map.shape.fitted = False
    scaled = mapped(axis_map, z, teff)[0].numpy().astype(float)
    assert boosted_r2(scaled[6000:], teff[6000:]) > 0.05  # mean and spread alone do not do it
    assert boosted_r2(found[6000:], teff[6000:]) < 0.02
    alike = (np.abs(teff - 4300.0) < 30.0) & (np.abs(truth[:, 0]) < 0.3)
    assert spearmanr(found[alike, 1], z[alike, 1]).statistic > 0.95
    assert abs(np.corrcoef(found[6000:, 1], truth[6000:, 1])[0, 1]) > 0.9


def test_few_stars_tell_a_shape_by_teff_alone(mixed):
    z, teff, _ = mixed
    axis_map = AxisMap(3)
    assert axis_map.fit(z[:4000], teff[:4000])
    assert axis_map.shape.at_2.std(dim=(1, 2)).max() == 0
    assert axis_map.fit(z, teff)
    assert axis_map.shape.at_1.std(dim=1).max() > 0


def test_until_it_is_fitted_it_changes_nothing(mixed):
    z, teff, _ = mixed
    axis_map = AxisMap(3)
    assert not axis_map.fit(z[:3000], teff[:3000])  # fewer stars than its terms can be paid with
    assert not axis_map.fit(z, np.full(len(z), 5000.0))
    assert not axis_map.shape.fitted
    found, factors = mapped(axis_map, z, teff)
    np.testing.assert_array_equal(found, torch.from_numpy(z).float())
    np.testing.assert_array_equal(factors, 1.0)


def test_many_latents_are_mapped_by_the_compiled_pass_too():
    rng = np.random.default_rng(3)
    z, teff = rng.standard_normal((9000, 7)), rng.uniform(4000.0, 7000.0, 9000)
    z[:, 6] += z[:, 5] * teff / 5000.0
    axis_map = AxisMap(7)
    assert axis_map.fit(z, teff)
    assert not np.allclose(mapped(axis_map, z, teff)[0], z, atol=0.1)


def test_a_latent_that_is_not_a_number_stays_one(mixed):
    z, teff, _ = mixed
    axis_map = AxisMap(3)
    axis_map.fit(z, teff)
    broken = z[:3].copy()
    broken[1] = np.nan
    with torch.no_grad():
        found, _ = axis_map(torch.from_numpy(broken).float(), torch.tensor([5000.0, float("nan"), 6000.0]))
    assert torch.isfinite(found).all(1).tolist() == [True, False, True]


def test_no_star_depends_on_the_others_of_its_block(mixed):
    z, teff, _ = mixed
    axis_map = AxisMap(3)
    axis_map.fit(z, teff)
    whole, parts = mapped(axis_map, z[:999], teff[:999])[0], []
    for rows in np.array_split(np.arange(999), [1, 8, 300, 811]):
        parts.append(mapped(axis_map, z[rows], teff[rows])[0])
    assert torch.equal(whole, torch.cat(parts))


def test_terms_are_as_many_as_said_and_few_for_many_latents():
    for variables in range(1, 22):
        degree = degrees(variables)[0]
        assert n_terms(variables, degree) <= 300
        assert len(terms(torch.zeros(2, variables), degree)) == n_terms(variables, degree)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on stars enough for a map."""
    from chemscale.survey.ingest.datasets import write_survey

    folder = tmp_path_factory.mktemp("axis-map")
    store = write_survey(toy_survey(5600), folder / "toy.zarr")
    settings = {**FAST, "epochs": 2, "batch": 512}
    pipeline.train(store, folder / "run", model=FAST_MODEL, settings=settings, regions=TOY_REGIONS, scale=False)
    return store, folder / "run"


def test_a_training_stores_its_map_and_inference_applies_it(trained):
    store, run = trained
    model, record = load_model(run / "vae")
    assert record["train"]["map_axes"] and model.axis_map.fitted
    features = torch.randn(64, model.config.n_components)
    posterior = model.encode(features)
    model.axis_map.fitted = False
    plain = model.encode(features)
    moved, factors = model.axis_map(plain.mean, model.teff(plain.auxiliary))
    assert not torch.allclose(moved, plain.mean, atol=1e-3)
    torch.testing.assert_close(posterior.mean, moved)
    torch.testing.assert_close(posterior.factor, plain.factor * factors[:, :, None])
    pipeline.infer(store, run)
    model, _ = load_model(run / "vae")
    survey = pipeline.open_source(store)[0]
    from chemscale.vae.data import read_rows
    from chemscale.vae.inference import infer_arrays

    flux, weight = read_rows(survey, 0, 200, floor=record["train"]["floor"])
    found = pipeline.latents(run)[0]["mean"].values[:200]
    np.testing.assert_allclose(infer_arrays(model, flux, weight)["mean"], found, atol=2e-5)


def test_a_model_without_a_map_reads_as_before(trained):
    model, _ = load_model(trained[1] / "vae")
    weights = {k: v for k, v in model.state_dict().items() if not k.startswith("axis_map.")}
    old = build_like(model.config, model.pixels, weights).eval()
    features = torch.randn(8, model.config.n_components)
    assert not old.axis_map.fitted
    assert torch.equal(old.encode(features).mean, old.encoder.head(features)[:, :3])


def test_a_map_without_shapes_reads_as_before(trained):
    model, _ = load_model(trained[1] / "vae")
    assert model.axis_map.shape.fitted
    weights = {k: v for k, v in model.state_dict().items() if ".shape." not in k}
    old = build_like(model.config, model.pixels, weights).eval()
    assert old.axis_map.fitted and not old.axis_map.shape.fitted
    model.axis_map.shape.fitted = False
    features = torch.randn(8, model.config.n_components)
    assert torch.equal(old.encode(features).mean, model.encode(features).mean)
