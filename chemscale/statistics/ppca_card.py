"""A device as the kernels of :mod:`.ppca_device` see it: what moves arrays there, and algebra of small matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


@dataclass
class Card:
    """A device, the type of its large products, and what moves blocks and parameters there."""

    device: str
    dtype: np.dtype

    def __post_init__(self) -> None:
        import torch

        self.large = torch.float64 if self.dtype == np.float64 else torch.float32

    def pixels(self, array: Any) -> torch.Tensor:
        """A block's array in the type of the products."""
        import torch

        return torch.as_tensor(array, device=self.device).to(self.large)

    def marks(self, array: Any) -> torch.Tensor:
        """A block's mask."""
        import torch

        return torch.as_tensor(array, device=self.device)

    def wide(self, array: Any) -> torch.Tensor:
        """A parameter as float64."""
        import torch

        return torch.as_tensor(np.asarray(array, np.float64), device=self.device)


def triangle(k: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns of the entries of an upper triangle, as :func:`pack_outer` orders them."""
    import torch

    i, j = torch.triu_indices(k, k, device=device)
    return i, j


def pack_outer(rows: torch.Tensor) -> torch.Tensor:
    """Upper triangles (n, K(K+1)/2) of the outer products of `rows` (n, K) with themselves."""
    i, j = triangle(rows.shape[1], str(rows.device))
    return rows[:, i] * rows[:, j]


def unpack(packed: torch.Tensor, k: int) -> torch.Tensor:
    """Symmetric float64 matrices (n, K, K) from their upper triangles."""
    i, j = triangle(k, str(packed.device))
    out = packed.new_empty((len(packed), k, k)).double()
    out[:, i, j] = out[:, j, i] = packed.double()
    return out


def invert(systems: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Inverses and log-determinants."""
    import torch

    lower, failed = torch.linalg.cholesky_ex(systems)
    if bool(failed.any()):
        raise np.linalg.LinAlgError("a matrix is not positive definite")
    return torch.cholesky_inverse(lower), 2.0 * lower.diagonal(dim1=1, dim2=2).log().sum(1)
