"""A run directory: every product of one analysis and the manifest that explains them.

``manifest.json`` is rewritten atomically after every stage, so a run that was killed still
tells which of its products are whole.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chemscale._version import __version__
from chemscale.display import Shown, number, table
from chemscale.errors import InputError, StoreError
from chemscale.runtime.contents import MADE_FROM, PRODUCTS
from chemscale.runtime.jsonio import digest, plain, read_json, write_json
from chemscale.runtime.locks import lock
from chemscale.runtime.memory import PeakMemory
from chemscale.runtime.product import (
    RECORD,
    check_bound,
    discard,
    identity_of,
    in_order,
    plain_files,
    record_of,
    remove_partials,
    size_and_checksum,
    with_record,
    write_dataset,
)

if TYPE_CHECKING:
    import xarray as xr

MANIFEST = "manifest.json"
LOCK = ".lock.json"
RUN_VERSION = 1
#: Options of the command that is running, where they differ from the defaults, and where each came from.
SETTINGS: ContextVar[dict[str, Any]] = ContextVar("settings", default={})  # noqa: B039 - never changed in place
_PACKAGES = ("numpy", "scipy", "scikit-learn", "dask", "distributed", "dask-ml", "xarray", "zarr", "torch", "astropy")


def versions() -> dict[str, str]:
    """Versions of chemscale, Python and the packages results depend on."""
    found = {"chemscale": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def invocation() -> dict[str, Any]:
    """How to do it again: the command that is running, its settings and the CHEMSCALE_* environment.

    ``settings`` holds every option of the verb that does not have its default, with where it came from: a settings
    file or ``--set``, the environment, the command line.
    """
    program = Path(sys.argv[0]).name
    command = ["chemscale", *sys.argv[1:]] if program in ("chemscale", "__main__.py") else [program]
    environment = {k: v for k, v in os.environ.items() if k.startswith("CHEMSCALE_")}
    return {"command": command, "environment": environment, "settings": SETTINGS.get()}


class StageNotes:
    """Handle given to the body of ``with run.stage(...)``; `note` adds facts to the manifest."""

    def __init__(self, name: str):
        self.name = name
        self.facts: dict[str, Any] = {}

    def note(self, **facts: Any) -> None:
        """Record facts about this stage (counts, passes, choices made)."""
        self.facts.update(plain(facts))


class Run(Shown):
    """A run directory.

    Parameters
    ----------
    path : path-like
        The directory; use :meth:`create` or :meth:`open` rather than the constructor.
    manifest : dict
        Contents of ``manifest.json``.
    """

    def __init__(self, path: str | os.PathLike[str], manifest: dict[str, Any]):
        self.path = Path(path)
        self.manifest = manifest

    @classmethod
    def create(cls, path: str | os.PathLike[str], *, store: str | None = None, overwrite: bool = False) -> Run:
        """Start a run, or carry on one that works on the same store.

        Raises
        ------
        InputError
            The directory exists and is not a run, or is a run on another store.
        """
        target = Path(path)
        store = cls._resolve(store) if store is not None else None
        if (target / MANIFEST).exists():
            run = cls.open(target)
            if store is None or run.manifest.get("store") in (store, None):
                if store is not None and run.manifest.get("store") is None:
                    run.manifest["store"] = store
                    run.save()
                return run
            if not overwrite:
                raise InputError(
                    f"{target} is a run on another survey ({run.manifest.get('store')})",
                    "choose another --run directory, or pass --overwrite to start it anew",
                )
            run.manifest = cls._fresh(store)
            run.save()
            return run
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise InputError(f"{target} exists and is not a chemscale run", "choose a new or empty --run directory")
        target.mkdir(parents=True, exist_ok=True)
        run = cls(target, cls._fresh(store))
        run.save()
        return run

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Run:
        """Open an existing run.

        Raises
        ------
        StoreError
            No manifest there, or one written by a newer chemscale.
        """
        file = Path(path) / MANIFEST
        try:
            manifest = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise StoreError(
                f"{path} is not a chemscale run (no {MANIFEST})",
                "start one with `chemscale rsca fit STORE --run RUN`",
            ) from None
        except (json.JSONDecodeError, UnicodeDecodeError) as err:
            raise StoreError(f"{file} cannot be read: {err}", "restore it or start a new run") from err
        if manifest.get("run_version", 0) > RUN_VERSION:
            raise StoreError(f"{path} was made by a newer chemscale", "upgrade chemscale")
        return cls(path, manifest)

    @staticmethod
    def _resolve(store: str) -> str:
        return store if "://" in str(store) else str(Path(store).resolve())

    @staticmethod
    def _fresh(store: str | None) -> dict[str, Any]:
        return {
            "run_version": RUN_VERSION,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "store": store,
            "versions": versions(),
            "stages": {},
        }

    @property
    def store(self) -> str:
        """Path or URL of the survey store this run works on."""
        store = self.manifest.get("store")
        if not store:
            raise StoreError(f"{self.path}: no survey store is recorded", "run `chemscale rsca fit STORE --run RUN`")
        return store

    def file(self, name: str) -> str:
        """Path of a product inside the run directory."""
        return str(self.path / name)

    def need(self, name: str, command: str) -> str:
        """Path of a product that must exist, be whole and belong to what it was made from.

        Raises
        ------
        StoreError
            It is not, or does not: the error names the command that makes it.
        """
        file = self.file(name)
        if not os.path.exists(file):
            raise StoreError(f"{self.path} has no {name} yet", f"run `{command}` first")
        self.check(name)
        return file

    def check(self, name: str) -> None:
        """Refuse a product that is damaged, or was made from something else than what is there now.

        Raises
        ------
        StoreError
        """
        _, command = MADE_FROM.get(name, ((), ""))
        remedy = f"run `{command.replace('RUN', str(self.path))}` again" if command else "make it again"
        check_bound(self.path / name, remedy, self.identity)

    def identity(self, name: str) -> str | None:
        """Identity of a product as it is now; None where there is none to tell it by."""
        return identity_of(self.path / name)

    def inputs(self, name: str) -> dict[str, str | None]:
        """What a product of this name would be made from now: input -> identity."""
        return {other: self.identity(other) for other in MADE_FROM.get(name, ((), ""))[0]}

    def has(self, name: str) -> bool:
        """Whether a product is there."""
        return os.path.exists(self.file(name))

    def save(self) -> None:
        """Write the manifest (atomically)."""
        content = {k: v for k, v in plain(self.manifest).items() if k != "checksum"}
        write_json(self.path / MANIFEST, content | {"checksum": digest(content)})

    def seal_files(self, since: float) -> None:
        """Note size and checksum of the plain files written `since` (seconds since the epoch), for ``verify --run``."""
        known = self.manifest.setdefault("files", {})
        for name, file in plain_files(self.path):
            if file.stat().st_mtime >= since:
                known[name] = list(size_and_checksum(file))
        for name in [n for n in known if not (self.path / n).exists()]:
            del known[name]

    def save_json(self, name: str, obj: Any) -> str:
        """Write a JSON product atomically, bound to its inputs, and return its path."""
        file = self.file(name)
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        write_json(file, with_record(obj, self.inputs(name)) if name in MADE_FROM else obj)
        return file

    def load_json(self, name: str) -> Any:
        """Read a JSON product.

        Raises
        ------
        StoreError
            Missing, damaged, or made from something else than what is there now.
        """
        self.check(name)
        content = read_json(self.file(name))
        if isinstance(content, dict):
            content.pop(RECORD, None)
        return content

    def seal_file(self, file: Path) -> None:
        """Note size and checksum of one file of the run that no stage wrote."""
        with self.locked():
            self.manifest = Run.open(self.path).manifest
            known = self.manifest.setdefault("files", {})
            known[file.absolute().relative_to(self.path.absolute()).as_posix()] = list(size_and_checksum(file))
            self.save()

    def save_dataset(self, name: str, ds: xr.Dataset, **options: Any) -> str:
        """Write a Zarr product, whole or not at all, bound to its inputs; returns its path."""
        write_dataset(self.path / name, ds, self.inputs(name), **options)
        return self.file(name)

    def open_dataset(self, name: str, **options: Any) -> xr.Dataset:
        """Open a Zarr product lazily.

        Raises
        ------
        StoreError
            Missing, damaged, or made from something else than what is there now.
        """
        import xarray as xr

        ds = xr.open_zarr(self.need(name, MADE_FROM[name][1]), consolidated=False, **options)
        ds.attrs.pop(RECORD, None)
        return in_order(ds)

    def forget(self, *names: str) -> None:
        """Remove products that a new one makes wrong."""
        for name in names:
            if self.has(name):
                discard(self.path / name)

    def forget_outdated(self, name: str) -> None:
        """Remove a product unless it would be made from the same things now: none other, none more, none less."""
        try:
            record = record_of(self.path / name)
        except StoreError:  # damaged
            record = None
        if record is None or record["made_from"] != self.inputs(name):
            self.forget(name)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only process that writes this run.

        Raises
        ------
        StoreError
            Another process is writing it: the message says which, where, and since when.
        """
        with lock(self.path / LOCK, f"{self.path}"):
            yield

    @contextmanager
    def stage(self, name: str, settings: Mapping[str, Any] | None = None) -> Iterator[StageNotes]:
        """Run a stage and record its settings, wall time, peak memory and outcome.

        Peak memory counts this process and its children (local workers).
        """
        with self.locked():
            yield from self._stage(name, settings)

    def _stage(self, name: str, settings: Mapping[str, Any] | None) -> Iterator[StageNotes]:
        stage = StageNotes(name)
        entry: dict[str, Any] = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "settings": plain(dict(settings or {})),
            "invocation": invocation(),
            "status": "running",
        }
        if (self.path / MANIFEST).exists():  # another command may have written since this one opened the run
            there = read_json(self.path / MANIFEST)
            self.manifest |= {k: there[k] for k in ("stages", "files") if k in there}
        remove_partials(self.path)
        self.manifest["stages"][name] = entry
        self.save()
        sampler = PeakMemory()
        sampler.start()
        start, began = time.perf_counter(), time.time() - 1.0
        try:
            yield stage
            entry["status"] = "done"
        except BaseException as err:
            entry["status"] = "failed"
            entry["error"] = f"{type(err).__name__}: {err}"[:2000]
            raise
        finally:
            entry["wall_s"] = round(time.perf_counter() - start, 3)
            entry["peak_memory_mb"] = round(sampler.stop() / 2**20, 1)
            entry["facts"] = stage.facts
            entry["versions"] = versions()
            if entry["status"] == "done":
                self.seal_files(began)
            self.save()

    def products(self) -> dict[str, str]:
        """What the run holds: file name -> what it is, for the products chemscale knows."""
        return {name: meaning for name, meaning in PRODUCTS.items() if self.has(name)}

    def _title(self) -> str:
        return f"Run {str(self.path)!r}"

    def _facts(self) -> dict[str, Any]:
        done = [k for k, v in self.manifest.get("stages", {}).items() if v.get("status") == "done"]
        return {"on": self.manifest.get("store"), "done": ", ".join(done) or "nothing yet"}

    def _details(self) -> str:
        stages = [
            [name, e.get("status", ""), e.get("wall_s", "–"), ", ".join(_facts_of(e))]
            for name, e in self.manifest.get("stages", {}).items()
        ]
        return table(stages, ("stage", "state", "seconds", "facts")) + table(self.products().items(), ("product", "is"))


def _facts_of(entry: Mapping[str, Any]) -> list[str]:
    plain = {k: v for k, v in (entry.get("facts") or {}).items() if not isinstance(v, dict | list)}
    return [f"{k.replace('_', ' ')} {number(v)}" for k, v in plain.items()]
