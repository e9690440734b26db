"""Which errors a user can mend, and what is printed for the others.

An error of ours is a class that one of the four packages defines: its message is one line that names the file, key or rank and
the mend. A file that the system could not open or write is as clear by itself. Every other error is a bug or a fault of the
machine (a wrong shape, no memory left on a card, a broken collective): its traceback is printed, and kept in the run's log.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from cluster.config.errors import ConfigError
from cluster.runtime import exit_codes
from cluster.runtime.source_tree import PACKAGES

SHOW_TRACEBACKS = "VIDEOAR_TRACEBACK"
"""Environment variable: 1 prints the traceback of our own errors too."""


def is_ours(error: BaseException) -> bool:
    """Return whether an error is meant for the user: a class of our packages, or a file that the system refused."""
    if isinstance(error, OSError) and error.filename is not None:
        return True
    return any(kind.__module__.partition(".")[0] in PACKAGES for kind in type(error).__mro__)


def one_line(error: BaseException) -> str:
    """Return the message of an error; an OSError of the system names its file first."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def exit_code(error: BaseException) -> int:
    """Return the exit code of a process that ends with `error`: 2 for a configuration that cannot run, 1 for any other."""
    return exit_codes.USAGE if isinstance(error, ConfigError) else exit_codes.FAILED


def description(error: BaseException) -> str:
    """Return what is said about an error: one line for ours, the whole traceback for any other."""
    if is_ours(error) and os.environ.get(SHOW_TRACEBACKS) != "1":
        return one_line(error)
    return "".join(traceback.format_exception(error)).rstrip("\n")


class ErrorReport:
    """Context manager around a whole process's work: says on stderr, and in a log, why the work ended.

    An error of ours is one line and is swallowed; `code` is then the exit code. Any other error gets its traceback in both
    places, and `code` is 1. SystemExit and KeyboardInterrupt pass through.

    prefix: how the line begins, such as `error: rank 3: `. log: returns the file that keeps the text, or None while the run
    folder is not known.
    """

    def __init__(self, prefix: str, log: Callable[[], Path | None] = lambda: None) -> None:
        self.prefix, self._log = prefix, log
        self.code = exit_codes.DONE
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
                print(f"{self.prefix}{path}: this error could not be kept there: {unwritable.strerror}", file=sys.stderr)
        return True
