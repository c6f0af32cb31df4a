"""Results as tables that other programs open: FITS, Parquet, CSV, VOTable."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from chemscale.errors import InputError
from chemscale.runtime.files import written_beside

#: File ending -> format of astropy's tables.
FORMATS = {
    ".fits": "fits",
    ".csv": "ascii.csv",
    ".vot": "votable",
    ".xml": "votable",
    ".votable": "votable",
    ".parquet": "parquet",
}


def write_table(ds: xr.Dataset, path: str | os.PathLike[str]) -> Path:
    """Write the columns of a Dataset, one row an entry of its first dimension; the ending of `path` names the format.

    Parameters
    ----------
    ds : Dataset
        Variables of one dimension become columns; those of two, one column an entry of the second (`features_1`, ...).
    path : path
        ``.fits``, ``.parquet``, ``.csv``, ``.vot`` or ``.xml``; a file that is there is replaced when the new one is
        whole.

    Raises
    ------
    InputError
        Another ending; Parquet without pyarrow.
    """
    from astropy.table import Table

    target = Path(path)
    kind = FORMATS.get(target.suffix.lower())
    if kind is None:
        raise InputError(f"{target}: unknown kind of table", f"end its name with one of {', '.join(FORMATS)}")
    table = Table()
    for name in ds.variables:
        variable = ds[name]
        if variable.ndim == 0 or not variable.ndim <= 2:
            continue
        for column, values in _columns(str(name), np.asarray(variable.values)).items():
            table[column] = values
            unit, told = variable.attrs.get("units"), str(variable.attrs.get("long_name", ""))
            if unit == "dex" and kind == "fits":  # the standard has no unit for decades
                unit, told = None, f"{told} (dex)".strip()
            table[column].unit = _unit(unit)
            table[column].description = told or None
    if kind == "parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise InputError("writing Parquet needs pyarrow", "pip install pyarrow, or write .fits") from None
    with written_beside(target) as beside:
        table.write(beside, format=kind, overwrite=True)
    return target


def _columns(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    if values.dtype.kind == "O" or values.dtype.kind == "T":
        values = values.astype(str)
    if values.ndim == 1:
        return {name: values}
    return {f"{name}_{i + 1}": values[:, i] for i in range(values.shape[1])}


def _unit(text: Any) -> Any:
    import astropy.units as u

    try:
        return u.Unit(text) if text else None
    except ValueError:
        return None
