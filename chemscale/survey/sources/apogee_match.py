"""Which spectrum belongs to which row of allStar: telescope, field and S/N must agree."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from chemscale.catalogues.missing import measured_one, words
from chemscale.formats.fits import read_bytes, scan
from chemscale.formats.fits_header import FitsError, Header
from chemscale.survey.sources import apogee_labels as labelling

TELESCOPES = ("apo25m", "lco25m", "apo1m")
_BY_PREFIX = {"apStar": {"apo25m", "apo1m"}, "asStar": {"lco25m"}, "ap1mStar": {"apo1m"}}
#: S/N of a file and of the row of the same observation agree to this.
_SAME_SNR = 0.02
#: Beyond this they are two observations; in between a catalogue of another reduction.
_OTHER_SNR = 0.2


class Found(NamedTuple):
    """A file of a star: its path, the path relative to the folder given, the telescope its name states."""

    path: str
    relative: str
    named: str | None = None

    def telescopes(self) -> set[str]:
        """Telescopes the file can be of by its name or folders; empty where they do not say."""
        folders = [p for p in self.path.split("/")[:-1] if p in TELESCOPES]
        if self.named or folders:
            return {self.named or folders[-1]}
        return _BY_PREFIX.get(os.path.basename(self.path).partition("-")[0], set())

    def folder(self) -> str:
        """Name of the folder the file lies in."""
        above = self.path.rpartition("/")[0]
        return above[above.rfind("/") + 1 :]


def match_star(
    catalogue: labelling.AllStar, rows: Sequence[int], found: Sequence[Found], places: frozenset[str]
) -> tuple[int, Found | None, list[tuple[Found, str]]]:
    """The row of highest S/N that one of the star's files belongs to, that file, and why others were left out.

    Parameters
    ----------
    catalogue : AllStar
    rows : sequence of int
        The star's rows, highest S/N first.
    found : sequence of Found
        The star's files.
    places : frozenset of str
        Names of all fields of the catalogue.
    """
    pairs = [(row, f) for row in rows for f in found if _may_agree(catalogue, row, f, places)]
    sure = [(row, f) for row, f in pairs if agrees(catalogue, row, f)]
    if not sure and len(rows) > 1:
        sure = [(row, f) for row, f in pairs if _same_observation(catalogue, row, f)]
    if not sure and len(rows) == 1 and len({f.path for _, f in pairs}) == 1:
        sure = pairs
    if not sure and len(rows) == 1 and pairs:  # several files, one row: the one whose S/N is the row's
        sure = [(row, f) for row, f in pairs if _same_observation(catalogue, row, f)] or [
            (rows[0], max((f for _, f in pairs), key=lambda f: signal_to_noise(f.path)))
        ]
    if not sure:
        why = (
            f"allStar has {len(rows)} rows of this star, and neither telescope, field nor S/N says which is this file's"
            if pairs
            else "no row of allStar is of this telescope and field"
        )
        return rows[0], None, [(f, why) for f in found]
    row, file = sure[0]
    taken = {f.path for _, f in sure}
    reason = "duplicate: another file of this star belongs to the allStar entry of highest S/N"
    stray = "no row of allStar is of this telescope and field"
    return row, file, [(f, reason if f.path in taken or pairs else stray) for f in found if f is not file]


def _may_agree(catalogue: labelling.AllStar, row: int, file: Found, places: frozenset[str]) -> bool:
    """False where a file's name or folder says that it is of another telescope or field than the row."""
    telescope, fields = catalogue.place(row)
    stated = file.telescopes()
    if telescope in TELESCOPES and stated and telescope not in stated:
        return False
    folder = file.folder()
    return not (fields and folder in places and folder not in fields)


def agrees(catalogue: labelling.AllStar, row: int, file: Found) -> bool:
    """True where telescope and field of a row stand in a file's path, or no other row is of its telescope."""
    telescope, fields = catalogue.place(row)
    stated = file.telescopes()
    if stated and telescope not in stated:
        return False
    if file.folder() in fields:
        return True
    rivals = [r for r in catalogue.rows_of(row) if catalogue.place(r)[0] in stated]
    return bool(stated) and rivals == [row]


def _same_observation(catalogue: labelling.AllStar, row: int, file: Found) -> bool:
    """Whether what a file says of itself (telescope, field, S/N) is what the row says."""
    said = _own_words(file.path)
    telescope, fields = catalogue.place(row)
    for key, ours in (("TELESCOPE", (telescope,)), ("FIELD", fields), ("LOCATION_ID", fields)):
        if said.get(key) and any(ours) and said[key] not in ours:
            return False
    snr = float(catalogue.columns["snr"][row]) if "snr" in catalogue.columns else np.nan
    own = signal_to_noise(file.path)
    return bool(own > 0 and snr > 0 and abs(own / snr - 1) <= _SAME_SNR)


def check_row(header: Header, labels: Mapping[str, Any]) -> None:
    """Refuse a file whose S/N is far from that of its row of allStar: another observation of the same star.

    Raises
    ------
    FitsError
    """
    own, row = header.number("SNR"), labels.get("snr")
    if row is not None and own > 0 and row > 0 and abs(own / row - 1) > _OTHER_SNR:
        raise FitsError(
            f"S/N {own:.4g} is not the {row:.4g} of its row in allStar: the labels are of another observation"
        )


def _own_words(path: str) -> dict[str, str]:
    """TELESCOPE, FIELD and LOCATION_ID of a file's table or header."""
    keys = ("TELESCOPE", "FIELD", "LOCATION_ID")
    try:
        units = scan(read_bytes(path))
        unit = labelling.table_unit(units)
        header = units[0].header
        out = {key: header.text(key) for key in keys}
        for key in keys if unit is not None else ():
            assert unit is not None
            column = unit.column(key)
            if column is not None and column.ndim == 1:
                out[key] = words(column[:1])[0] or out[key]
    except FitsError:
        return {}
    return out


def signal_to_noise(path: str) -> float:
    """S/N a file states; -1 where it does not, minus infinity where it cannot be read."""
    try:
        units = scan(read_bytes(path))
        snr = measured_one("snr", units[0].header.get("SNR"))
        if snr != snr:
            snr = float(labelling.file_labels([labelling.FileLabels.of(units)], ()).get("snr", [np.nan])[0])
        return snr if snr == snr else -1.0
    except FitsError:
        return -np.inf
