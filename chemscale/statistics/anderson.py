"""Anderson mixing of factor models (Walker & Ni 2011): extrapolate a slowly converging fixed-point iteration."""

from __future__ import annotations

import numpy as np

from chemscale.statistics.ppca_kernels import Model

#: Latent variances below this fraction of the noise are kept there: such a component carries nothing.
SCALE_FLOOR = 1e-6


def principal(mean: np.ndarray, loadings: np.ndarray, noise: float | np.ndarray) -> Model:
    """Model with orthonormal, ordered principal axes from loadings W (P, K): W W^T is unchanged."""
    basis, scale, _ = np.linalg.svd(loadings, full_matrices=False)
    floor = np.sqrt(SCALE_FLOOR * float(np.mean(noise)))
    return Model(mean, basis, np.maximum(scale, floor), noise)


def spectral_norm(tall: np.ndarray) -> float:
    """Largest singular value of `tall` (P, K), K << P: from the K x K Gram matrix, many times faster than an SVD."""
    return float(np.sqrt(max(np.linalg.eigvalsh(tall.T @ tall)[-1], 0.0)))


def outside(space: np.ndarray, columns: np.ndarray) -> float:
    """Sine of the largest principal angle of orthonormal `columns` to the space of an orthonormal basis."""
    return spectral_norm(columns - space @ (space.T @ columns))


class Anderson:
    """Anderson mixing of loadings expressed in one common gauge.

    W and W R (R orthogonal) are the same model, so every step's loadings are first rotated
    onto the point they came from (orthogonal Procrustes); differences then mean something.
    """

    def __init__(self, memory: int):
        self.memory = memory
        self.points: list[np.ndarray] = []
        self.residuals: list[np.ndarray] = []
        self.turns: list[float] = []

    def clear(self) -> None:
        """Forget the steps so far."""
        self.points.clear()
        self.residuals.clear()

    def rate_corrected(self, turn: float) -> float:
        """Distance to the limit from the last steps' lengths, if they shrink geometrically."""
        self.turns.append(turn)
        if len(self.turns) < 3:
            return np.inf
        rate = min(max((self.turns[-1] / max(self.turns[-3], 1e-300)) ** 0.5, 0.3), 0.98)
        return turn / (1 - rate)

    def next(self, model: Model, step: Model) -> Model:
        """Where to go on from, given a model and the step taken from it."""
        point = self._vector(model)
        if self.points:
            point = self._aligned(point, self.points[-1])
        image = self._aligned(self._vector(step), point)
        self.points.append(point)
        self.residuals.append(image - point)
        self.points, self.residuals = self.points[-self.memory :], self.residuals[-self.memory :]
        if len(self.points) < 2:
            return step
        last = self.residuals[-1]
        d_residual = np.stack([(last - r).ravel() for r in self.residuals[:-1]], axis=1)
        d_point = np.stack([(self.points[-1] - p).ravel() for p in self.points[:-1]], axis=1)
        gram = d_residual.T @ d_residual
        gram[np.diag_indices_from(gram)] *= 1 + 1e-8
        gamma = np.linalg.lstsq(gram, d_residual.T @ last.ravel(), rcond=1e-12)[0]
        mixed = (image.ravel() - (d_point + d_residual) @ gamma).reshape(image.shape)
        return principal(mixed[:, -1].copy(), mixed[:, :-1], step.noise)

    @staticmethod
    def _vector(model: Model) -> np.ndarray:
        return np.concatenate([model.basis * model.scale, model.mean[:, None]], axis=1)

    @staticmethod
    def _aligned(moving: np.ndarray, target: np.ndarray) -> np.ndarray:
        u, _, vt = np.linalg.svd(moving[:, :-1].T @ target[:, :-1])
        out = moving.copy()
        out[:, :-1] = moving[:, :-1] @ (u @ vt)
        return out
