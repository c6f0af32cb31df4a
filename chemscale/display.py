"""How results show themselves: one list of facts gives the text of ``repr`` and the table of a notebook.

Text from catalogues is escaped; nothing is computed for the sake of being shown.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from typing import Any

#: Rows a notebook shows at most; the rest is counted.
MAX_ROWS = 40

_CELL = "text-align:left;padding:1px 12px 1px 0"


def number(value: Any) -> str:
    """A value as a reader wants it: thousands separated, four digits, words for True and False."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def counted(n: int, noun: str) -> str:
    """A number with its noun: "1 cluster", "12,000 clusters"."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def table(rows: Iterable[Iterable[Any]], head: Iterable[Any] = ()) -> str:
    """An HTML table of escaped cells."""
    rows = [list(r) for r in rows]
    shown = "".join(_row(r, "td") for r in rows[:MAX_ROWS])
    if len(rows) > MAX_ROWS:
        shown += _row([f"… {len(rows) - MAX_ROWS:,} more"], "td")
    titles = _row(head, "th") if head else ""
    return f'<table style="font-variant-numeric:tabular-nums">{titles}{shown}</table>'


def _row(cells: Iterable[Any], tag: str) -> str:
    return "<tr>" + "".join(f'<{tag} style="{_CELL}">{html.escape(number(c))}</{tag}>' for c in cells) + "</tr>"


class Shown:
    """Mixin: a class says its facts once, in :meth:`_facts`, and is readable everywhere.

    ``repr`` gives ``<Name: key value, key value>``; a notebook a table of the same, and below it what
    :meth:`_details` adds as HTML.
    """

    def _title(self) -> str:
        return type(self).__name__

    def _facts(self) -> Mapping[str, Any]:
        raise NotImplementedError

    def _details(self) -> str:
        return ""

    def __repr__(self) -> str:
        facts = ", ".join(f"{k} {number(v)}" for k, v in self._facts().items())
        return f"<{self._title()}: {facts}>" if facts else f"<{self._title()}>"

    def _repr_html_(self) -> str:
        return f"<div><b>{html.escape(self._title())}</b>{table(self._facts().items())}{self._details()}</div>"
