"""Holds the ranks of one host on a line to their launch: when the line is silent or closed, the ranks end.

In:  `python -m cluster.hosts.tether SECONDS -- COMMAND`; bytes on the standard input, a few within SECONDS, whatever they are.
Out: the output of the command, and its exit code.

A host that is cut off knows no other way to learn that the job goes on without it. Its ranks would live on, and when the link is back they
would write into a run folder that is no longer theirs. So the launch's silence ends them here, no later than the launch gives up the
host. Processes that have left their parent are met too: they become children of this one (PR_SET_CHILD_SUBREAPER).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence

import psutil

from cluster.hosts.environment import signal_as_exit_code

BEATS = 4
"""How many times within its limit a launch sends a byte."""
_SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER of prctl(2)."""


def tethered(words: Sequence[str], seconds: float) -> list[str]:
    """Return the command that runs `words` on a tether of so many seconds."""
    return [sys.executable, "-m", "cluster.hosts.tether", f"{seconds:g}", "--", *words]


def hold(words: Sequence[str], seconds: float, line: int = 0) -> int:
    """Run `words` until they end, or until nothing came from the file descriptor `line` for `seconds`, or it was closed.

    Returns the exit code. Nothing that the command has started is left.
    """
    ctypes.CDLL(None).prctl(_SUBREAPER, 1)
    process = subprocess.Popen(list(words), stdin=subprocess.DEVNULL)
    ended = os.pidfd_open(process.pid)
    heard = time.monotonic()
    try:
        while process.poll() is None:
            left = heard + seconds - time.monotonic()
            ready = select.select([line, ended], [], [], max(0.0, left))[0]
            if line in ready:
                # A long stop of this process itself (SIGSTOP, a machine asleep) is no silence: what came meanwhile is read first.
                if not os.read(line, 65_536):
                    _say("the launch is gone: ending the ranks of this host")
                    break
                heard = time.monotonic()
            elif not ready and left <= 0:
                _say(f"nothing heard from the launch for {seconds:g} s: ending the ranks of this host")
                break
    finally:
        os.close(ended)
        _end_all()
    code = process.wait()
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, 0):  # those that this process has adopted
            pass
    return signal_as_exit_code(code)


def _end_all() -> None:
    """Kill all processes below this one, also those that appear meanwhile."""
    while below := [each for each in psutil.Process().children(recursive=True) if each.status() != psutil.STATUS_ZOMBIE]:
        for each in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        time.sleep(0.05)  # not psutil.wait_procs: the exit code of the command is for its Popen


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # whoever read it may be gone
        os.write(2, f"{text}\n".encode())


def main() -> int:
    """Run the command line; returns the exit code."""
    seconds, dashes, *words = sys.argv[1:]
    assert dashes == "--", "see tethered()"
    return hold(words, float(seconds))


if __name__ == "__main__":
    sys.exit(main())
