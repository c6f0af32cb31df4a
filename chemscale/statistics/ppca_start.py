"""What a fit starts from: its working unit, its first model, and the kernels bound to both."""

from __future__ import annotations

from functools import partial
from typing import Any

import dask
import dask.array as da
import numpy as np

from chemscale.errors import DataError
from chemscale.statistics.blocks import share_cores
from chemscale.statistics.ppca_arrays import ArraySource, Sample
from chemscale.statistics.ppca_kernels import Model, SharedPass, Stats, shared_stats
from chemscale.statistics.ppca_kernels_weighted import weighted_stats
from chemscale.statistics.ppca_shared import orthonormal
from chemscale.statistics.ppca_source import Source

#: Stars and rows per batch of the incremental PCA that starts everything.
WARM_STARS, WARM_BATCH = 1024, 256


def sample_unit(sample: ArraySource) -> float:
    """Power of two near the standard deviation of the flux about its mean spectrum.

    From a thousand stars. Working in this unit keeps float32 away from its limits; a power of two divides exactly,
    so scaled data give exactly scaled results.
    """
    sample = sample.few(WARM_STARS)
    filled = np.where(sample.missing, 0.0, sample.flux)
    seen = (~sample.missing).sum(axis=0)
    mean = filled.sum(axis=0) / np.maximum(seen, 1)
    filled -= mean
    filled[sample.missing] = 0.0
    largest = np.abs(filled).max(initial=0.0)
    if not largest > 1e-12 * np.abs(mean).max(initial=0.0):
        raise DataError("the flux does not vary from star to star", "check the input: are all spectra alike?")
    deviation = largest * np.sqrt(np.sum((filled / largest) ** 2) / seen.sum())
    return float(2.0 ** np.round(np.log2(deviation)))


class Runner:
    """Runs the kernels over a source in working units (flux divided by `unit`); `few` stars make the first model."""

    def __init__(self, source: Source, few: ArraySource, unit: float, dtype: np.dtype, seed: int, small: bool):
        self.source, self.few, self.unit, self.dtype, self.seed = source, few, unit, dtype, seed
        self.small = small  # not worth a subsample

    def shared(self, source: Source | Sample, task: SharedPass) -> Stats:
        """Sums of one pass of the shared-noise model."""
        out = source.reduce(partial(_shared_kernel, task=task, unit=self.unit, dtype=self.dtype))
        share_cores(1)  # the algebra between passes has the machine to itself
        return out

    def weighted(self, source: Source | Sample, jitter: bool, model: Model) -> Stats:
        """Sums of one pass of the per-pixel noise model."""
        out = source.reduce(partial(_weighted_kernel, model=model, unit=self.unit, dtype=self.dtype, jitter=jitter))
        share_cores(1)
        return out


def _shared_kernel(
    flux: np.ndarray, missing: np.ndarray, ivar: Any, *, task: SharedPass, unit: float, dtype: np.dtype
) -> Stats:
    return shared_stats(flux, missing, task, dtype, unit)


def _weighted_kernel(
    flux: np.ndarray, missing: np.ndarray, ivar: np.ndarray, *, model: Model, unit: float, dtype: np.dtype, jitter: bool
) -> Stats:
    return weighted_stats(flux, missing, ivar, model, dtype, jitter, unit)


def warm_start(runner: Runner, k: int, guards: int) -> tuple[Model, np.ndarray]:
    """First model from dask-ml's IncrementalPCA on mean-filled blocks of a subsample.

    Its `noise_variance_` is biased low for small batches and is not used: the noise comes from the
    variance the components leave.
    """
    from dask_ml.decomposition import IncrementalPCA

    # Where passes over a subsample follow, half as many stars are as good a start.
    sample = runner.few.few(max(WARM_STARS if runner.small else WARM_STARS // 2, 8 * (k + guards)))
    alive = ~sample.missing.all(axis=1)
    missing = sample.missing[alive]
    flux = np.where(missing, 0.0, sample.flux[alive]) / runner.unit
    seen = np.maximum((~missing).sum(axis=0), 1)
    mean = flux.sum(axis=0) / seen
    flux -= mean
    flux[missing] = 0.0
    n, p = flux.shape
    want = max(1, min(k + guards, n - 1, p - 1))
    batch = min(n, max(WARM_BATCH, 2 * want))
    model = IncrementalPCA(n_components=want, batch_size=batch, random_state=runner.seed)
    chunks = tuple(len(part) for part in np.array_split(np.arange(n), max(1, n // batch)))
    # A thousand stars: not worth a trip to the cluster, and dask-ml divides 0 by 0 in its first batch.
    with dask.config.set(scheduler="synchronous"), np.errstate(divide="ignore", invalid="ignore"):
        model.fit(da.from_array(flux, chunks=(chunks, -1)))
    basis, _ = np.linalg.qr(np.asarray(model.components_).T)
    if basis.shape[1] < k:
        rng = np.random.default_rng(runner.seed)
        fill = orthonormal(basis, rng.standard_normal((p, k - basis.shape[1])))
        basis = np.concatenate([basis, fill], axis=1)
    variance = np.var(flux @ basis, axis=0)
    order = np.argsort(variance)[::-1]
    basis, variance = basis[:, order], variance[order]
    left = max(float((flux**2).sum() / n - variance[:k].sum()), 1e-12) / max(p - k, 1)
    noise = left * missing.size / max(float((~missing).sum()), 1.0)
    scale = np.sqrt(np.maximum(variance[:k] - noise, 1e-3 * noise))
    mean = mean + flux.mean(axis=0)
    return Model(mean, basis[:, :k], scale, noise), basis[:, k:]
