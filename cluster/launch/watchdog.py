"""Detects a job that still runs but makes no progress, such as one whose ranks wait for each other.

In:  a file that a healthy job appends to (RUN/metrics.jsonl gets a line per step), and how long it may stay unchanged.
Out: one call of `on_stall` when it stays unchanged for longer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType


@dataclass(frozen=True)
class StallLimit:
    """A file that shows progress, and how long it may stay unchanged."""

    file: Path
    seconds: float
    """Counted from the start of the job or the last change; loading, and the slowest checkpoint, must take less."""


class Watchdog:
    """Context manager; while it is open, `on_stall(reason)` is called once if the file stays unchanged for too long."""

    def __init__(self, limit: StallLimit, on_stall: Callable[[str], None]) -> None:
        self._limit, self._on_stall = limit, on_stall
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="watchdog", daemon=True)

    def _state(self) -> tuple[int, int]:
        try:
            found = self._limit.file.stat()
        except FileNotFoundError:
            return (0, 0)
        return (found.st_mtime_ns, found.st_size)

    def _poll(self) -> None:
        last, since = self._state(), time.monotonic()
        while not self._closed.wait(min(5.0, self._limit.seconds / 10)):
            now = self._state()
            if now != last:
                last, since = now, time.monotonic()
            elif time.monotonic() - since > self._limit.seconds:
                self._on_stall(f"{self._limit.file} has not changed for {self._limit.seconds:g} s")
                return

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closed.set()
        self._thread.join()
