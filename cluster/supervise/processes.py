"""Processes of this machine: finding them, and tying one's life to another's."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence

import psutil

_TIE = (
    "import ctypes, os, sys\n"
    "ctypes.CDLL(None).prctl(1, 15)\n"  # PR_SET_PDEATHSIG, SIGTERM
    "os.getppid() == int(sys.argv[1]) or sys.exit(1)\n"
    "os.execv(sys.argv[2], sys.argv[2:])\n"
)


def tied(command: Sequence[str], owner: int) -> list[str]:
    """Return a command that runs `command` (its program as an absolute path) and gets SIGTERM when the process `owner` dies.

    Linux ties it to the thread that starts it, so start it in a thread that lives as long as it is needed.
    """
    return [sys.executable, "-c", _TIE, str(owner), *command]


def command_line(process: psutil.Process) -> list[str]:
    """Return the command line of a process; empty when it has ended or belongs to another user."""
    try:
        return list(process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []


def runs_module(process: psutil.Process, module: str) -> bool:
    """Return whether a process was started as `python -m module`."""
    return ("-m", module) in itertools.pairwise(command_line(process))


def parent_pid(process: psutil.Process) -> int:
    """Return the id of a process's parent, or -1 when the process has ended."""
    try:
        return int(process.ppid())
    except psutil.NoSuchProcess:
        return -1
