"""Catalogue columns as labels of stars, without a Python object a value.

A release's catalogue has 10^5..10^7 rows. Columns stay NumPy arrays; an item's labels are a
view of one row (:class:`RowLabels`) that becomes a plain dict only when it travels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chemscale.schema import VARIABLES, ordered
from chemscale.survey.sources.base import Item


class RowLabels(Mapping[str, Any]):
    """Row `row` of shared columns, plus `extra` values of this star; missing values left out."""

    __slots__ = ("_columns", "_extra", "_row")

    def __init__(self, columns: Mapping[str, np.ndarray], row: int, extra: Mapping[str, Any] | None = None):
        self._columns, self._row, self._extra = columns, row, dict(extra or {})

    def __getitem__(self, name: str) -> Any:
        if name in self._extra:
            return self._extra[name]
        return self._columns[name][self._row].tolist()

    def row_known(self, names: Iterable[str]) -> bool:
        """Whether the shared columns know any of these numbers for this star."""
        return any(n in self._columns and self._columns[n][self._row] == self._columns[n][self._row] for n in names)

    def __iter__(self) -> Iterator[str]:
        yield from self._extra
        yield from (name for name in self._columns if name not in self._extra)

    def __len__(self) -> int:
        return len(self._extra.keys() | self._columns.keys())

    def __repr__(self) -> str:
        return f"RowLabels({dict(self)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        # without this every item would drag the whole catalogue to its worker
        return dict, (dict(self),)


@dataclass(frozen=True)
class PackedItems:
    """Items on their way to a worker: a catalogue's labels travel as columns, not value by value."""

    ids: list[str]
    paths: list[str]
    extra: list[dict[str, Any]]
    columns: dict[str, np.ndarray]
    #: row of `columns`; -1 for an item whose labels are all in `extra`
    rows: list[int]

    @classmethod
    def of(cls, items: Sequence[Item]) -> PackedItems:
        """Pack `items`, whatever mapping their labels are."""
        shared: Any = next((i.labels._columns for i in items if isinstance(i.labels, RowLabels)), {})
        extra: list[dict[str, Any]] = []
        rows: list[int] = []
        taken: list[int] = []
        for item in items:
            labels = item.labels
            if isinstance(labels, RowLabels) and labels._columns is shared:
                rows.append(len(taken))
                taken.append(labels._row)
                extra.append(labels._extra)
            else:
                rows.append(-1)
                extra.append(dict(labels))
        columns = {name: values[taken] for name, values in shared.items()}
        return cls([i.star_id for i in items], [i.path for i in items], extra, columns, rows)

    def unpack(self) -> list[Item]:
        """The items, with labels that read the same."""
        return [
            Item(star, path, RowLabels(self.columns, row, extra) if row >= 0 else extra)
            for star, path, extra, row in zip(self.ids, self.paths, self.extra, self.rows, strict=True)
        ]


def block_labels(
    items: Sequence[Item], read: Sequence[Mapping[str, Any]] | Mapping[str, np.ndarray], elements: Sequence[str]
) -> dict[str, np.ndarray]:
    """Labels of the stars of a block as arrays of the contract's dtypes.

    Parameters
    ----------
    items : sequence of Item
        The stars, in row order; their labels count first.
    read : sequence of mapping, or mapping of arrays
        What the stars' own files say, star by star or as columns; fills what the catalogue
        lacks (absent, '' or NaN).
    elements : sequence of str
        Columns of `abundance`.

    Returns
    -------
    dict of str to numpy.ndarray
        (n,) or, for abundances, (n, n_elements). Names no star has are left out.
    """
    own = read if isinstance(read, Mapping) else _columns(read)
    catalogued = {name for item in items for name in item.labels}
    out: dict[str, np.ndarray] = {}
    for name in ordered({*own, *catalogued} - {"star_id"}):
        spec = VARIABLES[name]
        single = spec.dims == ("star",)
        if not single and not ("element" in spec.dims and elements):
            continue
        shape = (len(items),) if single else (len(items), len(elements))
        column = np.full(shape, spec.fill, object if spec.dtype == "str" else spec.dtype)
        for row, value in _given(own.get(name), shape):
            column[row] = value
        if name in catalogued:
            for row, item in enumerate(items):
                value = item.labels.get(name)
                if value is None or value == "" or (isinstance(value, float) and value != value):
                    continue
                if single or len(value) == len(elements):
                    column[row] = value
        out[name] = column.astype(str) if spec.dtype == "str" else column
    return out


def _given(values: Any, shape: tuple[int, ...]) -> list[tuple[Any, Any]]:
    """(row, value) pairs of what files say; one pair for a whole column."""
    if values is None:
        return []
    if isinstance(values, np.ndarray):
        return [(slice(None), values)] if values.shape == shape else []
    return [(row, v) for row, v in values if np.shape(v) == shape[1:]]


def _columns(read: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, Any]]]:
    """name -> (row, value) of the stars that have it."""
    out: dict[str, list[tuple[int, Any]]] = {}
    for row, labels in enumerate(read):
        for name, value in labels.items():
            if value is not None:
                out.setdefault(name, []).append((row, value))
    return out


def contract_labels(names: Iterable[str]) -> tuple[str, ...]:
    """Those of `names` that are per-star variables of the contract, in its order."""
    wanted = set(names) - {"star_id", "cluster"}
    dims = {n: VARIABLES[n].dims for n in ordered(wanted)}
    return tuple(n for n, d in dims.items() if d[0] == "star" and "wavelength" not in d)
