"""Kernels of moments over stars: blocks in, plain arrays out, and how those of two blocks become those of their union.

Each block gives its own mean and central sums, combined with the update of Chan, Golub & LeVeque (1983): no
cancellation for spectra near 1, the same result for any chunking to rounding. The layer over Dask arrays is
:mod:`chemscale.statistics.masked`; the passes of a fit, the residuals of interstellar bands and the field of a metric
add up the same records.
"""

from __future__ import annotations

import numpy as np

from chemscale.statistics.pixel_loops import PixelSums, sum_pixels

#: Sums by name: ``count``, ``weight``, ``mean``, ``central`` (P,), and what a kernel adds to them.
Moments = dict[str, np.ndarray]


def block_moments(values: np.ndarray, mask: np.ndarray | None = None, weights: np.ndarray | None = None) -> Moments:
    """Count, weight, mean and weighted sum of squared deviations of one block, (P,) each, in one sweep."""
    none = np.zeros((0, 0))
    values = values if values.dtype.kind == "f" else values.astype(np.float64)
    sums = PixelSums(*np.zeros((5, values.shape[1])))
    gone = none.astype(bool) if mask is None else np.asarray(mask, dtype=bool)
    sum_pixels(values, gone, none if weights is None else np.asarray(weights), sums)
    shift = np.divide(sums.first, sums.weight, out=np.zeros_like(sums.weight), where=sums.weight > 0)
    return {
        "count": sums.valid,
        "weight": sums.weight,
        "mean": sums.pivot + shift,
        "central": np.maximum(sums.second - sums.weight * shift**2, 0.0),
    }


def combine_moments(*parts: Moments) -> Moments:
    """Moments of the union of blocks."""
    total = dict(parts[0])
    for part in parts[1:]:
        weight = total["weight"] + part["weight"]
        share = np.divide(part["weight"], weight, out=np.zeros_like(weight), where=weight > 0)
        shift = part["mean"] - total["mean"]
        total = {
            "count": total["count"] + part["count"],
            "weight": weight,
            "mean": total["mean"] + share * shift,
            "central": total["central"] + part["central"] + total["weight"] * share * shift**2,
        }
    return total


def block_scatter(values: np.ndarray) -> Moments:
    """Moments of the complete rows of one block with their ``scatter`` (K, K), central sums of products.

    Rows with a value that is not finite do not count; ``incomplete`` says how many they are.
    """
    x = np.asarray(values, dtype=np.float64)
    complete = np.isfinite(x).all(axis=1)
    moments = block_moments(x[complete])
    x = x[complete] - moments["mean"]
    return moments | {"scatter": x.T @ x, "incomplete": np.array(np.count_nonzero(~complete))}


def combine_scatter(*parts: Moments) -> Moments:
    """Scatter of the union of blocks."""
    total = dict(parts[0])
    for part in parts[1:]:
        n, more = total["weight"][:1], part["weight"][:1]
        shift = part["mean"] - total["mean"]
        factor = np.divide(n * more, n + more, out=np.zeros_like(n), where=n + more > 0)
        total = combine_moments(total, part) | {
            "scatter": total["scatter"] + part["scatter"] + factor * np.outer(shift, shift),
            "incomplete": total["incomplete"] + part["incomplete"],
        }
    return total
