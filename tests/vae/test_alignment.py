"""The guard over the axes: it knows an exchange, a temperature and an empty latent without an abundance."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chemscale.schema import APOGEE_ELEMENTS
from chemscale.simulation.halo import SIGMAS, halo
from chemscale.simulation.lines import LineSpectra, grid
from chemscale.simulation.population import _with_abundances
from chemscale.vae.alignment import _exchanged, check, decoder_answers, explain, line_answers
from chemscale.vae.config import DEFAULT_GROUPS, Group, ModelConfig
from chemscale.vae.model import ChemicalVAE
from chemscale.vae.regions import REST, load_regions

NAMES = ("metal", "carbon", "alpha")
WAVE = grid("lowres").wavelength


def stars(n: int = 400, seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Posteriors of chemistry that knows nothing of temperature, and Teff and log g."""
    rng = np.random.default_rng(seed)
    mean = rng.standard_normal((n, 3)).astype("f4")
    teff = rng.uniform(4200, 6800, n)
    covariance = np.broadcast_to(0.1 * np.eye(3, dtype="f4"), (n, 3, 3))
    auxiliary = np.stack([(teff - 5500) / 750, np.zeros(n)], 1).astype("f4")
    return {"mean": mean, "covariance": covariance, "auxiliary": auxiliary}, {"teff": teff, "logg": np.full(n, 4.2)}


@pytest.fixture(scope="module")
def lines():
    """How 12 stars' spectra answer to each latent's elements."""
    _, labels = stars()
    return line_answers(NAMES, labels["teff"][:12], labels["logg"][:12], WAVE, "air")


@pytest.mark.parametrize("teff", [3250.0, 4250.0, 5250.0, 6250.0])
def test_windows_for_cool_stars_answer_to_their_element_at_every_temperature(teff):
    """Of stars of the paper's halo, in units of its widths, by the built-in lines; many cool ones are carbon stars."""
    n, rng = 24, np.random.default_rng(6)
    fe_h, carbon, alpha = halo().draw(rng, n)
    labels = {"teff": np.full(n, teff), "logg": rng.uniform(2.5, 6.0, n)}
    spectra = LineSpectra(grid("lowres"))

    def answer(step, width):
        def flux(sign):
            fe, c, a = sign * 0.1 * np.array(step)
            abundance = _with_abundances(labels["teff"], labels["logg"], fe_h + fe, alpha + a, carbon + c)[-2]
            columns = {e: abundance[:, i] for i, e in enumerate(APOGEE_ELEMENTS) if e not in ("CI", "TiII")}
            return spectra.flux(labels, columns)

        return width * (flux(1) - flux(-1)) / 0.2

    found = {k: answer(np.eye(3)[i], SIGMAS[i]) for i, k in enumerate(("metal", "carbon", "alpha"))}
    masks = load_regions("optical_cool").masks(WAVE, "air")
    rms = {(g, k): np.sqrt(np.mean(x[:, mask] ** 2)) for g, mask in masks.items() for k, x in found.items()}
    assert rms["iron", "carbon"] < rms["iron", "metal"]
    assert rms["alpha", "alpha"] > 0.12 * rms["alpha", "metal"]
    assert rms["alpha", "carbon"] < 5 * rms["alpha", "alpha"]
    if teff < 4600:
        assert rms["carbon", "carbon"] > rms["carbon", "metal"]


def model_answering(lines, order, groups=DEFAULT_GROUPS) -> ChemicalVAE:
    """A model whose decoders answer as the mean spectrum does to the elements `order` gives to the latents."""
    masks = load_regions("optical").masks(WAVE, "air")
    pixels = {k: np.flatnonzero(v) for k, v in masks.items()}
    pixels[REST] = np.flatnonzero(~np.any(list(masks.values()), axis=0))
    mean = np.ones(WAVE.size, np.float32)
    front = {"components": np.eye(4, WAVE.size), "mean": mean, "scale": np.ones(4), "noise": np.full(WAVE.size, 1e-4)}
    config = ModelConfig(n_components=4, hidden=(8,), decoder=(), groups=groups)
    model = ChemicalVAE(config, pixels, mean, front)
    with torch.no_grad():
        for name, decoder in model.decoders.items():
            layer = decoder[-1]
            layer.weight.zero_()
            for column, k in enumerate(model.inputs(name)):
                layer.weight[:, column] = torch.from_numpy(lines[order[k]].mean(0)[pixels[name]].astype("f4"))
        for depth in model.depths.values():
            depth.zero_()
    return model


