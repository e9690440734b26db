"""What a job and its launcher tell each other: the exit codes of every command and rank, its token and the number of restarts."""

from __future__ import annotations

import os

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
