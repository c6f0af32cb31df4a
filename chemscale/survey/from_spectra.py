"""specutils spectra as a survey: :func:`from_spectra`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from chemscale.errors import InputError
from chemscale.schema import Flag, validate, variable_attrs
from chemscale.survey import accessor as accessor  # registers `survey.chemscale`
from chemscale.survey.conversions import specutils_module
from chemscale.survey.python_labels import as_columns, contract_variables, identifiers_of
from chemscale.survey.resample import Rebinner
from chemscale.survey.sources.normalising import NORMAL_FLUX, typical


def from_spectra(
    spectra: Any,
    *,
    star_id: Sequence[str] | None = None,
    labels: Any = None,
    columns: Mapping[str, str] | None = None,
    wavelength: Any = None,
    medium: str | None = None,
    survey: str = "spectra",
    normalisation: str = "as given",
    max_error: float | None = 0.05,
) -> xr.Dataset:
    """specutils spectra as a survey Dataset, which :func:`chemscale.write_survey` stores.

    Parameters
    ----------
    spectra : Spectrum, SpectrumCollection or iterable of Spectrum
        Continuum-normalised (dimensionless) flux with an uncertainty, in the rest frame.
    star_id : sequence of str, optional
        Identifiers; by default ``meta["star_id"]``, else the `star_id` column of `labels`.
    labels : astropy Table, DataFrame or mapping, optional
        A row a star: in the order of `spectra`, or found by its `star_id` column. Columns that are labels of the
        survey contract are taken, in its units; others are left out with a warning that names them.
    columns : mapping, optional
        Names in `labels` -> names of the contract, such as ``{"TEFF": "teff"}``.
    wavelength : Quantity or array (Angstrom), optional
        Grid to rebin to, conserving flux; needed when the spectra differ in theirs.
    medium : {"vacuum", "air"}, optional
        By default ``meta["medium"]``.
    survey, normalisation : str
        For the Dataset's attributes.
    max_error : float, optional
        Flag pixels with a larger error; None = none.

    Raises
    ------
    InputError
        Flux with a unit, no uncertainty, different grids, no medium or identifiers, labels that do not match.
    SchemaError
        Duplicate identifiers and other breaches of the contract.

    Examples
    --------
    >>> import chemscale, numpy as np
    >>> from astropy import units as u
    >>> from astropy.nddata import StdDevUncertainty
    >>> from specutils import Spectrum
    >>> wave = np.linspace(5000, 5100, 50) * u.AA
    >>> one = Spectrum(
    ...     flux=np.ones((2, 50)) * u.one, spectral_axis=wave, uncertainty=StdDevUncertainty(np.full((2, 50), 0.01))
    ... )
    >>> chemscale.from_spectra(one, star_id=["a", "b"], medium="air").sizes["star"]
    2
    """
    from chemscale.survey.ingest.censoring import censor

    parts = [_arrays(s, k) for k, s in enumerate(_singles(spectra))]
    if not parts:
        raise InputError("there are no spectra", "pass at least one")
    medium = medium or next((m["medium"] for *_, m in parts if m.get("medium")), None)
    if medium not in ("vacuum", "air"):
        raise InputError("the wavelength medium is not known", 'pass medium="vacuum" or medium="air"')
    grid, flux, ivar, flags = _on_one_grid(parts, wavelength)
    table = as_columns(labels)
    if star_id is None:
        meta = [str(m["star_id"]) for *_, m in parts if m.get("star_id")]
        star_id = meta if len(meta) == len(parts) else table.get("star_id")
        if star_id is None:
            raise InputError("the spectra have no identifiers", "pass star_id=, or labels with a column star_id")
    ids = np.array(identifiers_of(star_id), dtype=object)
    if not all(ids):
        raise InputError(f"spectrum {ids.tolist().index('')} has no identifier", "give every star one")
    if len(ids) != len(parts):
        raise InputError(f"{len(ids)} identifiers for {len(parts)} spectra", "pass one a spectrum")
    level = typical(flux, ivar, None)
    if np.isfinite(level) and not NORMAL_FLUX[0] <= level <= NORMAL_FLUX[1]:
        raise InputError(
            f"flux is not continuum-normalised: it is typically {level:.3g}, where a continuum is 1",
            "divide it by its continuum first, e.g. with chemscale.survey.continuum.running_quantile",
        )
    pixels = {"flux": flux, "ivar": ivar, "flags": censor(flux, ivar, flags, max_error=max_error)}
    variables: dict[str, Any] = {k: (("star", "wavelength"), v, variable_attrs(k)) for k, v in pixels.items()}
    variables["star_id"] = ("star", ids, variable_attrs("star_id"))
    variables |= contract_variables(table, columns or {}, ids)
    axis = ("wavelength", grid, {**variable_attrs("wavelength"), "medium": medium})
    attrs: dict[str, Any] = {"survey": survey, "normalisation": normalisation, "provenance": {"source": "specutils"}}
    told = {str(m.get("cleaned", "")) for *_, m in parts}
    if len(told) > 1:
        raise InputError("the spectra are not all cleaned of the same (`cleaned` of their meta)", "pass them in turns")
    if cleaned := told.pop():
        attrs["cleaned"] = cleaned.split(", ")
    return validate(xr.Dataset(variables, coords={"wavelength": axis}, attrs=attrs))


def _singles(spectra: Any) -> Iterable[Any]:
    """Spectra one by one, whatever they come in; of a two-dimensional one the axis that is not spectral is the star."""
    if hasattr(spectra, "flux") and spectra.flux.ndim == 2:
        axis = getattr(spectra, "spectral_axis_index", None)
        flux = spectra.flux if axis in (None, 1) else spectra.flux.T
        many = {k: v for k, v in (spectra.meta or {}).items() if np.ndim(v) == 1 and len(v) == len(flux)}
        for k in range(len(flux)):
            one = spectra[k] if axis is None else _row(spectra, k, axis)
            one.meta = {**(spectra.meta or {}), **{name: v[k] for name, v in many.items()}}
            yield one
    elif hasattr(spectra, "flux") and spectra.flux.ndim > 2:
        raise InputError(f"flux has {spectra.flux.ndim} dimensions", "pass (stars, pixels), or one spectrum a star")
    elif hasattr(spectra, "flux"):
        yield spectra
    else:
        for one in spectra:
            yield from _singles(one)


def _row(spectra: Any, k: int, axis: int) -> Any:
    """One spectrum out of a two-dimensional one, by the axis that holds stars."""
    at = (k, slice(None)) if axis == 1 else (slice(None), k)
    uncertainty = spectra.uncertainty
    return specutils_module().Spectrum(
        flux=spectra.flux[at],
        spectral_axis=spectra.spectral_axis,
        uncertainty=None if uncertainty is None else type(uncertainty)(uncertainty.array[at], unit=uncertainty.unit),
        mask=None if spectra.mask is None else np.asarray(spectra.mask)[at],
        spectral_axis_index=0,
    )


def _arrays(one: Any, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Mapping[str, Any]]:
    """Wavelength (Angstrom, increasing), flux, ivar, flags and meta of one spectrum."""
    import astropy.units as u
    from astropy.nddata import InverseVariance

    if one.flux.unit.physical_type != "dimensionless":
        raise InputError(
            f"spectrum {k} has flux in {one.flux.unit}, not normalised to its continuum",
            "divide it by its continuum first, e.g. with specutils.fitting.fit_generic_continuum",
        )
    if one.uncertainty is None:
        raise InputError(f"spectrum {k} has no uncertainty", "set uncertainty=, e.g. StdDevUncertainty(error)")
    axis = one.spectral_axis.to_value(u.AA, equivalencies=u.spectral())
    flux = one.flux.to_value(u.dimensionless_unscaled)
    with np.errstate(divide="ignore", invalid="ignore"):  # no information: error infinite or zero
        ivar = np.array(one.uncertainty.represent_as(InverseVariance).array, dtype=np.float64)
    ivar = np.where(np.isfinite(ivar) & (ivar > 0), ivar, 0.0)
    flags = np.zeros(flux.shape, np.uint8)
    if one.mask is not None:
        flags[np.asarray(one.mask, bool)] |= np.uint8(Flag.SURVEY_BAD)
    if len(axis) > 1 and axis[0] > axis[-1]:
        axis, flux, ivar, flags = axis[::-1], flux[::-1], ivar[::-1], flags[::-1]
    return np.asarray(axis, float), np.asarray(flux, float), ivar, flags, one.meta or {}


def _on_one_grid(parts: list[Any], wavelength: Any) -> tuple[np.ndarray, ...]:
    import astropy.units as u

    first = parts[0][0]
    if wavelength is not None:
        grid = np.asarray(u.Quantity(wavelength, u.AA).value, float)
    else:
        grid = first
        for k, (axis, *_) in enumerate(parts):
            if axis.shape != grid.shape or not np.allclose(axis, grid, rtol=1e-9, atol=0):
                raise InputError(f"spectrum {k} lies on another wavelength grid than the first", "pass wavelength=")
    flux, ivar = np.zeros((len(parts), len(grid)), "f4"), np.zeros((len(parts), len(grid)), "f4")
    flags = np.zeros((len(parts), len(grid)), np.uint8)
    rebinners: dict[bytes, Rebinner] = {}
    for k, (axis, y, w, bits, _) in enumerate(parts):
        if wavelength is not None and not np.array_equal(axis, grid):
            key = axis.tobytes()
            if key not in rebinners:
                rebinners[key] = Rebinner(axis, grid)
            # a masked pixel must not leak into its neighbours: it carries no weight
            y, w, bits = rebinners[key](y, np.where(bits != 0, 0.0, w), bits)
        flux[k], ivar[k], flags[k] = np.where(np.isfinite(y), y, np.nan), w, bits
    return grid, flux, ivar, flags
