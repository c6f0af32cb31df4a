"""The halo of the autoencoder's paper (Signor et al. 2025, section 3): a joint density of three abundances.

``r([Fe/H], [C/Fe], [alpha/Fe]) = p([Fe/H], [C/Fe]) q([Fe/H], [alpha/Fe]) / Z`` (equations 9 to 11), with two bivariate
densities of the halo's shape: carbon-enhanced stars become more frequent to low metallicity, and [alpha/Fe] has a
plateau, a knee and a sequence of accreted, alpha-poor stars below. The paper gives means and standard deviations of the
marginals (equations 12 to 14) and the correlations of its prior (appendix B); the constants below are chosen so that
the joint density has them within 0.02. The densities themselves are not printed there, only drawn (Fig. 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

#: Means and standard deviations of [Fe/H], [C/Fe] and [alpha/Fe] (equations 12 to 14).
MEANS = (-1.23, 0.62, 0.22)
SIGMAS = (0.57, 0.75, 0.15)
#: Range of the three abundances, that of the low-resolution emulator.
LOW = (-2.59, -1.19, -0.245)
HIGH = (0.39, 2.39, 0.695)
_NODES = (299, 359, 189)


@dataclass(frozen=True)
class HaloDensity:
    """The joint density on a grid of cells.

    Attributes
    ----------
    fe_h, c_fe, alpha_fe : ndarray (f,), (c,), (a,)
        Centres of the cells, dex.
    p : ndarray (f, c)
        Density of ([Fe/H], [C/Fe]), integrating to 1.
    q : ndarray (f, a)
        Density of ([Fe/H], [alpha/Fe]), integrating to 1.
    """

    fe_h: NDArray[np.float64]
    c_fe: NDArray[np.float64]
    alpha_fe: NDArray[np.float64]
    p: NDArray[np.float64]
    q: NDArray[np.float64]

    @property
    def normalisation(self) -> float:
        """Z of equation 11."""
        step = [np.diff(x[:2])[0] for x in (self.fe_h, self.c_fe, self.alpha_fe)]
        return float((self.p.sum(1) * self.q.sum(1)).sum() * np.prod(step))

    def metallicity(self) -> NDArray[np.float64]:
        """Marginal of [Fe/H] under r: probability of each cell, shape (f,)."""
        weight = self.p.sum(1) * self.q.sum(1)
        return weight / weight.sum()

    def draw(self, rng: np.random.Generator, n: int) -> tuple[NDArray[np.float64], ...]:
        """[Fe/H], [C/Fe] and [alpha/Fe] of `n` stars, shape (n,) each.

        >>> from chemscale.simulation.halo import halo
        >>> fe_h, c_fe, alpha_fe = halo().draw(np.random.default_rng(0), 20_000)
        >>> [round(float(x.mean()), 1) for x in (fe_h, c_fe, alpha_fe)]
        [-1.2, 0.6, 0.2]
        """
        cell = np.minimum(np.searchsorted(np.cumsum(self.metallicity()), rng.random(n)), self.fe_h.size - 1)
        drawn = [_jitter(rng, self.fe_h, cell)]
        for centres, density in ((self.c_fe, self.p), (self.alpha_fe, self.q)):
            # given [Fe/H] the other two are independent: r is a product
            cumulative = np.cumsum(density, 1) / density.sum(1, keepdims=True)
            index = (cumulative[cell] < rng.random((n, 1))).sum(1)
            drawn.append(_jitter(rng, centres, np.minimum(index, centres.size - 1)))
        return tuple(drawn)


def _jitter(rng: np.random.Generator, centres: np.ndarray, cell: np.ndarray) -> NDArray[np.float64]:
    step = centres[1] - centres[0]
    return centres[cell] + step * (rng.random(cell.size) - 0.5)


def _normal(x: np.ndarray, mean: np.ndarray | float, sigma: float) -> np.ndarray:
    return np.exp(-0.5 * ((x - mean) / sigma) ** 2) / sigma


@cache
def halo() -> HaloDensity:
    """The paper's halo on its grid; made once."""
    edges = [np.linspace(a, b, k + 1) for a, b, k in zip(LOW, HIGH, _NODES, strict=True)]
    fe_h, c_fe, alpha_fe = ((e[1:] + e[:-1]) / 2 for e in edges)
    f = fe_h[:, None]
    # p and q share the metallicities: their product has the width of one of them over sqrt(2)
    share = _normal(f, -1.235, 0.60 * np.sqrt(2.0))
    enhanced = expit(-0.6 - 0.8 * (f + 1.23))
    p = share * ((1 - enhanced) * _normal(c_fe, 0.17, 0.42) + enhanced * _normal(c_fe, 1.50, 0.50))
    plateau = 0.335 - 0.28 * 0.15 * np.logaddexp(0.0, (f + 1.0) / 0.15)
    accreted = expit(-1.15 - 0.3 * (f + 1.23))
    q = share * ((1 - accreted) * _normal(alpha_fe, plateau, 0.05) + accreted * _normal(alpha_fe, plateau - 0.32, 0.05))
    steps = [e[1] - e[0] for e in edges]
    return HaloDensity(fe_h, c_fe, alpha_fe, p / (p.sum() * steps[0] * steps[1]), q / (q.sum() * steps[0] * steps[2]))
