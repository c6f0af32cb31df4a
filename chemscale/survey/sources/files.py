"""Finding a survey's files, and the text that names stars.

File names and identifiers come from catalogues and disks of strangers. They are treated as
text: never evaluated, never joined to an output path; those that cannot even be written to
a UTF-8 report are turned away.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterator

from chemscale.errors import InputError
from chemscale.formats.paths import is_remote, printable
from chemscale.survey.sources.base import Rejection

MAX_ID = 128


def id_problem(star_id: str) -> str:
    """Why `star_id` cannot name a star; '' when it can.

    Any printable text of 1 to 128 characters will do (``../x`` and ``<script>`` too: ids
    never become paths, and reports escape them).
    """
    if not star_id.strip():
        return "identifier is empty: nothing, or a word for none (nan, N/A, --)"
    if len(star_id) > MAX_ID:
        return f"identifier has {len(star_id)} characters, more than {MAX_ID}"
    if not (star_id.isascii() and star_id.isprintable()) and any(
        unicodedata.category(c) in {"Cc", "Cs", "Cn", "Co"} for c in star_id
    ):
        return "identifier holds control characters or undecodable bytes"
    return ""


def find_files(
    root: str, accept: Callable[[str], object], *, broken: list[Rejection] | None = None
) -> Iterator[tuple[str, str]]:
    """Walk `root` recursively and yield (full path, path relative to `root`) in a stable order.

    One `scandir` a directory and no `stat` of plain files, so that a release of 730,000
    files is listed at the speed of the file system. Symbolic links are followed; a link
    back to a directory already visited is not (a loop ends). `root` may be a single file or
    an fsspec URL.

    Parameters
    ----------
    root : str
        Directory, file or URL.
    accept : callable
        Gets a file name, says whether it is one of the survey's.
    broken : list of Rejection, optional
        Receives accepted names that are broken links or not files, and unreadable directories.

    Raises
    ------
    InputError
        `root` does not exist or cannot be listed.
    """
    broken = broken if broken is not None else []
    if is_remote(root):
        yield from _find_remote(root, accept)
        return
    root = os.path.abspath(root)
    if os.path.isfile(root):
        yield root, os.path.basename(root)
        return
    if not os.path.isdir(root):
        raise InputError(f"no such directory: {printable(root)}", "give the folder that holds the spectra")
    yield from _walk(root, "", accept, broken, {_identity(root)})


def _identity(path: str) -> tuple[int, int]:
    info = os.stat(path)
    return info.st_dev, info.st_ino


def _walk(
    folder: str, relative: str, accept: Callable[[str], object], broken: list[Rejection], seen: set[tuple[int, int]]
) -> Iterator[tuple[str, str]]:
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda e: e.name)
    except OSError as error:
        if not relative:
            raise InputError(f"cannot list {printable(folder)}: {error.strerror}", "check its permissions") from error
        broken.append(Rejection(printable(folder), f"directory cannot be listed: {error.strerror}", stage="plan"))
        return
    for entry in entries:
        inside = f"{relative}/{entry.name}" if relative else entry.name
        try:
            if entry.is_dir():
                where = _identity(entry.path)
                if where not in seen:
                    seen.add(where)
                    yield from _walk(entry.path, inside, accept, broken, seen)
                continue
            is_file = entry.is_file()
        except OSError:  # a link that points at itself
            is_file = False
        if not accept(entry.name):
            continue
        if is_file:
            yield entry.path, inside
        else:
            reason = "broken or circular symbolic link" if entry.is_symlink() else "not a regular file"
            broken.append(Rejection(printable(entry.path), reason, stage="plan"))


def _find_remote(root: str, accept: Callable[[str], object]) -> Iterator[tuple[str, str]]:
    import fsspec

    fs, base = fsspec.core.url_to_fs(root)
    scheme = root.split("://", 1)[0]
    try:
        found = sorted(fs.find(base))
    except OSError as error:
        raise InputError(f"cannot list {root}: {error}", "check the address and the credentials") from error
    if not found:
        raise InputError(f"nothing found at {root}", "give the prefix that holds the spectra")
    for key in found:
        if accept(key.rsplit("/", 1)[-1]):
            yield f"{scheme}://{key}", key[len(base) :].lstrip("/") or key.rsplit("/", 1)[-1]
