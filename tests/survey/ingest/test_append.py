"""Revisions: new stars and better spectra, all or nothing, unseen by those who opened the store before."""

from __future__ import annotations

import numpy as np
import pytest
from toysource import ToySource, write_files

from chemscale.errors import DataError, InputError, StoreError
from chemscale.runtime.files import Folder
from chemscale.schema import validate
from chemscale.survey.info import store_info
from chemscale.survey.ingest.append import append
from chemscale.survey.ingest.ingestion import ingest
from chemscale.survey.store.cleaning import Effects
from chemscale.survey.store.layout import Layout
from chemscale.survey.store.open import open_survey
from chemscale.survey.store.root import publish_cleaning
from chemscale.survey.store.verify import verify

SMALL = Layout(chunk_stars=4, shard_stars=8, label_stars=16)


@pytest.fixture
def first(tmp_path):
    files = write_files(tmp_path / "dr1", n=30)
    (files / "star0004.npy").write_bytes(b"broken")
    ingest(ToySource(files), tmp_path / "s.zarr", layout=SMALL)
    return tmp_path / "s.zarr"


def later(tmp_path, numbers, name="dr2", seed=9):
    """Another release holding the stars `numbers`."""
    pool = write_files(tmp_path / f"{name}-pool", n=max(numbers) + 1, seed=seed)
    folder = tmp_path / name
    folder.mkdir()
    for i in numbers:
        (pool / f"star{i:04d}.npy").rename(folder / f"star{i:04d}.npy")
    return folder


def test_new_stars(tmp_path, first):
    old = open_survey(first, chunk_stars=4)
    before = {n: Folder(first).read(n) for n, _ in Folder(first).walk()}
    release = later(tmp_path, range(30, 45))
    summary = append(ToySource(release), first)
    assert summary.n_stars == 15 and summary.complete
    ds = validate(open_survey(first, chunk_stars=4))
    assert ds.attrs["revision"] == 1
    assert list(ds.star_id.values) == [f"star{i:04d}" for i in range(45) if i != 4]
    np.testing.assert_array_equal(ds.flux.values[-1], np.load(release / "star0044.npy")[0].astype("f4"))
    assert old.flux.compute().shape[0] == 29 and old.teff.values.shape == (29,)
    for name, data in before.items():
        if name != "_chemscale/root.json":
            assert Folder(first).read(name) == data
    assert verify(first).ok
    info = store_info(first)
    assert info["n_stars"] == 44 and info["n_rejected"] == 1 and info["labels"]["teff"]["present"] == 44


def test_new_stars_are_cleaned_as_the_others_are(tmp_path, first):
    line = (np.array([v]) for v in (4000.0, 1.0, 0.0, 100.0))
    effects = Effects(("teff",), *line, np.array([[1]]), np.full((1, 40), 0.001, np.float32))
    publish_cleaning(Folder(first), effects.to_bytes(), {"covariates": ["teff"]})
    release = later(tmp_path, range(30, 45))
    append(ToySource(release), first)
    ds = open_survey(first)
    assert ds.attrs["cleaned"] == ["teff"] and verify(first).ok
    stored = np.load(release / "star0044.npy")[0].astype("f4")
    np.testing.assert_allclose(ds.flux.values[-1], stored - 0.001 * (ds.teff.values[-1] - 4000), atol=1e-6)
    assert ds.teff.values[-1] > 4010


def test_replace(tmp_path, first):
    release = later(tmp_path, [2, 4, 7, 40])
    (release / "star0007.npy").write_bytes(b"worse than before")
    with pytest.raises(InputError, match="2 of 4 stars"):
        append(ToySource(release), first)
    old = open_survey(first)
    summary = append(ToySource(release), first, replace_existing=True)
    assert summary.n_stars == 3 and summary.n_rejected == 1
    ds = validate(open_survey(first, chunk_stars=4))
    ids = list(ds.star_id.values)
    assert sorted(ids) == sorted([f"star{i:04d}" for i in range(30)] + ["star0040"])
    flux = dict(zip(ids, ds.flux.values, strict=True))
    for star, folder in (("star0002", release), ("star0004", release), ("star0007", tmp_path / "dr1")):
        np.testing.assert_array_equal(flux[star], np.load(folder / f"{star}.npy")[0].astype("f4"))
    index = list(old.star_id.values).index("star0002")
    np.testing.assert_array_equal(old.flux[index].compute(), np.load(tmp_path / "dr1/star0002.npy")[0].astype("f4"))
    again = later(tmp_path, [2], name="dr3", seed=11)
    append(ToySource(again), first, replace_existing=True)
    ds = open_survey(first)
    assert ds.attrs["revision"] == 2 and sorted(ds.star_id.values) == sorted(ids)
    assert verify(first).ok and store_info(first)["n_superseded"] == 2


def test_interrupted_append_is_invisible_and_resumes(tmp_path, first, monkeypatch):
    release = later(tmp_path, range(30, 60))
    calls = []

    def dies(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    from chemscale.survey.ingest import ingestion as module

    original = module._write_once
    monkeypatch.setattr(module, "_write_once", dies)
    with pytest.raises(KeyboardInterrupt):
        append(ToySource(release), first)
    assert open_survey(first).sizes["star"] == 29 and verify(first).ok
    with pytest.raises(StoreError, match="interrupted"):
        append(ToySource(release), first)
    summary = append(ToySource(release), first, resume=True)
    assert summary.n_shards_kept == 2 and open_survey(first).sizes["star"] == 59 and verify(first).ok


def test_what_does_not_fit_is_refused(tmp_path, first):
    class Other(ToySource):
        def plan(self):
            plan = super().plan()
            plan.wavelength = plan.wavelength + 1
            return plan

    release = later(tmp_path, range(30, 32))
    with pytest.raises(InputError, match="wavelength grid"):
        append(Other(release), first)
    for f in release.iterdir():
        f.write_bytes(b"x")
    with pytest.raises(DataError, match="nothing was added"):
        append(ToySource(release), first)
    assert open_survey(first).sizes["star"] == 29 and verify(first).ok
    with pytest.raises(StoreError, match="no survey store"):
        append(ToySource(release), tmp_path / "nowhere")
