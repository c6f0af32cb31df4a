"""The compiled way through inference against the tensor code, and calibration of latents."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from chemscale.errors import InputError
from chemscale.vae.calibrate import fit_calibration, largest_set
from chemscale.vae.config import ModelConfig
from chemscale.vae.data import clean
from chemscale.vae.engine import Engine
from chemscale.vae.model import ChemicalVAE
from chemscale.vae.scores import scores_in_batches

PIXELS = {"iron": np.arange(0, 80), "alpha": np.arange(60, 130), "carbon": np.arange(120, 200)}


def network(encoder: str, rest: bool) -> ChemicalVAE:
    """An untrained model with overlapping groups and, without `rest`, pixels nobody predicts."""
    rng = np.random.default_rng(3)
    torch.manual_seed(2)
    front = {
        "components": np.linalg.qr(rng.standard_normal((240, 6)))[0].T,
        "scale": np.linspace(2, 0.5, 6),
        "noise": np.full(240, 1e-4),
        "mean": np.full(240, 0.9),
    }
    config = ModelConfig(encoder=encoder, n_components=6, hidden=(16,), decoder=(8,), rest=rest)
    pixels = PIXELS | ({"rest": np.arange(200, 240)} if rest else {})
    return ChemicalVAE(config, pixels, np.full(240, 0.9), front if encoder == "ppca" else None).eval()


@pytest.mark.parametrize(("encoder", "rest"), [("ppca", True), ("ppca", False), ("conv", True)])
def test_engine_agrees_with_tensor_code(encoder, rest):
    model = network(encoder, rest)
    rng = np.random.default_rng(0)
    n = 300 if encoder == "ppca" else 4
    flux = (0.9 + 0.05 * rng.standard_normal((n, 240))).astype(np.float32)
    ivar = np.broadcast_to((400 * rng.random((n, 1)) + 100).astype(np.float32), flux.shape).copy()
    ivar[::2] *= rng.uniform(0.5, 2, (len(ivar[::2]), 240)).astype(np.float32)  # errors that differ by pixel
    flags = np.zeros(flux.shape, np.uint8)
    flags[1::3] = np.where(rng.random(flags[1::3].shape) < 0.1, 4, 0)
    flags[0, :30] = 1  # a bit that is not selected
    flux[2, 5], ivar[2, 7], ivar[3, 9] = np.nan, np.inf, -1.0
    flags[3] = 4  # nothing left
    got = Engine(model)(flux, ivar, flags, bits=0b11111110, floor=0.01)
    cleaned = clean(flux, ivar, flags, selected=0b11111110, floor=0.01)
    expected = scores_in_batches(model, *cleaned, floor=0.01)
    assert set(got) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(got[name], values, rtol=2e-4, atol=2e-5, err_msg=name)
    assert np.isnan(got["chi2"][3]).all()


def test_engine_is_safe_in_threads():
    from concurrent.futures import ThreadPoolExecutor

    engine = Engine(network("ppca", True))
    rng = np.random.default_rng(1)
    blocks = [(0.9 + 0.05 * rng.standard_normal((50, 240))).astype(np.float32) for _ in range(12)]
    weight = np.full((50, 240), 400.0, np.float32)
    alone = [engine(b, weight)["local"] for b in blocks]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda b: engine(b, weight)["local"], blocks))
    np.testing.assert_array_equal(np.stack(alone), np.stack(together))


def cloud(n: int, seed: int = 0):
    """Latents that mix, a second label that shows in w, posterior variances that differ."""
    rng = np.random.default_rng(seed)
    truth, teff = rng.standard_normal((n, 3)), rng.uniform(-1, 1, (n, 2))
    variance = rng.uniform(0.0, 0.2, (n, 3))
    z = truth + 0.2 * truth[:, [1, 2, 0]] * teff[:, :1] + np.sqrt(variance) * rng.standard_normal((n, 3))
    return z, teff, variance, 0.2 + 0.4 * truth[:, 2]


def test_calibration_grows_with_the_labels():
    z, w, variance, dex = cloud(6000)
    rms = {}
    for n in (2, 40, 4000):
        known = np.full(6000, np.nan)
        known[:n] = dex[:n]
        found = fit_calibration(z, w, variance, 2, known)
        value, error = found.apply(z, w, variance)
        rms[n] = np.sqrt(np.mean((value - dex)[4000:] ** 2))
        assert found.n_stars == n
        assert np.isfinite(found.residual).sum() == len(found.rows) == n
        if n == 2:
            assert found.degree == 0
        if n == 4000:
            assert found.degree >= 2
            pull = (value - dex)[4000:] / error[4000:]
            assert pull.std() == pytest.approx(1, abs=0.1)
            sharp = variance[4000:, 2] < 0.03
            assert pull[sharp].std() == pytest.approx(1, abs=0.2)
    assert rms[4000] < 0.97 * rms[40]
    with pytest.raises(InputError, match="different latents"):
        fit_calibration(z, w, variance, 2, np.where(np.arange(6000) < 1, dex, np.nan))


def test_purity_is_kept():
    rng = np.random.default_rng(4)
    p = rng.beta(0.3, 1.0, 40_000)
    truth = rng.random(40_000) < p
    limit = largest_set(p, 0.9)
    assert truth[p >= limit].mean() == pytest.approx(0.9, abs=0.015)
    counted = largest_set(p**3, 0.9, truth)  # probabilities that are wrong: counting does not mind
    assert truth[p**3 >= counted].mean() == pytest.approx(0.9, abs=0.015)
    kept = []
    for _ in range(60):  # purity of *further* stars is kept about as often as is said
        rows = rng.permutation(40_000)
        few, rest = rows[:4000], rows[4000:]
        flagged = p[rest] >= largest_set(p[few], 0.8, truth[few])
        kept.append(truth[rest][flagged].mean() >= 0.8)
    assert np.mean(kept) > 0.75
    assert largest_set(np.full(10, 0.2), 0.9) > 1
