"""How every pixel depends on a few quantities of its star: weighted least squares with masks, in one pass.

Each block adds its own normal equations, so any chunking gives the same coefficients to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class NormalEquations:
    """Sums over stars of one least-squares problem a pixel.

    Attributes
    ----------
    gram : (P, q, q)
        Weighted products of the quantities.
    moment : (P, q)
        Weighted products with the pixel's value.
    square : (P,)
        Weighted square of the value.
    count : (P,)
        Stars with the pixel.
    """

    gram: np.ndarray
    moment: np.ndarray
    square: np.ndarray
    count: np.ndarray

    def __add__(self, other: NormalEquations) -> NormalEquations:
        return NormalEquations(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def solve(self, columns: slice = slice(None), least: int = 5) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients (P, q') and weighted residual sums of squares (P,) with the quantities in `columns` alone.

        A pixel that fewer than `least` stars a quantity have gets coefficients of 0 and its whole sum of squares.
        """
        gram, moment = self.gram[:, columns, columns], self.moment[:, columns]
        q = moment.shape[1]
        enough = self.count >= least * q
        scale = np.sqrt(np.maximum(np.einsum("pii->pi", gram), 1e-300))
        scaled = gram / scale[:, :, None] / scale[:, None, :] + 1e-9 * np.eye(q)
        scaled[~enough] = np.eye(q)
        found = np.linalg.solve(scaled, (moment / scale)[:, :, None])[:, :, 0] / scale
        found[~enough] = 0.0
        return found, np.maximum(self.square - np.einsum("pi,pi->p", found, moment), 0.0)


def block_equations(quantities: np.ndarray, values: np.ndarray, weights: np.ndarray) -> NormalEquations:
    """Normal equations of one block.

    Parameters
    ----------
    quantities : (n, q)
        Of order one; a constant is a column of ones.
    values : (n, P)
        Finite wherever the weight is positive; take off a typical value first, for sums in single precision.
    weights : (n, P)
        0 where a pixel is missing.
    """
    x, w = quantities.astype(np.float32), weights.astype(np.float32)
    v = np.where(w > 0, values, 0).astype(np.float32)
    q = x.shape[1]
    i, j = np.triu_indices(q)
    products = (x[:, i] * x[:, j]).T @ w
    gram = np.empty((w.shape[1], q, q))
    gram[:, i, j] = gram[:, j, i] = products.T
    weighted = w * v
    return NormalEquations(
        gram,
        (x.T @ weighted).T.astype(np.float64),
        np.einsum("np,np->p", weighted, v, dtype=np.float64),
        np.count_nonzero(w, axis=0).astype(np.int64),
    )
