"""The same distribution of each latent at every Teff: a last step of the encoder.

The penalty on dependence takes Teff out of the latents as far as a batch shows it. What is left is how a latent's
distribution changes with Teff together with the latents before it: boosted trees read some of it. Once the encoder is
done, each latent in turn is standardised given Teff and the latents before it, what is left gets the shape
(:mod:`~chemscale.vae.axis_shape`) and then the mean and the spread that it has given those latents alone. No abundance
enters; the decoders then learn from mapped latents.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations_with_replacement
from math import comb
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from chemscale.vae import axis_shape
from chemscale.vae.axis_kernels import Curves, Polynomials, map_axes
from chemscale.vae.axis_shape import ShapeMap

#: Highest degree of the polynomials of the mean in Teff and earlier latents, and terms that one has at most: with more
#: latents the degree falls. That of the logarithm of the spread is two lower.
DEGREE, MOST_TERMS = 6, 150
#: Standard deviations at which polynomials in latents end; beyond, they keep their value there.
REACH = 2.5
#: What is added to the mean square of each term: coefficients that no star needs stay small. Most that the logarithm of
#: a spread may differ between a Teff and all of them.
RIDGE, MOST_STRETCH = 1e-4, 1.5
#: Percentiles of Teff between which the polynomials run.
ENDS = (0.2, 99.8)
#: Training stars that a coefficient needs (a map that has fewer is not made), and stars that are used at most.
STARS_A_TERM, MOST_STARS = 40, 30_000
#: Newton steps to the likeliest spread, and residuals cut off at so many standard deviations.
STEPS, CLIPPED = 8, 4.0


def degrees(variables: int) -> tuple[int, int]:
    """Degrees of the mean and of the logarithm of the spread.

    >>> degrees(3), degrees(5), degrees(16)
    ((6, 4), (4, 2), (1, 1))
    """
    most = next((d for d in range(DEGREE, 1, -1) if comb(variables + d, d) <= MOST_TERMS), 1)
    return most, max(1, most - 2)


def n_terms(variables: int, degree: int) -> int:
    """Products of polynomials up to a total degree."""
    return comb(variables + degree, degree)


@lru_cache
def exponents(variables: int, degree: int, device: torch.device) -> Tensor:
    """Degrees of the polynomials that each product is one of, (terms, variables), lowest totals first."""
    every = (c for total in range(degree + 1) for c in combinations_with_replacement(range(variables), total))
    return torch.tensor([[c.count(j) for j in range(variables)] for c in every], dtype=torch.long, device=device)


def terms(x: Tensor, degree: int) -> Tensor:
    """Products of Chebyshev polynomials, up to a total degree, of the columns of x (n, m) in [-1, 1]; (terms, n).

    >>> terms(torch.tensor([[0.5, -1.0]]), 1).T
    tensor([[ 1.0000,  0.5000, -1.0000]])
    """
    x = x.T.contiguous()
    table = [torch.ones_like(x), x]
    for _ in range(degree - 1):
        table.append(2 * x * table[-1] - table[-2])
    each = torch.stack(table, 1)
    found = x.new_ones(1, x.shape[1])
    for column, index in zip(each, exponents(len(x), degree, x.device).unbind(1), strict=True):
        found = found * column[index]
    return found


class AxisMap(nn.Module):
    """Location, scale and shape of each latent given Teff and the latents before it, and given those latents alone.

    Until it is fitted it changes nothing.

    Parameters
    ----------
    n_latents : int
    """

    span: Tensor

    def __init__(self, n_latents: int):
        super().__init__()
        self.n_latents, self.fitted = n_latents, False
        self.register_buffer("span", torch.tensor([0.0, 1.0]))  # centre and half width of Teff, K
        for k in range(n_latents):
            for kind, variables in (("at", k + 1), ("all", k)):
                for what, degree in zip(("mean", "spread"), degrees(k + 1), strict=True):
                    self.register_buffer(f"{what}_{kind}_{k}", torch.zeros(n_terms(variables, degree)))
        self.shape = ShapeMap(n_latents)
        self._tables: tuple[Polynomials, Curves] | None = None  # of the compiled pass, made when it is needed
        self.register_load_state_dict_post_hook(_see_whether_fitted)

    def forward(self, mean: Tensor, teff: Tensor) -> tuple[Tensor, Tensor]:
        """Mapped latents (n, d), and the factor (n, d) by which the spread of each changes.

        On CPUs, where no gradient is asked for, by a compiled pass (:mod:`~chemscale.vae.axis_kernels`).

        Parameters
        ----------
        mean : Tensor (n, d)
        teff : Tensor (n,)
            K.
        """
        t = ((teff - self.span[0]) / self.span[1]).clamp(-1.0, 1.0)[:, None]
        if mean.device.type == "cpu" and not torch.is_grad_enabled():
            return self._compiled(mean, t[:, 0])
        return self._by_tensors(mean, t)

    def _by_tensors(self, mean: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """On any device, with gradients; `t` (n, 1) is Teff in [-1, 1]."""
        before = (mean / REACH).clamp(-1.0, 1.0)
        mapped: list[Tensor] = []
        factors = []
        for k in range(self.n_latents):
            alone = (torch.stack(mapped, 1) / REACH).clamp(-1.0, 1.0) if mapped else before[:, :0]
            (here, spread_here), (there, spread_there) = (
                self._values("at", k, torch.cat([t, before[:, :k]], 1)),
                self._values("all", k, alone),
            )
            factor = torch.exp((spread_there - spread_here).clamp(-MOST_STRETCH, MOST_STRETCH))
            left = mean[:, k] - here
            factors.append(factor)
            if self.shape.fitted:
                scale = torch.exp(spread_here)
                left, slope = self.shape(k, left / scale, t[:, 0], mapped)
                left, factors[-1] = left * scale, factor * slope
            mapped.append(there + left * factor)
        return torch.stack(mapped, 1), torch.stack(factors, 1)

    def _compiled(self, mean: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The same without tensors between one step and the next; `t` (n,) is Teff in [-1, 1]."""
        if self._tables is None or bool(len(self._tables[1].where)) != self.shape.fitted:
            self._tables = self._polynomials(), self.shape.curves()
        mapped, factors = torch.empty_like(mean), torch.empty_like(mean)
        limits = REACH, MOST_STRETCH, axis_shape.MOST_STRETCH
        given, made = (mean.contiguous(), t.contiguous()), (mapped, factors)
        map_axes(*(x.numpy() for x in given), limits, *self._tables, *(x.numpy() for x in made))
        return mapped, factors

    def _polynomials(self) -> Polynomials:
        """Coefficients and exponents as the compiled pass wants them."""
        rows: list[np.ndarray] = []
        coefficients: list[float] = []
        where = np.zeros((self.n_latents, 2, 4), np.int32)
        for k in range(self.n_latents):
            for kind, (name, variables) in enumerate((("at", k + 1), ("all", k))):
                mean, spread = (self.get_buffer(f"{what}_{name}_{k}").numpy() for what in ("mean", "spread"))
                where[k, kind] = len(rows), len(mean), len(coefficients), len(spread)
                products = exponents(variables, degrees(k + 1)[0], self.span.device).numpy()
                rows += [np.pad(row, (0, self.n_latents + 1 - variables)) for row in products.reshape(len(mean), -1)]
                coefficients += [*mean, *spread]
        return Polynomials(np.array(rows, np.uint8), np.array(coefficients, np.float64), where)

    def _values(self, kind: str, k: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the spread of latent k of stars x (n, m); no star depends on how many there are."""
        products = terms(x, degrees(k + 1)[0])
        mean, spread = (self.get_buffer(f"{what}_{kind}_{k}")[:, None] for what in ("mean", "spread"))
        # running sums: how a sum is cut up may depend on the number of stars
        return (mean * products).cumsum(0)[-1], (spread * products[: len(spread)]).cumsum(0)[-1]

    def reset(self) -> None:
        """Change nothing again."""
        self._take_over(AxisMap(self.n_latents))

    @torch.no_grad()
    def _take_over(self, other: AxisMap) -> None:
        """Become the same map as another one."""
        for name, values in other.state_dict().items():
            self.get_buffer(name).copy_(values)
        self.fitted, self.shape.fitted, self._tables = other.fitted, other.shape.fitted, None

    @torch.no_grad()
    def fit(self, mean: np.ndarray, teff: np.ndarray) -> bool:
        """Learn the map from posterior means (n, d) of training stars and the Teff (n,), K, that is read from w.

        Returns
        -------
        bool
            False where the stars are too few, or all of one Teff: the map changes nothing.
        """
        if self.span.device.type != "cpu":  # polynomials and quantiles of some stars: nothing for a GPU
            here = AxisMap(self.n_latents)
            here.fit(mean, teff)
            self._take_over(here)
            return self.fitted
        self.reset()
        z, t = torch.from_numpy(np.asarray(mean, np.float64)), np.asarray(teff, np.float64)
        most = max(n_terms(k + 1, degrees(k + 1)[0]) for k in range(self.n_latents))
        low, high = np.percentile(t, ENDS) if len(t) else (0.0, 0.0)
        if most * STARS_A_TERM > len(t) or not high > low:
            return False
        self.span.copy_(torch.tensor([(low + high) / 2, (high - low) / 2]))
        scaled = torch.from_numpy((t - (low + high) / 2) / ((high - low) / 2)).clamp(-1.0, 1.0)[:, None]
        self.shape.start(scaled[:, 0])
        before, mapped = (z / REACH).clamp(-1.0, 1.0), z.clone()
        for k in range(self.n_latents):
            at = self._learn("at", k, torch.cat([scaled, before[:, :k]], 1), z[:, k])
            all_ = self._learn("all", k, (mapped[:, :k] / REACH).clamp(-1.0, 1.0), z[:, k])
            factor = torch.exp((all_[1] - at[1]).clamp(-MOST_STRETCH, MOST_STRETCH))
            scale = torch.exp(at[1])
            left = self.shape.learn(k, (z[:, k] - at[0]) / scale, scaled[:, 0], list(mapped[:, :k].T))
            mapped[:, k] = all_[0] + left * scale * factor
        self.fitted, self._tables = True, None
        return True

    def _learn(self, kind: str, k: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the spread of y (n,) given x (n, m): kept, and given for each star."""
        products = terms(x, degrees(k + 1)[0])
        design = products.T
        coefficients = _ridge(design, y)
        mean = design @ coefficients
        self.get_buffer(f"mean_{kind}_{k}").copy_(coefficients)
        design = products[: len(self.get_buffer(f"spread_{kind}_{k}"))].T
        left = y - mean
        spread = torch.zeros(design.shape[1], dtype=y.dtype)
        spread[0] = torch.log(left.std())
        for _ in range(STEPS):  # Gaussian likelihood, with its second derivative in the mean
            ratio = (left / torch.exp(design @ spread)).clamp(-CLIPPED, CLIPPED)
            spread = spread + _ridge(design, 0.5 * (ratio**2 - 1.0))
        self.get_buffer(f"spread_{kind}_{k}").copy_(spread)
        return mean, design @ spread


def _ridge(design: Tensor, y: Tensor) -> Tensor:
    """Coefficients (k,) of y (n,) in the columns of a design (n, k)."""
    normal = design.T @ design / len(y) + RIDGE * torch.eye(design.shape[1], dtype=design.dtype)
    return torch.linalg.solve(normal, design.T @ y / len(y))


def _see_whether_fitted(axis_map: AxisMap, _: Any) -> None:
    axis_map.fitted, axis_map._tables = bool(axis_map.span[0] != 0), None
