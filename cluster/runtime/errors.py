"""Which errors are shown as one line, and which with their traceback.

An error class that one of the four packages defines is meant for the user: its message names the file, the key or the rank, and
the fix. So does an OSError of the system that names a file, or that says that a disk is full or broken. Every other error is a bug or
a fault of the machine (a wrong shape, a GPU out of memory, a broken collective): its traceback is printed, and kept in the run's log.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from cluster.runtime import job_protocol
from cluster.runtime.source_tree import PACKAGES

SHOW_TRACEBACKS = "VIDEOAR_TRACEBACK"
"""Environment variable: with 1, errors that are meant for the user are shown with their traceback too."""
_CONDITIONS = frozenset({errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE, errno.EMFILE, errno.ENFILE})
"""Conditions of a disk or host that the system reports without naming a file when a read or write fails half-way."""


class FirstRankFailed(RuntimeError):
    """Work that rank 0 did for all ranks has failed; its own error says why."""

    def __init__(self, code: int) -> None:
        super().__init__("rank 0 ended with an error, which it has printed")
        self.code = code
        """Its exit code."""


def is_ours(error: BaseException) -> bool:
    """Return whether an error is meant for the user: its class is ours, or it is an OSError that names a file or a disk's condition."""
    if isinstance(error, OSError) and (error.filename is not None or error.errno in _CONDITIONS):
        return True
    return any(kind.__module__.partition(".")[0] in PACKAGES for kind in type(error).__mro__)


def one_line(error: BaseException) -> str:
    """Return the message of an error; for an OSError of the system, the file and the reason."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def exit_code(error: BaseException) -> int:
    """Return the exit code of a process that ends with `error`: 2 for a configuration that cannot run, 1 for any other."""
    from cluster.config.errors import ConfigError  # here, so that `videoar --help` starts without pydantic and YAML

    if isinstance(error, FirstRankFailed):
        return error.code
    return job_protocol.USAGE if isinstance(error, ConfigError) else job_protocol.FAILED


def description(error: BaseException) -> str:
    """Return the text that is shown for an error: one line for those meant for the user, else the traceback."""
    if is_ours(error) and os.environ.get(SHOW_TRACEBACKS) != "1":
        return one_line(error)
    return "".join(traceback.format_exception(error)).rstrip("\n")


class ErrorReport:
    """Context manager around the whole work of a process: an error that ends it is shown on stderr and appended to a log.

    The error is swallowed; `code` is then the exit code of the process (0 without an error), `error` the error itself.
    SystemExit and KeyboardInterrupt pass through.

    prefix: start of the line, such as `error: rank 3: `. log: returns the file to append to, or None while the run folder is
    not known.
    """

    def __init__(self, prefix: str, log: Callable[[], Path | None] = lambda: None) -> None:
        self.prefix, self._log = prefix, log
        self.code = job_protocol.DONE
        self.error: BaseException | None = None

    def __enter__(self) -> ErrorReport:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if not isinstance(error, Exception):
            return False
        self.error, self.code = error, exit_code(error)
        text = description(error)
        text = f"{text}\n{self.prefix}{type(error).__name__}: {error}" if text.startswith("Traceback") else self.prefix + text
        print(text, file=sys.stderr, flush=True)
        path = self._log()
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("a") as file:
                    file.write(text + "\n")
            except OSError as unwritable:
                print(f"{self.prefix}{path}: cannot append this error: {unwritable.strerror}", file=sys.stderr)
        return True
