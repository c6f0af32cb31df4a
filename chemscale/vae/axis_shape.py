"""The same shape of each latent at every Teff: quantile curves for what location and scale leave.

A latent may have one mean and one spread at every Teff and still tell it: of cool stars whose lines say nothing of
carbon, z_C piles up at one value, of hot ones it does not. What location and scale leave of a latent is therefore taken
from its quantiles at a Teff (and at the latents before it) to those at all Teff. Ranks at a Teff stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from chemscale.vae.axis_kernels import Curves

#: Quantiles of a curve.
LEVELS = np.concatenate([[0.002, 0.008], np.linspace(0.025, 0.975, 20), [0.992, 0.998]])
#: Knots in Teff and in an earlier latent, and how many of those, the first ones, a shape may depend on.
TEFF_KNOTS, LATENT_KNOTS, MOST_LATENTS = 10, 3, 2
#: Training stars that a cell of knots needs: with fewer stars a shape depends on fewer latents.
STARS_A_CELL = 200
#: How far from a cell's centre, in knots, its stars may lie; more where that are fewer than it needs.
REACH = 0.75
#: Factor that an error may shrink or grow by.
MOST_STRETCH = 4.5


class ShapeMap(nn.Module):
    """Quantiles of standardised latents given Teff and the latents before, and given those latents alone.

    Until it is fitted it changes nothing.

    Parameters
    ----------
    n_latents : int
    """

    teff_knots: Tensor

    def __init__(self, n_latents: int):
        super().__init__()
        self.fitted = False
        self.register_buffer("teff_knots", torch.zeros(TEFF_KNOTS))
        for k in range(n_latents):
            cells = (LATENT_KNOTS,) * min(k, MOST_LATENTS)
            self.register_buffer(f"knots_{k}", torch.zeros(len(cells), LATENT_KNOTS))
            self.register_buffer(f"at_{k}", torch.zeros(TEFF_KNOTS, *cells, len(LEVELS)))
            self.register_buffer(f"all_{k}", torch.zeros(*cells, len(LEVELS)))
        self.register_load_state_dict_post_hook(_see_whether_fitted)

    def forward(self, k: int, left: Tensor, teff: Tensor, before: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Latent k with the shape it has at all Teff, and the factor by which its errors change; (n,) each.

        Parameters
        ----------
        k : int
        left : Tensor (n,)
            The latent less its location given Teff and the latents before, over its scale.
        teff : Tensor (n,)
            In the units it was fitted with.
        before : sequence of Tensor (n,)
            Mapped latents before k.
        """
        of_knots = [_shares(x, knots) for x, knots in zip(before, self.get_buffer(f"knots_{k}"), strict=False)]
        here = _curves(self.get_buffer(f"at_{k}"), [_shares(teff, self.teff_knots), *of_knots])
        there = _curves(self.get_buffer(f"all_{k}"), of_knots).expand_as(here)
        at = (here[:, 1:-1] < left[:, None]).sum(1)[:, None]
        (x0, x1), (y0, y1) = (_ends(curve, at, at + 1) for curve in (here, there))
        moved = y0 + (left - x0) * (y1 - y0) / (x1 - x0).clamp_min(1e-4)
        below, above = left < here[:, 0], left > here[:, -1]  # as far beyond the ends as before
        moved = torch.where(below, there[:, 0] + (left - here[:, 0]), moved)
        moved = torch.where(above, there[:, -1] + (left - here[:, -1]), moved)
        # a single step of a curve is told by few stars: errors follow three
        (x0, x1), (y0, y1) = (
            _ends(c, (at - 1).clamp_min(0), (at + 2).clamp_max(c.shape[1] - 1)) for c in (here, there)
        )
        factor = ((y1 - y0) / (x1 - x0).clamp_min(1e-4)).clamp(1.0 / MOST_STRETCH, MOST_STRETCH)
        return moved, factor

    def curves(self) -> Curves:
        """All curves, as the compiled pass wants them; none before they are fitted."""
        n = sum(name.startswith("at_") for name, _ in self.named_buffers()) if self.fitted else 0
        where, values, rows = np.zeros((n, 2), np.int32), [np.zeros((0, len(LEVELS)))], 0
        knots = np.zeros((n, MOST_LATENTS, LATENT_KNOTS))
        for k in range(n):
            own = self.get_buffer(f"knots_{k}").numpy()
            knots[k, : len(own)] = own
            for kind, name in enumerate((f"at_{k}", f"all_{k}")):
                table = self.get_buffer(name).numpy().reshape(-1, len(LEVELS))
                where[k, kind], rows = rows, rows + len(table)
                values.append(table)
        return Curves(self.teff_knots.numpy().astype(float), knots, np.concatenate(values), where)

    @torch.no_grad()
    def start(self, teff: Tensor) -> None:
        """Place the knots in Teff by training stars (n,)."""
        self.teff_knots.copy_(_knots(teff, TEFF_KNOTS))
        self.fitted = True

    @torch.no_grad()
    def learn(self, k: int, left: Tensor, teff: Tensor, before: Sequence[Tensor]) -> Tensor:
        """Curves of latent k from training stars: arguments and the first result of :meth:`forward`, in float64."""
        before = before[:MOST_LATENTS]
        knots = self.get_buffer(f"knots_{k}")
        for row, x in zip(knots, before, strict=True):
            row.copy_(_knots(x, LATENT_KNOTS))
        at, every = self.get_buffer(f"at_{k}"), self.get_buffer(f"all_{k}")
        cells = len(left) // STARS_A_CELL
        told = [True] + [TEFF_KNOTS * LATENT_KNOTS**j <= cells for j in range(1, len(before) + 1)]
        where = [_position(x, row) for x, row in zip((teff, *before), (self.teff_knots, *knots), strict=True)]
        at.copy_(_quantiles(left, where, told, at.shape[:-1]))
        every.copy_(_quantiles(left, where[1:], told[1:], every.shape[:-1]))
        return self(k, left.float(), teff.float(), [x.float() for x in before])[0].double()


