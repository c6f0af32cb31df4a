"""Catalogue columns as labels of stars, without a Python object a value.

A release's catalogue has 10^5..10^7 rows. Columns stay NumPy arrays; an item's labels are a
view of one row (:class:`RowLabels`) that becomes a plain dict only when it travels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from chemscale.schema import VARIABLES
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


def clean(values: np.ndarray, *, below: float = -900.0, above: float = np.inf) -> np.ndarray:
    """Float copy of a label column with sentinels and non-finite values as NaN.

    APOGEE writes -9999, -9999.99, -999.99 for "not measured", LAMOST -9999; no label of the
    contract lies below -900 except velocities, for which the caller widens the range.
    """
    out = np.array(values, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        out[~np.isfinite(out) | (out <= below) | (out >= above)] = np.nan
    return out


def number(value: Any, *, below: float = -900.0, above: float = np.inf) -> float:
    """Scalar form of :func:`clean`; text that is no number gives NaN."""
    try:
        result = float(value)
    except (TypeError, ValueError):
        return float("nan")
    return result if below < result < above else float("nan")


def block_labels(
    items: Sequence[Item], read: Sequence[Mapping[str, Any]], elements: Sequence[str]
) -> dict[str, np.ndarray]:
    """Labels of the stars of a block as arrays of the contract's dtypes.

    Parameters
    ----------
    items : sequence of Item
        The stars, in row order; their labels count first.
    read : sequence of mapping
        What each star's own file says; fills what the catalogue lacks (absent or NaN).
    elements : sequence of str
        Columns of `abundance`.

    Returns
    -------
    dict of str to numpy.ndarray
        (n,) or, for abundances, (n, n_elements). Names no star has are left out.
    """
    names = {name for labels in (*read, *(item.labels for item in items)) for name in labels}
    out: dict[str, np.ndarray] = {}
    for name, spec in VARIABLES.items():
        if name not in names or name == "star_id":
            continue
        values = [_first(item.labels, own, name) for item, own in zip(items, read, strict=True)]
        if spec.dims == ("star",):
            if spec.dtype == "str":
                out[name] = np.array(["" if v is None else str(v) for v in values], dtype=object).astype(str)
            else:
                out[name] = np.array([spec.fill if v is None else v for v in values]).astype(spec.dtype)
        elif "element" in spec.dims and elements:
            table = np.full((len(items), len(elements)), np.nan, spec.dtype)
            for row, value in zip(table, values):
                if value is not None and len(value) == len(elements):
                    row[:] = value
            out[name] = table
    return out


def _first(labels: Mapping[str, Any], own: Mapping[str, Any], name: str) -> Any:
    value = labels.get(name)
    if value is None or value == "" or (isinstance(value, float) and value != value):
        return own.get(name, value)
    return value


def contract_labels(names: Iterable[str]) -> tuple[str, ...]:
    """Those of `names` that are per-star variables of the contract, in its order."""
    wanted = set(names) - {"star_id", "cluster"}
    return tuple(n for n, v in VARIABLES.items() if n in wanted and v.dims[0] == "star" and "wavelength" not in v.dims)
