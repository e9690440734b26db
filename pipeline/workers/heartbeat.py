"""Heartbeats of planning tasks: a small file that a task rewrites while it makes progress, and the driver's check of it.

In:  the progress of a task. Out: PART.at with `NUMBER COUNT` (the video it is at, and how often it has written); stalled parts.

A hang in decoding is the child's, which has limits of its own. What else can hang is the task itself (a network file system, a
server that never answers, a captioner on a failing GPU) and its whole process (frozen, or on a host that is cut off). A file shows
all of these, needs no answer from the process that hangs, and names the video.
"""

from __future__ import annotations

import errno
import time
from pathlib import Path

_EVERY = 1.0
"""Seconds between two writes."""


class HeartbeatFile:
    """The task's side."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._number = self._count = 0
        self._wrote = 0.0

    def at(self, number: int) -> None:
        """Record that video `number` of the part begins."""
        self._number = number
        self._write()

    def beat(self) -> None:
        """Record progress within the video: a frame was decoded, a block was copied."""
        if time.monotonic() - self._wrote >= _EVERY:
            self._write()

    def _write(self) -> None:
        self._count += 1
        self._wrote = time.monotonic()
        try:
            self._path.write_text(f"{self._number} {self._count}\n")
        except OSError as error:
            # A full disk is reported when the part is committed (DiskFull).
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise


class StallDetector:
    """The driver's side: running parts, and since when the file of each has not changed. `now` is the monotonic clock's seconds.

    seconds: how long a file may stay the same.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._seen: dict[Path, tuple[str, float]] = {}

    def reset(self, path: Path) -> None:
        """Remove what an earlier attempt left; call it before the task is submitted."""
        path.unlink(missing_ok=True)
        self._seen.pop(path, None)

    def stalled(self, path: Path, now: float) -> bool:
        """Return whether the task's file has not changed for too long. A task that waits for a free CPU has no file yet."""
        try:
            text = path.read_text()
        except FileNotFoundError:
            return False
        if path not in self._seen or self._seen[path][0] != text:
            self._seen[path] = (text, now)
        return now - self._seen[path][1] > self._seconds

    def position(self, path: Path) -> int | None:
        """Return the number of the video in its part that the task was last seen at."""
        text, _ = self._seen.get(path, ("", 0.0))
        number = text.partition(" ")[0]
        return int(number) if number.isdigit() else None
