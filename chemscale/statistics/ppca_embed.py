"""Coordinates of spectra under a fitted model: posterior means and variances, outliers left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np

from chemscale.statistics.outliers import Outliers, Rejection
from chemscale.statistics.pixel_loops import Listed
from chemscale.statistics.ppca_arrays import prepare, rows_per_block, select
from chemscale.statistics.ppca_fit import SMALL
from chemscale.statistics.ppca_kernels import Model, SharedPass, centred, observed_gram, posterior, shared_block
from chemscale.statistics.ppca_kernels_weighted import weighted_block


@dataclass
class Embedded:
    """Posterior means and variances (n, K) of a block, NaN for a star with no valid pixel, and its outliers."""

    coords: np.ndarray
    variance: np.ndarray
    outliers: Outliers | None

    @property
    def both(self) -> np.ndarray:
        """Means and variances side by side, (n, 2K)."""
        return np.concatenate([self.coords, self.variance], axis=1)


def embed(
    flux: np.ndarray,
    mask: Any = None,
    ivar: Any = None,
    *,
    model: Model,
    used: np.ndarray,
    weighted: bool,
    rejection: Rejection | None,
    device: str | None = None,
) -> np.ndarray:
    """Posterior means and variances of one block, side by side: (n, 2K); NaN for a star with no valid pixel."""
    block = select(prepare(flux, mask, ivar), used)
    return embed_block(*block, model=model, weighted=weighted, rejection=rejection, device=device).both


def embed_arrays(flux: Any, mask: Any, ivar: Any, kernel: Callable[..., np.ndarray], k: int) -> Any:
    """`kernel` (:func:`embed`) over all stars: (n, 2K), computed for NumPy arrays block by block, lazy for Dask."""
    if not any(isinstance(a, da.Array) for a in (flux, mask, ivar)):
        step = rows_per_block(flux.shape[1], 8)
        parts = [slice(s, s + step) for s in range(0, flux.shape[0], step)]
        blocks = [kernel(flux[p], *(None if a is None else a[p] for a in (mask, ivar))) for p in parts]
        return np.concatenate(blocks) if blocks else np.zeros((0, 2 * k))
    flux = da.asarray(flux).rechunk({1: -1})
    others = {
        name: da.asarray(a).rechunk({0: flux.chunks[0], 1: -1})
        for name, a in (("mask", mask), ("ivar", ivar))
        if a is not None
    }
    return da.map_blocks(
        _embed_lazily,
        flux,
        *others.values(),
        names=tuple(others),
        kernel=kernel,
        dtype=np.float64,
        chunks=(flux.chunks[0], (2 * k,)),
        meta=np.zeros((0, 0)),
    )


def _embed_lazily(flux: np.ndarray, *others: np.ndarray, names: tuple[str, ...], kernel: Any) -> np.ndarray:
    return kernel(flux, **dict(zip(names, others)))


def embed_block(
    block: np.ndarray,
    missing: np.ndarray,
    errors: np.ndarray | None,
    *,
    model: Model,
    weighted: bool,
    rejection: Rejection | None = None,
    device: str | None = None,
) -> Embedded:
    """:func:`embed` for a prepared block of the used pixels; on a `device` by tensor code, else on the CPU."""
    small = block.size <= SMALL // 10
    dtype = np.dtype(np.float64 if small or block.dtype == np.float64 else np.float32)
    outliers: Outliers | None
    if device is not None:
        from chemscale.statistics import ppca_device

        given: dict[str, Any] = {
            "model": model,
            "weighted": weighted,
            "rejection": rejection,
            "dtype": dtype,
            "device": device,
        }
        latent, variance, outliers = ppca_device.embed_block(block, missing, errors, **given)
    elif weighted:
        assert errors is not None
        found = weighted_block(block, missing, errors, model, dtype, residuals=False, rejection=rejection)
        latent, outliers = found.latent * model.scale, found.outliers
        variance = np.diagonal(found.covariance, axis1=1, axis2=2) * model.scale**2
    else:
        x = centred(block, missing, model.mean.astype(dtype))
        if rejection is None:  # the residuals of a whole block would be for nothing
            basis = np.ascontiguousarray(model.basis.astype(dtype))
            post, outliers = posterior(observed_gram(missing, Listed.of(missing), basis), x @ basis, model), None
        else:
            task = SharedPass(model, np.zeros((len(model.mean), 0)), rejection=rejection)
            shared = shared_block(x, missing, errors, task, 1.0)
            post, outliers = shared.posterior, shared.outliers
        latent, variance = post.latent, np.diagonal(post.covariance, axis1=1, axis2=2).copy()
    latent = latent.copy()
    empty = missing.all(axis=1)
    latent[empty], variance[empty] = np.nan, np.nan
    return Embedded(latent, variance, outliers)
