"""Units of strangers' columns, turned into those of the contract."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from chemscale.errors import InputError
from chemscale.schema import VARIABLES

SPEED_OF_LIGHT = 299_792.458  # km/s

#: How people spell units that astropy does not know, or takes for others (A is the ampere), lower case.
_SPELLED = {
    **dict.fromkeys(("a", "ang", "angs", "angstroms", "angstrom", "\u00e5", "\u212b"), "Angstrom"),
    **dict.fromkeys(("nanometer", "nanometers", "nanometre", "nanometres"), "nm"),
    **dict.fromkeys(("micron", "microns", "micrometer", "micrometers", "\u00b5m", "\u03bcm"), "um"),
    **dict.fromkeys(("km/sec", "kms", "km s-1", "km/s", "kms-1", "km.s-1", "km s^-1", "km*s**-1"), "km/s"),
    **dict.fromkeys(("m/sec", "m s-1", "ms-1"), "m/s"),
    **dict.fromkeys(("k", "kelvin", "kelvins", "degk"), "K"),
    **dict.fromkeys(("degree", "degrees", "degs"), "deg"),
    **dict.fromkeys(("magnitude", "magnitudes", "mags"), "mag"),
}
_LOGARITHM = re.compile(r"log(?:10)?\W*([A-Za-z]+)", re.IGNORECASE)

Converter = Callable[[np.ndarray], np.ndarray]


def converter(name: str, stated: str, where: str, remedy: str = "") -> Converter | None:
    """What turns a column in the unit `stated` into the contract's unit of `name`; None where nothing is to be done.

    Raises
    ------
    InputError
        The unit is of another kind, or not known; `where` says which file, `remedy` what to do about it there.
    """
    wanted = VARIABLES[name].units
    if not stated or stated == wanted or not wanted:
        return None
    from astropy import units

    if name == "wavelength" and (inside := _LOGARITHM.match(stated.strip())):
        raise InputError(f"{where}: wavelength is in {stated!r}, logarithms", f"store 10**wavelength, in {inside[1]}")
    try:
        given = units.Unit(_SPELLED.get(stated.strip().lower(), stated))
        target = units.Unit("1" if wanted == "dex" else wanted)
        given.to(target, 1.0)
    except (ValueError, TypeError, units.UnitsError) as error:
        if wanted == "dex":  # 'dex', '[Fe/H]', 'dex(cm/s**2)': all the same number
            return None
        raise InputError(
            f"{where}: {name} is in {stated!r}, which cannot be turned into {wanted}: {error}",
            remedy or f"correct the unit of that column in a copy of the file; without one it is taken to be {wanted}",
        ) from error
    return lambda values: np.asarray(given.to(target, values))
