"""What the data determine of a basis: the statistical error of its axes, and how many of them stand above the noise."""

from __future__ import annotations

import numpy as np

#: An axis whose statistical error (radian) is larger than this is not determined.
LARGEST_ERROR = 0.3


def error_of_axes(own: np.ndarray, values: np.ndarray, all_values: np.ndarray, n: float) -> np.ndarray:
    """Statistical error (radian, at most pi/2) of the subspaces of the first 1, 2, ..., K axes.

    Of the axis in it that sampling turns most out of the subspace: out of the space of all axes, and towards those that
    follow the subspace, the more the nearer their variances are. Axes within the subspace may turn into each other. An
    axis before the last one that a few stars hold by themselves counts in no error but its own.

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
    k = len(values)
    gap = np.maximum(np.abs(values[:, None] - all_values), 1e-12 * values[:, None])
    exchange = np.triu(values[:, None] * all_values / gap**2, 1) / n
    turned = np.cumsum(exchange[:, ::-1], axis=1)[:, ::-1][:, 1:]  # of axis i towards those after d, at (i, d)
    turned = np.pad(turned, ((0, 0), (0, max(k - turned.shape[1], 0))))[:, :k] + own[:, None]
    held = own >= LARGEST_ERROR**2
    counted = np.triu(np.ones((k, k), bool)) & (~held[:, None] | np.eye(k, dtype=bool))
    return np.minimum(np.sqrt(np.where(counted, turned, 0.0).max(axis=0)), np.pi / 2)


def determined(error: np.ndarray) -> int:
    """Axes before the gap in the eigenvalues beyond which no subspace is determined."""
    good = np.flatnonzero(error < LARGEST_ERROR)
    return int(good[-1]) + 1 if good.size else 0
