"""Inference on a torch device, on the CPU here; what needs a card is marked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_vae_engine import network

from chemscale.errors import OutOfMemory
from chemscale.vae import device_engine
from chemscale.vae.data import clean
from chemscale.vae.device_engine import DeviceEngine, clean_on_device
from chemscale.vae.engine import Engine


@pytest.fixture(scope="module")
def raw():
    """Model, and stored pixels with every kind of missing one."""
    rng = np.random.default_rng(4)
    flux = (0.9 + 0.05 * rng.standard_normal((700, 240))).astype("f4")
    ivar = rng.uniform(200, 800, (700, 240)).astype("f4")
    flags = np.where(rng.random((700, 240)) < 0.05, 4, 0).astype("u1")
    flux[3, :20], ivar[4, 5:9], ivar[5, 1:4], flags[6, :50] = np.nan, np.inf, -1.0, 2
    flags[7] = 1
    return network("ppca", True), flux, ivar, flags


def blocks(engine: DeviceEngine, raw, size: int):
    _, *pixels = raw
    found = []
    for a in range(0, len(pixels[0]), size):
        part = [x[a : a + size] for x in pixels]

        def fill(buffers, part=part):
            for buffer, values in zip(buffers, part, strict=True):
                buffer[...] = values

        found.append(engine.load(len(part[0]), part[0].shape[1], fill))
    return found


@pytest.mark.parametrize("floor", [0.0, 0.01])
def test_cleaning_is_that_of_training(raw, floor):
    _, *pixels = raw
    expected = clean(*pixels, selected=5, floor=floor)
    for a, b in zip(clean_on_device(*map(torch.from_numpy, pixels), 5, floor), expected):
        np.testing.assert_allclose(a.numpy(), b, rtol=1e-6)


@pytest.mark.parametrize(("size", "batch"), [(700, 8192), (128, 256), (100, 77)])
def test_latents_and_scores_are_those_of_the_compiled_engine(raw, size, batch):
    model, *pixels = raw
    expected = Engine(model)(*pixels, 5, 0.01)
    engine = DeviceEngine(model, batch=batch)
    found = engine(blocks(engine, raw, size), 5, 0.01)
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        np.testing.assert_allclose(found[key], values, rtol=2e-3, atol=2e-4, err_msg=key)


def test_buffers_are_made_once(raw):
    engine = DeviceEngine(raw[0])
    seen = set()
    for _ in range(50):
        taken = blocks(engine, raw, 350)
        seen |= {block.buffers[0].data_ptr() for block in taken}
        engine(taken, 5)
    assert len(seen) == 2


def test_out_of_memory_means_smaller_batches_and_then_a_clear_message(raw, monkeypatch):
    real, sizes = device_engine.scores, []

    def scores(model, flux, weight, floor):
        sizes.append(len(flux))
        if len(flux) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, flux, weight, floor)

    monkeypatch.setattr(device_engine, "scores", scores)
    limit = 200
    engine = DeviceEngine(raw[0], batch=512)
    found = engine(blocks(engine, raw, 350), 5)
    assert engine.batch == 128 and len(found["norm"]) == 700
    limit = 10
    with pytest.raises(OutOfMemory, match="out of memory with 64 stars"):
        engine(blocks(engine, raw, 350), 5)


needs_a_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@needs_a_card
def test_training_on_a_card_follows_the_cpu_and_its_model_infers_on_either(toy_store, tmp_path):
    """Checkpoints and models move between devices: a few epochs each way, and latents of both devices."""
    from vae_toy import FAST, FAST_MODEL, TOY_REGIONS

    from chemscale.vae import pipeline

    settings = {**FAST, "epochs": 3, "late_label_weight": 0.0}
    options = {"model": FAST_MODEL, "settings": settings, "regions": TOY_REGIONS, "scale": False}
    curves = {}
    for device in ("cpu", "cuda"):
        pipeline.train(toy_store, tmp_path / device, device=device, **options)
        curves[device] = pipeline.Run.open(tmp_path / device).load_json("vae/curves.json")
        for there in ("cpu", "cuda"):
            pipeline.infer(toy_store, tmp_path / device, device=there, product=f"{there}.zarr")
    one, other = (curves[d][-1] for d in ("cpu", "cuda"))
    shared = [k for k in one if k in other and isinstance(one[k], float) and "second" not in k]
    assert shared
    for key in shared:
        assert other[key] == pytest.approx(one[key], rel=0.05, abs=0.02), key


@pytest.mark.gpu
@needs_a_card
def test_a_card_gives_the_latents_of_the_cpu_and_keeps_no_memory(raw):
    model, *pixels = raw
    expected = Engine(model)(*pixels, 5, 0.01)
    engine = DeviceEngine(model.to("cuda"))
    try:
        found = engine(blocks(engine, raw, 350), 5, 0.01)
        for key, values in expected.items():
            np.testing.assert_allclose(found[key], values, rtol=5e-3, atol=1e-3, err_msg=key)
        before = torch.cuda.memory_allocated()
        for _ in range(50):
            engine(blocks(engine, raw, 350), 5, 0.01)
        assert torch.cuda.memory_allocated() <= before
    finally:
        model.to("cpu")


def test_a_survey_through_the_device_engine(toy_run, toy, tmp_path):
    """Half precision on the CPU takes the path of a card: readers, buffers, one batch a shard, writing."""
    from chemscale.vae.inference import infer_survey
    from chemscale.vae.product import open_latents

    found = []
    for half in (False, True):
        path = tmp_path / f"{half}.zarr"
        infer_survey(toy, toy_run / "vae", path, device="cpu", bfloat16=half, shard_stars=200)
        found.append(open_latents(path).load())
    exact, rough = found
    assert (rough["n_used"] == exact["n_used"]).all()
    scatter = float((rough["mean"] - exact["mean"]).std() / exact["mean"].std())
    assert 0 < scatter < 0.2, "the other engine, and the same latents to half precision"


@pytest.mark.parametrize("masked", [False, True])
def test_a_store_is_decoded_where_the_device_fetches_from(toy_run, toy_store, tmp_path, monkeypatch, masked):
    """No copy between the store and the buffers, but for values that are not the stored ones; all shards in order."""
    from chemscale.survey.store.open import open_survey
    from chemscale.vae import inference
    from chemscale.vae.product import open_latents

    ds = open_survey(toy_store)
    if masked:
        ds["flags"] = ds["flags"] | 0  # no longer the store's own rows: Dask reads
    copies, order = [], []
    real, write = np.copyto, inference.ShardRunner._write
    monkeypatch.setattr(np, "copyto", lambda *a, **k: (copies.append(1), real(*a, **k)))
    monkeypatch.setattr(
        inference.ShardRunner, "_write", lambda s, shard, x: (order.append(shard.index), write(s, shard, x))
    )
    inference.infer_survey(ds, toy_run / "vae", tmp_path / "a.zarr", device="cpu", bfloat16=True, shard_stars=100)
    inference.infer_survey(ds, toy_run / "vae", tmp_path / "b.zarr", device="cpu", bfloat16=True, shard_stars=600)
    assert bool(copies) == masked
    assert order[:-1] == list(range(len(order) - 1)) and len(order) > 3
    a, b = (open_latents(tmp_path / f"{n}.zarr").load() for n in "ab")
    np.testing.assert_allclose(a["norm"], b["norm"], rtol=0.05)


def test_a_shard_that_fails_on_the_device_is_tried_again(toy_run, toy_store, tmp_path, monkeypatch):
    from chemscale.survey.store.open import open_survey
    from chemscale.vae import inference
    from chemscale.vae.product import open_latents

    real, calls = DeviceEngine.__call__, []

    def flaky(self, blocks, bits, floor=0.0):
        calls.append(len(blocks))
        if len(calls) == 2:
            raise OSError("a hiccup")
        return real(self, blocks, bits, floor)

    monkeypatch.setattr(DeviceEngine, "__call__", flaky)
    report = inference.infer_survey(
        open_survey(toy_store), toy_run / "vae", tmp_path / "a.zarr", device="cpu", bfloat16=True, shard_stars=100
    )
    assert len(calls) == report["stars"] // 100 + 1
    assert np.isfinite(open_latents(tmp_path / "a.zarr")["norm"].values).all()
