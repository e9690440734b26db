"""Progress of a long task: a bar on a terminal, an occasional line in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class ProgressBar:
    """Context manager over `total` units of work, 0 where nobody knows; `update` advances it.

    On a terminal it draws a bar; elsewhere (the log of a Ray job, a file) it prints a line at most every `every` seconds and one
    at the end. done: units that an earlier start finished. `enabled=False` prints nothing, for ranks other than 0. stderr: for commands
    whose output is an answer.
    """

    def __init__(
        self, label: str, total: int, *, done: int = 0, enabled: bool = True, every: float = 5.0, stderr: bool = False
    ) -> None:
        self.label, self.total, self.done, self.every = label, total, done, every
        self._enabled, self._stderr = enabled, stderr
        self._start = time.monotonic()
        self._began_at = done
        self._last = self._start
        self._bar: Progress | None = None
        self._note = ""

    def __enter__(self) -> ProgressBar:
        console = Console(stderr=self._stderr)
        if self._enabled and console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=console,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.label, total=self.total or None, completed=self.done, note="")
        return self

    def update(self, amount: int = 1, note: str = "") -> None:
        """Add `amount` finished units; `note` is a short text to show, such as `loss 0.612`."""
        self.done += amount
        self._note = note or self._note
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, note=self._note)
        elif self._enabled and time.monotonic() - self._last >= self.every:
            self._print()

    def _print(self) -> None:
        now = time.monotonic()
        self._last = now
        elapsed = now - self._start
        rate = (self.done - self._began_at) / elapsed if elapsed > 0 else 0.0
        left = f", {(self.total - self.done) / rate:.0f} s left" if rate > 0 and self.done < self.total else ""
        share = f"/{self.total} ({100 * self.done / self.total:.0f} %)" if self.total else ""
        note = f", {self._note}" if self._note else ""
        line = f"{self.label}: {self.done}{share}, {elapsed:.0f} s{left}{note}"
        print(line, flush=True, file=sys.stderr if self._stderr else sys.stdout)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._enabled and self.done != self._began_at:
            self._print()
