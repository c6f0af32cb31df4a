"""What a long job depends on, so that its continuation can be told from another job.

A job is fingerprinted by its configuration and its input files (name, size, time of last
change). When it is resumed the two are compared, and what differs is said by name.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from chemscale.runtime.files import is_remote
from chemscale.runtime.jsonio import canonical

_BATCH = 512
_THREADS = 16
#: Seconds a file: slower than this, and threads pay.
_SLOW = 50e-6


def parse_partition(text: str) -> tuple[int, int]:
    """``"k/n"`` -> (k, n) with 1 <= k <= n.

    Raises
    ------
    InputError
    """
    from chemscale.errors import InputError

    k, sep, n = text.partition("/")
    if not (sep and k.strip().isdigit() and n.strip().isdigit() and 1 <= int(k) <= int(n)):
        raise InputError(f"--partition {text!r} is not k/n with 1 <= k <= n", "for example --partition 3/16")
    return int(k), int(n)


@dataclass(frozen=True)
class Inputs:
    """Identity of a job's input files, row by row.

    Attributes
    ----------
    key : ndarray (n,) uint64
        Hash of name and path.
    size, modified : ndarray (n,) int64
        Bytes and nanoseconds since the epoch; -1 where the file has neither (object
        stores, generated inputs, files that are gone).
    distinct_bytes : int or None
        Bytes of the distinct files; a table of spectra is one file for many rows. None where not known.
    """

    key: np.ndarray
    size: np.ndarray
    modified: np.ndarray
    distinct_bytes: int | None = None

    @classmethod
    def of(cls, names: Sequence[str], paths: Sequence[str]) -> Inputs:
        """Look at every file once; in threads where the file system answers slowly (a warm disk does not)."""
        key = np.fromiter((_hash64(n, p) for n, p in zip(names, paths, strict=True)), np.uint64, len(names))
        batches = [paths[i : i + _BATCH] for i in range(0, len(paths), _BATCH)]
        stats = []
        begun = time.perf_counter()
        for done, batch in enumerate(batches):
            stats += _stat_batch(batch)
            if time.perf_counter() - begun > _SLOW * len(stats) and len(batches) - done > 4:
                with ThreadPoolExecutor(_THREADS) as pool:
                    stats += [s for some in pool.map(_stat_batch, batches[done + 1 :]) for s in some]
                break
        values = np.array(stats, np.int64).reshape(-1, 2)
        # Rows of one table are "file#row": the same file, size and time, counted once.
        files = {(p.rpartition("#")[0] or p, *stat) for p, stat in zip(paths, stats, strict=True)}
        return cls(key, values[:, 0].copy(), values[:, 1].copy(), sum(size for _, size, _ in files if size > 0))

    def __len__(self) -> int:
        return len(self.key)

    @property
    def total_bytes(self) -> int:
        """Bytes of all files whose size is known."""
        return self.distinct_bytes if self.distinct_bytes is not None else int(self.size[self.size > 0].sum())

    def digest(self, start: int = 0, stop: int | None = None) -> str:
        """Fingerprint of rows ``[start, stop)``."""
        h = hashlib.sha256()
        for column in (self.key, self.size, self.modified):
            h.update(column[start:stop].tobytes())
        return h.hexdigest()

    def pack(self) -> bytes:
        """NPZ bytes."""
        buffer = io.BytesIO()
        distinct = np.array(-1 if self.distinct_bytes is None else self.distinct_bytes)
        np.savez_compressed(buffer, key=self.key, size=self.size, modified=self.modified, distinct_bytes=distinct)
        return buffer.getvalue()

    @classmethod
    def unpack(cls, data: bytes) -> Inputs:
        """Inverse of :meth:`pack`."""
        with np.load(io.BytesIO(data), allow_pickle=False) as npz:
            distinct = int(npz["distinct_bytes"]) if "distinct_bytes" in npz else -1
            return cls(npz["key"], npz["size"], npz["modified"], distinct if distinct >= 0 else None)

    def changes(self, then: Inputs, names: Sequence[str], paths: Sequence[str], *, most: int = 5) -> list[str]:
        """What differs from `then`, as sentences; `names` and `paths` are those of now."""
        said = []
        gone = int(np.sum(~np.isin(then.key, self.key)))
        new = np.flatnonzero(~np.isin(self.key, then.key))
        if gone:
            said.append(f"{gone} input(s) of then are gone (or renamed)")
        if len(new):
            some = ", ".join(f"{names[i]} ({paths[i]})" for i in new[:most])
            said.append(f"{len(new)} input(s) are new: {some}{', ...' if len(new) > most else ''}")
        order = np.argsort(then.key, kind="stable")
        if len(order):
            at = order[np.searchsorted(then.key, self.key, sorter=order).clip(max=len(order) - 1)]
            same = then.key[at] == self.key
            for what, a, b in (("size", self.size, then.size), ("time", self.modified, then.modified)):
                changed = np.flatnonzero(same & (a != b[at]))
                if len(changed):
                    some = ", ".join(str(paths[i]) for i in changed[:most])
                    said.append(
                        f"{len(changed)} file(s) changed in {what}: {some}{', ...' if len(changed) > most else ''}"
                    )
                    break
        if not said and (len(self) != len(then) or np.any(self.key != then.key)):
            said.append("the inputs are listed in another order")
        return said


def _hash64(name: str, path: str) -> int:
    text = f"{name}\0{path}".encode("utf-8", "backslashreplace")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _stat_batch(paths: Iterable[str]) -> list[tuple[int, int]]:
    return [stat_file(p) for p in paths]


def stat_file(path: str) -> tuple[int, int]:
    """(bytes, time of last change in ns) of a file; of ``file#part`` those of the file; (-1, -1) when unknown."""
    if is_remote(path):
        return -1, -1
    for candidate in (path, path.rpartition("#")[0]):
        if not candidate:
            continue
        try:
            s = os.stat(candidate)
        except (OSError, ValueError):
            continue
        return s.st_size, s.st_mtime_ns
    return -1, -1


def files_in(settings: Any) -> dict[str, tuple[int, int]]:
    """Regular files named anywhere in JSON-able settings -> size and time: catalogues a source reads."""
    found: dict[str, tuple[int, int]] = {}
    if isinstance(settings, str):
        if not is_remote(settings) and len(settings) < 4096 and "\0" not in settings and os.path.isfile(settings):
            found[settings] = stat_file(settings)
    elif isinstance(settings, Mapping):
        for value in settings.values():
            found |= files_in(value)
    elif isinstance(settings, (list, tuple)):
        for value in settings:
            found |= files_in(value)
    return found


def differing_keys(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """``key: was A, is B`` for every key whose values differ."""
    said = []
    for key in sorted(set(then) | set(now)):
        a, b = then.get(key), now.get(key)
        if canonical(a) != canonical(b):
            said.append(f"{key}: was {_short(a)}, is {_short(b)}")
    return said


def _short(value: Any, most: int = 120) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= most else text[: most - 3] + "..."
