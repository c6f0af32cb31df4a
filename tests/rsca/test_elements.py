"""Likeness in single elements, on a survey where each element has pixels of its own."""

import json

import numpy as np
import pytest
import xarray as xr
from helpers import make_survey
from typer.testing import CliRunner

from chemscale.cli import build
from chemscale.errors import DataError, InputError
from chemscale.rsca.element_windows import find_windows, line_windows, read_windows
from chemscale.rsca.elements import elements_run
from chemscale.rsca.pipeline import fit_run
from chemscale.simulation.atomic import vacuum_to_air
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
        if element != "Fe":
            assert report["elements"][element]["own"] > 0.6
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
    with pytest.raises(DataError, match="no line that ships lies between 15000 and"):
        elements_run(bare.path, windows="lines")


def test_lines_that_ship_give_windows_on_apogees_grid_in_either_medium():
    wave = 10 ** (4.179 + 6e-6 * np.arange(8575))
    windows = line_windows(wave, "vacuum")
    assert {"Fe", "Mg", "Al", "Si", "Ca", "Ti", "Ni", "Mn", "K"} <= set(windows)
    # well-known lines of APOGEE (vacuum): Al I 16723.5 and 16755.1, Mg I 15753.3, Mn I 15221.6, K I 15172.5
    for element, place in (("Al", 16723.5), ("Al", 16755.1), ("Mg", 15753.3), ("Mn", 15221.6), ("K", 15172.5)):
        assert any(wave[a] < place < wave[b - 1] for a, b in windows[element]), (element, place)
    taken = np.zeros(len(wave), int)
    for spans in windows.values():
        assert spans == sorted(spans) and all(a < b for a, b in spans)
        for a, b in spans:
            taken[a:b] += 1
    assert np.mean(taken > 1) < 0.005  # hardly a pixel tells of two elements
    in_air = line_windows(vacuum_to_air(wave), "air")
    assert in_air.keys() == windows.keys()
    assert in_air["Al"] == windows["Al"]
    assert line_windows(np.linspace(30000, 31000, 500), "vacuum") == {}


def test_lines_that_ship_are_the_default_on_a_grid_they_reach(tmp_path):
    ds, _ = survey()
    wave = 10 ** (4.179 + 6e-6 * (7350 + np.arange(140)))  # 16723 to 16755: two lines of aluminium
    ds = ds.assign_coords(wavelength=("wavelength", wave, ds["wavelength"].attrs))
    write_survey(ds, tmp_path / "s.zarr")
    run = fit_run(str(tmp_path / "s.zarr"), tmp_path / "run", components=4)
    report = elements_run(run.path, components=3, n_features=1)
    assert report["source"] == "the atomic lines that ship" and "Al" in report["elements"]
    assert "no line of its own" in report["left_out"]["Mg"]
    assert elements_run(run.path, windows="abundances", components=3)["source"] == "the survey's own abundances"


def test_a_store_whose_stars_were_replaced_is_refused(tmp_path):
    from chemscale import open_survey
    from chemscale.report import build_report
    from chemscale.rsca.evaluate import evaluate_run
    from chemscale.rsca.pair import pair
    from chemscale.survey.export import export_spectra
    from chemscale.survey.ingest.append import append
    from chemscale.survey.sources.table import TableSource

    store = tmp_path / "s.zarr"
    write_survey(make_survey(300, 6, 6, n_pixels=80, seed=1), store)
    run = fit_run(str(store), tmp_path / "run", components=4)
    ids = open_survey(store)["star_id"].values
    export_spectra(open_survey(store), tmp_path / "part.fits", slice(0, 50))
    append(TableSource(str(tmp_path / "part.fits")), store, replace_existing=True)
    for refused in (
        lambda: elements_run(run.path, windows="abundances"),
        lambda: pair(ids[60], ids[61], run.path),
        lambda: evaluate_run(run.path),
    ):
        with pytest.raises(InputError, match="no longer those of the run"):
            refused()
    assert build_report(run, tmp_path / "report.html").is_file()


def test_stars_appended_after_the_fit_take_no_abundance_from_the_run(tmp_path):
    from chemscale import Run, open_survey
    from chemscale.rsca.evaluate import evaluate_run
    from chemscale.studies.sample import Sample
    from chemscale.survey.export import export_spectra
    from chemscale.survey.ingest.append import append
    from chemscale.survey.sources.table import TableSource

    store = tmp_path / "s.zarr"
    write_survey(make_survey(300, 6, 6, n_pixels=80, seed=1), store)
    run = fit_run(str(store), tmp_path / "run", components=4)
    alone = evaluate_run(run.path)["abundances"]
    assert alone
    more = make_survey(40, 2, 4, n_pixels=80, seed=2)
    more["star_id"] = ("star", np.array([f"new {i}" for i in range(more.sizes["star"])], dtype=object))
    write_survey(more, tmp_path / "more.zarr")
    append(TableSource(export_spectra(open_survey(tmp_path / "more.zarr"), tmp_path / "more.fits")), store)
    assert evaluate_run(run.path)["abundances"] == alone
    assert Sample.read(Run(run.path)).elements
    table = Run(run.path).table()
    assert np.isfinite(table["teff"]).any() and not table.meta["left_out"]
    assert len(table) == open_survey(store).sizes["star"] - more.sizes["star"]
