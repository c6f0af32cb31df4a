"""Unflagged hits and bad sky lines come at the rate asked for, and only where asked for."""

from __future__ import annotations

import numpy as np
import pytest

from chemscale.errors import InputError
from chemscale.simulation.artefacts import add_artefacts
from chemscale.simulation.generator import Simulation, simulate_block


def test_the_rate_is_that_asked_for_and_gaps_are_left_alone():
    flux, gap = np.ones((400, 5000), np.float32), np.zeros(5000, bool)
    gap[1000:1500] = True
    affected = add_artefacts(flux, gap, 1e-3, np.random.default_rng(0))
    np.testing.assert_array_equal(affected, flux != 1)
    assert not affected[:, gap].any()
    assert affected[:, ~gap].mean() == pytest.approx(1e-3, rel=0.15)


def test_without_hits_a_survey_is_the_same_and_with_them_only_the_flux_differs():
    rows = np.arange(40)
    plain, none, some = (simulate_block(Simulation(40, 0, 3, **k), rows) for k in ({}, {"hits": 0.0}, {"hits": 2e-3}))
    plain, none, some = plain.observed, none.observed, some.observed
    np.testing.assert_array_equal(plain.flux, none.flux)
    np.testing.assert_array_equal(plain.error, some.error)
    np.testing.assert_array_equal(plain.bad, some.bad)
    changed = plain.flux != some.flux
    assert 5e-4 < changed.mean() < 4e-3
    assert "hits" not in Simulation(40).settings()
    assert Simulation(40, hits=1e-4).settings()["hits"] == 1e-4


def test_an_impossible_rate_is_refused():
    with pytest.raises(InputError, match="fraction"):
        Simulation(10, hits=0.7)
