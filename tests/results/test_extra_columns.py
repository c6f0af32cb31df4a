"""Columns that the contract does not know: stored on request, they reach tables, figures, the report, other files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr
from astropy.table import Table
from toyrun import toy_survey
from typer.testing import CliRunner

import chemscale
from chemscale.cli import build
from chemscale.errors import InputError
from chemscale.report import build_report
from chemscale.rsca.pipeline import fit_run
from chemscale.schema import VARIABLES, SchemaError, star_variables
from chemscale.survey.ingest.ingestion import ingest
from chemscale.survey.sources.table import TableSource


def cli(*words):
    done = CliRunner().invoke(build(), [str(w) for w in words])
    assert done.exit_code == 0, f"{words}: {done.output}\n{done.exception!r}"
    return done


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    ds = toy_survey(n_field=150, n_clusters=5, n_pixels=40)
    names = ("flux", "ivar", "wavelength", "star_id", "cluster", "teff", "logg", "fe_h")
    arrays = {n: ds[n].values.astype(str) if ds[n].dtype == object else ds[n].values for n in names}
    n = ds.sizes["star"]
    age = np.where(np.arange(n) % 7 == 0, np.nan, np.arange(n) / 10.0)
    path = tmp_path_factory.mktemp("extra") / "mine.npz"
    big = np.full(n, 2**60, dtype=np.int64)
    np.savez(path, **arrays, age=age, n_planets=np.arange(n), gaia=big, note=np.full(n, "x"), pair=np.zeros((n, 2)))
    return path, age


@pytest.fixture(scope="module")
def run(table):
    path, _ = table
    store = path.parent / "mine.zarr"
    shown = cli("ingest", "table", path, "--extra", "age", "--extra", "n_planets", "--out", store, "--workers", 0)
    told = " ".join(shown.output.split())
    assert "stored besides the contract: x_age, x_n_planets" in told
    assert "not stored" in told and "gaia" in told.split("not stored")[1] and "x_gaia" not in told
    return fit_run(str(store), path.parent / "run", components=4)


def test_the_store_keeps_every_value_and_obeys_the_contract(run, table):
    survey = chemscale.open_survey(run.store)
    chemscale.validate(survey)
    np.testing.assert_array_equal(survey["x_age"].values, table[1])
    assert survey["x_n_planets"].dtype == np.float64 and survey["x_age"].attrs["long_name"].startswith("age of the")
    assert star_variables(survey.variables)[-2:] == ("x_age", "x_n_planets")
    assert "x_age" in survey.chemscale.to_table().colnames
    cli("verify", run.store)


def test_export_plot_and_report_have_them(run, table, tmp_path):
    cli("export", run.path, "--out", tmp_path / "stars.fits")
    stars = Table.read(tmp_path / "stars.fits")
    np.testing.assert_array_equal(np.asarray(stars["x_age"].filled(np.nan)), table[1])
    cli("plot", "columns", run.path, "x_age", "rsca_1", "--out", tmp_path / "age.png")
    page = build_report(run, tmp_path / "report.html").read_text(encoding="utf-8")
    data = json.loads(page.split('id="report-data">', 1)[1].split("</script>", 1)[0])
    assert {"name": "x_age", "title": "age"}.items() <= next(
        c for c in data["explore"]["columns"] if c["name"] == "x_age"
    ).items()


def test_a_joined_catalogue_wins_over_the_survey(run, tmp_path):
    ids = chemscale.open_survey(run.store)["star_id"].values.astype(str)
    Table({"star_id": ids, "age": np.full(len(ids), 3.5)}).write(tmp_path / "newer.csv")
    cli("export", run.path, "--out", tmp_path / "stars.csv", "--join", tmp_path / "newer.csv")
    stars = Table.read(tmp_path / "stars.csv")
    assert stars.colnames.count("x_age") == 1 and set(stars["x_age"]) == {3.5}


def test_they_survive_a_copy_and_spectra_given_away(run, table, tmp_path):
    survey = chemscale.open_survey(run.store)
    copy = chemscale.open_survey(chemscale.write_survey(survey.isel(star=slice(0, 30)), tmp_path / "copy.zarr"))
    np.testing.assert_array_equal(copy["x_age"].values, table[1][:30])
    first = [str(s) for s in survey["star_id"].values[:3]]
    (tmp_path / "ids.txt").write_text("\n".join(first))
    cli("export-spectra", run.store, "--stars", tmp_path / "ids.txt", "--out", tmp_path / "some.fits")
    source = TableSource(str(tmp_path / "some.fits"), extra=["x_age"])
    ingest(source, tmp_path / "again.zarr", progress=False)
    np.testing.assert_array_equal(chemscale.open_survey(tmp_path / "again.zarr")["x_age"].values, table[1][:3])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("agee", "no column 'agee'"),
        ("note", "expected numbers"),
        ("pair", "expected \\("),
        ("gaia", "cannot tell apart"),
    ],
)
def test_what_cannot_be_stored_is_refused_with_its_name(table, name, words):
    with pytest.raises(InputError, match=words):
        TableSource(str(table[0]), extra=[name]).plan()


def test_without_extra_columns_a_source_describes_itself_as_before(table):
    assert "extra" not in TableSource(str(table[0])).describe()
    assert "x_age" not in VARIABLES and VARIABLES["x_age"].dtype == "float64"


def test_an_extra_column_of_another_kind_breaks_the_contract():
    ds = toy_survey(n_field=20, n_clusters=2, n_pixels=20)
    with pytest.raises(SchemaError, match="x_age: dtype is float32"):
        chemscale.validate(ds.assign(x_age=xr.zeros_like(ds["teff"])))


def test_names_that_no_folder_can_have_are_stored_under_ones_that_can(table, tmp_path):
    path, _ = table
    with np.load(path) as arrays:
        np.savez(tmp_path / "t.npz", **arrays, **{"[Fe/H]": np.arange(len(arrays["age"])), "..": arrays["age"]})
    store = tmp_path / "t.zarr"
    shown = cli("ingest", "table", tmp_path / "t.npz", "--extra", "[Fe/H]", "--extra", "..", "--out", store)
    assert "x_[Fe_H]" in " ".join(shown.output.split())
    cli("verify", store)
    survey = chemscale.open_survey(store)
    np.testing.assert_array_equal(survey["x_[Fe_H]"].values, np.arange(survey.sizes["star"]))
    chemscale.export_spectra(survey, tmp_path / "t.fits")
    again = TableSource(str(tmp_path / "t.fits"), extra=["x_[Fe_H]"]).plan()
    assert again.attrs["extra"] == ["x_[Fe_H]"]


def test_two_columns_are_never_stored_as_one(table, tmp_path):
    path, _ = table
    with np.load(path) as arrays:
        np.savez(tmp_path / "t.npz", **arrays, x_age=2 * arrays["age"], Age=3 * arrays["age"])
    for other in ("x_age", "Age"):
        with pytest.raises(InputError, match="both be stored"):
            TableSource(str(tmp_path / "t.npz"), extra=["age", other]).plan()
    for nothing in ("", "x_", " "):
        with pytest.raises(InputError, match="names no column"):
            TableSource(str(tmp_path / "t.npz"), extra=[nothing]).plan()
    assert TableSource(str(tmp_path / "t.npz"), extra=["age", "age"]).plan().attrs["extra"] == ["x_age"]


def test_an_append_says_which_columns_the_store_has_no_place_for(table, tmp_path):
    path, _ = table
    store, table_to = tmp_path / "s.zarr", ("ingest", "table", path, "--workers", 0, "--out")
    cli(*table_to, store, "--extra", "age")
    shown = cli(*table_to, store, "--extra", "age", "--extra", "n_planets", "--append", "--replace")
    told = " ".join(shown.output.split())
    assert "stored besides the contract: x_age;" in told
    assert "x_n_planets (the store was made without it)" in told
    assert "x_n_planets" not in chemscale.open_survey(store)
