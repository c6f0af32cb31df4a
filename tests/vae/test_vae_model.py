"""The model: regions, gradient stops, shapes, orientation, the PPCA front end."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vae_toy import TOY_REGIONS

from chemscale.errors import InputError
from chemscale.vae import losses
from chemscale.vae.config import PAPER_GROUPS, Group, ModelConfig
from chemscale.vae.encoders import PPCAFront, SpectralActivation, perceptron
from chemscale.vae.model import ChemicalVAE
from chemscale.vae.objective import decode_groups, independence
from chemscale.vae.presets import PAPER_MODEL
from chemscale.vae.regions import RegionSet, available, convert, load_regions, regions_for

GRID = 10 ** (np.log10(4000) + 1e-4 * np.arange(4150))


def small_model(config: ModelConfig | None = None, pixels: int = 30, seed: int = 0) -> ChemicalVAE:
    torch.manual_seed(seed)
    config = config or ModelConfig(n_components=5, hidden=(16,), decoder=(8,))
    rng = np.random.default_rng(seed)
    components = np.linalg.qr(rng.normal(size=(pixels, config.n_components)))[0].T
    front = {
        "components": components,
        "scale": np.linspace(2, 0.2, config.n_components),
        "noise": 1e-4,
        "mean": np.ones(pixels),
    }
    thirds = np.array_split(np.arange(pixels - 6), 3)
    index = {g.name: t for g, t in zip(config.groups, thirds)} | {"rest": np.arange(pixels - 6, pixels)}
    return ChemicalVAE(config, index, np.ones(pixels), front)


# ------------------------------------------------------------------ regions


def test_paper_regions_on_the_paper_grid():
    masks = load_regions("paper").masks(GRID, "air")
    fractions = {k: m.mean() for k, m in masks.items()}
    assert fractions["alpha"] == pytest.approx(0.0554, abs=0.002)
    assert fractions["carbon"] == pytest.approx(0.0205, abs=0.002)
    assert fractions["iron"] == pytest.approx(0.1966, abs=0.006)
    assert not (masks["alpha"] & (masks["iron"] | masks["carbon"])).any()


@pytest.mark.parametrize("name", available())
def test_every_region_set_loads_and_has_positive_windows(name):
    regions = load_regions(name)
    assert regions.name == name
    assert all(high >= low for windows in regions.groups.values() for low, high in windows)


def test_windows_of_a_survey_follow_its_temperatures():
    warm, cool = np.linspace(4100, 7000, 500), np.linspace(3000, 7000, 500)
    assert regions_for(GRID) == regions_for(GRID, np.append(warm, np.nan)) == "optical"
    assert regions_for(GRID, np.append(cool, np.nan)) == "optical_cool"
    assert regions_for(np.array([15200.0, 16900.0]), cool) == "apogee"


def test_windows_move_with_the_medium():
    air = load_regions("optical").masks(GRID, "air")
    vacuum = load_regions("optical").masks(convert(GRID, "air", "vacuum"), "vacuum")
    for name in air:
        assert (air[name] == vacuum[name]).mean() > 0.999


@given(st.floats(3000, 20000))
def test_air_and_vacuum_are_inverse(wave):
    there = convert(np.array([wave]), "air", "vacuum")
    assert 0 < there[0] - wave < 6
    assert convert(there, "vacuum", "air")[0] == pytest.approx(wave, abs=1e-6)


def test_air_vacuum_of_the_sodium_line():
    assert convert(np.array([5889.951]), "air", "vacuum")[0] == pytest.approx(5891.583, abs=0.002)


def test_priority_takes_pixels_from_the_others():
    wave = np.arange(100.0, 110.0)
    both = RegionSet("x", "air", {"a": ((100, 105),), "b": ((103, 109),)}, ("b",))
    masks = both.masks(wave, "air")
    assert masks["a"].tolist() == [True] * 3 + [False] * 7
    assert masks["b"].sum() == 7


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        ({"name": "x", "medium": "water", "groups": {"a": [[1, 2]]}}, "medium"),
        ({"name": "x", "medium": "air", "groups": {"a": [[2, 1]]}}, "bad windows"),
        ({"name": "x", "medium": "air", "groups": {}}, "groups"),
        ({"name": "x", "medium": "air", "groups": {"rest": [[1, 2]]}}, "rest"),
        ({"medium": "air", "groups": {"a": [[1, 2]]}}, "region set"),
    ],
)
def test_bad_region_sets_are_refused(raw, match):
    with pytest.raises(InputError, match=match):
        RegionSet.from_dict(raw)


def test_region_file_round_trip(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(TOY_REGIONS.to_dict()))
    assert load_regions(file) == TOY_REGIONS
    with pytest.raises(InputError, match="cannot be read"):
        load_regions(tmp_path / "none.json")
    with pytest.raises(InputError, match="no region set"):
        load_regions("nonsense")


def test_regions_outside_the_grid_are_refused():
    with pytest.raises(InputError, match="on this grid"):
        load_regions("optical").masks(np.linspace(15000, 17000, 100), "vacuum")


# -------------------------------------------------------------------- model


def test_paper_encoder_has_the_papers_size():
    masks = load_regions("paper").masks(GRID, "air")
    model = ChemicalVAE(PAPER_MODEL, {k: np.flatnonzero(m) for k, m in masks.items()}, np.ones(GRID.size))
    adversary = sum(p.numel() for p in model.adversary.parameters())
    total = sum(p.numel() for p in model.parameters()) - adversary
    assert total == pytest.approx(3.34e6, rel=0.01)
    posterior = model.encode(model.features(torch.ones(2, GRID.size), torch.ones(2, GRID.size)))
    assert posterior.mean.shape == (2, 3)


@pytest.mark.filterwarnings("error")
def test_a_decoder_of_no_pixels_is_made_in_silence():
    """Regions that claim every pixel leave none to the rest."""
    assert perceptron(3, (4,), 0)(torch.zeros(5, 3)).shape == (5, 0)


def test_activation_is_equation_8():
    act = SpectralActivation(3)
    x = torch.randn(4, 3)
    g, b = act.gamma, act.beta
    assert torch.allclose(act(x), (g + (1 - g) / (1 + torch.exp(-b * x))) * x)


@pytest.mark.parametrize("groups", [ModelConfig().groups, PAPER_GROUPS])
@pytest.mark.parametrize("on", ["mean", "sample"])
def test_each_decoder_teaches_its_own_latent_only(groups, on):
    model = small_model(ModelConfig(n_components=5, hidden=(16,), decoder=(8,), groups=groups, condition_on=on))
    posterior = model.encode(torch.randn(6, 5))
    z = posterior.sample(torch.Generator().manual_seed(0))
    z.retain_grad()
    posterior.mean.retain_grad()
    for k, group in enumerate(model.config.groups):
        z.grad = posterior.mean.grad = None
        decode_groups(model, posterior, z, [group.name])[group.name].sum().backward(retain_graph=True)
        touched = z.grad.abs().sum(0) > 0
        assert touched.tolist() == [j == k for j in range(3)]


def test_without_selection_a_decoder_teaches_what_it_reads():
    model = small_model(ModelConfig(n_components=5, hidden=(16,), decoder=(8,), selective=False, condition_on="sample"))
    posterior = model.encode(torch.randn(6, 5))
    z = posterior.sample()
    z.retain_grad()
    decode_groups(model, posterior, z, ["alpha"])["alpha"].sum().backward()
    assert (z.grad.abs().sum(0) > 0).all()


def test_rest_teaches_nothing():
    model = small_model()
    posterior = model.encode(torch.randn(6, 5))
    out = decode_groups(model, posterior, posterior.mean, ["rest"])["rest"]
    out.sum().backward()
    assert all(p.grad is None for p in model.encoder.net.parameters())


@pytest.mark.parametrize("latent", [0, 1, 2])
def test_flip_keeps_every_reconstruction(latent):
    model = small_model(seed=3)
    features = torch.randn(7, 5)
    before = model.encode(features)
    spectra = model.reconstruct(before.mean, before.auxiliary)
    logits = model.adversary(before.mean)
    response = model.response(before)
    model.flip(latent)
    after = model.encode(features)
    sign = torch.ones(3)
    sign[latent] = -1
    assert torch.allclose(after.mean, before.mean * sign, atol=1e-6)
    assert torch.allclose(after.covariance, before.covariance * sign[:, None] * sign, atol=1e-6)
    assert torch.allclose(model.reconstruct(after.mean, after.auxiliary), spectra, atol=1e-5)
    assert torch.allclose(model.adversary(after.mean), logits, atol=1e-5)
    assert model.response(after)[latent] == pytest.approx(-response[latent], rel=1e-3)


def test_any_number_of_elements():
    groups = (Group("a", "x"), Group("b", "y", ("x",)), Group("c", "v", ("x", "y")), Group("d", "t", ("v",)))
    config = ModelConfig(
        n_components=5, hidden=(8,), decoder=(8,), groups=groups, correlations={"x-t": 0.2}, rest=False
    )
    rng = np.random.default_rng(0)
    front = {"components": np.linalg.qr(rng.normal(size=(40, 5)))[0].T, "scale": np.ones(5), "noise": 0.01}
    model = ChemicalVAE(config, {n: np.arange(10 * i, 10 * i + 10) for i, n in enumerate("abcd")}, np.ones(40), front)
    posterior = model.encode(torch.randn(3, 5))
    assert posterior.covariance.shape == (3, 4, 4)
    assert model.reconstruct(posterior.mean, posterior.auxiliary).shape == (3, 40)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"encoder": "magic"}, "encoder"),
        ({"groups": (Group("a", "x", ("q",)),), "correlations": {}}, "reads"),
        ({"correlations": {"metal-tin": 0.1}}, "correlation"),
        ({"correlations": {"metal-alpha": 0.9, "metal-carbon": 0.9, "alpha-carbon": -0.9}}, "positive definite"),
    ],
)
def test_bad_configurations_are_refused(change, match):
    with pytest.raises(InputError, match=match):
        ModelConfig(**change)


def test_configuration_round_trip_and_unknown_keys():
    config = ModelConfig(groups=PAPER_GROUPS, hidden=(7,))
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(InputError, match="unknown model settings"):
        ModelConfig.from_dict({"hiden": (3,)})


# -------------------------------------------------------------- PPCA front


def test_front_end_is_the_posterior_mean():
    rng = np.random.default_rng(1)
    n, k, p = 6, 4, 25
    components = np.linalg.qr(rng.normal(size=(p, k)))[0].T
    scale, noise, mean = np.array([2.0, 1, 0.5, 0.1]), 0.02, rng.normal(1, 0.1, p)
    flux, ivar = rng.normal(1, 0.5, (n, p)), rng.uniform(1, 100, (n, p))
    ivar[rng.random((n, p)) < 0.3] = 0
    ivar[:2] = 40.0  # whole spectra with one error take a shorter way
    to = lambda a: torch.as_tensor(a, dtype=torch.float32)  # noqa: E731
    front = PPCAFront(to(components), to(mean), to(scale), torch.full((p,), noise))
    got = front(to(flux), to(ivar)).numpy()
    for i in range(n):
        good = ivar[i] > 0
        loading = (components.T * scale)[good]
        inverse = np.diag(1 / (1 / ivar[i, good] + noise))
        precision = np.eye(k) + loading.T @ inverse @ loading
        expected = np.linalg.solve(precision, loading.T @ inverse @ (flux[i] - mean)[good])
        assert got[i] == pytest.approx(expected, abs=2e-4)


def test_front_end_ignores_what_is_hidden():
    model = small_model()
    flux, ivar = torch.randn(4, 30), torch.rand(4, 30) * 50 + 1
    ivar[:, 3] = 0
    other = flux.clone()
    other[:, 3] = 77.0
    assert torch.equal(model.features(flux, ivar), model.features(other, ivar))


# ------------------------------------------------------------------- losses


def test_kl_agrees_with_torch():
    torch.manual_seed(0)
    mean, raw = torch.randn(5, 3), torch.randn(5, 3, 3)
    factor = torch.tril(raw, -1) + torch.diag_embed(torch.rand(5, 3) + 0.3)
    prior = torch.from_numpy(ModelConfig().prior())
    q = torch.distributions.MultivariateNormal(mean, scale_tril=factor)
    p = torch.distributions.MultivariateNormal(torch.zeros(3), prior)
    assert losses.gaussian_kl(mean, factor, losses.whitening(prior)) == pytest.approx(
        float(torch.distributions.kl_divergence(q, p).mean()), rel=1e-4
    )


def test_missing_pixels_carry_no_weight():
    flux = torch.tensor([[1.0, 5.0], [2.0, 2.0]])
    ivar = torch.tensor([[4.0, 0.0], [1.0, 1.0]])
    assert losses.reconstruction(torch.ones(2, 2), flux, ivar) == pytest.approx((0 + 1 + 1) / 3)


def test_uncertain_and_missing_labels_weigh_less():
    labels = torch.tensor([[0.0, 0.0], [0.0, float("nan")]])
    errors = torch.tensor([[0.0, 0.0], [3.0, 1.0]])
    predicted = torch.tensor([[0.0, 0.0], [1.0, 50.0]])
    assert losses.linear_head(predicted, labels, errors) == pytest.approx(0.1 / 2.1)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31))
def test_dependence_tells_functions_from_noise(seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(512, 1, generator=g)
    free = float(losses.dependence(x, torch.randn(512, 2, generator=g), g))
    square = float(losses.dependence(x, torch.cat([x**2, torch.randn(512, 1, generator=g)], 1), g))
    assert 0 <= free < 0.05
    assert square > 3 * free


def test_dependence_on_labels_leaves_out_stars_that_lack_one():
    """Taking the rows out and counting them for nothing are the same."""
    g = torch.Generator().manual_seed(2)
    z, labels = torch.randn(600, 3, generator=g), torch.randn(600, 2, generator=g)
    labels[:, 0] += z[:, 0]
    labels[::3, 1] = torch.nan
    z.requires_grad_()
    known = torch.isfinite(labels).all(1)
    masked = independence(z, labels, torch.Generator().manual_seed(5))
    cut = losses.dependence_on(z[known], labels[known], torch.Generator().manual_seed(5))
    assert float(masked.detach()) == pytest.approx(float(cut.detach()), rel=1e-4)
    (gradient,) = torch.autograd.grad(masked, z)
    assert torch.all(gradient[~known] == 0)
    assert torch.isfinite(gradient).all()
    labels[7:] = torch.nan
    few = independence(z, labels, torch.Generator().manual_seed(5))
    assert float(few.detach()) == 0.0
    assert torch.isfinite(torch.autograd.grad(few, z)[0]).all()


def test_sliced_prior_is_small_for_the_prior_and_grows_with_scale():
    g = torch.Generator().manual_seed(0)
    prior = torch.from_numpy(ModelConfig().prior())
    z = torch.randn(2048, 3, generator=g) @ torch.linalg.cholesky(prior).T
    right, wide = losses.sliced_prior(z, prior, g), losses.sliced_prior(2 * z, prior, g)
    assert right < 0.01
    assert wide > 0.5


def test_innovations_are_independent_under_the_prior_only():
    g = torch.Generator().manual_seed(0)
    prior = torch.from_numpy(ModelConfig().prior())
    z = torch.randn(1024, 3, generator=g) @ torch.linalg.cholesky(prior).T
    mixed = z.clone()
    mixed[:, 1] = 0.6 * z[:, 1] + 0.8 * z[:, 0]
    assert losses.innovation_dependence(z, losses.whitening(prior), g) < 0.02
    assert losses.innovation_dependence(mixed, losses.whitening(prior), g) > 0.1


def test_classes_of_the_adversary():
    labels = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.49, 0.51], [float("nan"), 0.0]])
    found = losses.classes(labels, torch.zeros(2), torch.ones(2), 2)
    assert found.tolist() == [0, 3, 1, -1]
    assert float(losses.adversary_loss(torch.zeros(1, 4), torch.tensor([-1]))) == 0.0
