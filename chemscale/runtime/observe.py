"""Seeing what a run does: logs, progress, memory, Dask's performance report, and an estimate beforehand.

Everything goes to stderr; progress bars appear on a terminal only, and nothing here changes a result.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from chemscale.errors import DataError

if TYPE_CHECKING:
    from distributed import Client

T = TypeVar("T")
logger = logging.getLogger(__name__)

#: Seconds between two lines of progress where there is no terminal.
LINE_SECONDS = 30.0
#: Share of a worker's memory limit the work may plan for; the rest is for imports and the unforeseen.
PLANNED_SHARE = 0.6


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and what was passed as ``extra={"facts": {...}}``."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        facts = getattr(record, "facts", None)
        if facts:
            entry["facts"] = facts
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def setup_logging(level: str = "INFO", file: str | os.PathLike[str] | None = None) -> None:
    """Log to stderr (for people) and, with `file`, to a file of JSON lines (for programs).

    May be called again; the handlers of the call before are replaced.
    """
    from rich.console import Console
    from rich.logging import RichHandler

    root = logging.getLogger("chemscale")
    root.setLevel(level.upper())
    for handler in list(root.handlers):
        if getattr(handler, "_chemscale", False):
            root.removeHandler(handler)
            handler.close()
    handlers: list[logging.Handler] = [
        RichHandler(console=Console(stderr=True), show_path=False, markup=False, rich_tracebacks=False)
        if sys.stderr.isatty()
        else _plain_handler()
    ]
    if file is not None:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        to_file = logging.FileHandler(file, encoding="utf-8")
        to_file.setFormatter(JsonFormatter())
        handlers.append(to_file)
    for handler in handlers:
        handler._chemscale = True  # type: ignore[attr-defined]
        root.addHandler(handler)


def _plain_handler() -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    return handler


class Progress:
    """Handle of a running bar: `advance` by a number of units, `describe` anew."""

    def __init__(self, total: float | None, description: str, unit: str):
        self.total, self.description, self.unit = total, description, unit
        self.done = 0.0
        self.at_most = False
        self.started = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def advance(self, n: float = 1) -> None:
        """Count `n` more units as done."""
        self.done += n
        if self._bar is not None:
            self._bar.update(self._task, advance=n, rate=f"{human(self.rate)} {self.unit}/s")

    def describe(self, text: str) -> None:
        """Change the text before the bar."""
        self.description = text
        if self._bar is not None:
            self._bar.update(self._task, description=text)

    def expect(self, total: float, at_most: bool = False) -> None:
        """Change the number of units there will be, or that there will be at most: the time left follows it."""
        self.total, self.at_most = total, at_most
        if self._bar is not None:
            self._bar.update(self._task, total=total)

    def line(self) -> str:
        """How far the work is: description, units done, time taken and left."""
        done = f"{self.done:,.0f}" + (f" of {self.total:,.0f}" if self.total else "")
        told = f"{self.description or 'working'}: {done} {self.unit}, {human_seconds(self.seconds)} so far"
        if self.total and 0 < self.done < self.total:
            left = human_seconds((self.total - self.done) * self.seconds / self.done)
            told += f", {'at most' if self.at_most else 'about'} {left} left"
        return told

    @property
    def seconds(self) -> float:
        """Since the bar was started."""
        return time.monotonic() - self.started

    @property
    def rate(self) -> float:
        """Units a second so far."""
        return self.done / self.seconds if self.seconds > 0 else 0.0


@contextmanager
def _lines(handle: Progress) -> Iterator[None]:
    """Say on stderr every :data:`LINE_SECONDS` how far the work is, also while nothing advances."""
    stop = threading.Event()

    def say() -> None:
        while not stop.wait(LINE_SECONDS):
            sys.stderr.write(handle.line() + "\n")
            sys.stderr.flush()

    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def progress_bar(
    total: float | None, description: str = "", *, unit: str = "it", show: bool | None = None
) -> Iterator[Progress]:
    """A bar on stderr with rate and time left; without a terminal, a line every :data:`LINE_SECONDS`.

    `show`: True for a bar, False for silence, whatever stderr is.
    """
    handle = Progress(total, description, unit)
    if show is False:
        yield handle
        return
    if show is None and not sys.stderr.isatty():
        with _lines(handle):
            yield handle
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bar:
        handle._bar = bar
        handle._task = bar.add_task(description, total=total, rate="")
        yield handle


def progress(
    items: Iterable[T], description: str = "", *, total: int | None = None, unit: str = "it", show: bool | None = None
) -> Iterator[T]:
    """Yield from `items` under a bar (see :func:`progress_bar`)."""
    if total is None:
        total = len(items) if hasattr(items, "__len__") else None  # type: ignore[arg-type]
    with progress_bar(total, description, unit=unit, show=show) as bar:
        for item in items:
            yield item
            bar.advance()


def human(value: float) -> str:
    """A number with an SI letter: 12.3k, 4.56M."""
    for limit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{letter}"
    return f"{value:.3g}"


def human_seconds(value: float) -> str:
    """A duration: 12 s, 3 min, 2.1 h, 1.4 d."""
    for limit, unit in ((172800, "d"), (5400, "h"), (90, "min")):
        if value >= limit:
            return f"{value / {'d': 86400, 'h': 3600, 'min': 60}[unit]:.1f} {unit}"
    return f"{value:.1f} s"


def _own_peak() -> int:
    """Largest resident memory of this process, since :func:`_forget_peak` where the system can tell."""
    try:
        with open("/proc/self/status", encoding="ascii") as f:
            return next(int(line.split()[1]) * 1024 for line in f if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM
    except OSError:
        return


def worker_peaks(client: Client) -> dict[str, int]:
    """Largest resident memory of each worker, in bytes, by worker address: since :func:`forget_peaks`, or ever."""
    return {str(k): int(v) for k, v in client.run(_own_peak, on_error="ignore").items() if isinstance(v, int)}


def forget_peaks(client: Client) -> None:
    """Let :func:`worker_peaks` begin anew, so that each stage has its own (Linux; elsewhere nothing happens)."""
    client.run(_forget_peak, on_error="ignore")


@contextmanager
def performance_report(client: Client | None, file: str | os.PathLike[str]) -> Iterator[None]:
    """Dask's performance report (HTML) of the block, written to `file`. Nothing without a client.

    A report that cannot be written (the scheduler is gone, Bokeh is not installed) is a
    warning: it must not lose the work it describes.
    """
    if client is None or not _has_bokeh():
        if client is not None:
            logger.debug("no performance report: bokeh is not installed")
        yield
        return
    from distributed import performance_report as report

    Path(file).parent.mkdir(parents=True, exist_ok=True)
    inner = report(filename=str(file))
    inner.__enter__()
    try:
        yield
    except BaseException:
        raise
    else:
        try:
            inner.__exit__(None, None, None)
        except Exception as err:
            logger.warning("no performance report %s: %s", file, err)


def _has_bokeh() -> bool:
    import importlib.util

    return importlib.util.find_spec("bokeh") is not None


@dataclass(frozen=True)
class Estimate:
    """Memory a stage is expected to need in each worker, and how many workers fit."""

    bytes_per_task: int
    tasks_at_once: int
    fixed_bytes: int

    @property
    def bytes_per_worker(self) -> int:
        """Model and imports, and one block for every thread."""
        return self.fixed_bytes + self.bytes_per_task * self.tasks_at_once


def estimate_memory(
    stars: int, pixels: int, *, threads: int = 1, copies: float = 3.0, fixed: int = 400_000_000, itemsize: int = 9
) -> Estimate:
    """Memory of a worker that works through blocks of `stars` spectra.

    Parameters
    ----------
    stars, pixels : int
        Shape of a block.
    threads : int
        Blocks worked on at once.
    copies : float
        Times a block exists while it is worked on (read, unpacked, float64 products).
    fixed : int
        Imports and models, bytes.
    itemsize : int
        Bytes a pixel: flux and ivar float32, flags uint8.
    """
    return Estimate(int(stars * pixels * itemsize * copies), threads, fixed)


def check_worker_memory(client: Client, need: Estimate) -> None:
    """Refuse work that will not fit into the workers' limits, before it starts.

    Raises
    ------
    DataError
        Names the smallest worker, its limit and what is needed.
    """
    from rich.filesize import decimal

    limits = {a: w["memory_limit"] for a, w in client.scheduler_info(n_workers=-1)["workers"].items()}
    small = {a: m for a, m in limits.items() if m and m * PLANNED_SHARE < need.bytes_per_worker}
    if small:
        address, limit = min(small.items(), key=lambda pair: pair[1])
        raise DataError(
            f"worker {address} may use {decimal(limit)}; this work plans for "
            f"{decimal(need.bytes_per_worker)} in each worker",
            "fewer and larger workers (workers, memory in [cluster]), or smaller chunks",
        )


def storage_speed(path: str | os.PathLike[str], *, seconds: float = 2.0, sample: int = 64) -> float | None:
    """Bytes a second the files below `path` can be read at by one process, measured; None where there are none.

    Largest files first, dropped from the page cache as far as the system allows.
    """
    if "://" in str(path):
        return None
    sizes = sorted(((f.stat().st_size, f) for f in Path(path).rglob("*") if f.is_file()), reverse=True)[:sample]
    read, start = 0, time.perf_counter()
    for _, file in sizes:
        with open(file, "rb", buffering=0) as f:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while chunk := f.read(1 << 22):
                read += len(chunk)
                if time.perf_counter() - start > seconds:
                    break
        if time.perf_counter() - start > seconds:
            break
    elapsed = time.perf_counter() - start
    return read / elapsed if read else None


def summary_line(done: str, n: int, unit: str, seconds: float, n_bytes: int = 0, limit: float | None = None) -> str:
    """The line at the end: what was done, how fast, and against the storage's own limit."""
    from rich.filesize import decimal

    line = f"{done}: {n:,} {unit} in {human_seconds(seconds)} ({human(n / max(seconds, 1e-9))} {unit}/s"
    if n_bytes:
        rate = n_bytes / max(seconds, 1e-9)
        line += f", {decimal(int(rate))}/s"
        if limit:
            line += f", {100 * rate / limit:.0f} % of what the storage gives one reader"
    return line + ")"
