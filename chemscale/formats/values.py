"""Values as the readers of tables hand them out: native byte order, text as `str`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

#: What cannot be read by rows is held in memory, up to this size.
MAX_LOADED = 2 * 2**30


def as_text(values: np.ndarray) -> np.ndarray:
    """Native byte order; every kind of text as `str` (missing objects as '')."""
    if isinstance(values, np.ma.MaskedArray) and values.dtype.kind in "iufb":
        return values
    if values.dtype.kind == "S":
        return np.char.strip(np.char.decode(values, "utf-8", "replace"))
    if values.dtype.kind == "T":  # variable-length text of Zarr
        return np.array(values.ravel().tolist(), dtype=str).reshape(values.shape)
    if values.dtype.kind == "O":
        return np.array([_word(v) for v in values.ravel()], dtype=str).reshape(values.shape)
    return values.astype(values.dtype.newbyteorder("=")) if values.dtype.kind in "iufb" else values


def _word(value: Any) -> str:
    if value is None or value is np.ma.masked:
        return ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def concatenate(blocks: Sequence[np.ndarray]) -> np.ndarray:
    """Blocks of a column one after the other; masked where any of them is."""
    if len(blocks) == 1:
        return blocks[0]
    if any(isinstance(b, np.ma.MaskedArray) for b in blocks):
        return np.ma.concatenate(blocks)
    return np.concatenate(blocks)
