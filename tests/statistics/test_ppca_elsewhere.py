"""Tensor passes of masked PPCA mix no devices: shown without a GPU, on torch's meta device, which has no values."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
fake_tensors = pytest.importorskip("torch.fx.experimental._config")

from chemscale.statistics import ppca_device  # noqa: E402
from chemscale.statistics.ppca_kernels import Model, SharedPass  # noqa: E402
from chemscale.statistics.ppca_kernels_weighted import WeightedPass  # noqa: E402

N, P, K = 40, 60, 4
F32 = np.dtype("f4")


@pytest.fixture
def spectra():
    rng = np.random.default_rng(0)
    missing = rng.random((N, P)) < 0.05
    flux, ivar = rng.standard_normal((N, P)).astype("f4"), rng.uniform(1.0, 2.0, (N, P)).astype("f4")
    return flux, missing, ivar


@pytest.fixture
def model():
    basis = np.linalg.qr(np.random.default_rng(1).standard_normal((P, K)))[0]
    return Model(np.zeros(P), basis, np.full(K, 2.0), 1.0)


@pytest.fixture
def elsewhere(monkeypatch):
    """What is fetched at the end of a pass, instead of its values, and what needs values in between."""
    fetched: list[str] = []
    monkeypatch.setattr(
        ppca_device, "_fetched", lambda found: fetched.extend({v.device.type for v in found.values()}) or {}
    )
    monkeypatch.setattr(ppca_device, "_free_bytes", lambda device: 10**9)

    def inverse(systems):  # looks whether a system failed
        return torch.empty_like(systems), systems.new_empty(len(systems))

    monkeypatch.setattr(ppca_device, "invert", inverse)
    with fake_tensors.patch(meta_nonzero_assume_all_nonzero=True):
        yield fetched


@pytest.mark.parametrize("rare", [(), (3, 4)])
def test_a_pass_with_shared_noise(elsewhere, spectra, model, rare):
    extra = np.linalg.qr(np.random.default_rng(2).standard_normal((P, K)))[0]
    task = SharedPass(model, extra, np.array(rare, dtype=np.int64))
    ppca_device.shared_stats(*spectra, task=task, dtype=F32, unit=1.0, device="meta")
    assert elsewhere == ["meta"]


def test_a_pass_with_the_errors_of_the_survey(elsewhere, spectra, model):
    extra = np.linalg.qr(np.random.default_rng(2).standard_normal((P, K)))[0]
    ppca_device.weighted_stats(*spectra, task=WeightedPass(model, extra), dtype=F32, unit=1.0, device="meta")
    assert elsewhere == ["meta"]


@pytest.mark.parametrize("weighted", [False, True])
def test_an_embedding_reaches_the_fetch_of_its_results(elsewhere, spectra, model, weighted):
    with pytest.raises(NotImplementedError, match="meta tensor; no data"):
        ppca_device.embed_block(*spectra, model=model, weighted=weighted, rejection=None, dtype=F32, device="meta")
