"""One small view of a folder, on disk or in an object store.

Writes are atomic (temporary name, then rename; object stores put whole objects), so a
reader never meets half a file. Credentials of object stores come from the environment of
the process that reads or writes; nothing here stores or ships them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from chemscale.errors import StoreError
from chemscale.runtime.direct import DirectFile, PlainFile, read_pieces

_T = TypeVar("_T")
#: Waits in seconds before a failed call to an object store is tried again.
RETRY_WAITS = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
#: Part of the temporary name of a file that is being written.
PARTIAL = ".partial-"


def is_remote(path: str | os.PathLike[str]) -> bool:
    """True for URLs such as ``s3://bucket/key``."""
    return "://" in os.fspath(path)


class Folder:
    """Files below one root, addressed by relative names with forward slashes.

    Parameters
    ----------
    root : str or path
        A directory, or a URL that fsspec understands (``s3://bucket/prefix``).

    Instances hold the root only and may be shipped to workers.
    """

    def __init__(self, root: str | os.PathLike[str]):
        text = os.fspath(root)
        self.remote = is_remote(text)
        self.root = text.rstrip("/") if self.remote else os.path.abspath(os.path.expanduser(text))

    def __repr__(self) -> str:
        return f"Folder({self.root!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Folder, (self.root,)

    def sub(self, name: str) -> Folder:
        """The folder `name` below this one ('' = itself)."""
        return Folder(self.where(name)) if name else self

    def where(self, name: str) -> str:
        """Full path or URL of `name`."""
        return f"{self.root}/{name}" if name else self.root

    def _fs(self) -> tuple[Any, str]:
        import fsspec

        try:
            fs, base = fsspec.core.url_to_fs(self.root, use_listings_cache=False)
        except (ImportError, ValueError) as err:
            raise StoreError(f"{self.root}: {err}", "check the URL; s3:// needs `pip install 'chemscale[s3]'`") from err
        return fs, base

    def _remote(self, call: Callable[[Any, str], _T]) -> _T:
        """Run `call(fs, base)`, waiting out interruptions of the server."""
        fs, base = self._fs()
        for wait in (*RETRY_WAITS, None):
            try:
                return call(fs, base)
            except (FileNotFoundError, PermissionError, NotImplementedError):
                raise
            except OSError as err:
                failure = err
            except Exception as err:
                if not _is_transport_error(err):
                    raise
                failure = OSError(str(err))
            if wait is None:
                raise StoreError(
                    f"{self.root}: no answer from the object store ({failure})",
                    "check the server and the credentials in the environment, then run again with --resume",
                ) from failure
            time.sleep(wait)
            fs.invalidate_cache()
        raise AssertionError("unreachable")

    def exists(self, name: str = "") -> bool:
        """Whether file or folder `name` exists."""
        if not self.remote:
            return os.path.lexists(self.where(name))
        return self._remote(lambda fs, base: fs.exists(_join(base, name)))

    def read(self, name: str) -> bytes:
        """Whole content of a file.

        Raises
        ------
        FileNotFoundError
        """
        if not self.remote:
            return Path(self.where(name)).read_bytes()
        return self._remote(lambda fs, base: fs.cat_file(_join(base, name)))

    def write(self, name: str, data: bytes | memoryview, *, sync: bool = False) -> None:
        """Write a file atomically.

        Parameters
        ----------
        name : str
            Relative name; parent folders are made.
        data : bytes-like
            Content.
        sync : bool
            Ask the operating system to put it on the disk before the rename.

        Raises
        ------
        StoreError
            No space left, read-only file system, quota.
        """
        with self.writing(name) as piece:
            piece.put(data)
            piece.commit(sync=sync)

    def writing(self, name: str, *, big: bool = False) -> Writing:
        """Write a file piece by piece (see :class:`Writing`); parents are made, errors are those of :meth:`write`."""
        return Writing(self, name, big=big)

    def checksum(self, name: str) -> tuple[int, int]:
        """CRC32C and bytes of a file as it reads now: from the disk itself, where that can be asked for."""
        import google_crc32c

        if self.remote:
            data = self.read(name)
            return int(google_crc32c.value(data)), len(data)
        crc = size = 0
        for piece in read_pieces(self.where(name)):
            crc = google_crc32c.extend(crc, piece)
            size += len(piece)
        return int(crc), size

    def size(self, name: str) -> int:
        """Bytes of a file."""
        if not self.remote:
            return os.stat(self.where(name)).st_size
        return int(self._remote(lambda fs, base: fs.size(_join(base, name))))

    def list(self, name: str = "") -> list[str]:
        """Names of the entries directly below `name`, sorted; [] where there is no such folder."""
        if not self.remote:
            try:
                return sorted(os.listdir(self.where(name)))
            except (FileNotFoundError, NotADirectoryError):
                return []
        try:
            found = self._remote(lambda fs, base: fs.ls(_join(base, name), detail=False))
        except FileNotFoundError:
            return []
        return sorted({str(f).rstrip("/").rsplit("/", 1)[-1] for f in found} - {""})

    def walk(self) -> Iterator[tuple[str, int]]:
        """Every file below the root: (relative name, bytes)."""
        if not self.remote:
            for folder, _, names in os.walk(self.root):
                for n in names:
                    full = os.path.join(folder, n)
                    yield os.path.relpath(full, self.root).replace(os.sep, "/"), os.lstat(full).st_size
            return
        found, base = self._remote(lambda fs, base: (fs.find(base, detail=True), base))
        for full, info in found.items():
            yield str(full)[len(base) :].lstrip("/"), int(info.get("size") or 0)

    def remove(self, name: str) -> None:
        """Remove a file; nothing happens where there is none."""
        if not self.remote:
            Path(self.where(name)).unlink(missing_ok=True)
            return
        with contextlib.suppress(FileNotFoundError):
            self._remote(lambda fs, base: fs.rm_file(_join(base, name)))

    def remove_tree(self, name: str = "") -> None:
        """Remove a folder and everything below it."""
        if not self.remote:
            shutil.rmtree(self.where(name), ignore_errors=False) if os.path.isdir(self.where(name)) else None
            return
        with contextlib.suppress(FileNotFoundError):
            self._remote(lambda fs, base: fs.rm(_join(base, name), recursive=True))

    def remove_partials(self) -> int:
        """Remove what interrupted writes left under temporary names; returns how many."""
        if self.remote:
            return 0
        left = [n for n, _ in self.walk() if PARTIAL in n.rsplit("/", 1)[-1]]
        for n in left:
            self.remove(n)
        return len(left)

    def zarr_store(self, *, read_only: bool = True) -> Any:
        """A Zarr store on this folder."""
        if not self.remote:
            from zarr.storage import LocalStore

            return LocalStore(self.root, read_only=read_only)
        from zarr.storage import FsspecStore

        self._fs()  # a clear error for an unknown protocol
        return FsspecStore.from_url(self.root, read_only=read_only)


