"""Likeness in single elements, on a survey where each element has pixels of its own."""

import json

import numpy as np
import pytest
import xarray as xr
from helpers import make_survey
from typer.testing import CliRunner

from chemscale.cli import build
from chemscale.errors import DataError, InputError
from chemscale.rsca.element_windows import find_windows, read_windows
from chemscale.rsca.elements import elements_run
from chemscale.rsca.pipeline import fit_run
from chemscale.survey.ingest.datasets import write_survey

PIXELS = {"Fe": range(10, 22), "Mg": range(50, 62), "Si": range(90, 102)}


def survey():
    """Flux follows each element only in its pixels (by 0.2 for one standard deviation), temperature everywhere."""
    ds = make_survey(500, 8, 6, n_pixels=140, seed=4, gap_pixels=0, missing=0.02).load()
    rng = np.random.default_rng(0)
    n = ds.sizes["star"]
    chem = rng.standard_normal((n, 3))
    cluster = ds["cluster"].values.astype(str)
    for name in np.unique(cluster[cluster != ""]):
        inside = cluster == name
        chem[inside] = rng.standard_normal(3) + 0.05 * chem[inside]
    warm = (ds["teff"].values - 4500) / 200
    flux = 1 + 0.02 * warm[:, None] * np.sin(np.arange(140) / 9) + 0.01 * rng.standard_normal((n, 140))
    abundance = 0.2 * chem
    abundance[:, 1:] += abundance[:, :1]
    for i, pixels in enumerate(PIXELS.values()):
        flux[:, list(pixels)] -= 0.1 * chem[:, [i]] * rng.uniform(0.5, 1, len(pixels))
    ds["flux"][:] = np.where(ds["flags"].values == 0, flux, 0.0)
    ds["abundance"][:] = abundance + 0.01 * rng.standard_normal(abundance.shape)
    return ds, chem


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("elements")
    ds, chem = survey()
    write_survey(ds, folder / "s.zarr")
    return fit_run(str(folder / "s.zarr"), folder / "run", components=5), chem


def test_windows_are_found_where_the_element_acts_and_features_follow_it(run):
    run, chem = run
    report = elements_run(run.path, components=3, n_features=1)
    assert set(report["elements"]) == set(PIXELS)
    product = xr.open_zarr(run.file("elements.zarr"), consolidated=False).load()
    assert product["features"].shape == (len(chem), 3, 1)
    for i, (element, pixels) in enumerate(PIXELS.items()):
        inside = np.flatnonzero(product["window"].sel(element=element).values)
        assert np.isin(list(pixels), inside).mean() > 0.7
        assert np.isin(inside, np.arange(pixels[0] - 5, pixels[-1] + 6)).all()
        feature = product["features"].sel(element=element).values[:, 0]
        r = np.abs(np.corrcoef(np.c_[feature, chem].T)[0, 1:])
        assert r[i] > 0.95 and np.delete(r, i).max() < 0.3
        assert report["elements"][element]["rate"] < 0.25 and report["elements"][element]["leak"] < 0.2


def test_windows_of_a_table(run, tmp_path):
    run = run[0]
    wave = xr.open_zarr(run.store, consolidated=False)["wavelength"].values
    file = tmp_path / "lines.csv"
    rows = [f"Mg,{wave[50]},{wave[61]}", f"X,{wave[3]},{wave[5]}", "Si,1,2"]
    file.write_text("element,low,high\n" + "\n".join(rows) + "\n")
    found = CliRunner().invoke(
        build(), ["rsca", "elements", "--run", str(run.path), "--windows", str(file), "--components", "3", "--json"]
    )
    assert found.exit_code == 0, found.output
    report = json.loads(found.stdout)
    assert list(report["elements"]) == ["Mg"] and report["elements"]["Mg"]["correlation"] > 0.5
    assert "2 pixels for 3 components" in report["left_out"]["X"]
    file.write_text("element,low,high\nSi,1,2\n")
    with pytest.raises(InputError, match="no window"):
        elements_run(run.path, windows=file)


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "element,low,high\nFe,3,2\n", "element,low,high\nFe,x,2\n", ""])
def test_bad_tables_are_refused(tmp_path, text):
    file = tmp_path / "w.csv"
    file.write_text(text)
    with pytest.raises(InputError):
        read_windows(file, np.linspace(1, 9, 50))
    with pytest.raises(InputError, match="No such file"):
        read_windows(tmp_path / "none.csv", np.linspace(1, 9, 50))


def test_no_abundances_no_windows(run, tmp_path):
    ds, _ = survey()
    write_survey(ds.drop_vars(["abundance", "abundance_error", "element"]), tmp_path / "s.zarr")
    bare = fit_run(str(tmp_path / "s.zarr"), tmp_path / "run", components=4)
    with pytest.raises(DataError, match="abundances of fewer than two"):
        elements_run(bare.path)
    assert find_windows({"Fe": np.zeros(50), "Mg": np.ones(50)}) == {}
