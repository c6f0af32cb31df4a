"""Probabilistic PCA of spectra with missing pixels and, optionally, per-pixel errors.

=====================  =======================================================================
``noise="shared"``     one noise variance for every pixel: Tipping & Bishop (1999), the PPCA of the
                       RSCA paper's section 3.2 (de Mijolla & Ness 2021)
``noise="per-pixel"``  known variance ``1 / ivar`` of every pixel plus an intrinsic variance,
                       Gaussian prior on the latents: Bailey (2012), Tsalmantza & Hogg (2012)
=====================  =======================================================================

Both accept NumPy and Dask arrays; a fit of Dask arrays holds a few blocks in memory at a time.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, Self

import dask.array as da
import numpy as np
import xarray as xr

from chemscale.display import Shown
from chemscale.errors import DataError, InputError
from chemscale.labelled import like, pixels
from chemscale.statistics.ppca_arrays import ArraySource, Sample, check_shapes, prepare, rows_per_block, select
from chemscale.statistics.ppca_kernels import (
    Model,
    centred,
    shared_posterior,
)
from chemscale.statistics.ppca_kernels_weighted import weigh
from chemscale.statistics.ppca_shared import SharedState, Tell, Trace, signed, solve_shared
from chemscale.statistics.ppca_source import DaskSource, Source
from chemscale.statistics.ppca_start import WARM_STARS, Runner, sample_unit, warm_start
from chemscale.statistics.ppca_weighted import solve_weighted

Noise = Literal["shared", "per-pixel"]
Intrinsic = Literal["none", "global", "pixel"]

#: Problems with fewer values than this are solved in float64 whatever the dtype of the flux.
SMALL = 20_000_000
#: Beyond this many values the moments over missing pixels are computed in the first pass of a level only.
FRESH = SMALL
#: Stars of the subsample the full passes start from: a quarter of all, at most this multiple of K (and at least).
SUBSAMPLE_SHARE, SUBSAMPLE_PER_COMPONENT, SUBSAMPLE_MIN = 4, 250, 3000
#: Tolerance of small problems (solved in float64) and of others.
TOL, LARGE_TOL = 1e-5, 1e-3
#: Angle at which the subsample has done its work (the statistical error of its axes is larger), and passes at most.
SUBSAMPLE_TOL, SUBSAMPLE_PASSES = 0.1, 8


class MaskedPPCA(Shown):
    """Maximum-likelihood probabilistic PCA with missing pixels.

    Parameters
    ----------
    n_components : int
        K, the number of latent dimensions.
    noise : {"shared", "per-pixel"}
        Noise model; ``"per-pixel"`` needs `ivar` in :meth:`fit` and :meth:`transform`.
    tol : float, optional
        Stop when the estimated largest principal angle (radian) between the components and the
        maximum-likelihood ones falls below this. Default: 1e-5 for up to 20 million values (solved in
        float64), 1e-3 for more; the statistical error of the axes is far larger.
    loglike_tol : float, optional
        Stop, too, when the log-likelihood changed by less than this relative amount over the last three
        passes. Default: ``tol**2 / 1000``, at least 1e-13 in float64 and 1e-9 in float32 (the noise of its sums).
    max_iter : int
        Largest number of passes at each level (subsample, all stars).
    intrinsic : {"pixel", "global", "none"}
        Per-pixel noise only: variance learned on top of ``1 / ivar``, for every pixel or one for all.
    random_state : int
        Seed of the subsample. The result does not depend on it beyond the tolerance.

    Attributes
    ----------
    components_ : ndarray, (K, P)
        Principal axes, orthonormal over the used pixels, ordered by variance; NaN at unused pixels. The
        entry of largest magnitude of each is positive.
    mean_ : ndarray, (P,)
        Mean spectrum; NaN at unused pixels.
    pixel_used_ : ndarray of bool, (P,)
        False for a pixel no star has.
    noise_variance_ : float or ndarray
        Shared: the noise variance. Per-pixel: the intrinsic variance, scalar or (P,).
    explained_variance_ : ndarray, (K,)
        Eigenvalues of the model covariance ``W W^T + sigma^2`` along the components. Per-pixel noise: of ``W W^T``.
    loglike_ : list of float
        Observed-data log-likelihood before each pass over all stars.
    angle_ : list of float
        Estimated largest principal angle to the solution after each pass over all stars.
    n_passes_ : int
        Passes over all stars, the one that counts valid pixels included. A well-separated spectrum of 3 % missing needs
        about 4 with shared noise; `converged_` tells why it stopped.
    n_stars_ : int
        Stars with at least one valid pixel.

    Notes
    -----
    Coordinates are posterior means *in the basis of the components*, in units of the flux:
    ``mean_ + coords @ components_`` is the posterior mean spectrum. Divide by
    ``sqrt(explained_variance_ - noise_variance_)`` for unit-variance latents.
    """

    components_: np.ndarray
    mean_: np.ndarray
    pixel_used_: np.ndarray
    noise_variance_: float | np.ndarray
    explained_variance_: np.ndarray
    loglike_: list[float]
    angle_: list[float]
    n_passes_: int
    n_stars_: int
    converged_: str

    def __init__(
        self,
        n_components: int = 30,
        *,
        noise: Noise = "shared",
        tol: float | None = None,
        loglike_tol: float | None = None,
        max_iter: int = 200,
        intrinsic: Intrinsic = "pixel",
        random_state: int = 0,
    ):
        if noise not in ("shared", "per-pixel"):
            raise InputError(f"unknown noise model {noise!r}", "use 'shared' or 'per-pixel'")
        if intrinsic not in ("none", "global", "pixel"):
            raise InputError(f"unknown intrinsic variance {intrinsic!r}", "use 'pixel', 'global' or 'none'")
        if int(n_components) != n_components or n_components < 1:
            raise InputError(f"n_components = {n_components!r}, must be a positive integer", "30 is the paper's choice")
        self.n_components = int(n_components)
        self.noise: Noise = noise
        self.tol = None if tol is None else float(tol)
        self.loglike_tol = loglike_tol
        self.max_iter = int(max_iter)
        self.intrinsic: Intrinsic = intrinsic
        self.random_state = random_state

    # ---------------------------------------------------------------- fit

    def fit(self, flux: Any, mask: Any = None, ivar: Any = None, *, progress: Tell | None = None) -> Self:
        """Fit to spectra; computes.

        Parameters
        ----------
        flux : array (n, P), NumPy, Dask or DataArray; or a survey Dataset
            NaN and infinities count as missing. A survey brings its own `mask` (any flag) and `ivar`.
        mask : array of bool (n, P), optional
            True = missing (:mod:`numpy.ma` convention).
        ivar : array (n, P), optional
            Inverse variances; values that are not positive and finite count as missing. Required for per-pixel noise.
        progress : callable, optional
            ``progress(done, most, angle)`` is called after each pass over all stars: passes done, the largest number
            there may be (`max_iter`), the estimated angle to the solution (radian; infinite after a step back).

        Raises
        ------
        InputError
            Shapes that differ, or `ivar` missing for per-pixel noise.
        DataError
            Too few stars or pixels for K components.
        """
        flux, mask, ivar = pixels(flux, mask, ivar)
        flux = flux if isinstance(flux, (da.Array, np.ma.MaskedArray)) else np.asarray(flux)
        check_shapes(flux, mask, ivar)
        if self.noise == "per-pixel" and ivar is None:
            raise InputError("per-pixel noise needs inverse variances", "pass ivar=, or use noise='shared'")
        lazy = any(isinstance(a, da.Array) for a in (flux, mask, ivar))
        weighted = self.noise == "per-pixel"
        if lazy:
            source: Source = DaskSource(da.asarray(flux), mask, ivar, weighted=weighted)
        else:
            block = prepare(flux, mask, ivar)
            source = ArraySource(block[0], block[1], block[2] if weighted else None)
        return self.fit_source(source, progress=progress)

    def fit_source(self, source: Source, *, keep_bytes: int = 0, progress: Tell | None = None) -> Self:
        """Fit from any :class:`~chemscale.statistics.ppca_source.Source`; see :func:`.embedding.fit_survey`.

        Parameters
        ----------
        keep_bytes : int
            Keep the used pixels in the cluster's memory between passes if they take at most this.
        progress : callable, optional
            As in :meth:`fit`.
        """
        k = self.n_components
        size = subsample_size(source.n_stars, source.n_pixels, k)
        rng = np.random.default_rng(self.random_state)
        index = np.sort(rng.choice(source.n_stars, min(size, source.n_stars), replace=False))
        counts, stars = source.survey(index)
        used = counts["count"] > 0
        n_stars, n_pixels = int(counts["n"]), int(used.sum())
        if n_pixels <= k or n_stars <= k:
            raise DataError(
                f"{n_stars} star(s) with valid pixels and {n_pixels} used pixels cannot give {k} components",
                "lower n_components, or check the masks",
            )
        sample = stars(used)
        del stars  # it holds every pixel of them
        if not used.all():
            source = source.using(used)
        if isinstance(source, DaskSource) and source.nbytes <= keep_bytes:
            source.cache()
        small = source.n_stars * n_pixels <= SMALL
        tol = self.tol if self.tol is not None else TOL if small else LARGE_TOL
        dtype = np.dtype(np.float64 if small or source.dtype == np.float64 else np.float32)
        few = sample.few(max(WARM_STARS, 16 * k))
        runner = Runner(source, few, sample_unit(few), dtype, self.random_state, small)
        levels: list[Source | Sample] = [source]
        if source.n_stars >= SUBSAMPLE_SHARE * sample.n_stars and not small:
            levels.append(sample)
        del sample  # the last pass over it frees it
        floor = 1e-13 if dtype == np.float64 else 1e-9
        loglike_tol = self.loglike_tol or max(floor, 1e-3 * tol**2)
        solve = self._solve_shared if self.noise == "shared" else self._solve_weighted
        model, trace = solve(runner, levels, tol, loglike_tol, progress)
        self._store(model, trace, used, runner.unit, n_stars, float(counts["count"].sum()))
        return self

    def _solve_shared(
        self, runner: Runner, levels: list[Source | Sample], tol: float, loglike_tol: float, progress: Tell | None
    ) -> tuple[Model, Trace]:
        guards = max(5, self.n_components // 3)
        model, extra = warm_start(runner, self.n_components, guards)
        state = SharedState(model, extra)
        trace = Trace()
        while levels:
            level = levels.pop()
            full = level is runner.source
            state, trace = solve_shared(
                partial(runner.shared, level),
                state,
                tol=tol if full else max(tol, SUBSAMPLE_TOL),
                loglike_tol=loglike_tol if full else 1e-7,
                max_iter=self.max_iter if full else min(SUBSAMPLE_PASSES, self.max_iter),
                guards=guards,
                fresh_moments=level.n_stars * level.n_pixels <= FRESH,
                progress=progress if full else None,
            )
        return state.model, trace

    def _solve_weighted(
        self, runner: Runner, levels: list[Source | Sample], tol: float, loglike_tol: float, progress: Tell | None
    ) -> tuple[Model, Trace]:
        model, _ = warm_start(runner, self.n_components, 0)
        noise = np.zeros_like(model.mean) if self.intrinsic == "pixel" else 0.0
        model = Model(model.mean, model.basis, model.scale, noise)
        trace = Trace()
        while levels:
            level = levels.pop()
            full = level is runner.source
            model, trace = solve_weighted(
                partial(runner.weighted, level, self.intrinsic != "none"),
                model,
                tol=tol if full else max(tol, SUBSAMPLE_TOL),
                loglike_tol=loglike_tol if full else 1e-7,
                max_iter=self.max_iter if full else min(SUBSAMPLE_PASSES, self.max_iter),
                intrinsic=self.intrinsic,
                progress=progress if full else None,
            )
        return model, trace

    def _store(self, model: Model, trace: Trace, used: np.ndarray, unit: float, n_stars: int, values: float) -> None:
        sign = signed(model.basis)
        self.pixel_used_ = used.copy()
        self.mean_ = np.full(used.size, np.nan)
        self.mean_[used] = model.mean * unit
        self.components_ = np.full((self.n_components, used.size), np.nan)
        self.components_[:, used] = (model.basis * sign).T
        self.latent_scale_ = model.scale * unit
        noise = np.asarray(model.noise) * unit**2
        if noise.ndim:
            self.noise_variance_ = np.full(used.size, np.nan)
            self.noise_variance_[used] = noise
        else:
            self.noise_variance_ = float(noise)
        self.explained_variance_ = self.latent_scale_**2
        if self.noise == "shared":
            self.explained_variance_ = self.explained_variance_ + self.noise_variance_
        self.loglike_ = [v - values * float(np.log(unit)) for v in trace.loglike]
        self.angle_ = list(trace.angle)
        self.converged_ = trace.converged
        self.n_passes_ = len(trace.loglike) + 1
        self.n_stars_ = n_stars

    # ---------------------------------------------------------- transform

    def model(self) -> Model:
        """Fitted parameters on the used pixels, in units of the flux."""
        if not hasattr(self, "components_"):
            raise InputError("this MaskedPPCA has not been fitted", "call fit first")
        used = self.pixel_used_
        noise = self.noise_variance_
        return Model(
            self.mean_[used],
            self.components_[:, used].T,
            self.latent_scale_,
            noise[used] if isinstance(noise, np.ndarray) else noise,
        )

    def transform(self, flux: Any, mask: Any = None, ivar: Any = None) -> Any:
        """Posterior mean coordinates (n, K), float64; lazy for Dask input, one pass when computed.

        Parameters as in :meth:`fit`; a DataArray or survey gives a DataArray (star, component). A star without a valid
        pixel gets NaN coordinates.
        """
        both = self._embed(*pixels(flux, mask, ivar))
        return like(both[:, : self.n_components], flux, "component", "coords")

    def transform_with_variance(self, flux: Any, mask: Any = None, ivar: Any = None) -> tuple[Any, Any]:
        """Posterior mean and posterior variance (diagonal of the covariance) of the coordinates, both (n, K)."""
        both = self._embed(*pixels(flux, mask, ivar))
        mean = like(both[:, : self.n_components], flux, "component", "coords")
        return mean, like(both[:, self.n_components :], flux, "component", "variance")

    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"components": self.n_components, "noise": self.noise}
        if not hasattr(self, "components_"):
            return facts | {"fitted": False}
        facts |= {
            "stars": self.n_stars_,
            "pixels used": f"{int(self.pixel_used_.sum()):,} of {self.pixel_used_.size:,}",
        }
        facts |= {"passes": self.n_passes_, "stopped by": self.converged_}
        spread = self.explained_variance_
        facts["variance along components"] = f"{spread[0]:.3g} to {spread[-1]:.3g}"
        name = "noise variance" if self.noise == "shared" else "intrinsic variance (median)"
        return facts | {name: float(np.nanmedian(self.noise_variance_))}

    def _embed(self, flux: Any, mask: Any, ivar: Any) -> Any:
        model = self.model()
        flux = flux if isinstance(flux, (da.Array, np.ma.MaskedArray)) else np.asarray(flux)
        check_shapes(flux, mask, ivar)
        if flux.shape[1] != self.pixel_used_.size:
            raise InputError(
                f"flux has {flux.shape[1]} pixels, the model {self.pixel_used_.size}", "use the grid of the fit"
            )
        if self.noise == "per-pixel" and ivar is None:
            raise InputError("per-pixel noise needs inverse variances", "pass ivar=")
        kernel = partial(embed, model=model, used=self.pixel_used_, weighted=self.noise == "per-pixel")
        if not any(isinstance(a, da.Array) for a in (flux, mask, ivar)):
            step = rows_per_block(flux.shape[1], 8)
            parts = [slice(s, s + step) for s in range(0, flux.shape[0], step)]
            blocks = [kernel(flux[p], *(None if a is None else a[p] for a in (mask, ivar))) for p in parts]
            return np.concatenate(blocks) if blocks else np.zeros((0, 2 * self.n_components))
        flux = da.asarray(flux).rechunk({1: -1})
        others = {
            name: da.asarray(a).rechunk({0: flux.chunks[0], 1: -1})
            for name, a in (("mask", mask), ("ivar", ivar))
            if a is not None
        }
        return da.map_blocks(
            _embed_block,
            flux,
            *others.values(),
            names=tuple(others),
            kernel=kernel,
            dtype=np.float64,
            chunks=(flux.chunks[0], (2 * self.n_components,)),
            meta=np.zeros((0, 0)),
        )

    # ------------------------------------------------------------ storage

    def to_dataset(self) -> xr.Dataset:
        """The fitted model as a Dataset (dims component, wavelength), for :meth:`from_dataset`."""
        noise = self.noise_variance_
        ds = xr.Dataset(
            {
                "components": (("component", "wavelength"), self.components_),
                "mean": ("wavelength", self.mean_),
                "pixel_used": ("wavelength", self.pixel_used_),
                "latent_scale": ("component", self.latent_scale_),
                "explained_variance": ("component", self.explained_variance_),
                "noise_variance": (("wavelength",), noise) if isinstance(noise, np.ndarray) else ((), noise),
                "loglike": ("full_pass", np.asarray(self.loglike_, dtype=np.float64)),
                "angle": ("full_pass", np.asarray(self.angle_, dtype=np.float64)),
            }
        )
        ds.attrs = {
            "model": "masked PPCA",
            "n_components": self.n_components,
            "noise": self.noise,
            "intrinsic": self.intrinsic,
            "tol": "default" if self.tol is None else self.tol,
            "max_iter": self.max_iter,
            "random_state": self.random_state,
            "n_passes": self.n_passes_,
            "n_stars": self.n_stars_,
            "converged": self.converged_,
        }
        return ds

    @classmethod
    def from_dataset(cls, ds: xr.Dataset) -> Self:
        """Model written by :meth:`to_dataset`."""
        if ds.attrs.get("model") != "masked PPCA":
            raise InputError("the dataset does not hold a masked PPCA", "pass what MaskedPPCA.to_dataset gave")
        a = ds.attrs
        out = cls(
            int(a["n_components"]),
            noise=a["noise"],
            tol=None if a["tol"] == "default" else float(a["tol"]),
            max_iter=int(a["max_iter"]),
            intrinsic=a["intrinsic"],
            random_state=int(a["random_state"]),
        )
        out.components_ = ds["components"].values
        out.mean_ = ds["mean"].values
        out.pixel_used_ = ds["pixel_used"].values.astype(bool)
        out.latent_scale_ = ds["latent_scale"].values
        out.explained_variance_ = ds["explained_variance"].values
        noise = ds["noise_variance"].values
        out.noise_variance_ = noise if noise.ndim else float(noise)
        out.loglike_ = ds["loglike"].values.tolist()
        out.angle_ = ds["angle"].values.tolist()
        out.n_passes_, out.n_stars_ = int(a["n_passes"]), int(a["n_stars"])
        out.converged_ = str(a["converged"])
        return out


def subsample_size(n_stars: int, n_pixels: int, k: int) -> int:
    """Stars of the subsample a fit starts from."""
    least = max(WARM_STARS, 16 * k)
    if n_stars * n_pixels <= SMALL:
        return least
    return max(least, min(n_stars // SUBSAMPLE_SHARE, max(SUBSAMPLE_PER_COMPONENT * k, SUBSAMPLE_MIN)))


def _embed_block(flux: np.ndarray, *others: np.ndarray, names: tuple[str, ...], kernel: Any) -> np.ndarray:
    return kernel(flux, **dict(zip(names, others)))


def embed(
    flux: np.ndarray, mask: Any = None, ivar: Any = None, *, model: Model, used: np.ndarray, weighted: bool
) -> np.ndarray:
    """Posterior means and variances of one block, side by side: (n, 2K); NaN for a star with no valid pixel."""
    return embed_block(*select(prepare(flux, mask, ivar), used), model=model, weighted=weighted)


def embed_block(
    block: np.ndarray, missing: np.ndarray, errors: np.ndarray | None, *, model: Model, weighted: bool
) -> np.ndarray:
    """:func:`embed` for a prepared block of the used pixels."""
    small = block.size <= SMALL // 10
    dtype = np.dtype(np.float64 if small or block.dtype == np.float64 else np.float32)
    if weighted:
        assert errors is not None
        found = weigh(block, missing, errors, model, dtype, sums=False)
        variance = np.diagonal(found.covariance, axis1=1, axis2=2)
        out = np.concatenate([found.latent * model.scale, variance * model.scale**2], axis=1)
    else:
        x = centred(block, missing, model.mean.astype(dtype))
        post = shared_posterior(x, missing, model, model.basis.astype(dtype))
        out = np.concatenate([post.latent, np.diagonal(post.covariance, axis1=1, axis2=2)], axis=1)
    out[missing.all(axis=1)] = np.nan
    return out
