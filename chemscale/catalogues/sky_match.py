"""Rows of a catalogue to the stars of a survey by position on the sky."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from chemscale.catalogues.missing import measured, no_numbers
from chemscale.catalogues.units import converter
from chemscale.errors import InputError
from chemscale.formats.catalogue import Catalogue
from chemscale.formats.paths import printable


class BySky:
    """Rows to stars by position: the nearest row within the radius."""

    def __init__(self, table: Catalogue, columns: list[str], ra: np.ndarray, dec: np.ndarray, radius: float):
        from scipy.spatial import cKDTree

        self._where = printable(table.path)
        self._units = [converter(n, table.units.get(c, ""), self._where) for n, c in zip(("ra", "dec"), columns)]
        self.columns, self.what, self.radius = columns, f"position within {radius:g} arc seconds", radius
        self._known = np.flatnonzero(np.isfinite(ra) & np.isfinite(dec))
        self._tree = cKDTree(unit_vectors(ra[self._known], dec[self._known])) if len(self._known) else None
        self._nearest = np.full(len(ra), np.inf)
        self._distance = np.zeros(0)

    def match(self, block: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Stars and rows of a block that belong together, (n,) each."""
        ra, dec = (measured(n, block[c], unit) for n, c, unit in zip(("ra", "dec"), self.columns, self._units))
        for column, degrees in zip(self.columns, (ra, dec)):
            if texts := no_numbers(block[column][np.isnan(degrees)]):
                raise InputError(
                    f"{self._where}: {column} holds {texts[0]!r}, no number of degrees", "write positions in degrees"
                )
        rows = np.flatnonzero(np.isfinite(ra) & np.isfinite(dec))
        if self._tree is None or not len(rows):
            self._distance = np.zeros(0)
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        limit = 2 * np.sin(np.radians(self.radius / 3600) / 2)
        distance, at = self._tree.query(unit_vectors(ra[rows], dec[rows]), distance_upper_bound=limit)
        near = np.isfinite(distance)
        order = np.argsort(distance[near], kind="stable")  # the nearest row of a star comes first
        self._distance = distance[near][order]
        return self._known[at[near]][order], rows[near][order]

    def better(self, stars: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Which of the matched rows replace what their stars had from earlier blocks, (n,) bool."""
        better = self._distance < self._nearest[stars]
        np.minimum.at(self._nearest, stars, self._distance)
        return better

    def example(self) -> str:
        """What to say where nothing matched."""
        return f"{len(self._known):,} stars have a position"


def unit_vectors(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    """Directions (n, 3) of positions in degrees."""
    a, d = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], axis=1)


def sky_finder(table: Catalogue, position: Callable[[], tuple[np.ndarray, np.ndarray]] | None, radius: float) -> BySky:
    """A match of the rows of `table` within `radius` arc seconds of the positions of the stars.

    Raises
    ------
    InputError
        The stars or the table have no positions.
    """
    if position is None:
        raise InputError(f"{printable(table.path)}: the stars of this survey have no positions", "match by identifier")
    pairs = [("ra", "dec"), ("raj2000", "dej2000"), ("ra_icrs", "de_icrs"), ("target_ra", "target_dec")]
    for pair in pairs:
        held = [c for c in map(table.find, pair) if c]
        if len(held) == 2:
            return BySky(table, held, *position(), radius)
    raise InputError(f"{printable(table.path)}: no columns ra and dec", "name them so, in degrees")