def test_lines_answer_to_their_elements(lines):
    assert set(lines) == set(NAMES)
    assert all(v.shape == (12, WAVE.size) for v in lines.values())
    band = (WAVE > 4295) & (WAVE < 4315)  # CH
    assert lines["carbon"][:, band].mean() < -2 * abs(lines["alpha"][:, band].mean())
    triplet = (WAVE > 8540) & (WAVE < 8545)  # Ca II
    assert lines["alpha"][:, triplet].mean() < -3 * abs(lines["carbon"][:, triplet].mean())
    assert line_answers(("metal",), np.array([5000.0]), np.array([4.0]), np.linspace(2e4, 2.4e4, 50), "air") == {}
    assert set(
        line_answers(("Mg", "speed"), np.array([4500.0]), np.array([2.0]), grid("hband").wavelength, "vacuum")
    ) == {"Mg"}


def test_sound_axes_pass_and_exchanged_ones_do_not(lines):
    posterior, labels = stars()
    sound = check(model_answering(lines, NAMES), posterior, labels, WAVE, "air")
    assert sound.warnings == ()
    assert all(max(row, key=row.get) == name for name, row in sound.shares.items())
    wrong = check(model_answering(lines, ("metal", "alpha", "carbon")), posterior, labels, WAVE, "air")
    assert len(wrong.warnings) == 2
    assert "'carbon' answers like alpha" in wrong.warnings[0]


def test_later_latents_are_held_against_the_first_and_cool_stars_apart(lines):
    posterior, labels = stars()
    first = check(model_answering(lines, ("metal", "metal", "alpha")), posterior, labels, WAVE, "air")
    assert any("'carbon' answers like metal" in w for w in first.warnings)
    sound = check(model_answering(lines, NAMES), posterior, labels, WAVE, "air")
    assert set(sound.by_teff) == {"coolest", "hottest"}
    shares = {"metal": {"metal": 0.4, "carbon": 0.6}, "carbon": {"metal": 0.4, "carbon": 0.5}}
    assert _exchanged(shares, ("metal", "carbon")) == ["latent 'metal' answers like carbon: share 0.60, own 0.40"]


def test_temperature_and_empty_latents_are_seen(lines):
    posterior, labels = stars()
    model = model_answering(lines, NAMES)
    hot = {**posterior, "mean": posterior["mean"] + posterior["auxiliary"][:, :1]}
    assert any("tell teff" in w for w in check(model, hot, labels, WAVE, "air").warnings)
    empty = {**posterior, "mean": posterior["mean"] * np.array([1, 1, 0.1], "f4")}
    assert any("'alpha' has learned little" in w for w in check(model, empty, labels, WAVE, "air").warnings)


def test_answers_are_taken_where_a_decoder_reads_the_latent(lines):
    posterior, _ = stars(12)
    model = model_answering(lines, NAMES)
    answers = decoder_answers(model, posterior["mean"], posterior["auxiliary"])
    own = answers[1][:, model.pixels["carbon"]]
    expected = lines["carbon"].mean(0)[model.pixels["carbon"]] * posterior["mean"][:, 1].std()
    np.testing.assert_allclose(own, np.broadcast_to(expected, own.shape), rtol=0.02, atol=1e-5)
    assert explain(answers, lines, NAMES)["carbon"]["carbon"] > 0.6


def test_a_decoder_reads_late_latents_once_the_axes_have_settled(lines):
    late = Group("iron", "metal", given_late=("carbon",))
    model = model_answering(lines, NAMES, (late, *DEFAULT_GROUPS[1:]))
    z = torch.randn(6, 3)
    other = z.clone()
    other[:, 1] += 1.0
    w = torch.zeros(6, 2)
    early, moved = (model.decode("iron", x, x, w, settled=False) for x in (z, other))
    assert torch.equal(early, moved)
    assert not torch.allclose(model.decode("iron", z, z, w), model.decode("iron", other, other, w))
