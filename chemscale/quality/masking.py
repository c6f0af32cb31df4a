"""Masking after ingestion: windows of interstellar absorption or of the star's velocity, and a stricter error cut.

Ingestion censors what is wrong with a pixel by itself (gaps, large errors, the survey's own flags). What is wrong with
a wavelength for every star is seen only once the survey is there. The mask is a revision of the store's root record:
readers see the flags with the mask's bits set, no pixel is rewritten, and another mask replaces the first.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from chemscale.errors import InputError
from chemscale.quality.interstellar import interstellar_windows, velocity_windows
from chemscale.runtime.files import Folder
from chemscale.schema import Flag
from chemscale.survey.ingest.censoring import window_pixels

#: What windows can be looked for by -> flag of their pixels, and how they are found.
FINDERS: dict[str, tuple[Flag, Callable[..., Any]]] = {
    "extinction": (Flag.INTERSTELLAR, interstellar_windows),
    "velocity": (Flag.TELLURIC, velocity_windows),
}


def mask_survey(
    store: str | os.PathLike[str],
    *,
    find: Iterable[str] = ("extinction",),
    windows: Sequence[tuple[float, float]] = (),
    max_error: float | None = None,
    dry_run: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Mask pixels of a survey store; replaces the mask it has.

    Finding windows takes one pass over the chunks that hold stars with the effect, and loads the basis stars.

    Parameters
    ----------
    store : str or path
        A complete store.
    find : iterable of {"extinction", "velocity"}
        Effects to look for, see :mod:`chemscale.quality.interstellar`.
    windows : sequence of (low, high)
        Windows to mask in any case, Angstrom, in the medium of the grid.
    max_error : float, optional
        Pixels whose error exceeds this are masked, too.
    dry_run : bool
        Say what would be masked; change nothing.
    **options
        Passed to the finders: low, high, n_components, max_basis, ...

    Returns
    -------
    dict
        `windows` (first and last Angstrom, pixels, reason), `share_of_pixels`, `max_error`, `revision` of the store.

    Raises
    ------
    InputError
        Unknown effect, a window outside of the grid, a limit that is not positive.
    DataError
        Too few stars with or without an effect.
    """
    from chemscale.survey.store.open import open_survey
    from chemscale.survey.store.root import RootRecord, publish_mask

    effects = list(find)
    unknown = [name for name in effects if name not in FINDERS]
    if unknown:
        raise InputError(f"windows cannot be found by {unknown[0]!r}", f"one of: {', '.join(FINDERS)}")
    if max_error is not None and not max_error > 0:
        raise InputError(f"max_error is {max_error}", "give a positive error of the normalised flux")
    folder = Folder(store)
    survey = open_survey(store)
    wave = np.asarray(survey["wavelength"].values)
    ranges = [(*_given(wave, low, high), int(Flag.USER)) for low, high in windows]
    before = RootRecord.read(folder)
    if effects and before.mask:  # found anew on what ingestion left, not on what the last mask left
        survey = survey.assign(flags=_unmasked(survey, folder))
    for name in effects:
        flag, finder = FINDERS[name]
        found, _ = finder(survey, **options)
        ranges += [(int(start), int(stop), int(flag)) for start, stop in found]
    mask: dict[str, Any] = {}
    if ranges:
        mask["windows"] = [list(r) for r in sorted(ranges)]
    if max_error is not None:
        mask["max_error"] = float(max_error)
    revision = before.revision if dry_run else publish_mask(folder, mask)
    hidden = np.zeros(len(wave), bool)
    for start, stop, _ in ranges:
        hidden[start:stop] = True
    return {
        "store": folder.root,
        "windows": [
            {"first": float(wave[a]), "last": float(wave[b - 1]), "pixels": [a, b], "reason": Flag(bit).name or ""}
            for a, b, bit in sorted(ranges)
        ],
        "share_of_pixels": float(hidden.mean()),
        "max_error": max_error,
        "revision": revision,
        "changed": revision != before.revision,
    }


def _given(wave: np.ndarray, low: float, high: float) -> tuple[int, int]:
    found = window_pixels(wave, [(low, high)])
    if not found:
        raise InputError(
            f"window {low}:{high} holds no pixel of the grid ({wave[0]:.1f} to {wave[-1]:.1f} Angstrom)",
            "give LOW:HIGH in Angstrom, inside the grid",
        )
    return found[0]


def _unmasked(survey: Any, folder: Folder) -> Any:
    """The store's flags as they were ingested."""
    import xarray as xr

    from chemscale.survey.store.open import as_ingested

    return xr.Variable(survey["flags"].dims, as_ingested(folder, "flags", survey["flags"].chunks[0]))
