"""The table of a run: the same values in every format, with units, in the memory of a block."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import zarr
from astropy.io import fits
from astropy.table import Table
from toyrun import add_latents, make_run, toy_survey
from typer.testing import CliRunner

import chemscale
from chemscale.cli import build
from chemscale.errors import DataError, InputError, StoreError
from chemscale.results import columns
from chemscale.results.export import export

FORMATS = ("fits", "vot", "parquet", "csv")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    ds = toy_survey(n_field=300, n_pixels=80)
    out = make_run(tmp_path_factory.mktemp("results"), ds)
    add_latents(out, ds.sizes["star"])
    return chemscale.Run(out.path)


@pytest.mark.parametrize("ending", FORMATS)
def test_every_format_gives_the_values_of_the_table_in_memory(run, tmp_path, ending, monkeypatch):
    monkeypatch.setattr(columns, "BLOCK_STARS", 100)
    file = tmp_path / f"stars.{ending}"
    export(run, file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no unit that a reader stumbles over
        read = Table.read(file)
    here = run.table()
    assert read.colnames == here.colnames and len(read) == len(here)
    for name in here.colnames:
        a = np.asarray(here[name])
        b = np.ma.filled(read[name], {"U": "", "f": np.nan}.get(a.dtype.kind))
        if a.dtype.kind == "f":
            np.testing.assert_allclose(np.asarray(b, float), a.astype(float), rtol=1e-7, err_msg=name)
        else:
            assert (np.asarray(b).astype(a.dtype) == a).all(), name
    if ending in ("fits", "vot"):
        assert str(read["teff"].unit) == "K"
    if ending == "vot":
        assert str(read["vae_fe_h"].unit) == "dex"
        assert read["rsca_1"].description.startswith("RSCA feature 1")


def test_fits_follows_the_standard_and_carries_ucds(run, tmp_path):
    export(run, tmp_path / "stars.fits")
    with fits.open(tmp_path / "stars.fits") as hdus:
        hdus.verify("exception")
        header = hdus["STARS"].header
        names = [header[f"TTYPE{k}"] for k in range(1, header["TFIELDS"] + 1)]
        assert header[f"TUCD{names.index('ra') + 1}"] == "pos.eq.ra;meta.main"
        assert header[f"TCOMM{names.index('rsca_1') + 1}"].startswith("RSCA feature 1")
    assert (tmp_path / "stars.fits").stat().st_size % 2880 == 0


def test_features_are_those_of_the_metric_and_errors_follow_from_the_variances(run):
    table, features = run.table(), run.features()
    star = str(table["star_id"][17])
    np.testing.assert_allclose(table.loc[star]["rsca_2"], features.sel(star=star).values[1], rtol=1e-4, atol=1e-6)
    embedding = chemscale.open_embedding(run.file("embedding.zarr"))
    rng = np.random.default_rng(1)
    z = embedding["coords"].values[17] + rng.normal(size=(20_000, 6)) * np.sqrt(embedding["coords_variance"].values[17])
    from chemscale.rsca.pipeline import load_metric

    drawn = load_metric(run).transform(z)[:, 0].std()
    assert table["rsca_1_error"][17] == pytest.approx(drawn, rel=0.05)


def test_abundances_in_dex_are_calibrated_and_carry_errors(run):
    table, latents = run.table(), run.latents()
    expected = 0.3 * latents["latents"].sel(latent="metal").values - 0.1
    assert np.std(np.asarray(table["vae_fe_h"]) - expected) < 0.02
    assert 0.03 < np.median(table["vae_fe_h_error"]) < 0.1
    assert "vae_alpha_fe" not in table.colnames  # nobody knows its scale
    star = str(table["star_id"][3])
    assert latents.sel(star=star)["latents_error"].values == pytest.approx([0.2, 0.2])


def test_latents_of_other_stars_are_left_out_with_the_reason(run, tmp_path):
    other = make_run(tmp_path, toy_survey(n_field=150, n_pixels=60))
    add_latents(other, chemscale.open_embedding(other.file("embedding.zarr")).sizes["star"])
    group = zarr.open_group(other.file("latents.zarr"), mode="r+")
    group["star_id"][0] = "somebody else"
    table = export(other, tmp_path / "x.csv")
    assert any("latents.zarr" in reason for reason in table.left_out)
    assert not any(c.name.startswith("latent_") for c in table.columns)


def test_mistakes_have_remedies(run, tmp_path):
    with pytest.raises(InputError, match="ending"):
        export(run, tmp_path / "stars.xlsx")
    with pytest.raises(StoreError, match="not a chemscale run"):
        chemscale.Run(tmp_path)
    with pytest.raises(StoreError, match="no latents"):
        chemscale.open_latents(tmp_path)
    table = columns.RunTable(1, [columns._text("cluster", np.array(["Běta"]), "name")])
    with pytest.raises(DataError, match=r"cluster.*FITS"):
        from chemscale.results.export import WRITERS

        WRITERS[".fits"](table, tmp_path / "x.fits")


def test_the_command_line_exports_and_prints_the_contract(run, tmp_path):
    done = CliRunner().invoke(build(), ["export", str(run.path), "--out", str(tmp_path / "s.fits"), "--json"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["stars"] == len(run.table()) and facts["columns"]["vae_fe_h"]["unit"] == "dex"
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".partial")]
    contract = CliRunner().invoke(build(), ["schema"])
    assert contract.exit_code == 0 and "radial_velocity" in contract.stdout and "[Fe/H]" in contract.stdout
