"""FITS headers: cards, values, and the error that says what is wrong with a file."""

from __future__ import annotations

import math
import re
from typing import Any

CARD = 80


class FitsError(ValueError):
    """The bytes are not the FITS file they should be; the message says how."""


class Header:
    """Read-only view of one header; values are parsed when asked for."""

    __slots__ = ("_cards", "raw")

    def __init__(self, raw: bytes):
        self.raw = raw
        self._cards: dict[bytes, int] | None = None

    def _index(self) -> dict[bytes, int]:
        if self._cards is None:
            raw = self.raw
            # reversed: of a repeated keyword the first card counts, as in astropy
            self._cards = {raw[i : i + 8]: i for i in range(len(raw) - CARD, -1, -CARD)}
        return self._cards

    def get(self, key: str, default: Any = None) -> Any:
        """Value of `key` (bool, int, float, str) or `default`; unreadable values count as absent."""
        name = key.encode("ascii").ljust(8)
        at = self._find(name) if self._cards is None else self._cards.get(name, -1)
        if at < 0 or self.raw[at + 8 : at + 10] != b"= ":
            return default
        value = _card_value(self.raw[at + 10 : at + CARD])
        return default if value is None else value

    def _find(self, name: bytes) -> int:
        """First card that starts with `name`, -1 where there is none: quicker than an index for a keyword or two."""
        at = self.raw.find(name)
        while at % CARD and at >= 0:
            at = self.raw.find(name, at + 1)
        return at

    def number(self, key: str, default: float = math.nan) -> float:
        """Finite number stored under `key`, else `default`."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return default
        return float(value)

    def text(self, key: str, default: str = "") -> str:
        """Text stored under `key`, stripped, else `default`; numbers are written out."""
        value = self.get(key)
        return default if value is None else str(value).strip()

    def keys(self) -> list[str]:
        """Keywords in the order of the header, without the blank and commentary ones."""
        ordered = sorted(self._index().items(), key=lambda item: item[1])
        return [k.decode("ascii", "replace").rstrip() for k, at in ordered if self.raw[at + 8 : at + 10] == b"= "]


def _card_value(field: bytes) -> Any:
    text = field.decode("latin-1").strip()
    if text.startswith("'"):
        match = re.match(r"'((?:[^']|'')*)'", text)
        return match.group(1).replace("''", "'").rstrip() if match else None
    text = text.split("/", 1)[0].strip()
    if text in {"T", "F"}:
        return text == "T"
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text.replace("D", "E").replace("d", "e"))
    except ValueError:
        return None
