"""What people come for, each in at most three commands on a run that is there."""

from __future__ import annotations

import json

import numpy as np
import pytest
from astropy.table import Table
from toyrun import add_latents, make_run, toy_survey
from typer.testing import CliRunner

from chemscale.cli import build
from chemscale.survey.ingest.datasets import write_survey


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    ds = toy_survey(n_field=250, n_pixels=60)
    out = make_run(tmp_path_factory.mktemp("jobs"), ds)
    add_latents(out, ds.sizes["star"])
    return out


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with an autoencoder, its latents and its anomalies."""
    folder = tmp_path_factory.mktemp("trained")
    chemscale("simulate", "--grid", "lowres", "--stars", 400, "--clusters", 0, "--seed", 1, "--out", folder / "s.zarr")
    chemscale("vae", "train", folder / "s.zarr", "--run", folder / "vae", "--preset", "quick", "--epochs", 1)
    chemscale("vae", "infer", folder / "s.zarr", "--run", folder / "vae")
    chemscale("anomalies", "--run", folder / "vae", "--false-alarm", 0.2)
    return folder / "vae"


@pytest.fixture(scope="module")
def ids(run):
    import chemscale

    survey = chemscale.open_survey(run.store)
    return survey["star_id"].values.astype(str)[survey["cluster"].values.astype(str) != ""]


def chemscale(*words):
    done = CliRunner().invoke(build(), [str(w) for w in words])
    assert done.exit_code == 0, f"{words}: {done.output}\n{done.exception!r}"
    return done


def test_two_stars_how_similar_and_how_sure(run, ids):
    found = json.loads(chemscale("rsca", "pair", ids[0], ids[1], "--run", run.path, "--json").stdout)
    assert found["distance"] > 0


def test_all_stars_within_a_distance_as_a_table(run, ids, tmp_path):
    done = chemscale("rsca", "siblings", ids[0], "--run", run.path, "--within", 5, "--out", tmp_path / "near.fits")
    assert "next: chemscale rsca pair" in done.stderr and "distance" in done.stdout
    near = Table.read(tmp_path / "near.fits")
    assert len(near) and near["distance"].max() <= 5


def test_which_star_of_my_list_has_the_most_siblings(run, ids, tmp_path):
    (tmp_path / "list.txt").write_text("\n".join(ids[:6]) + "\n")
    words = ("--stars", tmp_path / "list.txt", "--within", 5, "--out", tmp_path / "near.csv")
    chemscale("rsca", "siblings", "--run", run.path, *words)
    near = Table.read(tmp_path / "near.csv")
    column = next(c for c in near.colnames if c in ("of", "star", "query"))
    stars, counts = np.unique(near[column], return_counts=True)
    assert set(stars) <= set(ids[:6]) and counts.max() >= 1


def test_features_of_new_stars(run, tmp_path):
    store = write_survey(toy_survey(n_field=20, n_clusters=2, n_pixels=60), tmp_path / "new.zarr")
    chemscale("rsca", "transform", store, "--run", run.path, "--out", tmp_path / "features.fits")
    assert len(Table.read(tmp_path / "features.fits")) == 32


def test_latent_abundances_joined_to_my_catalogue(run, ids, tmp_path):
    mine = Table({"star_id": ids[:5], "age": np.arange(5.0), "gaia_id": 2**60 + np.arange(5)})
    mine.write(tmp_path / "mine.csv")
    chemscale("export", run.path, "--out", tmp_path / "stars.vot", "--join", tmp_path / "mine.csv")
    both = Table.read(tmp_path / "stars.vot")
    both = both[np.isfinite(both["x_age"].filled(np.nan))]
    assert len(both) == 5 and np.isfinite(both["vae_fe_h"]).all() and (both["vae_fe_h_error"] > 0).all()
    assert set(both["x_gaia_id"]) == set(mine["gaia_id"])
    chemscale(
        "plot", "columns", run.path, "x_age", "vae_fe_h", "--join", tmp_path / "mine.csv", "--out", tmp_path / "a.png"
    )


def test_two_runs_compared(run):
    assert json.loads(chemscale("compare", run.path, run.path, "--json").stdout)["settings"] == {}


def test_outliers_with_their_spectra_as_a_pdf(trained, tmp_path):
    chemscale("plot", "spectra", trained, "--anomalies", 6, "--out", tmp_path / "outliers.pdf")
    assert (tmp_path / "outliers.pdf").read_bytes()[:4] == b"%PDF"
    points = Table.read(tmp_path / "outliers.csv")
    assert len(np.unique(points["star_id"])) == 6 and np.isfinite(points["reconstruction"]).all()


def test_figure_3_with_my_labels(run, tmp_path):
    words = ("--labels", "fe_h,abundance_Mg,snr", "--out", tmp_path / "figure3.pdf", "--json")
    numbers = json.loads(chemscale("plot", "features", run.path, *words).stdout)["numbers"]
    assert (tmp_path / "figure3.pdf").exists() and "rsca_1 abundance_Mg" in numbers


def test_the_slurm_script_for_four_nodes():
    script = chemscale("slurm", "--nodes", 4, "--print", "--", "rsca", "fit", "survey.zarr", "--run", "run").stdout
    assert "#SBATCH --nodes=4" in script and "rsca fit survey.zarr --run run --cluster" in script


def test_resume_after_a_break(trained, tmp_path, monkeypatch):
    """A training that is cut off carries on with the same command and --resume."""
    from chemscale.runtime.run import Run
    from chemscale.vae.training import Trainer

    words = ("vae", "train", Run.open(trained).store, "--run", tmp_path / "vae", "--preset", "quick", "--epochs", 2)
    after, calls = Trainer.save, []

    def cut(self, *a, **k):
        calls.append(1)
        out = after(self, *a, **k)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return out

    monkeypatch.setattr(Trainer, "save", cut)
    broken = CliRunner().invoke(build(), [str(w) for w in words])
    assert broken.exit_code != 0
    monkeypatch.setattr(Trainer, "save", after)
    chemscale(*words, "--resume")
    assert (tmp_path / "vae" / "vae" / "model.json").exists()
