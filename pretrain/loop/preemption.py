"""Requests to stop: SIGTERM (preemption), SIGINT, the file RUN/stop, train.stop_after.

Out: `asked()`; the loop adds it to the sum over ranks, so that all ranks stop after the same step with a checkpoint.
Called by: train.py. The exit code of a stop is EXIT_STOPPED.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

EXIT_STOPPED = 75
"""EX_TEMPFAIL: stopped cleanly with a checkpoint; the same command goes on from there."""


class StopRequest:
    """Listens from construction on. Main thread only (signal handlers)."""

    def __init__(self, run: Path, stop_after: int) -> None:
        self.file, self.stop_after = run / "stop", stop_after
        self.reason = ""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.reason = signal.Signals(number).name

    def asked(self, step: int) -> bool:
        """Whether the run should stop after `step`."""
        if not self.reason and self.stop_after and step >= self.stop_after:
            self.reason = f"train.stop_after={self.stop_after}"
        if not self.reason and self.file.exists():
            self.reason = str(self.file)
        return bool(self.reason)

    def clear(self) -> None:
        """Remove the stop file, so that the next start goes on."""
        self.file.unlink(missing_ok=True)


def leave(code: int) -> NoReturn:
    """End the process at once with `code`, when all files are closed.

    Threads of torch and gloo may still be inside C++ when the interpreter takes itself down, which then aborts a rank whose
    work is done (seen once in about fifty starts: "terminate called without an active exception").
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