def _knots(x: Tensor, number: int) -> Tensor:
    """Middles of as many equal shares of some values (n,)."""
    return torch.quantile(x, (torch.arange(number, dtype=x.dtype) + 0.5) / number)


def _cell(x: Tensor, knots: Tensor) -> tuple[Tensor, Tensor]:
    """The knot below each value (n,), and how far towards the next one it lies, in [0, 1]."""
    below = (torch.searchsorted(knots, x.contiguous()) - 1).clamp(0, len(knots) - 2)
    share = (x - knots[below]) / (knots[below + 1] - knots[below]).clamp_min(1e-6)
    return below, share.clamp(0.0, 1.0)


def _position(x: Tensor, knots: Tensor) -> np.ndarray:
    """Values (n,) counted in knots."""
    below, share = _cell(x.float(), knots)
    return (below + share).numpy()


def _shares(x: Tensor, knots: Tensor) -> Tensor:
    """How much of each knot's curve goes into that of a value between them: (n, knots), two of them not 0."""
    below, share = _cell(x, knots)
    found = torch.zeros(len(x), len(knots), dtype=share.dtype, device=share.device)
    found.scatter_(1, below[:, None], (1.0 - share)[:, None])
    return found.scatter_(1, below[:, None] + 1, share[:, None])


def _curves(table: Tensor, of_knots: Sequence[Tensor]) -> Tensor:
    """Curves (n, levels) between those of a table (knots, ..., levels); (1, levels) of a table without knots."""
    if not of_knots:
        return table[None]
    joint = of_knots[0]
    for shares in of_knots[1:]:
        joint = (joint[:, :, None] * shares[:, None, :]).flatten(1)
    return joint @ table.flatten(0, -2)


def _ends(curve: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Values (n,) of curves (n, levels) at two levels (n, 1) each."""
    return curve.gather(1, low)[:, 0], curve.gather(1, high)[:, 0]


def _quantiles(left: Tensor, where: Sequence[np.ndarray], told: Sequence[bool], shape: Sequence[int]) -> Tensor:
    """Curves (*shape, levels) of the stars about each cell; coordinates that are not `told` make no difference."""
    values, found = left.numpy(), np.empty((*shape, len(LEVELS)))
    for cell in np.ndindex(*shape):
        away = [np.abs(x - i) for x, i, use in zip(where, cell, told, strict=True) if use]
        inside = np.ones(len(values), bool)
        if away:
            distance = np.max(away, axis=0)
            least = min(STARS_A_CELL, len(values)) - 1
            inside = distance <= max(REACH, float(np.partition(distance, least)[least]))
        found[cell] = np.quantile(values[inside], LEVELS)
    return torch.from_numpy(found)


def _see_whether_fitted(shape: ShapeMap, _: Any) -> None:
    shape.fitted = bool((shape.teff_knots != 0).any())
