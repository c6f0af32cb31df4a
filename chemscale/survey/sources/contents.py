"""What a survey's files hold besides what is read: extensions and columns, for the list of what is not stored."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence

from chemscale.formats import fits
from chemscale.formats.fits_header import FitsError
from chemscale.formats.fits_tables import scan_mapped
from chemscale.formats.paths import is_gzip, is_remote, printable

#: Files looked at until one can be read.
_TRIES = 20


def not_read(paths: Iterable[str], uses: Sequence[str]) -> tuple[list[str], list[str]]:
    """What the first readable file holds, read and not read: ``EXTNAME`` or ``HDU3``, columns as ``EXTNAME.column``.

    Parameters
    ----------
    paths : iterable of str
        FITS files of one kind.
    uses : sequence of str
        Regular expressions, without regard to case, of what is read: an extension by its name (by ``HDU3`` where it
        has none) or by its number ``#3``; columns behind a dot.

    Returns
    -------
    (read, not_read) : lists of str
    """
    for _, path in zip(range(_TRIES), paths):
        try:
            if is_remote(path) or is_gzip(path):
                units = fits.scan(fits.read_bytes(path))
            else:
                units = scan_mapped(path, os.path.getsize(path))
            return _divide(units, uses)
        except (FitsError, OSError):
            continue  # reading the star will say why
    return [], []


def _divide(units: Sequence[fits.HDU], uses: Sequence[str]) -> tuple[list[str], list[str]]:
    wanted = [re.compile(pattern, re.IGNORECASE) for pattern in uses]
    read: list[str] = []
    rest: list[str] = []
    for unit in units:
        name = printable(unit.header.text("EXTNAME")) or f"HDU{unit.index}"
        if unit.kind == "BINTABLE" and unit.header.get("ZIMAGE") is not True:
            columns = unit.layout().columns.values()
            entries = [(f".{c.name}", f" ({c.why_not})" if c.why_not else "") for c in columns]
        elif unit.size:
            entries = [("", "")]
        else:
            continue
        for suffix, why in entries:
            used = any(p.fullmatch(name + suffix) or p.fullmatch(f"#{unit.index}{suffix}") for p in wanted)
            (read if used else rest).append(name + suffix + ("" if used else why))
    return read, rest
