"""What the arrays of a stranger's table mean: wavelength grids, text, flags."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chemscale.catalogues.missing import cluster_name, extra_numbers, identifiers, words
from chemscale.errors import InputError
from chemscale.formats.paths import printable
from chemscale.formats.tables import TableFile
from chemscale.schema import ALL_FLAGS, Flag
from chemscale.suggest import hint


def check_grid(wave: np.ndarray, path: str) -> None:
    """Refuse a grid that is not finite, increasing and in Angstrom, saying where.

    Raises
    ------
    InputError
    """
    steps = np.diff(wave)
    if not np.isfinite(wave).all():
        at = int(np.argmin(np.isfinite(wave)))
        raise InputError(f"{path}: wavelength is not finite at pixel {at}", "drop that pixel from all arrays")
    if len(steps) and np.all(steps < 0):
        raise InputError(
            f"{path}: wavelength decreases, from {wave[0]:g} to {wave[-1]:g}",
            "reverse the pixels of all arrays: wavelength[::-1], flux[:, ::-1], ...",
        )
    if not np.all(steps > 0):
        at = int(np.argmin(steps > 0))
        how = "repeats a value" if steps[at] == 0 else "goes back"
        raise InputError(
            f"{path}: wavelength {how} at pixel {at + 1}: {wave[at]:.8g}, {wave[at + 1]:.8g}",
            "sort the pixels and drop doubles (of float16 or float32 grids: store float64)",
        )
    if wave[0] < 900 or wave[-1] > 3e5:
        logarithms = 2.9 < wave[0] <= wave[-1] < 5.5
        unit = "state their unit: [units] wavelength = 'nm' in a mapping file"
        raise InputError(
            f"{path}: wavelengths from {wave[0]:g} to {wave[-1]:g} are not in Angstrom",
            "they look like logarithms: store 10**wavelength" if logarithms else unit,
        )


def check_order(file: TableFile, column: str, ids: Sequence[str], path: str) -> None:
    """Refuse tables of one file that name their stars in `column` and do not list them in one order.

    Raises
    ------
    InputError
    """
    for again in file.again(column):
        others = identifiers(file.rows(again).ravel()) or []
        row = next((row for row, (one, other) in enumerate(zip(ids, others)) if one != other), None)
        if row is not None and len(others) == len(ids):
            raise InputError(
                f"{path}: row {row} is {printable(ids[row])} in one table, {printable(others[row])} in another",
                "sort the tables alike: rows of one number are taken for one star",
            )


def check_weights(ivar: np.ndarray | None, error: np.ndarray | None, path: str) -> None:
    """Refuse inverse variances and errors of one file that contradict each other.

    Raises
    ------
    InputError
    """
    if ivar is None or error is None:
        return
    with np.errstate(all="ignore"):
        product = np.asarray(ivar, np.float64) * np.square(np.asarray(error, np.float64))
    product = product[np.isfinite(product) & (product > 0)]
    if len(product) and not 0.05 < np.median(product) < 20.0:  # errors may have been widened
        raise InputError(
            f"{path}: 'ivar' and 'error' contradict each other: ivar * error**2 is typically {np.median(product):.3g}",
            "store 1/variance as 'ivar' or standard deviations as 'error'; leave the other out",
        )


def label_words(name: str, values: np.ndarray) -> np.ndarray:
    """A text column of the contract, (n,): numbers written out, visits joined, clusters in one spelling."""
    if values.ndim == 2:
        return np.array([",".join(w for w in words(row) if w) for row in values], str)
    text = words(values)
    return np.array([cluster_name(t) for t in text] if name == "cluster" else text, str)


def are_counts(values: np.ndarray) -> bool:
    """Whether numbers under `visits` are numbers of visits: dates and plates are larger."""
    if values.ndim != 1 or values.dtype.kind not in "iuf":
        return False
    finite = np.ma.compressed(values[np.isfinite(values)])
    return len(finite) > 0 and bool(finite.max() < 1000)


def contract_flags(values: np.ndarray) -> np.ndarray:
    """Flags as the contract's bits; a bit it does not know (or plain True) is the survey's own: SURVEY_BAD.

    Raises
    ------
    InputError
        Neither integers nor booleans.
    """
    if isinstance(values, np.ma.MaskedArray):  # undefined is not good
        flags = contract_flags(values.filled(0))
        flags[np.ma.getmaskarray(values)] |= np.uint8(Flag.SURVEY_BAD)
        return flags
    if values.dtype.kind == "b":
        return np.where(values, np.uint8(Flag.SURVEY_BAD), np.uint8(0))
    if values.dtype.kind not in "iu":
        raise InputError(f"flags holds {values.dtype}, expected integers (or True = bad)", "store them as integers")
    known = values & values.dtype.type(ALL_FLAGS)
    strange = known != values
    known = known.astype(np.uint8)
    known[strange] |= np.uint8(Flag.SURVEY_BAD)
    return known


def extra_column(file: TableFile, name: str, n_stars: int, where: str) -> np.ndarray:
    """A column that the contract does not know as numbers, (n_stars,) float64, NaN where missing.

    Raises
    ------
    InputError
        It is not there, has not one value a star, holds no numbers, or whole numbers that a float would confuse.
    """
    shapes = file.shapes()
    single = {n for n, shape in shapes.items() if shape in ((n_stars,), (n_stars, 1))}
    if name not in shapes:
        raise InputError(f"{where}: no column {name!r}", hint(name, sorted(single), "columns with one value a star"))
    if name not in single:
        raise InputError(f"{where}: {name} has shape {shapes[name]}, expected ({n_stars},)", "give one value a star")
    return extra_numbers(name, file.rows(name).reshape(n_stars), where)
