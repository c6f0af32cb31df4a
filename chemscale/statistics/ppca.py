"""Probabilistic PCA of spectra with missing pixels and, optionally, per-pixel errors and outliers.

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
from typing import Any, Self

import dask.array as da
import numpy as np
import xarray as xr
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.exceptions import NotFittedError

from chemscale.display import Shown
from chemscale.errors import InputError
from chemscale.labelled import like, pixels, plain
from chemscale.statistics import ppca_dataset
from chemscale.statistics.outliers import Rejection
from chemscale.statistics.ppca_arrays import ArraySource, check_shapes, prepare
from chemscale.statistics.ppca_embed import embed, embed_arrays
from chemscale.statistics.ppca_fit import Fitted, Intrinsic, Noise, Settings, Start, fit, mean_loglike
from chemscale.statistics.ppca_kernels import Model
from chemscale.statistics.ppca_shared import signed
from chemscale.statistics.ppca_source import DaskSource, Source
from chemscale.statistics.progress import Told, in_words


class NotFitted(InputError, NotFittedError):
    """A model is asked for what only a fit gives."""


class MaskedPPCA(Shown, TransformerMixin, BaseEstimator):
    """Maximum-likelihood probabilistic PCA with missing pixels.

    Parameters
    ----------
    n_components : int
        K, the number of latent dimensions.
    noise : {"shared", "per-pixel"}
        Noise model; ``"per-pixel"`` needs `ivar` in :meth:`fit` and :meth:`transform`.
    outlier_sigmas : float, optional
        Leave out pixels whose residual is larger than this many times their error (`ivar`; without it, the shared
        noise) times the typical misfit of their star. None: every pixel counts. 6 is the recommended value.
    tol : float, optional
        Stop when the estimated largest principal angle (radian) between the determined components and the
        maximum-likelihood ones falls below this. Default: 1e-5 for up to 20 million values (solved in
        float64), 1e-3 for more; the statistical error of the axes is far larger.
    loglike_tol : float, optional
        Stop, too, when the log-likelihood changed by less than this relative amount over the last three
        passes. Default: ``tol**2 / 1000``, at least 1e-13 in float64 and 1e-9 in float32 (the noise of its sums).
    max_iter : int
        Largest number of passes at each level (subsample, all stars).
    intrinsic : {"pixel", "global", "none"}
        Per-pixel noise only: variance learned on top of ``1 / ivar``, for every pixel or one for all.
    start : {"subsample", "incremental"}
        Start from a solution for a quarter of the stars, or from dask-ml's incremental PCA over all of them (missing
        pixels filled with the mean spectrum).
    random_state : int
        Seed of the subsample. The result does not depend on it beyond the tolerance.
    device : str, optional
        ``"cuda"``, ``"cuda:1"``: passes on a GPU (of each worker), where the blocks of a fit stay if they fit. None: on
        CPUs.

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
    latent_scale_ : ndarray, (K,)
        Standard deviations of the coordinates in the model.
    explained_variance_ : ndarray, (K,)
        Eigenvalues of the model covariance ``W W^T + sigma^2`` along the components. Per-pixel noise: of ``W W^T``.
    loglike_ : list of float
        Observed-data log-likelihood before each pass over all stars.
    angle_ : list of float
        Estimated largest principal angle of the determined components to the solution after each pass over all stars.
    axis_error_ : ndarray, (K,)
        Statistical error (radian) of the subspace of the first 1, 2, ..., K components: how far another sample of as
        many stars would turn it.
    n_determined_ : int
        Components the data determine: the largest subspace whose error is below 0.3. Those after it are noise, rest on
        single stars, or have no eigenvalue gap.
    outlier_count_ : ndarray of int, (P,)
        Outliers of every pixel in the last pass; all zero without `outlier_sigmas`.
    n_outlier_stars_, n_anomalous_ : int
        Stars with outliers, and stars whose whole spectrum does not fit.
    converged_ : bool
        False where the fit ended at its largest number of passes. True claims that a longer fit turns the determined
        components by less than `tol`, or a tenth of their statistical error where that is more: components that are
        not determined go on turning for hundreds of passes, and move the others by as much.
    stopping_reason_ : str
        ``"angle"``, ``"loglike"`` or ``"passes"``.
    n_passes_ : int
        Passes over all stars, the one that counts valid pixels included.
    n_stars_ : int
        Stars with at least one valid pixel.
    n_features_in_ : int
        Pixels.

    Notes
    -----
    Coordinates are posterior means *in the basis of the components*, in units of the flux:
    ``mean_ + coords @ components_`` is the posterior mean spectrum. Divide by
    ``sqrt(explained_variance_ - noise_variance_)`` for unit-variance latents.

    See Also
    --------
    chemscale.fit_survey : the same for a survey store.

    References
    ----------
    Tipping & Bishop 1999, J. R. Stat. Soc. B 61, 611. Bailey 2012, PASP 124, 1015.
    Tsalmantza & Hogg 2012, ApJ 753, 122.

    Examples
    --------
    >>> import numpy as np
    >>> from chemscale import MaskedPPCA
    >>> rng = np.random.default_rng(0)
    >>> flux = 1 + rng.normal(size=(200, 2)) @ rng.normal(size=(2, 40)) + rng.normal(0, 0.1, (200, 40))
    >>> missing = rng.random(flux.shape) < 0.1
    >>> ppca = MaskedPPCA(2).fit(flux, missing)
    >>> ppca.converged_, ppca.n_determined_, ppca.transform(flux, missing).shape
    (True, 2, (200, 2))
    """

    components_: np.ndarray
    mean_: np.ndarray
    pixel_used_: np.ndarray
    noise_variance_: float | np.ndarray
    latent_scale_: np.ndarray
    explained_variance_: np.ndarray
    loglike_: list[float]
    angle_: list[float]
    axis_error_: np.ndarray
    n_determined_: int
    outlier_count_: np.ndarray
    n_outlier_stars_: int
    n_anomalous_: int
    converged_: bool
    stopping_reason_: str
    n_passes_: int
    n_stars_: int
    n_features_in_: int

    def __init__(
        self,
        n_components: int = 30,
        *,
        noise: Noise = "shared",
        outlier_sigmas: float | None = None,
        tol: float | None = None,
        loglike_tol: float | None = None,
        max_iter: int = 200,
        intrinsic: Intrinsic = "pixel",
        start: Start = "subsample",
        random_state: int = 0,
        device: str | None = None,
    ):
        self.n_components = n_components
        self.noise: Noise = noise
        self.outlier_sigmas = outlier_sigmas
        self.tol = tol
        self.loglike_tol = loglike_tol
        self.max_iter = max_iter
        self.intrinsic: Intrinsic = intrinsic
        self.start: Start = start
        self.random_state = random_state
        self.device = device

    def fit(self, flux: Any, mask: Any = None, ivar: Any = None, *, progress: Told | None = None) -> Self:
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
            Wrong parameters, shapes that differ, or `ivar` missing for per-pixel noise.
        DataError
            Too few stars or pixels for K components.
        """
        settings = self._settings()
        flux, mask, ivar = self._checked(*pixels(flux, mask, ivar))
        return self._store(fit(self._source(flux, mask, ivar, self.uses_ivar), settings, told=progress))

    @staticmethod
    def _source(flux: Any, mask: Any, ivar: Any, errors: bool) -> Source:
        if any(isinstance(a, da.Array) for a in (flux, mask, ivar)):
            return DaskSource(da.asarray(flux), mask, ivar, weighted=errors)
        block = prepare(flux, mask, ivar)
        return ArraySource(block[0], block[1], block[2] if errors else None)

    def fit_source(self, source: Source, *, keep_bytes: int = 0, progress: Told | None = None) -> Self:
        """Fit from any :class:`~chemscale.statistics.ppca_source.Source`; see :func:`chemscale.fit_survey`.

        Parameters
        ----------
        keep_bytes : int
            Keep the used pixels in the cluster's memory between passes if they take at most this.
        progress : callable, optional
            As in :meth:`fit`.
        """
        return self._store(fit(source, self._settings(), keep_bytes, progress))

    @property
    def uses_ivar(self) -> bool:
        """Whether a fit looks at the values of the inverse variances."""
        return self.noise == "per-pixel" or self.outlier_sigmas is not None

    @property
    def rejection(self) -> Rejection | None:
        """When a pixel is an outlier; None: never."""
        return None if self.outlier_sigmas is None else Rejection(float(self.outlier_sigmas))

    def _settings(self) -> Settings:
        """The parameters, checked."""
        k = self.n_components
        if isinstance(k, bool) or not isinstance(k, (int, np.integer, float)) or int(k) != k or k < 1:
            raise InputError(f"n_components = {k!r}, must be a positive integer", "30 is the paper's choice")
        for name, choices in (
            ("noise", ("shared", "per-pixel")),
            ("intrinsic", ("pixel", "global", "none")),
            ("start", ("subsample", "incremental")),
        ):
            if getattr(self, name) not in choices:
                words = {"noise": "noise model", "intrinsic": "intrinsic variance", "start": "start"}[name]
                raise InputError(f"unknown {words} {getattr(self, name)!r}", f"use one of: {', '.join(choices)}")
        if self.outlier_sigmas is not None and not self.outlier_sigmas > 2:
            raise InputError(f"outlier_sigmas = {self.outlier_sigmas!r}", "use more than 2; 6 is recommended")
        if self.max_iter < 1:
            raise InputError(f"max_iter = {self.max_iter!r}", "allow at least one pass")
        return Settings(
            int(k),
            self.noise,
            self.intrinsic,
            self.start,
            self.rejection,
            None if self.tol is None else float(self.tol),
            self.loglike_tol,
            int(self.max_iter),
            self.random_state,
            self.device,
        )

    def _checked(self, flux: Any, mask: Any, ivar: Any) -> tuple[Any, Any, Any]:
        flux = flux if isinstance(flux, (da.Array, np.ma.MaskedArray)) else np.asarray(flux)
        check_shapes(flux, mask, ivar)
        if self.noise == "per-pixel" and ivar is None:
            raise InputError("per-pixel noise needs inverse variances", "pass ivar=, or use noise='shared'")
        return flux, mask, ivar

    def _store(self, fitted: Fitted) -> Self:
        model, trace, used, unit = fitted.model, fitted.trace, fitted.used, fitted.unit
        self.pixel_used_ = used.copy()
        self.n_features_in_ = used.size
        self.mean_ = np.full(used.size, np.nan)
        self.mean_[used] = model.mean * unit
        self.components_ = np.full((len(model.scale), used.size), np.nan)
        self.components_[:, used] = (model.basis * signed(model.basis)).T
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
        self.loglike_ = [v - fitted.n_values * float(np.log(unit)) for v in trace.loglike]
        self.angle_ = list(trace.angle)
        self.axis_error_ = np.full(len(model.scale), np.pi / 2) if trace.error is None else trace.error
        self.n_determined_ = trace.determined
        self.outlier_count_ = np.zeros(used.size, dtype=np.int64)
        if trace.rejected is not None:
            self.outlier_count_[used] = trace.rejected
        self.n_outlier_stars_, self.n_anomalous_ = trace.rejected_stars, trace.anomalous
        self.converged_, self.stopping_reason_ = trace.converged, trace.reason
        self.n_passes_, self.n_stars_ = fitted.passes, fitted.n_stars
        return self

    @property
    def verdict(self) -> str:
        """In words: whether the fit converged and to what angle, and how many components the data determine."""
        return in_words(
            self.converged_, self.stopping_reason_, self.n_passes_, self.angle_, self.axis_error_, self.n_determined_
        )

    def model(self) -> Model:
        """Fitted parameters on the used pixels, in units of the flux."""
        if not hasattr(self, "components_"):
            raise NotFitted("this MaskedPPCA has not been fitted", "call fit first")
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

    def inverse_transform(self, coords: Any) -> Any:
        """Spectra ``mean_ + coords @ components_`` (n, P) from coordinates (n, K); NaN at unused pixels."""
        self.model()
        return plain(coords) @ self.components_ + self.mean_

    def score(self, flux: Any, mask: Any = None, ivar: Any = None) -> float:
        """Mean log-likelihood of the stars with a valid pixel; one pass, outliers not rejected."""
        model = self.model()
        flux, mask, ivar = self._checked(*pixels(flux, mask, ivar))
        return mean_loglike(self._source(flux, mask, ivar, self.noise == "per-pixel"), self.pixel_used_, model)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the coordinates, for ``set_output``."""
        return np.array([f"component{i}" for i in range(len(self.components_))], dtype=object)

    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"components": self.n_components, "noise": self.noise}
        if not hasattr(self, "components_"):
            return facts | {"fitted": False}
        facts |= {
            "stars": self.n_stars_,
            "pixels used": f"{int(self.pixel_used_.sum()):,} of {self.pixel_used_.size:,}",
        }
        facts |= {"passes": self.n_passes_, "converged": self.converged_, "determined": self.n_determined_}
        spread = self.explained_variance_
        facts["variance along components"] = f"{spread[0]:.3g} to {spread[-1]:.3g}"
        name = "noise variance" if self.noise == "shared" else "intrinsic variance (median)"
        return facts | {name: float(np.nanmedian(self.noise_variance_))}

    def _embed(self, flux: Any, mask: Any, ivar: Any) -> Any:
        model = self.model()
        flux, mask, ivar = self._checked(flux, mask, ivar)
        if flux.shape[1] != self.pixel_used_.size:
            raise InputError(
                f"flux has {flux.shape[1]} pixels, the model {self.pixel_used_.size}", "use the grid of the fit"
            )
        weighted = self.noise == "per-pixel"
        chosen: dict[str, Any] = {"used": self.pixel_used_, "rejection": self.rejection, "device": self.device}
        kernel = partial(embed, model=model, weighted=weighted, **chosen)
        return embed_arrays(flux, mask, ivar, kernel, self.n_components)

    def leading(self, k: int) -> Self:
        """A copy with the first `k` components only, of a fit with more."""
        return ppca_dataset.leading(self, k)

    def to_dataset(self) -> xr.Dataset:
        """The fitted model as a Dataset (dims component, wavelength), for :meth:`from_dataset`."""
        return ppca_dataset.write(self)

    @classmethod
    def from_dataset(cls, ds: xr.Dataset) -> Self:
        """Model written by :meth:`to_dataset`."""
        return ppca_dataset.read(cls, ds)
