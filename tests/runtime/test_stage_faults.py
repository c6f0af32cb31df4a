"""Workers die in the middle of fit, embed and infer: the products are those of an undisturbed run."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

import dask
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from helpers import make_survey

import chemscale
from chemscale.runtime.cluster import connect
from chemscale.runtime.scaling import untrained_vae
from chemscale.statistics.embedding import embed_survey, fit_survey
from chemscale.vae.inference import infer_survey

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """A store of many small chunks, and its undisturbed products."""
    folder = tmp_path_factory.mktemp("faults")
    store = str(folder / "survey.zarr")
    from chemscale.survey.layout import Layout

    chemscale.write_survey(make_survey(4_000, 12, 6, 200, seed=1), store, layout=Layout(64, 256, 65536))
    ds = chemscale.open_survey(store)
    with dask.config.set(scheduler="synchronous"):
        model = fit(ds)
        coords = embed_survey(ds, model, folder / "embedding.zarr")["coords"].values
    vae = untrained_vae(ds, folder / "vae", model)
    infer_survey(ds, vae, folder / "latents.zarr", store=store, shard_stars=64)
    return store, model, coords, vae, folder / "latents.zarr"


def fit(ds):
    return fit_survey(ds, n_components=6, keep_bytes=0, tol=1e-6, max_iter=12)


@pytest.fixture()
def client():
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with connect("local", workers=2, threads=1, memory="1 GiB") as c:
        yield c


class Killer(threading.Thread):
    """kill -9 of one worker after another while the block runs, `times` in all."""

    def __init__(self, client, times: int = 2, every: float = 1.0):
        super().__init__(daemon=True)
        self.client, self.times, self.every = client, times, every
        self.killed: list[int] = []
        self.stopped = threading.Event()

    def run(self):
        while len(self.killed) < self.times and not self.stopped.wait(self.every):
            try:
                alive = [n["pid"] for n in self.client.run(lambda: {"pid": os.getpid()}, on_error="ignore").values()]
            except Exception:
                continue
            fresh = [p for p in alive if p not in self.killed]
            if fresh:
                os.kill(fresh[0], signal.SIGKILL)
                self.killed.append(fresh[0])

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *exc):
        self.stopped.set()
        self.join()


def test_fit(client, survey):
    store, model, _, _, _ = survey
    with Killer(client) as killer:
        deadline = time.monotonic() + 120
        while not killer.killed and time.monotonic() < deadline:
            again = fit(chemscale.open_survey(store))
    assert killer.killed
    np.testing.assert_allclose(again.components_, model.components_, atol=1e-5)
    np.testing.assert_allclose(again.mean_, model.mean_, atol=1e-6)


def test_embed(client, survey, tmp_path):
    store, model, coords, _, _ = survey
    with Killer(client, every=0.3) as killer:
        deadline = time.monotonic() + 120
        while not killer.killed and time.monotonic() < deadline:
            got = embed_survey(chemscale.open_survey(store), model, tmp_path / "embedding.zarr", overwrite=True)
    assert killer.killed
    np.testing.assert_array_equal(got["coords"].values, coords)


def test_infer(client, survey, tmp_path):
    import xarray as xr

    store, _, _, vae, reference = survey
    with Killer(client, every=1.5) as killer:
        deadline = time.monotonic() + 120
        while not killer.killed and time.monotonic() < deadline:
            out = tmp_path / "latents.zarr"
            ds = chemscale.open_survey(store)
            infer_survey(ds, vae, out, store=store, client=client, overwrite=True, shard_stars=64)
    assert killer.killed
    a, b = xr.open_zarr(out, consolidated=False), xr.open_zarr(reference, consolidated=False)
    for name in b.data_vars:
        if b[name].dtype.kind == "f":
            np.testing.assert_allclose(a[name].values, b[name].values, rtol=1e-4, atol=1e-5, err_msg=name)
