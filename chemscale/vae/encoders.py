"""Encoders: from (flux, ivar) to the parameters of the latents' posterior.

====================  =======================================================================
``ppca`` (default)    masked PPCA's posterior mean, in units of its own prior, and a small
                      perceptron. Missing pixels and per-pixel errors enter exactly, through
                      the posterior of a linear Gaussian model; rest-frame spectra on a common
                      grid need no translation invariance.
``conv``              three convolutions with attention pooling (Melchior et al. 2023), the
                      encoder of the paper; missing pixels are filled with the mean spectrum.
====================  =======================================================================
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SpectralActivation(nn.Module):
    """Trainable activation of Alsing et al. (2020), paper eq. 8: ``[g + (1 - g) sigmoid(b x)] x``."""

    def __init__(self, n: int):
        super().__init__()
        self.gamma = nn.Parameter(0.1 * torch.randn(n))
        self.beta = nn.Parameter(1.0 + 0.1 * torch.randn(n))

    def forward(self, x: Tensor) -> Tensor:
        return (self.gamma + (1.0 - self.gamma) * torch.sigmoid(self.beta * x)) * x


def perceptron(n_in: int, hidden: tuple[int, ...], n_out: int) -> nn.Sequential:
    """Fully connected layers with :class:`SpectralActivation` between them."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(n_in, width), SpectralActivation(width)]
        n_in = width
    last = nn.Linear(n_in, max(n_out, 1))
    if n_out == 0:  # regions that claim every pixel leave none to the rest: torch warns of an empty layer
        last.out_features, last.weight, last.bias = 0, nn.Parameter(last.weight[:0]), nn.Parameter(last.bias[:0])
    return nn.Sequential(*layers, last)


class PPCAFront(nn.Module):
    """Posterior mean of a fitted masked PPCA, in units of the prior; not trained.

    With ``flux = mean + diag(scale) V`` and pixel variance ``1 / ivar + noise`` the posterior
    precision is ``I + B diag(w) B^T``, B = diag(scale) V. A star's K(K+1)/2 sums over pixels
    come from one matrix product with the packed outer products of B's columns, so a batch
    costs two products and a batched Cholesky solve, on any device.

    Parameters
    ----------
    components : Tensor (K, P)
        Orthonormal rows; columns of unused pixels are 0.
    mean : Tensor (P,)
    scale : Tensor (K,)
        Standard deviations of the latents along the components.
    noise : Tensor (P,)
        Intrinsic variance added to ``1 / ivar``.
    """

    components: Tensor
    mean: Tensor
    scale: Tensor
    noise: Tensor
    packed: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(self, components: Tensor, mean: Tensor, scale: Tensor, noise: Tensor):
        super().__init__()
        self.register_buffer("components", components)
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.register_buffer("noise", noise)
        rows, columns = torch.tril_indices(len(components), len(components))
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)
        self.register_buffer("packed", torch.empty(0), persistent=False)

    @property
    def n_components(self) -> int:
        """K."""
        return int(self.components.shape[0])

    def prepare(self) -> None:
        """Outer products of the basis, (P, K(K+1)/2); made on first use, not stored in checkpoints."""
        if self.packed.numel() == 0:
            basis = self.scale[:, None] * self.components
            self.packed = (basis[self.rows] * basis[self.columns]).T.contiguous()

    @torch.no_grad()
    def forward(self, flux: Tensor, ivar: Tensor) -> Tensor:
        """Coordinates (n, K). `ivar` is 0 at missing pixels, where `flux` may be anything finite."""
        # linear algebra stays in float32 even under autocast
        with torch.autocast(flux.device.type, enabled=False):
            flux, ivar = flux.float(), ivar.float()
            weight = ivar / (1.0 + ivar * self.noise)
            basis = self.scale[:, None] * self.components
            right = (weight * (flux - self.mean)) @ basis.T
            if not len(flux):
                return right
            low, high = weight.aminmax(dim=1)
            # whole spectra with one error: the components are orthonormal, nothing to solve
            simple = right / (1.0 + low[:, None] * self.scale**2)
            mixed = low != high
            if bool(mixed.any()):
                simple[mixed] = self.solve(right[mixed], weight[mixed])
            return simple

    def solve(self, right: Tensor, weight: Tensor) -> Tensor:
        """Coordinates from whitened projections (n, K) and pixel weights (n, P) that differ from pixel to pixel."""
        self.prepare()
        k = self.n_components
        precision = right.new_zeros(len(right), k, k)
        precision[:, self.rows, self.columns] = weight @ self.packed
        precision.diagonal(dim1=1, dim2=2).add_(1.0)
        factor = torch.linalg.cholesky(precision)  # reads the lower triangle only
        return torch.cholesky_solve(right[:, :, None], factor)[:, :, 0]


class PPCAEncoder(nn.Module):
    """Perceptrons on PPCA coordinates, one for the chemical latents and one for w.

    `front` is fixed, so training may compute coordinates once. w has a network of its own:
    it can be taught first, and chemistry has no way into it.
    """

    def __init__(self, front: PPCAFront, hidden: tuple[int, ...], n_out: int, n_auxiliary: int):
        super().__init__()
        self.front = front
        self.net = perceptron(front.n_components, hidden, n_out)
        self.auxiliary = perceptron(front.n_components, (128, 128), n_auxiliary)

    def features(self, flux: Tensor, ivar: Tensor) -> Tensor:
        """What :meth:`head` takes: PPCA coordinates."""
        return self.front(flux, ivar)

    def head(self, features: Tensor) -> Tensor:
        """Posterior parameters and w, (n, n_out + n_auxiliary), from coordinates."""
        return torch.cat([self.net(features), self.auxiliary(features)], 1)


class ConvEncoder(nn.Module):
    """The paper's encoder: Conv1d 128/256/512, kernels 5/11/21, attention pooling, MLP 256-128-64-32.

    Parameters
    ----------
    mean : Tensor (P,)
        Mean spectrum that fills missing pixels.
    """

    mean: Tensor

    def __init__(self, mean: Tensor, n_out: int, filters: tuple[int, int, int] = (128, 256, 512)):
        super().__init__()
        self.register_buffer("mean", mean)
        channels = (1, *filters)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(channels[i], channels[i + 1], kernel, padding=kernel // 2),
                nn.InstanceNorm1d(channels[i + 1]),
                nn.PReLU(channels[i + 1]),
            )
            for i, kernel in enumerate((5, 11, 21))
        )
        self.pools = nn.ModuleList([nn.MaxPool1d(5, padding=2), nn.MaxPool1d(11, padding=5), nn.Identity()])
        half = filters[2] // 2
        layers: list[nn.Module] = []
        n_in = half
        for width in (128, 64, 32):
            layers += [nn.Linear(n_in, width), nn.PReLU(width)]
            n_in = width
        self.mlp = nn.Sequential(*layers)
        self.out = nn.Linear(32, n_out)

    def features(self, flux: Tensor, ivar: Tensor) -> Tensor:
        """Spectra with missing pixels filled; (n, P)."""
        return torch.where(ivar > 0, flux, self.mean)

    def head(self, features: Tensor) -> Tensor:
        """Posterior parameters (n, n_out) from filled spectra."""
        x = features[:, None, :]
        for block, pool in zip(self.blocks, self.pools):
            x = pool(block(x))
        value, logits = x.chunk(2, dim=1)
        pooled = (value * torch.softmax(logits, dim=-1)).sum(-1)
        return self.out(self.mlp(pooled))
