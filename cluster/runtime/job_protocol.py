"""What a job and its launcher tell each other: requests to stop, the exit codes of every command and rank, token, restarts.

A request to stop is SIGTERM or SIGUSR1 (preemption), SIGINT, the file RUN/stop, or train.stop_after. A loop adds `asked()` to each
step's all-reduce, so that all ranks stop after the same step, with a checkpoint. `planned()` needs no sum, all ranks know it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType

DONE = 0
"""The job is finished."""
FAILED = 1
"""Any failure that has no code of its own."""
USAGE = 2
"""A wrong command line, or a configuration that cannot run; a restart would fail the same way."""
STOPPED = 75
"""Stopped cleanly with a checkpoint (EX_TEMPFAIL); the same command continues from it."""

UNREACHABLE = 255
"""Exit code of ssh when it cannot connect, or loses the connection."""

LAUNCH = "VIDEOAR_LAUNCH"
"""Environment variable of all processes of a launch: its token."""
RESTARTS = "VIDEOAR_RESTARTS"
"""Environment variable that tells a job how many times its launcher has restarted it (metric train_restarts_total)."""


def restart_count() -> int:
    """Return how many times the launcher has restarted this job; 0 without a launcher."""
    return int(os.environ.get(RESTARTS, "0"))


def ranks_here(environ: Mapping[str, str]) -> int:
    """Return how many ranks this host has, as the launcher said it; 0 without a launcher."""
    # torchrun says LOCAL_WORLD_SIZE, DeepSpeed's launcher LOCAL_SIZE.
    return int(environ.get("LOCAL_WORLD_SIZE") or environ.get("LOCAL_SIZE") or "0")


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
