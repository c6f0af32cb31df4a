"""Memory a worker frees: given back to the system, or kept for the next piece of the same work."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

#: glibc's mallopt parameters, and the thresholds it starts with.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_DEFAULT = 128 << 10
#: Blocks up to this come from the heap (the largest value glibc takes), which keeps this much when they are freed.
_LARGEST_MMAP, _KEPT = 32 << 20, 256 << 20
_lock = threading.Lock()
_inside = 0


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Within this block memory that is freed stays with the process; at its end it all goes back.

    Dask sets ``MALLOC_TRIM_THRESHOLD_`` in its workers so that freed memory returns to the system at once. Work
    that fills and frees buffers of the same sizes thousands of times then gets every one of them from the
    kernel page by page, each page cleared first: for the ingestion of small files that was 40 % of the time.

    Only where that variable is set and the C library is glibc; elsewhere nothing happens. Threads may overlap.
    """
    global _inside
    glibc = _glibc()
    if glibc is None:
        yield
        return
    with _lock:
        _inside += 1
        if _inside == 1:
            glibc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP)
            glibc.mallopt(_M_TRIM_THRESHOLD, _KEPT)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                glibc.mallopt(_M_MMAP_THRESHOLD, _DEFAULT)
                glibc.mallopt(_M_TRIM_THRESHOLD, int(os.environ["MALLOC_TRIM_THRESHOLD_"]))
                glibc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not os.environ.get("MALLOC_TRIM_THRESHOLD_", "").isdigit():
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None


class PeakMemory(threading.Thread):
    """Largest resident memory of this process and its children, sampled while a stage runs."""

    def __init__(self, interval: float = 0.25):
        super().__init__(daemon=True)
        self.peak = 0
        self._stop_event = threading.Event()
        self._interval = interval

    def run(self) -> None:
        """Look every so often until stopped."""
        me = psutil.Process()
        while not self._stop_event.wait(self._interval):
            self.sample(me)

    def sample(self, me: psutil.Process) -> None:
        """Look once."""
        try:
            total = me.memory_info().rss
            for child in me.children(recursive=True):
                try:
                    total += child.memory_info().rss
                except psutil.Error:
                    continue
        except psutil.Error:
            return
        self.peak = max(self.peak, total)

    def stop(self) -> float:
        """End the thread; the peak in bytes."""
        self._stop_event.set()
        self.join()
        self.sample(psutil.Process())
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return max(self.peak, 0) or float(own)
