"""From a source of spectra to a fitted model: the levels of a fit and what it starts from."""

from __future__ import annotations

import importlib
import threading
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from chemscale.errors import DataError
from chemscale.statistics.blocks import available_cores, share_cores
from chemscale.statistics.outliers import Rejection
from chemscale.statistics.ppca_arrays import Sample
from chemscale.statistics.ppca_device import KERNELS, room, upload
from chemscale.statistics.ppca_kernels import Model, SharedPass, Stats, shared_stats
from chemscale.statistics.ppca_kernels_weighted import WeightedPass, weighted_stats
from chemscale.statistics.ppca_shared import SharedState, solve_shared
from chemscale.statistics.ppca_source import DaskSource, Source
from chemscale.statistics.ppca_start import WARM_STARS, incremental_start, warm_start, working_unit
from chemscale.statistics.ppca_weighted import solve_weighted
from chemscale.statistics.progress import Stop, Told, Trace

Noise = Literal["shared", "per-pixel"]
Intrinsic = Literal["none", "global", "pixel"]
Start = Literal["subsample", "incremental"]

#: Problems with fewer values than this are solved in float64 whatever the dtype of the flux.
SMALL = 20_000_000
#: Stars of the subsample the full passes start from: a quarter of all, at most this multiple of K (and at least).
SUBSAMPLE_SHARE, SUBSAMPLE_PER_COMPONENT, SUBSAMPLE_MIN = 4, 250, 3000
#: Tolerance of small problems (solved in float64) and of others.
TOL, LARGE_TOL = 1e-5, 1e-3
#: Angle at which the subsample has done its work (the statistical error of its axes is larger), and passes at most.
SUBSAMPLE_TOL, SUBSAMPLE_PASSES = 0.1, 8


@dataclass(frozen=True)
class Settings:
    """What a fit is asked for; see :class:`~chemscale.statistics.ppca.MaskedPPCA`."""

    n_components: int
    noise: Noise
    intrinsic: Intrinsic
    start: Start
    rejection: Rejection | None
    tol: float | None
    loglike_tol: float | None
    max_iter: int
    seed: int
    device: str | None = None


@dataclass
class Fitted:
    """What a fit gives, on the used pixels and in working units (flux divided by `unit`)."""

    model: Model
    trace: Trace
    used: np.ndarray  # (all pixels,) bool
    unit: float
    n_stars: int
    n_values: float
    passes: int


