"""What attributes of HDF5 and Zarr arrays say of the stored values (CF conventions 2.5.1 and 8.1, netCDF)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import numpy as np

#: Attributes that name the number written for "undefined".
_FILLS = ("_FillValue", "missing_value")


def text_of(attribute: Any) -> str:
    """An attribute as text, whether it is stored as text, as bytes or as an array of one; '' for anything else."""
    if isinstance(attribute, np.ndarray):
        attribute = attribute.ravel()[0] if attribute.size == 1 else ""
    if isinstance(attribute, bytes):
        return attribute.decode("utf-8", "replace")
    return str(attribute) if isinstance(attribute, str | np.str_) else ""


def physical(stored: np.ndarray, attributes: Mapping[str, Any]) -> np.ndarray:
    """Values that `stored` numbers mean: ``_FillValue`` and ``missing_value`` undefined, scale and offset applied.

    Undefined integers are masked, undefined floats NaN; text stays as it is.
    """
    if stored.dtype.kind not in "iuf":
        return stored
    undefined = np.zeros(stored.shape, bool)
    for fill in (n for key in _FILLS for n in _numbers(attributes.get(key))):
        undefined |= stored == fill  # a fill of NaN is NaN already
    values = stored
    if stored.dtype.kind == "i" and text_of(attributes.get("_Unsigned")).lower() == "true":
        values = stored.view(stored.dtype.str.replace("i", "u"))
    scale = [*_numbers(attributes.get("scale_factor")), 1.0][0]
    offset = [*_numbers(attributes.get("add_offset")), 0.0][0]
    if scale != 1.0 or offset != 0.0:
        values = values * float(scale) + float(offset)
    if not undefined.any():
        return values
    return np.ma.array(values, mask=undefined) if values.dtype.kind in "iu" else np.where(undefined, np.nan, values)


def _numbers(attribute: Any) -> list[Any]:
    """The numbers of an attribute; xarray writes a floating-point fill value of Zarr as base64."""
    if isinstance(attribute, str):
        try:
            return np.frombuffer(base64.b64decode(attribute, validate=True), "<f8").tolist()
        except (ValueError, binascii.Error):
            return []
    found = np.ravel(np.asarray(attribute if attribute is not None else []))
    return [n for n in found.tolist() if isinstance(n, int | float) and not isinstance(n, bool)]
