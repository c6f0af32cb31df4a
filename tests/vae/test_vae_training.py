"""Training: resume to the step, streaming, two processes like one, refusals."""

from __future__ import annotations

import json
import shutil
import traceback
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from vae_toy import FAST, FAST_MODEL, TOY_REGIONS, toy_survey

from chemscale.errors import DataError, InputError, ResumeError, StoreError
from chemscale.runtime.run import Run
from chemscale.survey.store.open import open_survey
from chemscale.vae import pipeline
from chemscale.vae.checkpoint import load_model
from chemscale.vae.config import ModelConfig
from chemscale.vae.data import MemoryData, StreamData, TrainingBatch, clean, held_out, standard_labels
from chemscale.vae.late_phase import LatePhase
from chemscale.vae.objective import Parallel
from chemscale.vae.prepare import build, look_at, training_data
from chemscale.vae.presets import recipe
from chemscale.vae.schedule import one_cycle
from chemscale.vae.steps import LossTerms
from chemscale.vae.timing import training_time
from chemscale.vae.train_config import TrainConfig, former_names
from chemscale.vae.training import Trainer

MODEL = ModelConfig.from_dict(FAST_MODEL)


def started(ds, config: TrainConfig, folder=None, model: ModelConfig = MODEL) -> Trainer:
    survey = look_at(ds)
    network = build(survey, model, config, TOY_REGIONS)
    source, validation, _ = training_data(survey, network, config)
    return Trainer(network, source, config, validation=validation, folder=folder, device="cpu")


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in trainer.model.state_dict().items()}


def test_training_finds_the_latents(toy_run):
    record = json.loads((toy_run / "vae" / "summary.json").read_text())
    assert record["losses"]["reconstruction_iron"] < 3
    ds, _, out = pipeline.latents(toy_run)
    survey = open_survey(pipeline.Run.open(toy_run).store)
    r = np.corrcoef(ds["mean"].values[out, 0], survey["fe_h"].values[out])[0, 1]
    assert abs(r) > 0.8


def test_same_seed_same_weights(toy):
    config = TrainConfig.from_dict({**FAST, "epochs": 2, "decoder_finetune_epochs": 1})
    a, b = started(toy, config), started(toy, config)
    told: list[dict] = []
    a.on_epoch = told.append
    a.train()
    b.train()
    assert {entry["epochs"] for entry in told} == {len(told)}, "the bar ends where the last phase does"
    assert all(torch.equal(x, y) for x, y in zip(weights(a).values(), weights(b).values()))


class HostReads(TorchDispatchMode):
    """Counts the operations that hand a number from the device to the host, but for the optimiser's step counters."""

    ASKING = ("_local_scalar_dense", "nonzero", "is_nonzero", "_linalg_check_errors", "masked_select")

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.ASKING and not in_optimizer():
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def in_optimizer() -> bool:
    return any("torch/optim" in frame.filename for frame in traceback.extract_stack(limit=25))


@pytest.mark.parametrize("at", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("settings", [{}, {"label_pretrain_epochs": 0}, {"adversary": [[0, 1.0]]}])
def test_a_step_never_waits_for_the_device(toy, at, settings):
    """On a GPU each of these operations would have the host wait until all kernels before it are done."""
    trainer = started(toy, TrainConfig.from_dict({**FAST, **settings}))
    trainer.progress.step = int(at * trainer.total_steps)
    batch = next(iter(trainer.source.epoch(0)))
    trainer.step(batch, 0)
    with HostReads() as reads:
        trainer.step(batch, 0)
    assert reads.found == []


def test_loss_terms_are_means_over_all_steps():
    terms = LossTerms()
    for k in range(1000):
        terms.add({"a": torch.tensor(float(k))} | ({"late": torch.tensor(1.0)} if k >= 500 else {}))
    assert terms.means() == {"a": 499.5, "late": 0.5}
    assert LossTerms().means() == {}


@pytest.mark.parametrize("stop", [1, 6, 11])
@pytest.mark.parametrize("adversary", [(), ((0, 0.1),)])
def test_resume_is_exact_to_the_step(toy, tmp_path, stop, adversary):
    config = TrainConfig.from_dict({**FAST, "epochs": 3, "decoder_finetune_epochs": 1, "adversary": adversary})
    whole = started(toy, config)
    whole.train()
    first = started(toy, config, tmp_path)
    first.train(max_steps=stop)
    second = started(toy, config, tmp_path)
    assert second.resume()
    assert second.progress.step == stop
    second.train()
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(second)[name]), name


