"""Labelled arrays in, labelled arrays out: xarray objects and astropy quantities at the door of the numerics.

The estimators work on plain NumPy and Dask arrays. Given a ``DataArray`` they answer with one; given a ``Quantity``
they convert it; given a whole survey or embedding they take the variables they need from it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from chemscale.errors import DataError, InputError


def plain(values: Any, unit: str = "", name: str = "the argument") -> Any:
    """`values` as a NumPy or Dask array (or number) in `unit`; what carries no unit is taken to be in it.

    A ``DataArray`` stays lazy where it is; its ``units`` attribute is converted when it differs from `unit`.

    Raises
    ------
    InputError
        A unit that cannot be converted.
    """
    if isinstance(values, xr.DataArray):
        if "star" in values.dims and values.dims[0] != "star":
            values = values.transpose("star", ...)
        given = values.attrs.get("units", "")
        factor = _factor(given, unit, name) if unit and given else 1.0
        return values.data if factor == 1.0 else values.data * factor
    if hasattr(values, "unit") and hasattr(values, "to_value"):
        return _quantity(values, unit, name)
    return values


def _quantity(values: Any, unit: str, name: str) -> Any:
    try:
        return values.to_value(unit)
    except Exception as err:  # astropy's UnitConversionError and its relatives
        raise InputError(f"{name} is in {values.unit}: {err}", f"give it in {unit or 'no unit'}") from err


def _factor(given: str, unit: str, name: str) -> float:
    if given == unit:
        return 1.0
    import astropy.units as u

    try:
        return float(u.Unit(given).to(u.Unit(unit)))
    except (u.UnitConversionError, ValueError, TypeError) as err:
        raise InputError(f"{name} has units {given!r}: {err}", f"give it in {unit}") from err


def pixels(flux: Any, mask: Any = None, ivar: Any = None) -> tuple[Any, Any, Any]:
    """Flux, mask and ivar as plain arrays; a survey Dataset gives all three.

    Raises
    ------
    InputError
        A Dataset without the variables, or with `mask` or `ivar` beside it.
    """
    if not isinstance(flux, xr.Dataset):
        return plain(flux, name="flux"), plain(mask, name="mask"), plain(ivar, name="ivar")
    absent = [v for v in ("flux", "ivar", "flags") if v not in flux.variables]
    if absent:
        raise InputError(f"the dataset has no {', '.join(absent)}", "pass a survey: chemscale.open_survey(STORE)")
    if mask is not None or ivar is not None:
        raise InputError("a survey brings its own mask and ivar", "pass the survey alone, or three arrays")
    return flux["flux"].data, flux["flags"].data != 0, flux["ivar"].data


def like(values: Any, template: Any, dim: str, name: str) -> Any:
    """`values` (n, m) as a DataArray with the star labels of `template`; unchanged for a plain template.

    Parameters
    ----------
    values : array (n, m)
    template : DataArray, Dataset or array
        What the user passed in.
    dim : str
        Name of the second dimension, such as "component".
    name : str
        Name of the result.
    """
    if not isinstance(template, xr.DataArray | xr.Dataset):
        return values
    rows = "star" if "star" in template.dims else str(next(iter(template.dims)))
    coords = {k: v for k, v in template.coords.items() if v.dims == (rows,)}
    if "star_id" not in coords and "star_id" in getattr(template, "data_vars", ()):
        coords["star_id"] = template["star_id"]
    return xr.DataArray(values, dims=(rows, dim), coords=coords, name=name)


class Groups(NamedTuple):
    """Field, members and what pairs are matched on, out of one embedding."""

    field: Any
    members: Any
    clusters: Any
    covariates: dict[str, Any]


def groups(embedding: xr.Dataset) -> Groups:
    """The stars of an embedding as the metric wants them.

    Parameters
    ----------
    embedding : Dataset
        As :func:`chemscale.open_embedding` gives it: `coords` (star, component), `role`, `cluster`, and where known
        `radial_velocity` (km/s) and `extinction` (mag).

    Raises
    ------
    InputError
        Variables are missing.
    DataError
        No field stars or no members.
    """
    absent = [v for v in ("coords", "role", "cluster") if v not in embedding.variables]
    if absent:
        raise InputError(
            f"the dataset has no {', '.join(absent)}", "pass an embedding: chemscale.open_embedding(RUN/embedding.zarr)"
        )
    role = np.asarray(embedding["role"].values).astype(str)
    chosen = {name: np.flatnonzero(role == name) for name in ("field", "member")}
    for name, rows in chosen.items():
        if not len(rows):
            raise DataError(f"the embedding has no {name} stars", "see `role`; `chemscale rsca fit` sets it")
    z = embedding["coords"].transpose("star", ...)
    covariates: dict[str, Any] = {}
    for name, key in (("radial_velocity", "velocity"), ("extinction", "extinction")):
        if name in embedding and np.isfinite(values := np.asarray(embedding[name].values, float)).any():
            covariates |= {f"field_{key}": values[chosen["field"]], f"member_{key}": values[chosen["member"]]}
    return Groups(
        z.isel(star=chosen["field"]).data,
        np.asarray(z.isel(star=chosen["member"]).values),
        np.asarray(embedding["cluster"].values).astype(str)[chosen["member"]],
        covariates,
    )
