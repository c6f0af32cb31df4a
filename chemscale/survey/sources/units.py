"""Units of strangers' columns, turned into those of the contract."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from chemscale.errors import InputError
from chemscale.schema import VARIABLES

Converter = Callable[[np.ndarray], np.ndarray]


def converter(name: str, stated: str, where: str) -> Converter | None:
    """What turns a column in the unit `stated` into the contract's unit of `name`; None where nothing is to be done.

    Raises
    ------
    InputError
        The unit is of another kind, or not known; `where` says which file.
    """
    wanted = VARIABLES[name].units
    if not stated or stated == wanted or not wanted:
        return None
    from astropy import units

    try:
        given = units.Unit(stated)
        target = units.Unit("1" if wanted == "dex" else wanted)
        given.to(target, 1.0)
    except (ValueError, TypeError, units.UnitsError) as error:
        if wanted == "dex":  # 'dex', '[Fe/H]', 'dex(cm/s**2)': all the same number
            return None
        raise InputError(
            f"{where}: {name} is in {stated!r}, which cannot be turned into {wanted}: {error}",
            "state the unit under [units] of the mapping",
        ) from error
    return lambda values: np.asarray(given.to(target, values))
