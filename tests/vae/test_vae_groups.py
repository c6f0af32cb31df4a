"""Any number of elements from a TOML file: groups, windows, what decoders read; evaluated by element."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from vae_toy import FAST, FAST_MODEL

from chemscale.errors import InputError
from chemscale.schema import APOGEE_ELEMENTS
from chemscale.simulation.lines import grid
from chemscale.vae import pipeline
from chemscale.vae.config import Group, ModelConfig
from chemscale.vae.evaluate import label_columns
from chemscale.vae.groups import read_groups
from chemscale.vae.model import ChemicalVAE
from chemscale.vae.train_config import TrainConfig

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "apogee_six_elements.toml"
TOY = """
medium = "air"
[correlations]
"Fe-Mg" = -0.2
[[group]]
name = "iron"
latent = "Fe"
windows = [[4000.0, 4059.5]]
[[group]]
name = "magnesium"
latent = "Mg"
given = ["Fe"]
windows = [[4060.0, 4119.5]]
"""


def test_six_elements_of_the_example_fit_the_apogee_grid():
    settings, regions = read_groups(EXAMPLE)
    config = ModelConfig.from_dict(settings)
    assert config.latents == ("Fe", "Mg", "Si", "Al", "Ca", "Ni")
    masks = regions.masks(grid("hband").wavelength, "vacuum")
    assert min(m.sum() for m in masks.values()) >= 5
    assert masks["iron"].sum() > 100


def test_a_groups_file_trains_and_is_evaluated_by_element(toy, toy_store, tmp_path):
    file = tmp_path / "two.toml"
    file.write_text(TOY)
    model = {k: v for k, v in FAST_MODEL.items() if k != "groups"}
    run = tmp_path / "run"
    pipeline.train(toy_store, run, groups=file, model=model, settings={**FAST, "epochs": 2}, scale=False)
    pipeline.infer(toy_store, run)
    ds, record, _ = pipeline.latents(run)
    assert [str(n) for n in ds["latent"].values] == ["Fe", "Mg"]
    assert record["model"]["correlations"] == {"Fe-Mg": -0.2}
    table = np.zeros((toy.sizes["star"], len(APOGEE_ELEMENTS)), "f4")
    table[:, APOGEE_ELEMENTS.index("Mg")] = 0.2 + toy["fe_h"].values
    survey = toy.assign(abundance=(("star", "element"), table)).assign_coords(element=list(APOGEE_ELEMENTS))
    columns = label_columns(survey, ("Fe", "Mg"))
    np.testing.assert_allclose(columns["mg_fe"], 0.2, atol=1e-5)
    assert "r_fe_h" in pipeline.evaluate(run, store=survey)
    assert "mg_fe" not in label_columns(survey)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('given = ["Fe"]', "gives = 1"), "gives"),
        (("windows = [[4060.0, 4119.5]]", ""), "no windows"),
        (('medium = "air"', 'medium = "air"\nregions = "apogee"'), "one medium"),
        (('medium = "air"', ""), "medium"),
    ],
)
def test_mistakes_in_a_groups_file_are_named(tmp_path, change, message):
    file = tmp_path / "bad.toml"
    file.write_text(TOY.replace(*change))
    with pytest.raises(InputError, match=message):
        read_groups(file)


def test_cool_and_warm_stars_are_read_by_other_decoders_until_the_axes_have_settled():
    groups = (Group("iron", "metal", given_cool=("carbon",)), Group("carbon", "carbon", given_warm=("metal",)))
    config = ModelConfig(encoder="conv", groups=groups, correlations={}, rest=False, depth=0.0, crossover=5000.0)
    model = ChemicalVAE(config, {"iron": [0, 1], "carbon": [2, 3]}, np.ones(4))
    with torch.no_grad():
        model.linear.weight.zero_()
        model.linear.weight[0, 0] = 1000.0  # w_0 is Teff in units of 1000 K from 5000 K
        model.label_centre[0] = 5000.0
    z, w = torch.randn(2, 2), torch.tensor([[-2.0, 0.0], [2.0, 0.0]])  # 3000 K and 7000 K
    for name, cool in (("iron", True), ("carbon", False)):
        changed = z + torch.eye(2)[1 if name == "iron" else 0]
        a, b = (model.decode(name, z, read, w, False, 0.0) for read in (z, changed))
        moved = (a - b).abs().sum(1) > 1e-4
        assert moved.tolist() == [cool, not cool]
        a, b = (model.decode(name, z, read, w) for read in (z, changed))
        assert bool(((a - b).abs().sum(1) > 1e-4).all())
        # at first each decoder learns from the stars alone of which it reads nothing
        assert model.entry(name, w, 0.0).tolist() == pytest.approx([float(not cool), float(cool)], abs=1e-4)
        assert model.entry(name, w, 1.0).tolist() == [1.0, 1.0]
    late = TrainConfig(own_side=0.2, late_phase_start=0.5)
    assert [late.late(x).entering for x in (0.0, 0.2, 0.3, 0.4, 1.0)] == pytest.approx([0, 0, 0.5, 1, 1])
    assert [late.late(x).opening for x in (0.0, 0.5, 1.0)] == [0, 0, 1]


def test_reading_by_temperature_needs_temperature():
    with pytest.raises(InputError, match="need Teff"):
        ModelConfig(
            groups=(Group("iron", "metal", given_cool=("carbon",)), Group("carbon", "carbon")),
            labels=("logg",),
            correlations={},
        )
