"""The exit codes of every command and of every rank."""

from __future__ import annotations

DONE = 0
"""The job is finished."""
FAILED = 1
"""Any failure that is not one of the others."""
USAGE = 2
"""A wrong command line, or a configuration that cannot run: starting it again changes nothing."""
STOPPED = 75
"""EX_TEMPFAIL: stopped cleanly with a checkpoint; the same command continues from there."""
