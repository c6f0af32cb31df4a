"""How the completed covariance answers to a change of the model: what lets one pass do the work of many.

Plain EM over the missing pixels fills them with the *old* model, so whatever the missing values say pulls the new basis
back towards the old one.  A direction contracts per pass at the fraction of missing information, and that is
close to 1 where two eigenvalues are close, or where one bright outlier makes a component of its own and
misses pixels nobody else determines.  The answer of the completed covariance to a turn of the basis is known,
though, to first order: the second moments of the latents over the stars missing each pixel.  With it the
eigenproblem is solved self-consistently in the space of the search directions (as in electronic structure theory),
in memory, between two passes.  The fixed point is the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from chemscale.statistics import compiled

#: Self-consistent iterations between two passes at most.
INNER = 60
#: Missing information is scaled by this, so that no step grows without bound.
MOST_MISSING = 0.97


@dataclass
class Turned:
    """Result of :func:`self_consistent`: coordinates of the new basis in the search space, and what goes with it."""

    values: np.ndarray  # (m,) Ritz values, descending
    vectors: np.ndarray  # (d, m)
    answer: np.ndarray  # (P, K) change of the completed covariance acting on the old basis
    moved: np.ndarray  # (d - K, K) how the search directions enter the old latents


def top(matrix: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Largest `count` eigenvalues (descending) and eigenvectors of a symmetric matrix."""
    values, vectors = np.linalg.eigh(matrix)
    order = np.argsort(values)[::-1][:count]
    return values[order], vectors[:, order]


def self_consistent(
    ritz: np.ndarray,
    directions: np.ndarray,
    k: int,
    keep: int,
    latent2: np.ndarray | None,
    fraction: np.ndarray,
    tol: float,
) -> Turned:
    """Leading eigenvectors of the completed covariance, allowing for its own change.

    Let P project on the new basis. Missing values follow it: a star's prediction changes by ``(P - P0) x_hat``,
    the completed covariance therefore by ``C B^T + B C^T`` with ``C_p = [(P - P0) B]_p U_p`` and U_p the second moments
    of the latents over the stars missing pixel p, plus the like term of the residuals that move into the
    latents (there every pixel's missing stars are taken for typical). This change is a positive quadratic form in P, so
    that taking the leading eigenvectors again and again climbs monotonically.

    Parameters
    ----------
    ritz : ndarray, (d, d)
        Completed covariance in the search space, at the old model.
    directions : ndarray, (P, d)
        Orthonormal; the first `k` are the old basis.
    keep : int
        Ritz pairs to return.
    latent2 : ndarray, (P, K, K), optional
        U_p per star; None: plain EM step.
    fraction : ndarray, (P,)
        Fraction of the stars that miss each pixel.
    tol : float
        Largest principal angle between two inner iterations at which to stop.
    """
    d = ritz.shape[0]
    values, vectors = top(ritz, keep)
    answer, moved = np.zeros((directions.shape[0], k)), np.zeros((d - k, k))
    if latent2 is None or d <= k:
        return Turned(values, vectors, answer, moved)
    typical = directions.T @ (fraction[:, None] * directions[:, :k])
    for _ in range(INNER):
        lead = vectors[:, :k]
        change = lead @ lead[:k].T
        change[:k] -= np.eye(k)
        answer = np.einsum("pk,pkl->pl", directions @ change, latent2, optimize=True)
        moved = lead[k:] @ lead[:k].T
        turned = ritz.copy()
        along = directions.T @ answer
        turned[:, :k] += along
        turned[:k, :] += along.T
        mixed = (ritz[:, k:] @ moved) @ typical.T
        turned += mixed + mixed.T
        values, vectors = top(turned, keep)
        new = vectors[:, :k]
        step = float(np.linalg.norm(new - lead @ (lead.T @ new), 2))
        total = float(np.linalg.norm(new[k:], 2))
        if step < max(tol, 0.02 * total):
            break
    return Turned(values, vectors, answer, moved)


def newton_rows(residual: np.ndarray, spread: np.ndarray, latent2: np.ndarray | None) -> np.ndarray:
    """Residuals (P, K) of the eigenproblem divided, pixel by pixel, by what the observed values say.

    Solves ``X_p (diag(spread) - 0.97 U_p) = R_p``, the self-consistent eigenproblem linearised outside the search
    space: exact there where the rest of the covariance is noise.

    Parameters
    ----------
    spread : ndarray, (K,)
        Eigenvalues above those outside the search space.
    latent2 : ndarray, (P, K, K), optional
        As in :func:`self_consistent`, in the basis of the residuals.
    """
    if latent2 is None:
        return residual / spread
    root = np.sqrt(spread)
    rows = residual / root
    # Where the moments (of an earlier pass) say more is missing than there is, the plain residual has to do.
    compiled.solve_missing(latent2, MOST_MISSING, 1.0 / root, rows)
    return rows / root
