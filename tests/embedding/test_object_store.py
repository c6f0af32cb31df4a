"""An embedding in an object store is switched by one small object: readers never meet half of a new one."""

from __future__ import annotations

import uuid

import numpy as np
import pytest
from helpers import make_survey

from chemscale.embedding.fit import fit_survey
from chemscale.embedding.product import embed_survey, open_embedding
from chemscale.errors import StoreError
from chemscale.runtime.files import Folder


@pytest.fixture(params=["memory", pytest.param("moto", marks=pytest.mark.slow)])
def url(request, monkeypatch):
    if request.param == "memory":
        yield f"memory://{uuid.uuid4().hex}/embedding.zarr"
        return
    for needed in ("s3fs", "moto", "flask", "boto3"):
        pytest.importorskip(needed)
    import s3fs
    from objectstore import MotoServer

    server = MotoServer()
    for key, value in server.environment().items():
        monkeypatch.setenv(key, value)
    server.start()
    s3fs.S3FileSystem.clear_instance_cache()
    yield "s3://surveys/deep/embedding.zarr"
    server.end()


@pytest.fixture(scope="module")
def models():
    survey = make_survey(80, 3, 4, n_pixels=40, seed=2).chunk({"star": 30})
    everyone = np.ones(survey.sizes["star"], dtype=bool)
    return survey, *(fit_survey(survey, everyone, n_components=3, noise=noise) for noise in ("shared", "per-pixel"))


def coords(embedding):
    return embedding["coords"].values.copy()


def test_readers_find_the_old_embedding_until_one_object_switches(url, models):
    survey, first, second = models
    old = coords(embed_survey(survey, first, url))
    open_before = open_embedding(url)
    seen = []
    embed_survey(survey, second, url, overwrite=True, revise=lambda group, ds: seen.append(coords(open_embedding(url))))
    np.testing.assert_array_equal(seen[0], old)
    new = coords(open_embedding(url))
    assert not np.allclose(new, old)
    np.testing.assert_array_equal(coords(open_before), old, "whoever has the old one open reads it to the end")
    embed_survey(survey, first, url, overwrite=True)
    versions = {name.split("/")[0] for name, _ in Folder(url).walk()} - {"current.json"}
    assert len(versions) == 2, "the one that counts and the one before"
    assert not list(Folder(f"{url}.partial").walk())


def test_an_interrupted_replacement_leaves_the_old_embedding_and_carries_on(url, models):
    survey, first, second = models

    def stop(group, ds):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_survey(survey, first, url, revise=stop)
    with pytest.raises(StoreError, match="unfinished embedding, 4 parts"):
        open_embedding(url)
    old = coords(embed_survey(survey, first, url, resume=True))
    with pytest.raises(KeyboardInterrupt):
        embed_survey(survey, second, url, overwrite=True, revise=stop)
    np.testing.assert_array_equal(coords(open_embedding(url)), old)
    new = coords(embed_survey(survey, second, url, resume=True))
    assert not np.allclose(new, old)
    again = embed_survey(survey, second, url, resume=True, revise=stop)
    np.testing.assert_array_equal(coords(again), new, "finished: nothing is done")
