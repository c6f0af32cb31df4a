"""Whether carbon rules windows of cool stars is told by spectra alone."""

from __future__ import annotations

import numpy as np
import pytest
from vae_catalogue import dataset

from chemscale.simulation.lines import LineSpectra, grid
from chemscale.vae.config import DEFAULT_GROUPS, Group, ModelConfig
from chemscale.vae.element_lines import METALLICITY
from chemscale.vae.prepare import Survey, look_at
from chemscale.vae.regions import load_regions
from chemscale.vae.ruling import RULES, spread_ratio, with_ruling

REGIONS = load_regions("optical")
ELEMENTS = ("C", "N", "O", "Na", "Mg", "Al", "Si", "Ca", "Ti", "V", "Cr", "Mn", "Fe", "Co", "Ni")


def survey(carbon: float, metals: float, n: int = 400) -> Survey:
    """Stars of 4,700 to 6,400 K by the built-in lines whose [C/Fe] and [Fe/H] spread over so many dex."""
    rng = np.random.default_rng(3)
    teff, logg = rng.uniform(4700, 6400, n), rng.uniform(3, 5, n)
    fe_h, c_fe = METALLICITY + metals * rng.standard_normal(n), carbon * rng.standard_normal(n)
    abundance = {e: fe_h + c_fe * (e == "C") for e in ELEMENTS}
    lines = grid("lowres")
    flux = LineSpectra(lines).flux({"teff": teff, "logg": logg}, abundance)
    flux = flux + rng.standard_normal(flux.shape) / 80
    labels = np.stack([teff, logg, fe_h, c_fe, np.zeros(n)], 1)
    return look_at(dataset(lines.wavelength, flux, np.full(n, 80.0), labels, labels[:, :2]))


@pytest.fixture(scope="module")
def narrow() -> Survey:
    return survey(0.2, 0.5)


@pytest.fixture(scope="module")
def wide() -> Survey:
    return survey(0.7, 0.4)


def test_carbon_that_spreads_widely_keeps_the_default_table(wide):
    assert spread_ratio(wide, REGIONS, "metal", "carbon") > RULES
    assert with_ruling(wide, ModelConfig(), REGIONS).groups == DEFAULT_GROUPS


def test_carbon_that_spreads_little_is_read_by_no_iron_decoder(narrow):
    assert spread_ratio(narrow, REGIONS, "metal", "carbon") < RULES
    found = with_ruling(narrow, ModelConfig(), REGIONS)
    assert found.latents == ModelConfig().latents
    assert [g.read for g in found.groups] == [(), ("metal",), ("metal", "carbon")]
    assert not any(g.given_cool or g.given_warm for g in found.groups)


def test_missing_pixels_change_little(narrow):
    whole = spread_ratio(narrow, REGIONS, "metal", "carbon")
    ds = narrow.ds.copy(deep=True)
    ds["flags"].values[np.random.default_rng(0).random(ds["flags"].shape) < 0.3] = 1
    assert spread_ratio(look_at(ds), REGIONS, "metal", "carbon") == pytest.approx(whole, rel=0.2)


def test_a_table_without_cool_stars_and_too_few_stars_are_left_alone(narrow):
    plain = ModelConfig(groups=(Group("iron", "metal"), Group("carbon", "carbon", ("metal",))), correlations={})
    assert with_ruling(narrow, plain, REGIONS) is plain
    few = look_at(narrow.ds.isel(star=slice(60)))
    assert spread_ratio(few, REGIONS, "metal", "carbon") is None
    assert with_ruling(few, ModelConfig(), REGIONS) == ModelConfig()
