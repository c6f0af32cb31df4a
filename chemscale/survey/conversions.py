"""A survey as astronomers' objects: astropy tables with units, specutils spectra.

specutils is the extra `spectra`; tables need astropy alone. The stars asked for are read and no others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from chemscale.arrays import missing_pixels
from chemscale.errors import InputError, MissingExtra
from chemscale.schema import VARIABLES, known, star_variables
from chemscale.suggest import close_names

#: Spectra converted in one call at most: a collection lies in memory, 17 bytes a pixel.
MAX_SPECTRA = 20_000


def specutils_module() -> Any:
    """specutils, or the error that says how to install it."""
    try:
        import specutils
    except ImportError as err:
        raise MissingExtra("spectra as specutils objects", "specutils", "spectra") from err
    return specutils


def rows_of(survey: xr.Dataset, stars: Any) -> np.ndarray:
    """Rows of stars given by identifier, row number or boolean mask.

    Raises
    ------
    InputError
        An identifier that is not there (the nearest ones are named), a row out of range.
    """
    n = survey.sizes["star"]
    if stars is None:
        return np.arange(n)
    if isinstance(stars, slice):
        return np.arange(n)[stars]
    given = np.atleast_1d(np.asarray(stars.values if isinstance(stars, xr.DataArray) else stars))
    if given.dtype == bool:
        if given.shape != (n,):
            raise InputError(f"a mask of {given.size} entries for {n} stars", "one entry a star")
        return np.flatnonzero(given)
    if given.dtype.kind in "iu":
        if given.size and (given.min() < -n or given.max() >= n):
            raise InputError(f"row {int(given.max())} of {n:,} stars", "rows count from 0")
        return given % n
    ids = np.asarray(survey["star_id"].values).astype(str)
    row = {name: i for i, name in enumerate(ids.tolist())}
    absent = [str(s) for s in given if str(s) not in row]
    if absent:
        near = close_names(absent[0], ids)
        hint = f"did you mean {', '.join(near)}?" if near else f"identifiers look like {', '.join(ids[:2])}"
        raise InputError(f"no star {absent[0]!r} among the {n:,} of this survey", hint)
    return np.array([row[str(s)] for s in given], dtype=np.intp)


def to_table(survey: xr.Dataset, stars: Any = None) -> Any:
    """Labels of stars as an astropy ``QTable`` with units; pixels are not read.

    Parameters
    ----------
    survey : Dataset
    stars : identifiers, rows, slice or boolean mask, optional
        All by default.

    Returns
    -------
    astropy.table.QTable
        One row a star; ``abundance_Fe`` and the like for a survey with abundances; the survey's attributes as `meta`.
    """
    import astropy.units as u
    from astropy.table import QTable

    part = survey.isel(star=rows_of(survey, stars))
    table = QTable(meta={k: v for k, v in survey.attrs.items() if isinstance(v, str | int | float)})
    for name in star_variables(part.variables):
        table[name] = _column(part[name].values, VARIABLES[name], u)
    if "element" in part.variables:
        for name in ("abundance", "abundance_error"):
            for k, element in enumerate(np.asarray(part["element"].values).astype(str)) if name in part else ():
                table[f"{name}_{element}"] = part[name].values[:, k] * u.dex
    for name in table.colnames:
        base = name if known(name) else name.rpartition("_")[0]
        table[name].info.description = VARIABLES[base].doc
    return table


def _column(values: np.ndarray, spec: Any, u: Any) -> Any:
    if spec.dtype == "str":
        return np.asarray(values).astype(str)
    return u.Quantity(values, u.Unit(spec.units), dtype=values.dtype) if spec.units else np.asarray(values)


def _loaded(survey: xr.Dataset, stars: Any, flags: int) -> tuple[Any, ...]:
    rows = rows_of(survey, stars)
    if len(rows) > MAX_SPECTRA:
        raise InputError(
            f"{len(rows):,} spectra are more than fit in memory comfortably ({MAX_SPECTRA:,} at a time)",
            "pass fewer stars, in turns",
        )
    order = np.argsort(rows, kind="stable")  # read in the order of the store, answer in the order asked for
    part = survey.isel(star=rows[order]).load().isel(star=np.argsort(order, kind="stable"))
    flux, ivar = part["flux"].values, part["ivar"].values
    mask = missing_pixels(flux, ivar, part["flags"].values, flags)
    return part, flux, ivar, mask


def to_spectrum(survey: xr.Dataset, stars: Any, *, flags: int = 255) -> Any:
    """Spectra of stars as one specutils ``Spectrum``.

    Parameters
    ----------
    survey : Dataset
    stars : identifier, row, or several of them
        One gives a flux of shape (P,), several (n, P) on one spectral axis.
    flags : int
        Bits of :class:`chemscale.Flag` that mask a pixel; all by default.

    Returns
    -------
    specutils.Spectrum
        Dimensionless flux (the store's normalisation is in ``meta``), wavelengths in Angstrom, inverse variances as
        uncertainty, ``mask`` True where a pixel is not to be used; identifiers and labels in ``meta``.
    """
    specutils = specutils_module()
    import astropy.units as u
    from astropy.nddata import InverseVariance

    part, flux, ivar, mask = _loaded(survey, stars, flags)
    single = np.ndim(stars) == 0 and not isinstance(stars, slice)
    if single:
        flux, ivar, mask = flux[0], ivar[0], mask[0]
    return specutils.Spectrum(
        flux=flux * u.dimensionless_unscaled,
        spectral_axis=survey["wavelength"].values * u.AA,
        uncertainty=InverseVariance(ivar),
        mask=mask,
        meta=_meta(survey, part, single),
        spectral_axis_index=flux.ndim - 1,  # not to be guessed where there are as many stars as pixels
    )


def _meta(survey: xr.Dataset, part: xr.Dataset, single: bool) -> dict[str, Any]:
    meta = {"medium": survey["wavelength"].attrs.get("medium", ""), "survey": survey.attrs.get("survey", "")}
    meta["normalisation"] = survey.attrs.get("normalisation", "")
    if survey.attrs.get("cleaned"):
        meta["cleaned"] = ", ".join(survey.attrs["cleaned"])
    for name in star_variables(part.variables):
        values = part[name].values
        meta[name] = (values[0].item() if hasattr(values[0], "item") else str(values[0])) if single else values
    return meta


def to_collection(survey: xr.Dataset, stars: Any, *, flags: int = 255) -> Any:
    """Spectra of stars as a specutils ``SpectrumCollection``; arguments as :func:`to_spectrum`."""
    specutils = specutils_module()
    import astropy.units as u
    from astropy.nddata import InverseVariance

    part, flux, ivar, mask = _loaded(survey, np.atleast_1d(np.asarray(stars)), flags)
    axis = np.broadcast_to(survey["wavelength"].values, flux.shape)
    return specutils.SpectrumCollection(
        flux=flux * u.dimensionless_unscaled,
        spectral_axis=axis * u.AA,
        uncertainty=InverseVariance(ivar),
        mask=mask,
        meta=_meta(survey, part, False),
    )
