"""Flux-conserving rebinning of spectra with inverse variances and flags.

Every output pixel is the overlap-weighted mean of the input pixels it covers (Carnall 2017,
arXiv:1705.05165, eq. 1-4; the same rule as specutils' ``FluxConservingResampler``), so that
the integral of flux density is conserved. Input pixels without information take no part;
they shrink the covered fraction of an output pixel instead of spoiling it.

Noise of neighbouring output pixels is correlated when the grids are shifted by a fraction of
a pixel: the stored ivar is the exact variance of each pixel, not of sums over pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def pixel_edges(centres: ArrayLike) -> np.ndarray:
    """Edges (P+1,) half-way between neighbouring pixel centres; the ends mirrored.

    Raises
    ------
    ValueError
        Fewer than two centres, or not finite and strictly increasing.
    """
    centres = np.asarray(centres, np.float64)
    if centres.ndim != 1 or centres.size < 2 or not np.all(np.diff(centres) > 0) or not np.isfinite(centres).all():
        raise ValueError("pixel centres must be at least two, finite and strictly increasing")
    middle = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])


class Rebinner:
    """Rebinning from one grid to another; build once, apply to any number of spectra.

    The union of both grids' edges cuts the axis into intervals, each inside exactly one input
    and one output pixel. All sums are sums over intervals: O(P) a spectrum, no loops.

    Parameters
    ----------
    centres_in, centres_out : array_like, shape (P_in,), (P_out,)
        Pixel centres in the same unit.
    min_coverage : float
        An output pixel needs at least this fraction of its width covered by good input
        pixels; otherwise it has no information (ivar 0).
    """

    def __init__(self, centres_in: ArrayLike, centres_out: ArrayLike, *, min_coverage: float = 0.5):
        before, after = pixel_edges(centres_in), pixel_edges(centres_out)
        if not 0.0 < min_coverage <= 1.0:
            raise ValueError("min_coverage must lie in (0, 1]")
        self.n_in, self.n_out, self.min_coverage = len(before) - 1, len(after) - 1, min_coverage
        both = np.concatenate([before, after])
        order = np.argsort(both, kind="stable")  # two sorted runs: merged in linear time
        from_before = order < len(before)
        source = np.cumsum(from_before) - 1  # input pixel that begins at or before each cut
        target = np.cumsum(~from_before) - 1
        cuts = both[order]
        inside = np.flatnonzero(
            (source[:-1] >= 0) & (source[:-1] < self.n_in) & (target[:-1] >= 0) & (target[:-1] < self.n_out)
        )
        self._length = np.diff(cuts)[inside]
        self._source = source[inside]
        targets = target[inside]
        self._starts = np.flatnonzero(np.diff(targets, prepend=-1))
        self._targets = targets[self._starts]
        self._width = np.diff(after)
        self._touching = self._length > 0.01 * self._width[targets]

    def _sum(self, values: np.ndarray) -> np.ndarray:
        out = np.zeros((*values.shape[:-1], self.n_out), values.dtype)
        if self._starts.size:
            out[..., self._targets] = np.add.reduceat(values, self._starts, axis=-1)
        return out

    def __call__(
        self, flux: ArrayLike, ivar: ArrayLike, flags: ArrayLike | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rebin spectra.

        Parameters
        ----------
        flux, ivar : array_like, shape (..., P_in)
            A pixel with ivar <= 0 or anything non-finite holds no information.
        flags : array_like of uint8, shape (..., P_in), optional
            Bits; an output pixel gets the bits of every input pixel it touches by more than
            a hundredth of its width.

        Returns
        -------
        flux, ivar : numpy.ndarray, shape (..., P_out), float64
            flux 0 and ivar 0 where there is no information.
        flags : numpy.ndarray of uint8, shape (..., P_out)

        Raises
        ------
        ValueError
            Shapes disagree.
        """
        with np.errstate(invalid="ignore"):  # signalling NaNs of damaged files
            flux, ivar = np.asarray(flux, np.float64), np.asarray(ivar, np.float64)
        if flux.shape != ivar.shape or flux.shape[-1] != self.n_in:
            raise ValueError(f"flux {flux.shape} and ivar {ivar.shape} must end in {self.n_in} pixels")
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            good = np.isfinite(flux) & (ivar > 0) & np.isfinite(ivar)
            variance = np.where(good, 1.0 / ivar, 0.0)
            values = np.where(good, flux, 0.0)
        length, source = self._length, self._source
        overlap = good[..., source] * length
        covered = self._sum(overlap)
        enough = covered >= self.min_coverage * self._width
        total = self._sum(values[..., source] * length)
        spread = self._sum(variance[..., source] * (length * length))
        with np.errstate(invalid="ignore", divide="ignore"):
            out_flux = np.where(enough, total / covered, 0.0)
            out_ivar = np.where(enough, covered * covered / spread, 0.0)
        out_ivar[~np.isfinite(out_ivar)] = 0.0
        return out_flux, out_ivar, self._rebin_flags(flags, out_flux.shape)

    def _rebin_flags(self, flags: ArrayLike | None, shape: tuple[int, ...]) -> np.ndarray:
        out = np.zeros(shape, np.uint8)
        if flags is None or not self._starts.size:
            return out
        bits = np.asarray(flags, np.uint8)[..., self._source] * self._touching.view(np.uint8)
        out[..., self._targets] = np.bitwise_or.reduceat(bits, self._starts, axis=-1)
        return out
