"""What the data determine of a basis: the statistical error of its axes, and how many of them stand above the noise."""

from __future__ import annotations

import numpy as np

#: An axis whose statistical error (radian) is larger than this is not determined.
LARGEST_ERROR = 0.3


def error_of_axes(own: np.ndarray, values: np.ndarray, all_values: np.ndarray, n: float) -> np.ndarray:
    """Statistical error (radian, at most pi/2) of the subspaces of the first 1, 2, ..., K axes.

    Parameters
    ----------
    own : ndarray (K,)
        Squared angles by which sampling turns an axis out of the space of all axes.
    values : ndarray (K,)
        Variances along the axes, noise included, descending.
    all_values : ndarray (M,)
        The same and those that follow: near ones exchange with an axis.
    n : float
        Stars.
    """
    out = np.empty_like(values)
    for d, value in enumerate(values):
        rest = all_values[d + 1 :]
        gap = np.maximum(value - rest, 1e-12 * value)
        out[d] = np.sqrt(own[d] + np.sum(value * rest / gap**2) / n)
    return np.minimum(out, np.pi / 2)


def determined(error: np.ndarray) -> int:
    """Axes before the gap in the eigenvalues beyond which no subspace is determined."""
    good = np.flatnonzero(error < LARGEST_ERROR)
    return int(good[-1]) + 1 if good.size else 0
