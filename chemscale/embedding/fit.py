"""Masked PPCA of a whole survey, fitted out of core.

The function works on a Dataset of the data contract (:func:`chemscale.open_survey`), with
whatever Dask scheduler is active: a distributed client, or threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from chemscale.errors import InputError
from chemscale.schema import Flag, flag_mask
from chemscale.statistics.ppca import MaskedPPCA
from chemscale.statistics.ppca_source import DaskSource

#: Bytes of used pixels that a fit keeps in memory between passes, unless it is told otherwise.
KEEP_BYTES = 2 * 2**30


def fit_survey(
    ds: xr.Dataset,
    selection: Any = None,
    *,
    n_components: int = 30,
    noise: str = "shared",
    flags: str | int | Iterable[str] = "all",
    keep_bytes: int = KEEP_BYTES,
    tol: float = 5e-3,
    progress: Callable[[int, int, float], None] | None = None,
    **settings: Any,
) -> MaskedPPCA:
    """Fit a :class:`~chemscale.statistics.ppca.MaskedPPCA` to the stars of a survey; computes.

    Passes over the store: one that counts the valid stars of each pixel and draws the subsample, then
    one per iteration (``n_passes_`` in all, typically 3 to 8). If the used pixels take at most `keep_bytes`, they
    are kept in the cluster's memory after one more pass, otherwise every pass streams from the store.

    Memory: each task thread holds some eight arrays of one block (1024 APOGEE spectra: 35 MB each), independent of
    the number of stars; the client holds the subsample (250 K stars).

    Parameters
    ----------
    ds : xarray.Dataset
        A survey with Dask-backed `flux`, `ivar`, `flags`.
    selection : array of bool (star,), optional
        Stars to fit. Default: all.
    flags : str, int or iterable of str
        Flag bits that make a pixel missing (:func:`chemscale.schema.flag_mask`); NON_FINITE always does.
    keep_bytes : int
        Memory the used pixels may take between passes; 0 = always stream.
    tol : float
        Principal angle (radian) to the exact solution at which to stop.
    progress : callable, optional
        Told after each pass, as in :meth:`MaskedPPCA.fit`.
    **settings
        Further arguments of :class:`MaskedPPCA`.

    Raises
    ------
    InputError, DataError
        Wrong selection; too few stars or pixels.
    """
    n = ds.sizes["star"]
    chosen = None
    if selection is not None:
        chosen = np.asarray(selection)
        if chosen.shape != (n,) or chosen.dtype != bool:
            raise InputError(
                f"selection has shape {chosen.shape} and dtype {chosen.dtype}, the survey {n} stars",
                "pass one boolean per star",
            )
    flux, ivar, bits = survey_pixels(ds)
    ppca = MaskedPPCA(n_components, noise=noise, tol=tol, **settings)  # type: ignore[arg-type]
    source = DaskSource(flux, bits, ivar, weighted=ppca.uses_ivar, bits=missing_bits(flags), chosen=chosen)
    return ppca.fit_source(source, keep_bytes=keep_bytes, progress=progress)


def missing_bits(flags: str | int | Iterable[str]) -> int:
    """Flag bits that make a pixel missing; NON_FINITE always does."""
    return flag_mask(flags) | int(Flag.NON_FINITE)


def survey_pixels(ds: xr.Dataset) -> tuple[da.Array, da.Array, da.Array]:
    """Flux, ivar and flags (star, wavelength) of a survey as Dask arrays."""
    missing = [name for name in ("flux", "ivar", "flags") if name not in ds.variables]
    if missing:
        raise InputError(f"the dataset has no {', '.join(missing)}", "open it with chemscale.open_survey")
    flux, ivar, flags = (da.asarray(ds[name].data) for name in ("flux", "ivar", "flags"))
    return flux, ivar, flags
