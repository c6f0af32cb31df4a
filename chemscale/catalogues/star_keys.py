"""What the stars of a survey are called, and rows of a catalogue found by such a name.

A catalogue's rows find their stars by an identifier (file, obsid, source_id, sdss_id, ...), by what a file name is
made of, or by position on the sky.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from chemscale.catalogues.missing import whole_identifiers, words
from chemscale.catalogues.sky_match import BySky, sky_finder
from chemscale.errors import InputError
from chemscale.formats.catalogue import Catalogue
from chemscale.formats.paths import printable

#: What asks for a match by position.
POSITION = "coordinates"


@dataclass
class StarKeys:
    """What the stars of a survey are called in catalogues.

    Attributes
    ----------
    names : mapping of str to callable
        Key (lower case) -> identifiers of all stars, in order; the order is that in which a catalogue is tried.
    spelled : mapping
        Key -> function that brings a catalogue's text into the form of `names`.
    composed : mapping
        Columns (lower case) that together make up a key -> (key, function of their texts).
    position : callable, optional
        (ra, dec) in degrees of all stars, NaN where unknown.
    catalogued : collection of str, optional
        Stars known to the survey's own catalogue: absent members that are not even there are told apart.
    redshift : str
        Column that holds a redshift, '' where the survey has none.
    """

    names: Mapping[str, Callable[[], Sequence[str]]]
    spelled: Mapping[str, Callable[[str], str]] = field(default_factory=dict)
    composed: Mapping[tuple[str, ...], tuple[str, Callable[..., str]]] = field(default_factory=dict)
    position: Callable[[], tuple[np.ndarray, np.ndarray]] | None = None
    catalogued: Any = ()
    redshift: str = ""


class ByName:
    """Rows to stars by an identifier."""

    def __init__(self, columns: list[str], ids: Sequence[str], text_of: Callable[[Mapping[str, Any]], list[str]]):
        self.columns, self.what = columns, " + ".join(columns)
        self._text_of, self._ids = text_of, ids
        self._star = {s: i for i, s in enumerate(ids) if s}
        self._folded: dict[str, int] | None = None
        self._seen = ""

    def match(self, block: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Stars and rows of a block that belong together, (n,) each."""
        texts = self._text_of(block)
        self._seen = self._seen or next((t for t in texts if t), "")
        star = self._star
        found = np.array([star.get(t, -1) for t in texts], np.int64)
        if not (found >= 0).any():
            if self._folded is None:
                self._folded = {s.casefold(): i for s, i in star.items()}
            found = np.array([self._folded.get(t.casefold(), -1) for t in texts], np.int64)
        rows = np.flatnonzero(found >= 0)
        return found[rows], rows

    def better(self, stars: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Which of the matched rows replace what their stars had from earlier blocks, (n,) bool."""
        return np.zeros(len(stars), bool)

    def example(self) -> str:
        """What to say where nothing matched."""
        ours = next((s for s in self._ids if s), "nothing")
        return f"{self.what} says {self._seen!r}, here stars are called {ours!r}"


def finder(table: Catalogue, keys: StarKeys, n: int, key: str | None, radius: float) -> ByName | BySky:
    """How the rows of `table` find their stars: by `key`, else by the first of the survey's keys that it has.

    Raises
    ------
    InputError
        No column names the stars.
    """
    if key is not None and key.lower() in (POSITION, "ra,dec", "position"):
        return sky_finder(table, keys.position, radius)
    if key is not None:
        column = table.need(key, "name the column of identifiers with --label-key")
        name = key.lower() if key.lower() in keys.names else next(iter(keys.names))
        return _name_finder(table, keys, column, name)
    names = list(keys.names)
    for columns, (kind, compose) in keys.composed.items():
        held = [c for c in map(table.find, columns) if c]
        if len(held) == len(columns) and not table.find(names[0]):
            texts = partial(_composed_texts, held, compose)
            return ByName(held, keys.names[kind](), texts)
    for candidate in names:
        if found := table.find(candidate):
            return _name_finder(table, keys, found, candidate)
    by_position = " or coordinates" if keys.position else ""
    raise InputError(
        f"{printable(table.path)}: no column names the stars; looked for {', '.join(keys.names)}"
        f"; it has {', '.join(table.columns[:40])}",
        f"say which one does: --label-key COLUMN{by_position}",
    )


def _composed_texts(columns: list[str], compose: Callable[..., str], block: Mapping[str, Any]) -> list[str]:
    return [compose(*parts) for parts in zip(*(words(block[c]) for c in columns))]


def _name_finder(table: Catalogue, keys: StarKeys, column: str, name: str) -> ByName:
    spell = keys.spelled.get(name)

    def texts(block: Mapping[str, Any]) -> list[str]:
        found = whole_identifiers(block[column], f"{printable(table.path)}: {column}")
        return [spell(t) for t in found] if spell else found

    return ByName([column], keys.names[name](), texts)
