"""``survey.chemscale``: what a survey Dataset can tell and turn into, beside everything xarray gives it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import xarray as xr

from chemscale.arrays import missing_pixels
from chemscale.display import Shown
from chemscale.schema import flag_mask, star_variables
from chemscale.survey import conversions

#: Clusters are counted for the summary of a survey of at most so many stars: one column is read for it.
COUNTED = 2_000_000


@xr.register_dataset_accessor("chemscale")
class SurveyAccessor(Shown):
    """Summary and conversions of a survey.

    Parameters
    ----------
    survey : Dataset
        As :func:`chemscale.open_survey` gives it, or any Dataset of the survey contract.

    Examples
    --------
    >>> survey = chemscale.open_survey("apogee.zarr")  # doctest: +SKIP
    >>> survey.chemscale  # doctest: +SKIP
    >>> survey.chemscale.to_spectrum("2M19203303+3755558")  # doctest: +SKIP
    """

    def __init__(self, survey: xr.Dataset):
        self._survey = survey

    def missing(self, flags: str | int | Iterable[str] = "all") -> xr.DataArray:
        """True where a pixel is not to be used (star, wavelength); lazy.

        Parameters
        ----------
        flags : str, int or iterable of str
            Flags that count (:func:`chemscale.schema.flag_mask`).
        """
        ds = self._survey
        bad = missing_pixels(ds["flux"], ds["ivar"], ds["flags"], flag_mask(flags))
        return bad.rename("missing").assign_attrs(long_name="pixel is not to be used")

    def to_table(self, stars: Any = None) -> Any:
        """Labels as an astropy ``QTable``: :func:`chemscale.survey.conversions.to_table`."""
        return conversions.to_table(self._survey, stars)

    def to_spectrum(self, stars: Any, *, flags: int = 255) -> Any:
        """Spectra as a specutils ``Spectrum``: :func:`chemscale.survey.conversions.to_spectrum`."""
        return conversions.to_spectrum(self._survey, stars, flags=flags)

    def to_collection(self, stars: Any, *, flags: int = 255) -> Any:
        """Spectra as a ``SpectrumCollection``: :func:`chemscale.survey.conversions.to_collection`."""
        return conversions.to_collection(self._survey, stars, flags=flags)

    def _title(self) -> str:
        return f"survey {self._survey.attrs.get('survey') or 'without a name'}"

    def _facts(self) -> dict[str, Any]:
        ds = self._survey
        n = int(ds.sizes.get("star", 0))
        facts: dict[str, Any] = {"stars": n, "pixels": int(ds.sizes.get("wavelength", 0))}
        if "wavelength" in ds.variables and ds.sizes["wavelength"]:
            wave = ds["wavelength"]
            ends = f"{float(wave[0]):.1f} to {float(wave[-1]):.1f} Angstrom"
            facts["wavelength"] = f"{ends}, {wave.attrs.get('medium', 'medium unknown')}"
        if "cluster" in ds.variables and n <= COUNTED:
            names = np.asarray(ds["cluster"].values).astype(str)
            facts["clusters"] = f"{len(set(names[names != '']))} with {int(np.sum(names != '')):,} members"
        facts["labels"] = ", ".join(v for v in star_variables(ds.variables) if v not in ("star_id", "cluster"))
        if "element" in ds.variables:
            facts["abundances"] = ", ".join(np.asarray(ds["element"].values).astype(str))
        for key in ("normalisation", "store", "revision"):
            if key in ds.attrs:
                facts[key] = str(ds.attrs[key])
        return facts
