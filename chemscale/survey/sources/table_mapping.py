"""The mapping file of the table source: which array of a stranger's file is what, in which unit."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from chemscale.errors import InputError
from chemscale.formats.paths import printable
from chemscale.schema import VARIABLES

TEXT_KEYS = ("survey", "medium", "normalisation", "frame")
ALIASES = {
    "spectra": "flux",
    "wave": "wavelength",
    "id": "star_id",
    "source_id": "gaia_source_id",
    "feh": "fe_h",
    "alpha_fe": "alpha_m",
    "cfe": "c_fe",
    "e_teff": "teff_error",
    "e_logg": "logg_error",
}


def read_mapping(path: str | None) -> dict[str, Any]:
    """Contents of the mapping file, every key checked."""
    if path is None:
        return {}
    try:
        with open(path, "rb") as stream:
            settings = tomllib.load(stream)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"{printable(path)}: cannot be read as TOML: {error}", "see the table source's docs"
        ) from error
    for key, value in settings.items():
        if key in TEXT_KEYS and isinstance(value, str):
            continue
        if key not in {"columns", "units"} or not isinstance(value, dict):
            known = ", ".join([*TEXT_KEYS, "[columns]", "[units]"])
            raise InputError(
                f"{printable(path)}: {key!r} is not a setting (or not of the right kind)",
                f"known: {known}" + _nearest(key, [*TEXT_KEYS, "columns", "units"]),
            )
        for name, text in value.items():
            if name not in VARIABLES and name not in {"error", "mask"}:
                raise InputError(
                    f"{printable(path)}: [{key}] {name!r} is not in the contract",
                    "the names are those of the data contract (docs/reference/schema.md)"
                    + _nearest(name, [*VARIABLES, "error", "mask", *ALIASES]),
                )
            if not isinstance(text, str):
                raise InputError(f"{printable(path)}: [{key}] {name} is {text!r}", "give text")
    return settings


def _nearest(word: str, known: Sequence[str]) -> str:
    """A hint at what was meant, '' where nothing is near."""
    found = difflib.get_close_matches(word.lower(), known, 1)
    return f"; did you mean {ALIASES.get(found[0], found[0])!r}?" if found else ""


def column_names(
    shapes: Mapping[str, tuple[int, ...]], columns: Mapping[str, str], where: str, unreadable: Callable[[str], str]
) -> dict[str, str]:
    """Contract name (plus error, mask) -> name in the file.

    Parameters
    ----------
    shapes : mapping
        Of the arrays in the file.
    columns : mapping
        What the mapping file says.
    where : str
        File, for messages.
    unreadable : callable
        A hint that the file holds a name in a form that cannot be read, else ''.

    Raises
    ------
    InputError
        The mapping names what is not there, or flux, wavelength or errors are not found.
    """
    chosen: dict[str, str] = dict(columns)
    held = ", ".join(map(printable, shapes)) or "nothing"
    for name, column in chosen.items():
        if column not in shapes:
            raise InputError(
                f"{where}: no array {column!r} for {name}; it has {held}" + unreadable(column.lower()),
                "correct [columns] of the mapping",
            )
    lower = {key.lower(): key for key in reversed(list(shapes))}
    for name in (*VARIABLES, "error", "mask"):
        if name not in chosen and name in lower and lower[name] not in chosen.values():
            chosen[name] = lower[name]
    for alias, name in ALIASES.items():
        if name not in chosen and alias in lower:
            chosen[name] = lower[alias]
    for name in ("flux", "wavelength"):
        if name not in chosen:
            raise InputError(
                f"{where}: no array {name!r}; it has {held}" + unreadable(name),
                f'say which one it is in a file for --mapping: [columns], then {name} = "ITS NAME"',
            )
    if "ivar" not in chosen and "error" not in chosen:
        alike = [n for n, shape in shapes.items() if shape == shapes[chosen["flux"]] and n != chosen["flux"]]
        raise InputError(
            f"{where}: neither 'ivar' nor 'error'"
            + (f"; of the shape of flux: {', '.join(map(printable, alike))}" if alike else ""),
            "give standard deviations as 'error' or 1/variance as 'ivar', (stars, pixels); --mapping FILE renames",
        )
    return chosen
