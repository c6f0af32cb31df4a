"""What a fit starts from: its working unit and its first model."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np

from chemscale.errors import DataError
from chemscale.statistics.moments import Moments, block_moments
from chemscale.statistics.ppca_arrays import ArraySource
from chemscale.statistics.ppca_kernels import Model
from chemscale.statistics.ppca_shared import orthonormal
from chemscale.statistics.ppca_source import Source

#: Stars and rows per batch of the incremental PCA that starts everything.
WARM_STARS, WARM_BATCH = 1024, 256


def working_unit(moments: Moments) -> float:
    """Power of two near the standard deviation of the flux about its mean spectrum.

    Working in this unit keeps float32 away from its limits; a power of two divides exactly,
    so scaled data give exactly scaled results.
    """
    largest = np.abs(moments["mean"]).max(initial=0.0)
    deviation = np.sqrt(moments["central"].sum() / moments["count"].sum())
    if not deviation > 1e-12 * largest:
        raise DataError("the flux does not vary from star to star", "check the input: are all spectra alike?")
    return float(2.0 ** np.round(np.log2(deviation)))


def warm_start(sample: ArraySource, unit: float, k: int, guards: int, seed: int) -> tuple[Model, np.ndarray]:
    """First model, and `guards` directions after it, from dask-ml's IncrementalPCA on some mean-filled stars."""
    alive = ~sample.missing.all(axis=1)
    missing = sample.missing[alive]
    flux = np.where(missing, 0.0, sample.flux[alive]) / unit
    moments = block_moments(flux, missing)
    mean = moments["mean"]
    flux -= mean
    flux[missing] = 0.0
    n = len(flux)
    batch = min(n, max(WARM_BATCH, 2 * min(k + guards, n - 1)))
    chunks = tuple(len(part) for part in np.array_split(np.arange(n), max(1, n // batch)))
    shift, basis = _incremental(da.from_array(flux, chunks=(chunks, -1)), k + guards, seed)
    variance = np.var(flux @ basis, axis=0)
    return _model(mean + shift, basis, variance, k, float(moments["central"].sum() / n), missing.mean(), seed)


def incremental_start(
    source: Source, mean: np.ndarray, n_stars: int, unit: float, k: int, guards: int, seed: int
) -> tuple[Model, np.ndarray]:
    """First model from dask-ml's IncrementalPCA over all blocks of a source, missing pixels filled with the mean.

    Two passes: the axes, and the variances along them.

    Parameters
    ----------
    mean : ndarray (P,)
        Mean spectrum of the used pixels, in units of the flux.
    """
    flux = source.filled(mean, unit)
    shift, basis = _incremental(flux, k + guards, seed)
    coords = flux @ basis.astype(flux.dtype)
    variance, total = dask.compute(da.var(coords, axis=0), (flux.astype(np.float64) ** 2).sum())
    return _model(mean / unit + shift, basis, np.asarray(variance), k, float(total) / n_stars, 0.0, seed)


def _incremental(flux: da.Array, want: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and orthonormal axes (P, at most `want`) of centred, filled spectra."""
    from dask_ml.decomposition import IncrementalPCA

    n, p = flux.shape
    want = max(1, min(want, n - 1, p - 1))
    merged: list[int] = []
    for rows in flux.chunks[0]:  # every batch needs as many stars as there are components
        if merged and (merged[-1] < want or rows < want):
            merged[-1] += rows
        else:
            merged.append(rows)
    flux = flux.rechunk((tuple(merged), -1))
    model = IncrementalPCA(n_components=want, batch_size=max(merged), random_state=seed)
    # A batch after the other: not worth a trip to the cluster, and dask-ml divides 0 by 0 in its first one.
    with dask.config.set(scheduler="synchronous"), np.errstate(divide="ignore", invalid="ignore"):
        model.fit(flux)
    return np.asarray(model.mean_, dtype=np.float64), np.linalg.qr(np.asarray(model.components_, dtype=np.float64).T)[0]


def _model(
    mean: np.ndarray, basis: np.ndarray, variance: np.ndarray, k: int, total: float, gone: float, seed: int
) -> tuple[Model, np.ndarray]:
    """The model and what follows it. IncrementalPCA's own noise is biased low for small batches: it is not used."""
    p = len(mean)
    if basis.shape[1] < k:
        rng = np.random.default_rng(seed)
        fill = orthonormal(basis, rng.standard_normal((p, k - basis.shape[1])))
        basis = np.concatenate([basis, fill], axis=1)
        variance = np.concatenate([variance, np.zeros(fill.shape[1])])
    order = np.argsort(variance)[::-1]
    basis, variance = basis[:, order], variance[order]
    left = max(total - variance[:k].sum(), 1e-12) / max(p - k, 1)
    noise = left / max(1.0 - gone, 1e-12)
    scale = np.sqrt(np.maximum(variance[:k] - noise, 1e-3 * noise))
    return Model(mean, basis[:, :k], scale, noise), basis[:, k:]
