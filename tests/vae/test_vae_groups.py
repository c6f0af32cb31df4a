"""Any number of elements from a TOML file: groups, windows, what decoders read; evaluated by element."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from vae_toy import FAST, FAST_MODEL

from chemscale.errors import InputError
from chemscale.schema import APOGEE_ELEMENTS
from chemscale.simulation.lines import grid
from chemscale.vae import pipeline
from chemscale.vae.config import ModelConfig
from chemscale.vae.evaluate import label_columns
from chemscale.vae.groups import read_groups

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