def fit(source: Source, settings: Settings, keep_bytes: int = 0, told: Told | None = None) -> Fitted:
    """Count pixels, draw the subsample, solve on it and then on all stars."""
    k = settings.n_components
    space = room(settings.device) if settings.device else 0
    size = subsample_size(source.n_stars, source.n_pixels, k)
    rng = np.random.default_rng(settings.seed)
    index = np.sort(rng.choice(source.n_stars, min(size, source.n_stars), replace=False))
    load_early("dask_ml.decomposition")  # seconds, which the first pass hides
    moments, stars = source.survey(index)
    used = moments["count"] > 0
    n_stars, n_pixels = int(moments["n"]), int(used.sum())
    if n_pixels <= k or n_stars <= k:
        raise DataError(
            f"{n_stars} star(s) with valid pixels and {n_pixels} used pixels cannot give {k} components",
            "lower n_components, or check the masks",
        )
    unit = working_unit(moments)
    sample = stars(used)
    del stars  # it holds every pixel of them
    if not used.all():
        source = source.using(used)
    if isinstance(source, DaskSource):
        if not source.weighted and not moments["by_errors"]:
            source = source.without_errors()  # it would be read and decoded in every pass for nothing
        if settings.device and source.device_bytes <= space:
            source.cache(partial(upload, device=settings.device))
        elif source.nbytes <= keep_bytes:
            source.cache()
    small = source.n_stars * n_pixels <= SMALL
    few = sample.few(max(WARM_STARS if small else WARM_STARS // 2, 16 * k))
    share_cores(available_cores())  # small products between passes: threads of a busy machine wait for each other
    levels: list[Source | Sample] = [source]
    passes = 1
    if settings.start == "incremental":
        start = incremental_start(source, moments["mean"][used], n_stars, unit, k, k, settings.seed)
        passes = 3
    else:
        start = warm_start(few, unit, k, k, settings.seed)
        if source.n_stars >= SUBSAMPLE_SHARE * sample.n_stars and not small:
            levels.append(sample)
    del sample  # the last pass over it frees it
    dtype = np.dtype(np.float64 if small or source.dtype == np.float64 else np.float32)
    tol = settings.tol if settings.tol is not None else TOL if small else LARGE_TOL
    floor = 1e-13 if dtype == np.float64 else 1e-9
    loglike_tol = settings.loglike_tol or max(floor, 1e-3 * tol**2)
    last = Stop(tol, settings.max_iter, loglike_tol, settings.rejection, told)
    first = Stop(
        max(tol, SUBSAMPLE_TOL),
        min(SUBSAMPLE_PASSES, settings.max_iter),
        max(loglike_tol, 1e-7),
        settings.rejection,
        certain=False,
    )
    stops = [last, first]
    solve = _shared if settings.noise == "shared" else _weighted
    run = partial(_run, dtype=dtype, unit=unit, device=settings.device)
    model, trace = solve(levels, stops, start, settings, run)
    passes += len(trace.loglike)
    return Fitted(model, trace, used, unit, n_stars, float(moments["count"].sum()), passes)


def load_early(module: str) -> None:
    """Import a module that will be needed soon, beside what is going on."""
    threading.Thread(target=importlib.import_module, args=(module,), daemon=True).start()


def _shared(
    levels: list[Source | Sample], stops: list[Stop], start: tuple[Model, np.ndarray], settings: Settings, run: Any
) -> tuple[Model, Trace]:
    state = SharedState.start(*start)
    trace = Trace()
    while levels:
        level = levels.pop()
        state, trace = solve_shared(partial(run, level, _shared_kernel), state.elsewhere(), stops[len(levels)])
    return state.model, trace


def _weighted(
    levels: list[Source | Sample], stops: list[Stop], start: tuple[Model, np.ndarray], settings: Settings, run: Any
) -> tuple[Model, Trace]:
    model, _ = start
    noise = np.zeros_like(model.mean) if settings.intrinsic == "pixel" else 0.0
    model = Model(model.mean, model.basis, model.scale, noise)
    slow, trace = None, Trace()
    while levels:
        level = levels.pop()
        model, trace, slow = solve_weighted(
            partial(run, level, _weighted_kernel),
            model,
            stops[len(levels)],
            intrinsic=settings.intrinsic,
            slow=slow,
        )
    return model, trace


def _run(
    level: Source | Sample,
    kernel: Any,
    task: SharedPass | WeightedPass,
    *,
    dtype: np.dtype,
    unit: float,
    device: str | None = None,
) -> Stats:
    """Sums of one pass over a level, on CPUs or on a device."""
    if device:
        kernel = partial(KERNELS["shared" if isinstance(task, SharedPass) else "per-pixel"], device=device)
    out = level.reduce(partial(kernel, task=task, unit=unit, dtype=dtype))
    share_cores(available_cores())
    return out


def _shared_kernel(
    flux: np.ndarray, missing: np.ndarray, ivar: Any, *, task: SharedPass, unit: float, dtype: np.dtype
) -> Stats:
    return shared_stats(flux, missing, task, dtype, unit, ivar)


def _weighted_kernel(
    flux: np.ndarray, missing: np.ndarray, ivar: np.ndarray, *, task: WeightedPass, unit: float, dtype: np.dtype
) -> Stats:
    return weighted_stats(flux, missing, ivar, task, dtype, unit)


def mean_loglike(source: Source, used: np.ndarray, model: Model) -> float:
    """Mean log-likelihood of the stars of a source with a valid pixel; one pass."""
    source = source if used.all() else source.using(used)
    small = source.n_stars * source.n_pixels <= SMALL
    dtype = np.dtype(np.float64 if small or source.dtype == np.float64 else np.float32)
    none = np.zeros((len(model.mean), 0))
    if source.has_errors:
        total = _run(source, _weighted_kernel, WeightedPass(model, none), dtype=dtype, unit=1.0)
    else:
        total = _run(source, _shared_kernel, SharedPass(model, none), dtype=dtype, unit=1.0)
    return float(total["loglike"] / total["n"])


def subsample_size(n_stars: int, n_pixels: int, k: int) -> int:
    """Stars of the subsample a fit starts from."""
    least = max(WARM_STARS, 16 * k)
    if n_stars * n_pixels <= SMALL:
        return least
    return max(least, min(n_stars // SUBSAMPLE_SHARE, max(SUBSAMPLE_PER_COMPONENT * k, SUBSAMPLE_MIN)))
