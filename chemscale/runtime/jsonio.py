"""JSON in one way: NumPy values made plain, canonical bytes and their digest, files replaced whole."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from chemscale.errors import StoreError
from chemscale.runtime.files import write_file


def plain(obj: Any) -> Any:
    """`obj` with NumPy scalars, arrays, sets and paths turned into plain JSON; NaN and infinities become None."""
    if type(obj) is int or type(obj) is str:  # nearly all of what a record of many files consists of
        return obj
    if isinstance(obj, Mapping):
        return {str(k): plain(v) for k, v in obj.items()}
    if isinstance(obj, np.ndarray):
        return plain(obj.tolist())
    if isinstance(obj, (list, tuple)):
        return [plain(v) for v in obj]
    if isinstance(obj, (set, frozenset)):
        return plain(sorted(obj))
    if isinstance(obj, np.generic):
        return plain(obj.item())
    if isinstance(obj, float):
        return obj if math.isfinite(obj) else None
    if isinstance(obj, os.PathLike):
        return os.fspath(obj)
    return obj


def _encode(obj: Any) -> Any:
    """What the encoder asks about values that are not JSON's own."""
    if isinstance(obj, np.generic):
        return obj.item()
    if isinstance(obj, np.ndarray):
        return obj.tolist()
    if isinstance(obj, (set, frozenset)):
        return sorted(obj)
    return str(obj)


def canonical(obj: Any, *, compact: bool = False) -> bytes:
    """Canonical JSON: equal content, equal bytes. `compact` leaves out the spaces."""
    separators = (",", ":") if compact else (", ", ": ")
    return json.dumps(obj, sort_keys=True, separators=separators, default=_encode).encode()


def digest(obj: Any, *, compact: bool = False) -> str:
    """SHA-256 of canonical JSON (bytes are taken as they are).

    Stores record digests of the spaced form, runs those of the `compact` one: both stay, so that what an earlier
    release began can be continued.
    """
    return hashlib.sha256(obj if isinstance(obj, bytes) else canonical(obj, compact=compact)).hexdigest()


def dump(obj: Any) -> bytes:
    """The canonical bytes of a file of a store: sorted keys, a line a value; NaN stays as it is."""
    return (json.dumps(obj, sort_keys=True, indent=1, default=_encode) + "\n").encode()


def text(obj: Any) -> str:
    """Indented JSON of :func:`plain` values, for files that people read and for stdout."""
    return json.dumps(plain(obj), indent=2, allow_nan=False) + "\n"


def write_json(path: str | os.PathLike[str], obj: Any, *, sync: bool = True) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of it; `sync` as in `write_file`."""
    write_file(path, text(obj).encode(), sync=sync)


def read_json(path: str | os.PathLike[str], remedy: str = "make it again with the command that wrote it") -> Any:
    """Content of a JSON file.

    Raises
    ------
    StoreError
        It is missing or not JSON; `remedy` says what to do.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(f"{path}: missing", remedy) from None
    except ValueError as err:
        raise StoreError(f"{path}: cannot be read ({err})", remedy) from err
