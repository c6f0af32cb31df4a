"""The guard over the axes: an exchange, a temperature, an empty latent, stars known by heart, without an abundance."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chemscale.schema import APOGEE_ELEMENTS
from chemscale.simulation.halo import SIGMAS, halo
from chemscale.simulation.lines import LineSpectra, grid
from chemscale.simulation.population import _with_abundances
from chemscale.vae.alignment import check, follow_lines
from chemscale.vae.config import Group, ModelConfig
from chemscale.vae.element_lines import line_answers
from chemscale.vae.model import ChemicalVAE
from chemscale.vae.regions import load_regions

NAMES = ("metal", "carbon", "alpha")
WAVE = grid("lowres").wavelength


def stars(n: int = 400, seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Posteriors of chemistry that knows nothing of temperature, and Teff and log g."""
    rng = np.random.default_rng(seed)
    mean = rng.standard_normal((n, 3)).astype("f4")
    teff = rng.uniform(4200, 6800, n)
    covariance = np.broadcast_to(0.1 * np.eye(3, dtype="f4"), (n, 3, 3))
    return {"mean": mean, "covariance": covariance}, {"teff": teff, "logg": np.full(n, 4.2)}


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


@pytest.fixture(scope="module")
def halo_stars():
    """Noisy spectra of the paper's halo by the built-in lines, their Teff and log g, and their abundances."""
    n, rng = 240, np.random.default_rng(4)
    fe_h, carbon, alpha = halo().draw(rng, n)
    labels = {"teff": rng.uniform(4200.0, 6800.0, n), "logg": rng.uniform(2.5, 5.0, n)}
    abundance = _with_abundances(labels["teff"], labels["logg"], fe_h, alpha, carbon)[-2]
    columns = {e: abundance[:, i] for i, e in enumerate(APOGEE_ELEMENTS) if e not in ("CI", "TiII")}
    flux = LineSpectra(grid("lowres")).flux(labels, columns)
    noisy = (flux + rng.standard_normal(flux.shape) / 50).astype("f4")
    return (noisy, np.full(flux.shape, 2500.0, "f4")), labels, np.stack([fe_h, carbon, alpha], 1)


def judged(mean, halo_stars):
    spectra, labels, _ = halo_stars
    covariance = np.broadcast_to(0.05 * np.eye(3), (len(mean), 3, 3))
    lines = follow_lines(mean, NAMES, spectra, labels, WAVE, "air")
    return check(NAMES, {"mean": mean, "covariance": covariance}, labels, lines)


def test_sound_axes_pass_and_exchanged_ones_do_not(halo_stars):
    z = halo_stars[2] / halo_stars[2].std(0)
    sound = judged(z, halo_stars)
    assert sound.warnings == ()
    assert all(max(row, key=lambda k: abs(row[k])) == name for name, row in sound.lines.items())
    wrong = judged(z[:, [0, 2, 1]], halo_stars)
    assert len(wrong.warnings) == 2
    assert "'carbon' follows the lines of alpha" in wrong.warnings[0]


def test_a_later_latent_that_copies_the_first_is_seen(halo_stars):
    z = halo_stars[2] / halo_stars[2].std(0)
    copied = np.stack([z[:, 0], z[:, 1], 0.3 * z[:, 2] - z[:, 0]], 1)
    found = judged(copied, halo_stars).warnings
    assert len(found) == 1 and "'alpha' follows the lines of metal" in found[0]


def test_a_latent_without_lines_is_not_judged_by_them(halo_stars):
    spectra, labels, truth = halo_stars
    named = follow_lines(truth, ("metal", "speed", "alpha"), spectra, labels, WAVE, "air")
    assert set(named) == {"metal", "alpha"} == set(named["metal"])
    assert follow_lines(truth, NAMES, spectra, labels, WAVE + 20_000.0, "air") == {}
    few = tuple(x[:50] for x in spectra)
    assert follow_lines(truth[:50], NAMES, few, {k: v[:50] for k, v in labels.items()}, WAVE, "air") == {}


