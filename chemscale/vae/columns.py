"""Small Zarr products with one value (or a few) a star, in the order of ``latents.zarr``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from chemscale.runtime.product import ResumableProduct

#: Stars of a chunk, at most; also of a block that is judged at a time.
BLOCK_STARS = 65_536


def text_type() -> Any:
    """Zarr's type of text of any length."""
    from zarr.dtype import VariableLengthUTF8

    return VariableLengthUTF8()


def begin_columns(path: Path, n: int, like: Mapping[str, np.ndarray], product: str) -> ResumableProduct:
    """The empty product of n stars, to be filled by :func:`write_rows`.

    Parameters
    ----------
    like : mapping
        Column -> values of any number of stars: their type and trailing shape are those of the column.
    product : str
        What it is, for its attributes.
    """
    new = ResumableProduct(path, {})
    new.restart(partial(_create, n=n, like=like, product=product))
    return new


def _create(path: str, *, n: int, like: Mapping[str, np.ndarray], product: str) -> None:
    group = zarr.create_group(path, attributes={"product": product})
    for name, values in like.items():
        text = values.dtype.kind in "OUS"
        group.create_array(
            name,
            shape=(n, *values.shape[1:]),
            chunks=(max(1, min(n, BLOCK_STARS)), *values.shape[1:]),
            dtype=text_type() if text else values.dtype,
            dimension_names=("star", *[f"dim_{k}" for k in range(1, values.ndim)]),
            fill_value="" if text else None,
        )


def write_rows(folder: str, start: int, columns: Mapping[str, np.ndarray]) -> None:
    """Write rows from `start` on; several processes may, each whole chunks."""
    group = zarr.open_group(folder, mode="r+")
    for name, values in columns.items():
        array = group[name]
        assert isinstance(array, zarr.Array)
        array[start : start + len(values)] = values.astype(object) if values.dtype.kind in "OUS" else values
