"""Figures to publish: points and program beside each, columns of any kind, errors that name the column meant."""

from __future__ import annotations

import csv
import re
import subprocess
import sys

import numpy as np
import pytest
from toyrun import add_latents, make_run, toy_survey
from typer.testing import CliRunner

from chemscale.cli import build
from chemscale.errors import InputError
from chemscale.results import plots, spectra
from chemscale.studies import style


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    ds = toy_survey(n_field=300, n_pixels=80)
    out = make_run(tmp_path_factory.mktemp("plots"), ds)
    add_latents(out, ds.sizes["star"])
    return out


def rows(file):
    with file.open(newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


@pytest.mark.parametrize("ending", plots.ENDINGS)
def test_points_and_program_lie_beside_the_figure(run, tmp_path, ending):
    plot = plots.columns(run, "fe_h", "rsca_1", colour="teff")
    figure, points, program = plots.save(plot, tmp_path / f"figure{ending}")
    assert figure.stat().st_size > 1000
    assert len(rows(points)) == 348 and float(rows(points)[3]["rsca_1"]) == pytest.approx(plot.table["rsca_1"][3], 1e-5)
    assert "plots.columns(" in program.read_text()


def test_the_program_makes_the_figure_again(run, tmp_path):
    plots.save(plots.columns(run, "teff", "logg"), tmp_path / "kiel.png")
    before = (tmp_path / "kiel.png").read_bytes()
    (tmp_path / "kiel.png").unlink()
    done = subprocess.run([sys.executable, "kiel.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "kiel.png").read_bytes() == before


def test_a_kiel_diagram_has_hot_stars_left_and_giants_up(run):
    axis = plots.columns(run, "teff", "logg").figure.axes[0]
    assert axis.get_xlim()[0] > axis.get_xlim()[1] and axis.get_ylim()[0] > axis.get_ylim()[1]


def test_figures_have_journal_width(run):
    for width, inches in (("column", style.COLUMN), ("page", style.PAGE), (5.0, 5.0)):
        assert plots.columns(run, "teff", "logg", width=width).figure.get_size_inches()[0] == pytest.approx(inches)


def test_one_wild_value_does_not_flatten_a_panel(run, monkeypatch):
    read = plots._read

    def wild(table, wanted):
        out = read(table, wanted)
        out["rsca_1"][0] = 1e6
        return out

    monkeypatch.setattr(plots, "_read", wild)
    assert plots.columns(run, "fe_h", "rsca_1").figure.axes[0].get_ylim()[1] < 1000


def test_figure_3_with_own_labels(run):
    plot = plots.features(run, ["fe_h", "abundance_Mg"], n_features=2)
    assert len(plot.figure.axes) == 4 and set(plot.numbers) >= {"rsca_1 fe_h", "rsca_2 abundance_Mg"}
    field = plot.table["cluster"] == ""
    expected = np.corrcoef(plot.table["rsca_1"][field], plot.table["fe_h"][field])[0, 1]
    assert plot.numbers["rsca_1 fe_h"] == pytest.approx(expected)


def test_a_mistyped_column_is_answered_with_the_one_meant(run):
    with pytest.raises(InputError, match="fe_hh") as caught:
        plots.columns(run, "fe_hh", "rsca_1")
    assert "'fe_h'" in caught.value.remedy
    with pytest.raises(InputError, match="is text"):
        plots.columns(run, "anomaly_cause", "rsca_1")


def test_spectra_come_with_the_reconstruction_of_the_basis(run):
    from chemscale import open_survey

    survey = open_survey(run.store)
    star = str(survey["star_id"].values[7])
    found = spectra.read(run, [star])
    used = np.isfinite(found.flux[0])
    np.testing.assert_allclose(found.flux[0, used], survey["flux"].values[7][used])
    assert found.made_by == "6 components"
    assert np.std((found.flux - found.model)[0, used]) < 0.5 * np.std(found.flux[0, used])


def test_a_pdf_of_many_stars_has_pages_and_a_png_a_file_each(run, tmp_path):
    from chemscale import open_survey

    stars = open_survey(run.store)["star_id"].values.astype(str)[:5].tolist()
    plot = spectra.stars(run, stars, mark=None)
    assert len(plot.figures) == 2 and len(plot.table["flux"]) == 5 * 80
    names = [f.name for f in plots.save(plot, tmp_path / "five.png")]
    assert names == ["five.png", "five-2.png", "five.csv", "five.py"]
    plots.save(plot, tmp_path / "five.pdf")
    assert len(re.findall(rb"/Type /Page\b(?!s)", (tmp_path / "five.pdf").read_bytes())) == 2


def test_marked_lines_lie_where_they_are_known_to_lie():
    air = dict(reversed(spectra.lines(15700, 15800, "air", ["Mg"])))
    vacuum = dict(reversed(spectra.lines(15700, 15800, "vacuum", ["Mg"])))
    assert air["Mg I"] == pytest.approx(15740.7, abs=0.1) and vacuum["Mg I"] == pytest.approx(15745.0, abs=0.1)
    with pytest.raises(InputError, match="Uuo"):
        spectra.lines(15700, 15800, "air", ["Uuo"])


def test_lines_of_a_file_of_ones_own(tmp_path):
    (tmp_path / "lines.csv").write_text("species,wavelength\nDIB,15272.4\nfar,9000\n")
    assert spectra.lines(15100, 15300, "vacuum", [str(tmp_path / "lines.csv")]) == [("DIB", 15272.4)]


def test_the_command_lists_columns_and_refuses_an_unknown_ending(run, tmp_path):
    listed = CliRunner().invoke(build(), ["plot", "columns", str(run.path)])
    assert listed.exit_code == 0 and "rsca_1" in listed.stdout and "latent_metal" in listed.stdout
    out = str(tmp_path / "figure.jpg")
    done = CliRunner().invoke(build(), ["plot", "columns", str(run.path), "teff", "logg", "--out", out])
    assert isinstance(done.exception, InputError) and "unknown ending" in str(done.exception)
