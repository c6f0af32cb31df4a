"""The halo of the autoencoder's paper: its moments, its shape, its errors."""

from __future__ import annotations

import numpy as np
import pytest

from chemscale.errors import InputError
from chemscale.simulation.generator import Simulation, simulate_block
from chemscale.simulation.halo import HIGH, LOW, MEANS, SIGMAS, halo


@pytest.fixture(scope="module")
def drawn():
    """[Fe/H], [C/Fe] and [alpha/Fe] of many stars."""
    return np.stack(halo().draw(np.random.default_rng(3), 100_000))


def test_marginals_are_the_papers(drawn):
    assert drawn.mean(1) == pytest.approx(MEANS, abs=0.02)
    assert drawn.std(1) == pytest.approx(SIGMAS, abs=0.02)
    r = np.corrcoef(drawn)
    assert r[0, 2] == pytest.approx(-0.3, abs=0.04)
    assert r[0, 1] == pytest.approx(-0.17, abs=0.02)
    assert (drawn >= np.array(LOW)[:, None] - 0.01).all()
    assert (drawn <= np.array(HIGH)[:, None] + 0.01).all()


def test_joint_density_is_the_normalised_product(drawn):
    table = halo()
    steps = [x[1] - x[0] for x in (table.fe_h, table.c_fe, table.alpha_fe)]
    assert table.p.sum() * steps[0] * steps[1] == pytest.approx(1.0)
    assert table.q.sum() * steps[0] * steps[2] == pytest.approx(1.0)
    r = table.p[:, :, None] * table.q[:, None, :] / table.normalisation
    assert r.sum() * np.prod(steps) == pytest.approx(1.0)
    metal_poor = (r[table.fe_h < -2].sum() * np.prod(steps), (drawn[0] < -2).mean())
    assert metal_poor[0] == pytest.approx(metal_poor[1], abs=0.01)


def test_the_halo_has_its_shape(drawn):
    fe_h, c_fe, alpha_fe = drawn
    poor, rich = fe_h < -2.0, fe_h > -0.6
    assert (c_fe > 0.7)[poor].mean() > 1.7 * (c_fe > 0.7)[rich].mean()
    plateau = [np.median(alpha_fe[(fe_h > a) & (fe_h < a + 0.3)]) for a in (-2.2, -1.6, -0.6)]
    assert abs(plateau[0] - plateau[1]) < 0.05 < plateau[1] - plateau[2]
    assert 0.06 < ((fe_h < -1) & (alpha_fe < 0)).mean() < 0.12


def test_parameters_fill_the_papers_range_and_labels_carry_its_errors():
    block = simulate_block(Simulation(512, 0, 4, "lowres", "halo"), np.arange(512))
    stars, labels = block.stars, block.labels
    assert 3000 <= stars.teff.min() < 3100 < 6900 < stars.teff.max() <= 7000
    assert 2.5 <= stars.logg.min() < 2.6 < 5.9 < stars.logg.max() <= 6.0
    assert np.std(labels["teff"] / stars.teff - 1) == pytest.approx(0.02, rel=0.15)
    assert np.std(labels["logg"] / stars.logg - 1) == pytest.approx(0.02, rel=0.15)
    assert stars.snr.mean() == pytest.approx(50, abs=2)
    np.testing.assert_allclose(labels["c_fe"], stars.fe_relative("C"), atol=1e-5)
    np.testing.assert_allclose(labels["alpha_m"], stars.alpha_fe, atol=1e-5)
    assert np.isfinite(block.observed.flux).all()


def test_label_trends_stop_where_they_were_made():
    hot = simulate_block(Simulation(2048, 0, 4, "lowres", "metal-poor"), np.arange(2048))
    above = hot.stars.teff > 6000
    off = hot.labels["c_fe"][above] - hot.stars.fe_relative("C")[above]
    assert np.nanstd(off) < 0.12
    assert abs(np.nanmedian(off)) < 0.06


def test_the_halo_needs_the_optical_grid():
    with pytest.raises(InputError, match="low-resolution"):
        Simulation(10, 0, 0, "hband", "halo")