class Writing:
    """A file that is being written: it appears under its name, whole, with :meth:`commit`, or not at all.

    Local files grow on disk under a temporary name, `big` ones past the page cache; objects are gathered in
    memory. Leaving the `with` block without a commit leaves nothing.
    """

    def __init__(self, folder: Folder, name: str, *, big: bool = False):
        self._folder, self._name = folder, name
        self._pieces: list[bytes | memoryview] = []
        self._file: DirectFile | PlainFile | None = None
        if not folder.remote:
            self._path = Path(folder.where(name))
            self._temporary = self._path.with_name(f"{self._path.name}{PARTIAL}{uuid.uuid4().hex[:12]}")
            with self._told():
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = DirectFile(self._temporary) if big else PlainFile(self._temporary)

    def __enter__(self) -> Writing:
        return self

    def __exit__(self, *error: object) -> None:
        self._drop()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as err:
            raise StoreError(
                f"cannot write {self._path}: {err.strerror or err}",
                "make room (or mend the permissions), then run again with --resume",
            ) from err

    def put(self, data: bytes | memoryview) -> None:
        """Append a piece."""
        if self._folder.remote:
            self._pieces.append(data)
            return
        file = self._open_file()
        with self._told():
            file.write(data)

    def commit(self, *, sync: bool = False) -> None:
        """Give the file its name; `sync` asks the operating system to put it on the disk before."""
        if self._folder.remote:
            content = bytes(self._pieces[0]) if len(self._pieces) == 1 else b"".join(self._pieces)
            self._pieces = []
            self._folder._remote(lambda fs, base: fs.pipe_file(_join(base, self._name), content))
            return
        file = self._open_file()
        with self._told():
            file.finish(sync=sync)
            os.replace(self._temporary, self._path)
        self._file = None

    def _open_file(self) -> DirectFile | PlainFile:
        if self._file is None:
            raise ValueError(f"{self._name} is no longer being written")
        return self._file

    def _drop(self) -> None:
        self._pieces = []
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            with contextlib.suppress(OSError):
                self._temporary.unlink(missing_ok=True)
            self._file = None


def write_file(path: str | os.PathLike[str], data: bytes, *, sync: bool = True) -> None:
    """Replace one local file whole: written beside it, put on the disk where `sync` asks for it, then renamed.

    Raises
    ------
    StoreError
        No space left, read-only file system, quota.
    """
    target = Path(path)
    Folder(target.parent).write(target.name, data, sync=sync)


@contextlib.contextmanager
def written_beside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name in the folder of a local file, for a writer that wants a path: it takes the file's name, on
    the disk, when the block ends; after an error nothing is left of it.

    Raises
    ------
    StoreError
        No space left, read-only file system, quota.
    """
    target = Path(path)
    beside = target.with_name(f".{target.stem}{PARTIAL}{uuid.uuid4().hex[:12]}{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, target)
    except OSError as err:
        raise StoreError(
            f"cannot write {target}: {err.strerror or err}", "make room (or mend the permissions), then run it again"
        ) from err
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def _join(base: str, name: str) -> str:
    return f"{base.rstrip('/')}/{name}" if name else base


def _is_transport_error(err: Exception) -> bool:
    """Errors of the HTTP layers below fsspec that are not OSErrors (aiohttp, botocore, urllib3)."""
    return type(err).__module__.split(".")[0] in {"aiohttp", "botocore", "aiobotocore", "urllib3", "fsspec", "asyncio"}
