"""Requests to stop: SIGTERM or SIGUSR1 (preemption), SIGINT, the file RUN/stop, train.stop_after.

Out: `asked()`. The loop adds it to each step's all-reduce, so that all ranks stop after the same step, with a checkpoint: the step
     that is under way when the sum is read, one after the one that carried it. `planned()` needs no sum, all ranks know it.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""SIGUSR1 is what `sbatch --signal=USR1@300` sends to every process of a step."""


class StopRequest:
    """Listens for signals from its construction on, which must be in the main thread."""

    def __init__(self, run: Path, stop_after: int) -> None:
        self.file, self.stop_after = run / "stop", stop_after
        self.reason = ""
        for number in SIGNALS:
            signal.signal(number, self._on_signal)
        # A launcher starts its ranks with these blocked; one that came while this process loaded is delivered now.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.reason = signal.Signals(number).name

    def planned(self, step: int) -> bool:
        """Whether the configuration stops the run after `step`."""
        return bool(self.stop_after) and step >= self.stop_after

    def asked(self, step: int) -> bool:
        """Whether the run should stop after `step`."""
        if not self.reason and self.planned(step):
            self.reason = f"train.stop_after={self.stop_after}"
        if not self.reason and self.file.exists():
            self.reason = str(self.file)
        return bool(self.reason)

    def clear(self, failed: Callable[[OSError], None]) -> None:
        """Remove the stop file, so that the next start continues. failed: called if it cannot be."""
        try:
            self.file.unlink(missing_ok=True)
        except OSError as error:
            failed(error)
