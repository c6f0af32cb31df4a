"""Which pixels tell of which element: a table, the line lists that ship, or where spectra follow abundances."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence

import numpy as np

from chemscale.errors import DataError, InputError
from chemscale.quality.interstellar import select_windows
from chemscale.rsca.detrending import polynomial
from chemscale.rsca.stars import ABUNDANCE, RunStars
from chemscale.simulation.atomic import atomic_lines, elements, vacuum_to_air

#: A pixel belongs to an element that makes up this share of all elements' effect on it.
DOMINANCE = 0.5
#: Response, in units of the element's median response over the grid, that a window must reach, and that it ends at.
SEED, GROW = 6.0, 3.0

#: Line lists that ship, and the temperature (K) at which their lines are ranked: a cool giant's.
LINE_LISTS, TEMPERATURE = ("lines_hband", "lines_optical"), 4500.0
#: A window from a line list: pixels on each side of the line's own; lines an element at most.
HALF_WIDTH, MAX_LINES = 3, 15
#: Strength (dex) below the strongest line of the grid at which a line counts as unseen.
FAINT = 3.0

Windows = dict[str, list[tuple[int, int]]]


def read_windows(path: str | os.PathLike[str], wavelength: np.ndarray) -> Windows:
    """Windows of a CSV table with the columns element, low, high (Angstrom, in the medium of the survey's grid).

    Returns
    -------
    dict of str to list of (start, stop)
        Pixel ranges, stop exclusive; windows off the grid are left out.

    Raises
    ------
    InputError
        No such file, other columns, limits that are no numbers or in the wrong order, no window on the grid.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as err:
        raise InputError(f"{path}: {err.strerror}", "give a CSV file with the columns element, low, high") from None
    except (csv.Error, UnicodeDecodeError) as err:
        raise InputError(f"{path}: {err}", "give a CSV file with the columns element, low, high") from None
    if not rows or not {"element", "low", "high"} <= set(rows[0]):
        raise InputError(f"{path} lacks the columns element, low, high", "the first line names the columns")
    out: Windows = {}
    for number, row in enumerate(rows, 2):
        try:
            low, high = float(row["low"]), float(row["high"])
        except (TypeError, ValueError):
            low, high = 1.0, 0.0
        if not low < high or not row["element"]:
            raise InputError(f"{path}, line {number}: {dict(row)}", "write element,low,high with low < high, Angstrom")
        start, stop = np.searchsorted(wavelength, [low, high])
        if stop > start:
            out.setdefault(row["element"].strip(), []).append((int(start), int(stop)))
    if not out:
        raise InputError(
            f"no window of {path} lies on the grid", f"{wavelength[0]:.0f} to {wavelength[-1]:.0f} Angstrom"
        )
    return out


def line_windows(wavelength: np.ndarray, medium: str) -> Windows:
    """Windows around the atomic lines that ship, where one element makes up most of the line strength.

    Strength is ``log eps(Sun) + log gf - excitation * 5040 / T``. Molecules have no line of their own in the lists:
    C, N and O only have what atomic lines they have, and windows do not know where molecules blend.

    Parameters
    ----------
    wavelength : (P,)
        Angstrom, increasing.
    medium : {"air", "vacuum"}

    Returns
    -------
    dict of str to list of (start, stop)
        Empty where no list reaches the grid.
    """
    names: list[str] = []
    pixels, strengths = [], []
    for name in LINE_LISTS:
        lines = atomic_lines(name)
        place = vacuum_to_air(lines.wavelength) if medium == "air" else lines.wavelength
        inside = (place > wavelength[HALF_WIDTH]) & (place < wavelength[-1 - HALF_WIDTH])
        strength = (
            np.array([elements()[e].solar for e in lines.element]) + lines.loggf - lines.excitation * 5040 / TEMPERATURE
        )
        names += [e for e, i in zip(lines.element, inside, strict=True) if i]
        pixels.append(np.searchsorted(wavelength, place[inside]))
        strengths.append(strength[inside])
    if not names:
        return {}
    element, pixel, strength = np.array(names), np.concatenate(pixels), np.concatenate(strengths)
    opacity = 10.0**strength
    out: Windows = {}
    for i in np.argsort(-strength):
        near = np.abs(pixel - pixel[i]) <= HALF_WIDTH
        own = opacity[near & (element == element[i])].sum() / opacity[near].sum()
        mine = out.setdefault(str(element[i]), [])
        if own >= DOMINANCE and strength[i] > strength.max() - FAINT and len(mine) < MAX_LINES:
            mine.append((int(pixel[i]) - HALF_WIDTH, int(pixel[i]) + HALF_WIDTH + 1))
    return {name: merged(spans) for name, spans in out.items() if spans}


def merged(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans in order, those that touch as one."""
    out: list[tuple[int, int]] = []
    for start, stop in sorted(spans):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(stop, out[-1][1]))
        else:
            out.append((start, stop))
    return out


def responses(stars: RunStars, components: np.ndarray) -> dict[str, np.ndarray]:
    """How much each element's abundance changes the spectrum, (P,) per standard deviation of [X/Fe] (iron: [Fe/H]).

    Coordinates of field stars are regressed on Teff and log g (quadratic) and on all abundances at once, so an
    element's response is the one at fixed others; the basis takes it to pixels. No pass over spectra.

    Parameters
    ----------
    stars : RunStars
    components : (K, P)
    """
    names = [n for n in stars.elements() if stars.label(n) is not None]
    if len(names) < 2:
        raise DataError("this survey has abundances of fewer than two elements", "give a table: --windows FILE")
    rows = stars.field_rows
    values = np.stack([stars.label(n)[rows] for n in names], axis=1)  # type: ignore[index]
    iron = f"{ABUNDANCE}Fe"
    if iron in names:
        fe = values[:, names.index(iron)].copy()
        values = np.where(np.array(names) == iron, values, values - fe[:, None])
    place = [v[rows] for n in ("teff", "logg") if (v := stars.label(n)) is not None]
    everything = np.concatenate([values, *(p[:, None] for p in place)], axis=1)
    good = np.isfinite(everything).all(axis=1)
    if good.sum() < 20 * everything.shape[1]:
        raise DataError(f"{int(good.sum())} field stars have all abundances: too few", "give a table: --windows FILE")
    u = (everything[good] - everything[good].mean(axis=0)) / np.maximum(everything[good].std(axis=0), 1e-12)
    n = len(names)
    design = np.concatenate([u[:, :n], polynomial(u[:, n:], 2)], axis=1)
    z = np.asarray(stars.field)[good]
    weights = np.linalg.lstsq(design, z - z.mean(axis=0), rcond=None)[0][:n]
    spectra = weights @ np.nan_to_num(components)
    return {name.removeprefix(ABUNDANCE): s for name, s in zip(names, spectra, strict=True)}


def find_windows(response: Mapping[str, np.ndarray], *, pad: int = 3, merge: int = 4) -> Windows:
    """Windows where one element stands out: it responds there far above its typical pixel and beyond the others.

    Elements without such a window are left out.
    """
    stack = np.abs(np.stack(list(response.values())))
    total = np.sqrt(np.sum(stack**2, axis=0))
    out: Windows = {}
    for name, own in zip(response, stack, strict=True):
        seen = own[own > 0]
        if not len(seen):
            continue
        strength = own / np.median(seen)
        strength[own < DOMINANCE * total] = 0
        found = select_windows(strength, seed=SEED, grow=GROW, merge=merge, pad=pad, min_width=2)
        if found:
            out[name] = found
    return out


def pixels_of(windows: Sequence[tuple[int, int]]) -> np.ndarray:
    """Sorted pixel numbers inside windows."""
    return np.unique(np.concatenate([np.arange(a, b) for a, b in windows]))
