"""Signs of life of planning tasks: a small file that a task writes while it gets on, and the driver's watch over it.

In:  what a task does. Out: PART.at, `NUMBER COUNT` (the video it is at, and how often it has moved); which parts stand still.
Called by: pipeline.ray_plan (writes), pipeline.ray_planning (watches).

Decoding hangs in a child with limits of its own; what can still hang is all that a task does itself (a network file system, a
server that never answers, a captioner on a sick GPU) and its whole process (frozen, or on a host that is cut off). A file is
seen in all these cases, needs no word from the hung process, and says which video it was.
"""

from __future__ import annotations

import errno
import time
from pathlib import Path

_EVERY = 1.0
"""Seconds between two writings."""


class Sign:
    """The task's side."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._number = self._count = 0
        self._wrote = 0.0

    def at(self, number: int) -> None:
        """Say that video `number` of the part begins."""
        self._number = number
        self._write()

    def beat(self) -> None:
        """Say that something has moved (a frame was decoded, a block was copied)."""
        if time.monotonic() - self._wrote >= _EVERY:
            self._write()

    def _write(self) -> None:
        self._count += 1
        self._wrote = time.monotonic()
        try:
            self._path.write_text(f"{self._number} {self._count}\n")
        except OSError as error:
            # A full disk is for the commit of the part to say (ledger.DiskFull).
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise


class Watch:
    """The driver's side: parts that run, and since when each stands still. `now` is a monotonic clock's seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._seen: dict[Path, tuple[str, float]] = {}

    def begin(self, path: Path) -> None:
        """Forget what an earlier try has left; call before the task is handed out."""
        path.unlink(missing_ok=True)
        self._seen.pop(path, None)

    def stands_still(self, path: Path, now: float) -> bool:
        """Whether the task's file has not changed for too long. A task that has not begun (no CPU is free) has no file yet."""
        try:
            text = path.read_text()
        except FileNotFoundError:
            return False
        if path not in self._seen or self._seen[path][0] != text:
            self._seen[path] = (text, now)
        return now - self._seen[path][1] > self._seconds

    def position(self, path: Path) -> int | None:
        """Number of the video in its part that the task was last seen at."""
        text, _ = self._seen.get(path, ("", 0.0))
        number = text.partition(" ")[0]
        return int(number) if number.isdigit() else None
