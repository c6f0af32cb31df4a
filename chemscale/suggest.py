"""What did the user mean? Names close to a mistyped one, endings of files."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from chemscale.errors import InputError

#: Names that are compared letter by letter, at most: the search must stay instant among millions.
POOL = 20_000


def close_names(name: str, known: Iterable[str] | np.ndarray, n: int = 3) -> list[str]:
    """Up to `n` of `known` like `name`: part of one another, or few edits apart."""
    ids = [str(s) for s in known]
    text = name.strip().lower()
    hits = [s for s in ids if text and s and (text in s.lower() or s.lower() in text)][:n]
    if len(hits) < n:
        stem = [s for s in ids if s[:4].lower() == text[:4]]
        folded: dict[str, str] = {}
        for s in (stem or ids)[:POOL]:
            folded.setdefault(s.lower(), s)
        near = difflib.get_close_matches(text, folded, n=n, cutoff=0.6)
        hits += [folded[s] for s in near if folded[s] not in hits]
    return hits[:n]


def hint(name: str, known: Iterable[str] | np.ndarray, what: str = "names", n: int = 3) -> str:
    """A remedy: the names meant perhaps, else (some of) those there are.

    >>> hint("tefff", ["teff", "logg"], "labels")
    "did you mean 'teff'? labels: teff, logg"
    """
    known = [str(s) for s in known]
    near = close_names(name, known, n)
    listed = ", ".join(known[:25]) + (", ..." if len(known) > 25 else "")
    meant = f"did you mean {' or '.join(repr(s) for s in near)}? " if near else ""
    return f"{meant}{what}: {listed or 'none'}"


def known_ending(path: str | os.PathLike[str], known: Iterable[str]) -> Path:
    """`path`, whose ending says what is to be written there.

    Raises
    ------
    InputError
        It ends in none of `known`.
    """
    target = Path(path)
    if target.suffix not in (known := list(known)):
        raise InputError(f"{target}: unknown ending {target.suffix!r}", f"choose one of {', '.join(known)}")
    return target
