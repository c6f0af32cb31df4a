"""Single stars that a basis hangs on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xarray as xr

#: A component rests on a star that holds more than this share of its sum of squares.
ALONE = 0.2
#: Stars read at a time.
BLOCK_STARS = 65_536


@dataclass(frozen=True)
class Resting:
    """A component that rests on one star.

    Attributes
    ----------
    component : int
        From 1.
    star_id : str
    share : float
        Of the component's sum of squared coordinates, 0 to 1.
    """

    component: int
    star_id: str
    share: float


def resting_on_one_star(embedding: xr.Dataset, used: np.ndarray) -> list[Resting]:
    """Components whose scatter is for more than :data:`ALONE` one star's, by the stars that the basis was fitted to.

    Such a star passes every test of convergence: its component is well determined, by it alone, and goes with it.
    One pass over the coordinates, a block at a time.

    Parameters
    ----------
    embedding : xarray.Dataset
        With `coords` (star, component) and `star_id`, as :func:`~chemscale.embedding.product.open_embedding` gives it.
    used : ndarray of bool (star,)
    """
    total = largest = np.zeros(embedding.sizes["component"])
    where = np.zeros(len(total), np.int64)
    for start, coords in _blocks(embedding["coords"]):
        rows = used[start : start + len(coords)]
        squares = np.where(rows[:, None] & np.isfinite(coords), coords, 0.0).astype(np.float64) ** 2
        top = squares.argmax(axis=0)
        found = squares.max(axis=0)
        where = np.where(found > largest, start + top, where)
        total, largest = total + squares.sum(axis=0), np.maximum(largest, found)
    share = largest / np.where(total > 0, total, np.inf)
    chosen = np.flatnonzero(share > ALONE)
    names = [str(embedding["star_id"][where[k]].values) for k in chosen]
    return [Resting(int(k) + 1, name, float(share[k])) for k, name in zip(chosen, names, strict=True)]


def _blocks(coords: xr.DataArray) -> Iterator[tuple[int, np.ndarray]]:
    """Rows where they begin, and their coordinates; read in this process."""
    for start in range(0, coords.sizes["star"], BLOCK_STARS):
        data = coords.isel(star=slice(start, start + BLOCK_STARS)).data
        yield start, np.asarray(data.compute(scheduler="synchronous") if hasattr(data, "compute") else data)


def words(resting: list[Resting], most: int = 3) -> str:
    """One sentence on components that rest on single stars, the `most` extreme ones named; '' for none.

    >>> words([Resting(2, "2M0001", 0.613)])
    'component 2 rests with 61 % on the star 2M0001'
    """
    worst = sorted(resting, key=lambda r: -r.share)
    parts = [f"component {r.component} rests with {100 * r.share:.0f} % on the star {r.star_id}" for r in worst[:most]]
    more = f"{len(worst) - most} more on single stars" if len(worst) > most else ""
    return ", ".join([*parts, more] if more else parts)
