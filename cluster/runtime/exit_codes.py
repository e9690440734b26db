"""The exit codes of every command and of every rank."""

from __future__ import annotations

DONE = 0
"""The job is finished."""
FAILED = 1
"""Any failure that has no code of its own."""
USAGE = 2
"""A wrong command line, or a configuration that cannot run; a restart would fail the same way."""
STOPPED = 75
"""Stopped cleanly with a checkpoint (EX_TEMPFAIL); the same command continues from it."""
