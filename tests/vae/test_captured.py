"""Recorded steps: a recording repeats its operations on the same memory, whatever Python would do today.

Without a GPU a tape stands in for a CUDA graph: it keeps every operator with the tensors it was called with, and a
replay calls them again and writes into the memory of the recorded results. As in a CUDA graph, numbers of Python and
the choices they led to are those of the recording.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from vae_toy import FAST, FAST_MODEL, TOY_REGIONS, toy_survey

from chemscale.vae.axis_map import AxisMap
from chemscale.vae.captured import CapturedSteps
from chemscale.vae.config import ModelConfig
from chemscale.vae.prepare import build, look_at, training_data
from chemscale.vae.train_config import TrainConfig
from chemscale.vae.training import Trainer

SETTINGS = {"epochs": 6, "batch": 64, "own_side": 0.2, "late_rest_weight": 0.3, "map_axes": True}


class Tape(TorchDispatchMode):
    """Operators in the order of their calls."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        found = operator(*args, **(kwargs or {}))
        assert operator is not torch.ops.aten._local_scalar_dense.default, "a recorded step reads a value"
        assert operator is not torch.ops.aten.lift_fresh.default, "a recorded step copies numbers of Python"
        self.calls.append((operator, args, kwargs or {}, found))
        return found

    def replay(self):
        with torch.no_grad():
            for operator, args, kwargs, kept in self.calls:
                again = operator(*args, **kwargs)
                for old, new in zip(tree_leaves(kept), tree_leaves(again), strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


class Recorder:
    """Counts its recordings."""

    def __init__(self):
        self.tapes = []

    def __call__(self, run, generator):
        with Tape() as tape:
            run()
        self.tapes.append(tape)
        return tape.replay


@pytest.fixture(scope="module")
def pieces():
    config = TrainConfig.from_dict({**FAST, **SETTINGS})
    survey = look_at(toy_survey(600))
    network = build(survey, ModelConfig.from_dict(FAST_MODEL), config, TOY_REGIONS)
    source, validation, _ = training_data(survey, network, config)
    return network, source, config, validation


def trained(pieces, recorder=None, max_steps=None, **settings):
    network, source, config, validation = copy.deepcopy(pieces)
    config = TrainConfig.from_dict({**FAST, **SETTINGS, **settings})
    trainer = Trainer(network, source, config, validation=validation, device="cpu")
    if recorder is not None:
        trainer.captured = CapturedSteps(list(network.parameters()), torch.device("cpu"), recorder)
    trainer.train(max_steps)
    return trainer


@pytest.mark.parametrize("settings", [{}, {"adversary": ((0, 0.0), (2, 0.05)), "cycle_momentum": True}])
def test_a_recorded_training_is_that_of_single_operations(pieces, settings):
    recorder = Recorder()
    plain, recorded = trained(pieces, **settings), trained(pieces, recorder, **settings)
    assert recorded.progress.step == plain.progress.step == plain.total_steps
    # a few recordings of hundreds of operations, and not one a step
    assert 4 <= len(recorder.tapes) <= 9
    for a, b in zip(plain.progress.curves, recorded.progress.curves, strict=True):
        assert a.keys() == b.keys()
        assert [b[k] for k in a if k not in ("phase", "seconds")] == pytest.approx(
            [a[k] for k in a if k not in ("phase", "seconds")], rel=2e-3, abs=1e-5
        )
    for (name, a), b in zip(plain.model.state_dict().items(), recorded.model.state_dict().values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-2, atol=2e-3), name


def test_the_first_steps_are_the_same_to_rounding(pieces):
    plain, recorded = trained(pieces, max_steps=5), trained(pieces, Recorder(), max_steps=5)
    for (name, a), b in zip(plain.model.state_dict().items(), recorded.model.state_dict().values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6), name


def test_terms_of_a_step_outlive_the_next(pieces):
    trainer = trained(pieces, Recorder(), max_steps=1)
    first, second = [b for _, b in zip(range(2), trainer.source.epoch(1))]
    terms = trainer.step(first, 1)
    before = {k: float(v) for k, v in terms.items()}
    trainer.step(second, 1)
    assert {k: float(v) for k, v in terms.items()} == before


def test_decoders_learn_alone_behind_a_fitted_axis_map(pieces, monkeypatch):
    # as on a GPU, where there is no compiled pass
    monkeypatch.setattr(AxisMap, "_compiled", lambda self, mean, t: self._by_tensors(mean, t[:, None]))
    found, recorder = [], Recorder()
    for record in (None, recorder):
        network, source, config, validation = copy.deepcopy(pieces)
        rng = np.random.default_rng(0)
        assert network.axis_map.fit(rng.standard_normal((9000, 3)), rng.uniform(4000.0, 7000.0, 9000))
        config = TrainConfig.from_dict({**FAST, **SETTINGS, "map_axes": False})
        trainer = Trainer(network, source, config, validation=validation, device="cpu")
        if record is not None:
            trainer.captured = CapturedSteps(list(network.parameters()), torch.device("cpu"), record)
        trainer.finetune_decoders()
        found.append(network.state_dict())
    assert len(recorder.tapes) == 1
    for name, value in found[0].items():
        assert torch.allclose(value, found[1][name], rtol=1e-3, atol=1e-4), name


def test_another_objective_is_recorded_anew(pieces):
    recorder = Recorder()
    trainer = trained(pieces, recorder, max_steps=1)
    begun = len(recorder.tapes)
    batch = next(iter(trainer.source.epoch(0)))
    for _ in range(3):
        trainer.step(batch, 0)
    assert len(recorder.tapes) == begun
    trainer.progress.step = trainer.total_steps - 1
    trainer.step(batch, trainer.config.epochs - 1)
    assert len(recorder.tapes) == begun + 1
    trainer.step(batch.rows(slice(0, 32)), trainer.config.epochs - 1)  # a smaller batch as well
    assert len(recorder.tapes) == begun + 2


def test_a_device_that_records_nothing_trains_as_before_and_says_so(pieces, caplog):
    lent = []

    def refuse(run, generator):
        lent.append(generator)
        run()
        raise RuntimeError("operation not permitted when stream is capturing")

    plain, refused = trained(pieces, max_steps=7), trained(pieces, refuse, max_steps=7)
    assert "not permitted" in refused.captured.refused
    assert refused.captured.generator is not lent[0]  # one that a failed recording has is of no use any more
    assert sum("does not record training steps" in r.message for r in caplog.records) == 1
    for (name, a), b in zip(plain.model.state_dict().items(), refused.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_a_device_without_memory_is_no_reason_to_go_on(pieces):
    def full(run, generator):
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        trained(pieces, full, max_steps=1)


@pytest.mark.gpu
@pytest.mark.parametrize("settings", [{}, {"adversary": ((0, 0.0), (2, 0.05)), "cycle_momentum": True}])
def test_cuda_graphs_train_as_single_kernels_do(pieces, settings):
    found = []
    for recorded in (True, False):
        network, source, _, validation = copy.deepcopy(pieces)
        config = TrainConfig.from_dict({**FAST, **SETTINGS, **settings})
        trainer = Trainer(network, source, config, validation=validation, device="cuda")
        assert trainer.captured is not None
        if not recorded:
            trainer.captured = None
        trainer.train()
        if recorded:
            assert not trainer.captured.refused
        found.append(trainer)
    for a, b in zip(*(t.progress.curves for t in found), strict=True):
        keys = [k for k in a if k not in ("phase", "seconds")]
        assert [a[k] for k in keys] == pytest.approx([b[k] for k in keys], rel=5e-3, abs=1e-4)