def test_w_is_fixed_until_the_axes_have_settled(toy):
    config = TrainConfig.from_dict({**FAST, "epochs": 10, "late_phase_start": 0.5})
    trainer = started(toy, config)
    half = trainer.total_steps // 2
    trainer.train(max_steps=1)
    before = [p.detach().clone() for p in trainer.head]
    trainer.train(max_steps=half - 1)
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.head))
    trainer.train(max_steps=1)
    assert not any(torch.equal(a, b) for a, b in zip(before, trainer.head))
    assert config.late(0.4) == LatePhase(settled=False, opening=0.0)
    assert config.late(1.0) == LatePhase(config.late_reconstruction_factor, True, False)
    assert replace(config, late_label_weight=0.0, late_rest_weight=0.5).late(1.0) == LatePhase(
        config.late_reconstruction_factor, False, True
    )


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_pixels_of_no_group_teach_the_latents_if_asked(toy, weight):
    config = TrainConfig.from_dict({**FAST, "epochs": 2, "late_phase_start": 0.5, "late_rest_weight": weight})
    trainer = started(toy, config)
    trainer.train(max_steps=trainer.total_steps // 2 + 1)
    batch = next(iter(trainer.source.epoch(1)))
    assert ("reconstruction_rest" in trainer.step(batch, 1)) == bool(weight)


def test_resume_refuses_other_settings(toy, tmp_path):
    config = TrainConfig.from_dict({**FAST, "epochs": 2})
    started(toy, config, tmp_path).train(max_steps=2)
    with pytest.raises(ResumeError, match="another model"):
        started(toy, TrainConfig.from_dict({**FAST, "epochs": 2, "beta": 0.5}), tmp_path).resume()


def test_resume_through_the_pipeline(toy_store, tmp_path, monkeypatch):
    settings = {**FAST, "epochs": 3}
    arguments = {"model": FAST_MODEL, "settings": settings, "regions": TOY_REGIONS, "scale": False}
    pipeline.train(toy_store, tmp_path / "a", **arguments)
    train = Trainer.train
    monkeypatch.setattr(Trainer, "train", lambda self, **k: (train(self, max_steps=4), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        pipeline.train(toy_store, tmp_path / "b", **arguments)
    monkeypatch.undo()
    with pytest.raises(ResumeError, match="beta"):
        pipeline.train(toy_store, tmp_path / "b", **(arguments | {"settings": {**settings, "beta": 1.0}}), resume=True)
    pipeline.train(toy_store, tmp_path / "b", **arguments, resume=True)
    a, b = (load_model(tmp_path / x / "vae")[0].state_dict() for x in "ab")
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_finished_model_is_replaced_on_demand_only(toy_store, tmp_path):
    arguments = {"model": FAST_MODEL, "settings": {**FAST, "epochs": 2}, "regions": TOY_REGIONS, "scale": False}
    assert not pipeline.train(toy_store, tmp_path / "a", **arguments)["done"]
    before = (tmp_path / "a/vae/model.safetensors").read_bytes()
    with pytest.raises(StoreError, match="finished model"):
        pipeline.train(toy_store, tmp_path / "a", **arguments)
    assert pipeline.train(toy_store, tmp_path / "a", **arguments, resume=True)["done"]
    assert (tmp_path / "a/vae/model.safetensors").read_bytes() == before
    other = arguments | {"settings": {**FAST, "epochs": 2, "seed": 1}}
    with pytest.raises(ResumeError, match="seed"):
        pipeline.train(toy_store, tmp_path / "a", **other, resume=True)
    pipeline.train(toy_store, tmp_path / "a", **other, overwrite=True)
    assert (tmp_path / "a/vae/model.safetensors").read_bytes() != before
    assert not (tmp_path / "a/vae.partial").exists()


def test_a_model_stays_whole_until_its_successor_is(toy_store, tmp_path, monkeypatch):
    arguments = {"model": FAST_MODEL, "settings": {**FAST, "epochs": 2}, "regions": TOY_REGIONS, "scale": False}
    pipeline.train(toy_store, tmp_path / "a", **arguments)
    before = {f.name: f.read_bytes() for f in (tmp_path / "a/vae").iterdir()}
    other = arguments | {"settings": {**FAST, "epochs": 2, "seed": 1}}
    train = Trainer.train
    monkeypatch.setattr(Trainer, "train", lambda self, **k: (train(self, max_steps=3), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        pipeline.train(toy_store, tmp_path / "a", **other, overwrite=True)
    monkeypatch.undo()
    assert {f.name: f.read_bytes() for f in (tmp_path / "a/vae").iterdir()} == before
    pipeline.train(toy_store, tmp_path / "b", **other)
    assert not pipeline.train(toy_store, tmp_path / "a", **other, resume=True)["done"]
    a, b = (load_model(tmp_path / x / "vae")[0].state_dict() for x in "ab")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not (tmp_path / "a/vae.partial").exists()


def test_a_training_is_not_done_for_spectra_cleaned_since(toy_store, tmp_path):
    arguments = {"model": FAST_MODEL, "settings": {**FAST, "epochs": 2}, "regions": TOY_REGIONS, "scale": False}
    pipeline.train(toy_store, tmp_path / "a", **arguments)
    cleaned = open_survey(toy_store).assign_attrs(cleaned=["extinction"])
    with pytest.raises(InputError, match="as ingested"):
        pipeline.train(cleaned, tmp_path / "a", **arguments, resume=True)


def test_stars_without_a_usable_pixel_are_not_counted(toy_store):
    ds = open_survey(toy_store).load()
    ds["ivar"][:50] = 0.0
    given = {"model": FAST_MODEL, "settings": {**FAST, "epochs": 2}, "regions": TOY_REGIONS}
    lost = int((~held_out(np.asarray(ds["star_id"].values)[:50])).sum())
    assert training_time(ds, **given).stars == training_time(toy_store, **given).stars - lost


def test_a_checkpoint_of_the_former_settings_is_carried_on(toy, tmp_path):
    config = TrainConfig.from_dict({**FAST, "epochs": 3})
    trainer = started(toy, config, tmp_path)
    trainer.train(max_steps=2)
    file = tmp_path / "checkpoint.json"
    record = json.loads(file.read_text())
    progress = record["progress"]
    del progress["pretrained"]
    progress["finish_step"] = progress.pop("finetune_step")
    identity = trainer.identity(former_names(asdict(config)))
    assert identity != record["identity"]
    file.write_text(json.dumps(record | {"identity": identity, "progress": progress}))
    again = started(toy, config, tmp_path)
    assert again.resume()
    assert again.progress.step == 2


def test_settings_of_the_former_names_are_read():
    assert TrainConfig.from_dict({"settled": 0.5, "linear_late": 7.0}) == TrainConfig(
        late_phase_start=0.5, late_label_weight=7.0
    )
    with pytest.raises(InputError, match=r"epochs = 'many'"):
        TrainConfig.from_dict({"epochs": "many"})


def test_streaming_sees_every_star_and_repeats(toy):
    config = TrainConfig.from_dict({**FAST, "memory_gb": 1e-6, "batch": 32})
    survey = look_at(toy.chunk(star=128))
    network = build(survey, MODEL, config, TOY_REGIONS)
    source, _, _ = training_data(survey, network, config)
    assert isinstance(source, StreamData)
    held, _, _ = training_data(survey, network, TrainConfig.from_dict({**FAST, "batch": 32}))
    assert isinstance(held, MemoryData)
    assert source.n_stars == held.n_stars
    once, again = list(source.epoch(3)), list(source.epoch(3))
    assert len(once) == source.n_batches()
    assert all(torch.equal(a.features, b.features) for a, b in zip(once, again))
    assert not torch.equal(once[0].features, next(iter(source.epoch(4))).features)
    tail = list(source.epoch(3, start=2))
    assert torch.equal(tail[0].features, once[2].features)
    known = {tuple(r.tolist()) for r in held.data.features.round(decimals=3)}
    seen = {tuple(r.tolist()) for b in once for r in b.features.round(decimals=3)}
    assert len(seen & known) > 0.9 * len(seen)


@pytest.mark.parametrize("sizes", [[50] * 4 + [0] * 12, [5] * 16, [0] * 8 + [3], [1, 200] * 5])
@pytest.mark.parametrize("batch", [10, 50])
def test_every_epoch_of_a_stream_has_its_batches_however_few_stars_its_blocks_have(sizes, batch):
    def read(block: int) -> TrainingBatch:
        x = torch.zeros(sizes[block], 2)
        return TrainingBatch(x, {"a": x}, {"a": x}, x, x)

    source = StreamData(read, sizes, batch)
    for epoch in range(5):
        assert len(list(source.epoch(epoch))) == source.n_batches() >= 1


def test_streamed_training_sees_no_star_without_a_usable_pixel(toy):
    ds = toy.copy(deep=True)
    ds["ivar"][100:300] = 0.0
    config = TrainConfig.from_dict({**FAST, "memory_gb": 1e-6, "batch": 32})
    survey = look_at(ds.chunk(star=64))  # two blocks hold no other star
    source, _, _ = training_data(survey, build(survey, MODEL, config, TOY_REGIONS), config)
    assert isinstance(source, StreamData)
    batches = list(source.epoch(0))
    assert len(batches) == source.n_batches()
    assert all((b.ivar[g] > 0).any(1).all() for b in batches for g in b.ivar)


def test_a_stream_of_blank_stars_alone_is_refused():
    nothing = torch.zeros(0, 2)
    source = StreamData(
        lambda block: TrainingBatch(nothing, {"a": nothing}, {"a": nothing}, nothing, nothing), [20], 10
    )
    with pytest.raises(DataError, match="usable pixel"):
        list(source.epoch(0))


def test_a_checkpoint_never_holds_diverged_weights(toy, tmp_path):
    trainer = started(toy, TrainConfig.from_dict({**FAST, "epochs": 2}), tmp_path)
    trainer.train(max_steps=2)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    with torch.no_grad():
        next(iter(trainer.model.decoders.parameters()))[:] = torch.nan
    with pytest.raises(DataError, match="diverged in epoch 0: weights"):
        trainer.save()
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


def test_a_checkpoint_at_the_end_of_an_epoch_has_its_curve(toy, tmp_path):
    config = TrainConfig.from_dict({**FAST, "epochs": 2, "label_pretrain_epochs": 0})
    trainer = started(toy, config, tmp_path)
    trainer.train(max_steps=trainer.source.n_batches())
    again = started(toy, config, tmp_path)
    again.resume()
    assert [c["epoch"] for c in again.progress.curves] == [0]


def test_a_replacement_killed_before_its_first_file_leaves_the_stage_done(toy_store, tmp_path, monkeypatch):
    arguments = {"model": FAST_MODEL, "settings": {**FAST, "epochs": 2}, "regions": TOY_REGIONS, "scale": False}
    pipeline.train(toy_store, tmp_path / "a", **arguments)
    left = tmp_path / "a/vae.partial"  # of a replacement killed at its very end
    left.mkdir()
    (left / "model.json").write_text("old")
    monkeypatch.setattr("chemscale.vae.fitting.build", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pipeline.train(toy_store, tmp_path / "a", **arguments, overwrite=True)
    assert Run.open(tmp_path / "a").manifest["stages"]["vae.train"]["status"] == "done"
    assert not left.exists()


def test_a_refused_inference_leaves_the_stage_done(toy_store, tmp_path):
    arguments = {"model": FAST_MODEL, "settings": {**FAST, "epochs": 2}, "regions": TOY_REGIONS, "scale": False}
    pipeline.train(toy_store, tmp_path / "a", **arguments)
    pipeline.infer(toy_store, tmp_path / "a")
    with pytest.raises(InputError, match="as ingested"):
        pipeline.infer(open_survey(toy_store).assign_attrs(cleaned=["extinction"]), tmp_path / "a", overwrite=True)
    assert Run.open(tmp_path / "a").manifest["stages"]["vae.infer"]["status"] == "done"


def test_streamed_training_resumes(toy, tmp_path):
    config = TrainConfig.from_dict({**FAST, "epochs": 2, "memory_gb": 1e-6, "batch": 32, "label_pretrain_epochs": 0})
    ds = toy.chunk(star=128)
    whole = started(ds, config)
    whole.train()
    started(ds, config, tmp_path).train(max_steps=5)
    second = started(ds, config, tmp_path)
    second.resume()
    second.train()
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(second).values()))


def _curve(parallel: Parallel, store: str, out: str) -> None:
    from pathlib import Path

    torch.set_num_threads(1)
    config = TrainConfig.from_dict({**FAST, "epochs": 2, "decoder_finetune_epochs": 1, "adversary": ((1, 0.05),)})
    survey = look_at(open_survey(store))
    network = build(survey, MODEL, config, TOY_REGIONS)
    source, validation, _ = training_data(survey, network, config)
    trainer = Trainer(network, source, config, validation=validation, device="cpu", parallel=parallel)
    curves = trainer.train().curves
    if parallel.rank == 0:
        Path(out).write_text(json.dumps(curves))


def test_two_processes_give_the_curve_of_one(toy_store, tmp_path):
    from chemscale.vae.distributed import run_processes

    _curve(Parallel(), toy_store, str(tmp_path / "one.json"))
    run_processes(_curve, 2, (toy_store, str(tmp_path / "two.json")))
    one, two = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("one", "two"))
    assert len(one) == len(two) > 4
    for a, b in zip(one, two):
        for key in set(a) - {"seconds"}:
            if isinstance(a[key], float):
                assert b[key] == pytest.approx(a[key], rel=2e-3, abs=1e-4), (a.get("epoch"), key)


def test_early_stopping(toy):
    config = TrainConfig.from_dict(
        {**FAST, "epochs": 60, "patience": 1, "learning_rate": 1e-9, "decoder_finetune_epochs": 0, "ramp": 0.05}
    )
    trainer = started(toy, config)
    progress = trainer.train()
    assert progress.stopped
    assert progress.step < trainer.total_steps


def test_learning_rate_climbs_and_falls():
    rates = [one_cycle(s, 100, 1.0, 0.3) for s in range(100)]
    assert rates[0] == pytest.approx(1 / 25)
    assert max(rates) == pytest.approx(1.0)
    assert int(np.argmax(rates)) == 29
    assert rates[-1] == pytest.approx(1 / 2.5e5)


def test_split_does_not_depend_on_order():
    ids = [f"s{i}" for i in range(5000)]
    out = held_out(ids, 0.3)
    assert out.mean() == pytest.approx(0.3, abs=0.03)
    assert held_out(ids[::-1], 0.3)[::-1].tolist() == out.tolist()
    assert (held_out(ids, 0.3, seed=1) != out).any()


def test_clean_hides_what_cannot_be_used():
    flux = np.array([[1.0, np.nan, 3.0, 4.0, 5.0]], np.float32)
    ivar = np.array([[1.0, 1.0, -1.0, np.inf, 4.0]], np.float32)
    flags = np.array([[8, 0, 0, 0, 0]], np.uint8)
    f, w = clean(flux, ivar, flags, selected=255)
    assert w.tolist() == [[0, 0, 0, 0, 4]]
    assert np.isfinite(f).all()
    assert clean(flux, ivar, flags, selected=0)[1][0, 0] == 1
    assert clean(flux, ivar, flags, 255, floor=0.5)[1][0, 4] == pytest.approx(2.0)


def test_surveys_that_cannot_be_used(toy):
    with pytest.raises(DataError, match="no stars"):
        look_at(toy.isel(star=slice(0, 0)))
    with pytest.raises(InputError, match="not a survey"):
        look_at(toy.drop_vars("ivar"))
    config = TrainConfig.from_dict(FAST)
    with pytest.raises(DataError, match="at least"):
        build(look_at(toy.isel(star=slice(0, 100))), MODEL, config, TOY_REGIONS)
    with pytest.raises(DataError, match="no teff"):
        standard_labels(toy.drop_vars("teff"), ("teff", "logg"))
    blank = toy.assign(teff=toy["teff"] * np.nan)
    with pytest.raises(DataError, match="teff is known for 0"):
        standard_labels(blank, ("teff", "logg"))
    nothing = toy.assign(ivar=toy["ivar"] * 0)
    with pytest.raises(DataError, match="usable"):
        build(look_at(nothing), MODEL, config, TOY_REGIONS)


def test_unknown_presets_and_settings():
    with pytest.raises(InputError, match="no preset"):
        recipe("best")
    with pytest.raises(InputError, match="unknown training settings"):
        recipe("default", train={"epoch": 3})
    with pytest.raises(InputError, match="label_pretrain_epochs"):
        started(
            toy_survey(300),
            TrainConfig.from_dict({**FAST, "label_pretrain_epochs": 2}),
            model=ModelConfig(encoder="conv"),
        )


def test_paper_preset_takes_a_step(toy):
    config, train, _ = recipe("paper", model={"decoder": (8,)}, train={"epochs": 1, "batch": 256})
    trainer = started(toy, train, model=config)
    before = {k: v.clone() for k, v in trainer.model.encoder.state_dict().items()}
    trainer.train()
    assert any(not torch.equal(before[k], v) for k, v in trainer.model.encoder.state_dict().items())
    assert {"adversary", "kl", "linear"} <= set(trainer.progress.curves[-1])
    assert "independence" not in trainer.progress.curves[-1]


# ---------------------------------------------------------------- checkpoints


def test_damaged_and_mixed_checkpoints_are_refused(toy_run, tmp_path):
    with pytest.raises(StoreError, match="no model"):
        load_model(tmp_path)
    folder = tmp_path / "vae"
    shutil.copytree(toy_run / "vae", folder)
    record = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(record | {"model": record["model"] | {"hidden": [7]}}))
    with pytest.raises(InputError, match="another configuration"):
        load_model(folder)
    (folder / "model.json").write_text(json.dumps(record | {"version": 99}))
    with pytest.raises(StoreError, match="version"):
        load_model(folder)
    (folder / "model.json").write_text(json.dumps(record))
    with open(folder / "model.safetensors", "r+b") as f:
        f.seek(-3, 2)
        f.write(b"\xff")
    with pytest.raises(StoreError, match="does not belong"):
        load_model(folder)


def test_checkpoints_hold_no_pickle(toy_run):
    payload = (toy_run / "vae" / "model.safetensors").read_bytes()
    assert b"pickle" not in payload
    assert payload[8:9] == b"{"  # safetensors: a JSON header
    assert not list((toy_run / "vae").glob("*.pt"))


def test_small_surveys_get_more_epochs_and_smaller_batches():
    config = TrainConfig()
    large = config.scaled(200_000)
    assert large == config
    assert config.scaled(28_000).epochs == config.epochs
    small = config.scaled(420)
    assert small.batch == 70
    assert small.epochs * (420 // 70) >= 1200
    assert small.decoder_finetune_epochs * (420 // 70) >= 600
    assert small.late_label_weight == 0 and large.late_label_weight > 0  # w would follow the labels' errors
    _, paper, _ = recipe("paper")
    assert paper.scaled(420) == paper
