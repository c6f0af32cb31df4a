"""What a reduction misses: cosmic-ray hits and badly subtracted sky lines without a flag, at a stated rate."""

from __future__ import annotations

import numpy as np

#: Sky lines that are sometimes subtracted badly; a bad one takes this many pixels.
SKY_LINES, LINE_PIXELS = 12, 4
#: Share of the affected pixels that bad sky lines take; hits take the rest.
SKY_SHARE = 0.25
#: Least and mean height of a hit above it, and typical height of a bad line, in units of the continuum.
HIT_LEAST, HIT_MEAN, LINE_HEIGHT = 0.1, 0.5, 0.3


def add_artefacts(flux: np.ndarray, gap: np.ndarray, rate: float, rng: np.random.Generator) -> np.ndarray:
    """Adds hits and bad sky lines to spectra (n, P) in place; returns which pixels were affected.

    Parameters
    ----------
    gap : ndarray of bool (P,)
        Pixels without a detector: nothing happens there.
    rate : float
        Mean fraction of affected pixels.
    """
    n, p = flux.shape
    affected = np.zeros((n, p), dtype=bool)
    star = np.repeat(np.arange(n), rng.poisson((1.0 - SKY_SHARE) * rate * p, n))
    pixel = rng.integers(0, p, star.size)
    height = HIT_LEAST + rng.exponential(HIT_MEAN, star.size)
    good = ~gap[pixel]
    star, pixel = star[good], pixel[good]
    np.add.at(flux, (star, pixel), height[good].astype(flux.dtype))
    affected[star, pixel] = True
    lines = np.linspace(0, p - LINE_PIXELS, SKY_LINES + 2)[1:-1].astype(int)
    lines = lines[~gap[lines] & ~gap[lines + LINE_PIXELS - 1]]
    chance = min(1.0, SKY_SHARE * rate * p / (SKY_LINES * LINE_PIXELS))
    shape = np.array([0.5, 1.0, 1.0, 0.5], dtype=flux.dtype)
    for first in lines:
        hit = rng.random(n) < chance
        size = np.asarray(rng.normal(0, LINE_HEIGHT, n), dtype=flux.dtype)[hit]
        flux[hit, first : first + LINE_PIXELS] += size[:, None] * shape
        affected[hit, first : first + LINE_PIXELS] = True
    return affected
