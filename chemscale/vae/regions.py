"""Which pixels belong to which decoder: named chemical groups of wavelength windows.

A region set is a small JSON file (see ``regions_data/``): windows in Angstrom by group, the
medium they are given in, and `priority`, the groups that take a pixel away from all others.
A pixel claimed by several groups without priority is reconstructed by each of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from chemscale.errors import InputError

#: Name of the group that takes the pixels no other group claims.
REST = "rest"
_DATA = "regions_data"
#: Teff (K) below which bands of carbon stars darken most windows; share of such stars that asks for other windows.
COOL, COOL_SHARE = 4000.0, 0.05


@dataclass(frozen=True)
class RegionSet:
    """Windows of each chemical group.

    Attributes
    ----------
    name : str
        What the user types.
    medium : {'air', 'vacuum'}
        Medium of the windows' wavelengths.
    groups : mapping of str to sequence of (low, high)
        Windows in Angstrom, both ends inclusive.
    priority : tuple of str
        Groups that win a contested pixel, the strongest first.
    source : str
        Where the windows come from.
    """

    name: str
    medium: str
    groups: Mapping[str, Sequence[tuple[float, float]]]
    priority: tuple[str, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        if self.medium not in ("air", "vacuum"):
            raise InputError(f"regions {self.name!r}: medium {self.medium!r}", "use 'air' or 'vacuum'")
        if not self.groups or REST in self.groups:
            raise InputError(
                f"regions {self.name!r}: groups are {list(self.groups)}",
                f"name at least one group; {REST!r} is kept for the pixels nobody claims",
            )
        unknown = [p for p in self.priority if p not in self.groups]
        if unknown:
            raise InputError(
                f"regions {self.name!r}: priority names unknown groups {unknown}", "name groups that exist"
            )
        for group, windows in self.groups.items():
            bad = [tuple(w) for w in windows if len(w) != 2 or not w[0] <= w[1]]
            if bad or not windows:
                raise InputError(f"regions {self.name!r}, group {group!r}: bad windows {bad}", "give [low, high] pairs")

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> RegionSet:
        """Region set from parsed JSON."""
        try:
            return cls(
                name=str(raw["name"]),
                medium=str(raw["medium"]),
                groups={k: tuple((float(a), float(b)) for a, b in v) for k, v in raw["groups"].items()},
                priority=tuple(raw.get("priority", ())),
                source=str(raw.get("source", "")),
            )
        except (KeyError, TypeError, ValueError) as err:
            raise InputError(f"not a region set: {err!r}", "see `chemscale/vae/regions_data/paper.json`") from err

    def to_dict(self) -> dict[str, Any]:
        """The set as JSON-able values."""
        return {
            "name": self.name,
            "medium": self.medium,
            "source": self.source,
            "priority": list(self.priority),
            "groups": {k: [list(w) for w in v] for k, v in self.groups.items()},
        }

    def masks(self, wavelength: np.ndarray, medium: str) -> dict[str, np.ndarray]:
        """Pixels of each group.

        Parameters
        ----------
        wavelength : ndarray (P,)
            Angstrom, increasing.
        medium : {'air', 'vacuum'}
            Medium of `wavelength`; windows are converted where it differs.

        Returns
        -------
        dict of str to ndarray of bool (P,)
            In the order of :attr:`groups`.

        Raises
        ------
        InputError
            A group without a pixel on this grid.
        """
        wave = np.asarray(wavelength, dtype=np.float64)
        masks = {}
        for group, windows in self.groups.items():
            mask = np.zeros(wave.size, dtype=bool)
            for low, high in windows:
                edges = convert(np.array([low, high]), self.medium, medium)
                mask |= (wave >= edges[0]) & (wave <= edges[1])
            masks[group] = mask
        taken = np.zeros(wave.size, dtype=bool)
        for group in self.priority:
            masks[group] &= ~taken
            taken |= masks[group]
        for group in masks:
            if group not in self.priority:
                masks[group] &= ~taken
        empty = [g for g, m in masks.items() if not m.any()]
        if empty:
            span = f"{wave[0]:.0f}-{wave[-1]:.0f} Angstrom ({medium})" if wave.size else "no pixels"
            raise InputError(
                f"regions {self.name!r}: no pixel of {', '.join(empty)} on this grid ({span})",
                f"choose regions that cover it; known: {', '.join(available())}, or a JSON file of your own",
            )
        return masks


def convert(wavelength: np.ndarray, medium: str, to: str) -> np.ndarray:
    """Wavelengths from one medium to the other (Morton 2000 as used by VALD; Angstrom)."""
    wave = np.asarray(wavelength, dtype=np.float64)
    if medium == to:
        return wave
    if to == "air":
        return wave / _refraction_vacuum(wave)
    vacuum = wave * _refraction_vacuum(wave)
    for _ in range(2):  # the index depends on the vacuum wavelength: two steps give 1e-6 Angstrom
        vacuum = wave * _refraction_vacuum(vacuum)
    return vacuum


def _refraction_vacuum(wave: np.ndarray) -> np.ndarray:
    s2 = (1e4 / np.maximum(wave, 2000.0)) ** 2
    return 1 + 8.34254e-5 + 2.406147e-2 / (130 - s2) + 1.5998e-4 / (38.9 - s2)


def available() -> list[str]:
    """Names of the region sets that come with chemscale."""
    return sorted(
        p.name.removesuffix(".json") for p in files(__package__).joinpath(_DATA).iterdir() if p.name.endswith(".json")
    )


def load_regions(name: str | Path | RegionSet) -> RegionSet:
    """A region set by name, or from a JSON file.

    Raises
    ------
    InputError
        Unknown name, or a file that is not a region set.
    """
    if isinstance(name, RegionSet):
        return name
    text = str(name)
    if text in available():
        raw = files(__package__).joinpath(_DATA, f"{text}.json").read_text(encoding="utf-8")
    elif text.endswith(".json"):
        try:
            raw = Path(text).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as err:
            raise InputError(f"regions file {text} cannot be read: {err}", "check the path") from err
    else:
        raise InputError(f"no region set {text!r}", f"known: {', '.join(available())}, or the path of a JSON file")
    try:
        return RegionSet.from_dict(json.loads(raw))
    except json.JSONDecodeError as err:
        raise InputError(f"regions file {text}: not JSON: {err}", "mend it") from err


def regions_for(wavelength: np.ndarray, teff: np.ndarray | None = None) -> str:
    """Name of the default region set of a grid: by its wavelength range, and in the optical by how cool the stars are.

    Parameters
    ----------
    wavelength : ndarray (P,)
        Angstrom.
    teff : ndarray (n,), optional
        Of the stars, K. Bands of carbon stars darken most windows below 4,000 K: where more than :data:`COOL_SHARE` of
        the stars are as cool, the fewer windows are taken that answer to their element there, too.
    """
    low, high = float(wavelength[0]), float(wavelength[-1])
    if low > 14000 and high < 18000:
        return "apogee"
    known = np.empty(0) if teff is None else np.asarray(teff, float)
    known = known[np.isfinite(known)]
    return "optical_cool" if known.size and np.mean(known < COOL) > COOL_SHARE else "optical"
