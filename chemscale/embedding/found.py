"""What embedding finds in a block of stars: coordinates, and pixels that the model does not explain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chemscale.statistics.outliers import Rejection
from chemscale.statistics.ppca_embed import embed_block
from chemscale.statistics.ppca_kernels import Model

#: The bit of a rejected pixel in ``outlier_flags``; no flag of a survey has it.
OUTLIER_BIT = 128


@dataclass
class Found:
    """Results of some stars.

    Parameters
    ----------
    both : ndarray (n, 2K), float32
        Posterior means and variances.
    misfit : ndarray (n,), float32, optional
        Mean absolute residual in units of the errors.
    anomalous : ndarray of bool (n,), optional
    star, pixel : ndarray of int, optional
        Rejected pixels: number of the star, number of the pixel in the survey's grid.
    """

    both: np.ndarray
    misfit: np.ndarray | None = None
    anomalous: np.ndarray | None = None
    star: np.ndarray | None = None
    pixel: np.ndarray | None = None

    @classmethod
    def join(cls, parts: Sequence[Found]) -> Found:
        """Results of neighbouring stars as one."""
        both = np.concatenate([p.both for p in parts])
        if parts[0].star is None:
            return cls(both)
        first = np.cumsum([0, *(len(p.both) for p in parts)])
        star = np.concatenate([p.star + f for p, f in zip(parts, first) if p.star is not None])
        rest = [np.concatenate([getattr(p, name) for p in parts]) for name in ("misfit", "anomalous", "pixel")]
        return cls(both, rest[0], rest[1], star, rest[2])

    def flags(self, n_pixels: int) -> np.ndarray:
        """Rejected pixels as flags (n, n_pixels), uint8."""
        out = np.zeros((len(self.both), n_pixels), dtype=np.uint8)
        out[self.star, self.pixel] = OUTLIER_BIT
        return out


def embed_found(
    flux: np.ndarray,
    missing: np.ndarray,
    ivar: Any,
    *,
    model: Model,
    weighted: bool,
    rejection: Rejection | None,
    grid: np.ndarray,
    device: str | None = None,
) -> Found:
    """Embed a block of the used pixels, whose numbers in the survey's grid are `grid`."""
    done = embed_block(flux, missing, ivar, model=model, weighted=weighted, rejection=rejection, device=device)
    both = done.both.astype(np.float32)
    if done.outliers is None:
        return Found(both)
    listed = done.outliers.listed
    star = np.repeat(np.arange(len(both)), np.diff(listed.start))
    misfit = done.outliers.misfit.astype(np.float32)
    return Found(both, misfit, done.outliers.anomalous, star, grid[listed.pixel])
