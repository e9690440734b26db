"""Notices a job that still runs but no longer moves, such as one whose ranks wait for each other.

In:  a file that a healthy job appends to (RUN/metrics.jsonl: a line a step), and how long it may stand still.
Out: one call of `act` when it has.
Called by: `supervise`, once for each start of a job.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType


@dataclass(frozen=True)
class Watch:
    """What moves, and how long it may stand still."""

    file: Path
    seconds: float
    """From the start of the job, or from the file's last change; loading and the longest checkpoint must fit in."""


class Watchdog:
    """Context manager: while it is open, `act(reason)` is called once if the file stands still for too long."""

    def __init__(self, watch: Watch, act: Callable[[str], None]) -> None:
        self._watch, self._act = watch, act
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watchdog", daemon=True)

    def _state(self) -> tuple[int, int]:
        try:
            found = self._watch.file.stat()
        except FileNotFoundError:
            return (0, 0)
        return (found.st_mtime_ns, found.st_size)

    def _look(self) -> None:
        last, since = self._state(), time.monotonic()
        while not self._over.wait(min(5.0, self._watch.seconds / 10)):
            now = self._state()
            if now != last:
                last, since = now, time.monotonic()
            elif time.monotonic() - since > self._watch.seconds:
                self._act(f"{self._watch.file} has not moved for {self._watch.seconds:g} s")
                return

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