def test_molecules_are_not_taken_for_lines_of_the_elements_that_latents_stand_for():
    """Giants whose carbon, nitrogen and oxygen vary on their own; latents of iron and magnesium that are true."""
    n, rng, names = 220, np.random.default_rng(8), ("Fe", "Mg")
    labels = {"teff": rng.uniform(4200.0, 5000.0, n), "logg": rng.uniform(1.5, 3.0, n)}
    fe_h, mg_fe = rng.normal(-0.3, 0.3, n), rng.normal(0.1, 0.08, n)
    free = {"Mg": mg_fe} | {e: rng.normal(0.0, 0.15, n) for e in ("C", "N", "O")}
    columns = {e: fe_h + free.get(e, 0.0) for e in APOGEE_ELEMENTS if e not in ("CI", "TiII")}
    flux = LineSpectra(grid("hband")).flux(labels, columns)
    spectra = ((flux + rng.standard_normal(flux.shape) / 100).astype("f4"), np.full(flux.shape, 1e4, "f4"))
    truth = np.stack([fe_h, mg_fe], 1)
    found = follow_lines(truth, names, spectra, labels, grid("hband").wavelength, "vacuum")
    assert set(found) == set(found["Mg"]) == set(names)
    assert found["Mg"]["Mg"] > 0.8 > abs(found["Mg"]["Fe"])  # 0.27 where molecules are left out of the fit


def test_temperature_and_empty_latents_are_seen():
    posterior, labels = stars()
    hot = {**posterior, "mean": posterior["mean"] + (labels["teff"][:, None] - 5500) / 750}
    assert any("tell teff" in w for w in check(NAMES, hot, labels, {}).warnings)
    empty = {**posterior, "mean": posterior["mean"] * np.array([1, 1, 0.1], "f4")}
    assert any("'alpha' has learned little" in w for w in check(NAMES, empty, labels, {}).warnings)


def test_a_few_stars_of_huge_stated_error_make_no_latent_empty():
    posterior, labels = stars()
    covariance = posterior["covariance"].copy()
    covariance[:20] = 1e3 * np.eye(3)
    assert check(NAMES, {**posterior, "covariance": covariance}, labels, {}).warnings == ()


def test_stars_known_by_heart_are_seen():
    posterior, labels = stars()
    chi2 = np.random.default_rng(1).normal(1.0, 0.1, (400, 4))
    outside = {**posterior, "chi2": 1.1 * chi2}
    assert any("overfits" in w for w in check(NAMES, outside, labels, {}, chi2).warnings)
    assert check(NAMES, {**posterior, "chi2": 1.01 * chi2}, labels, {}, chi2).warnings == ()
    assert np.isnan(check(NAMES, posterior, labels, {}).overfit)


def test_a_decoder_reads_late_latents_once_the_axes_have_settled():
    table = (Group("iron", "metal", given_late=("carbon",)), Group("carbon", "carbon", ("metal",)))
    pixels = {k: np.flatnonzero(v) for k, v in load_regions("optical").masks(WAVE, "air").items()}
    mean = np.ones(WAVE.size, np.float32)
    front = {"components": np.eye(4, WAVE.size), "mean": mean, "scale": np.ones(4), "noise": np.full(WAVE.size, 1e-4)}
    shape = ModelConfig(n_components=4, hidden=(8,), decoder=(), groups=table, correlations={}, rest=False)
    model = ChemicalVAE(shape, pixels, mean, front)
    with torch.no_grad():
        model.decoders["iron"][-1].weight.fill_(0.01)
    z = torch.randn(6, 2)
    other = z.clone()
    other[:, 1] += 1.0
    w = torch.zeros(6, 2)
    early, moved = (model.decode("iron", x, x, w, settled=False) for x in (z, other))
    assert torch.equal(early, moved)
    assert not torch.allclose(model.decode("iron", z, z, w), model.decode("iron", other, other, w))
