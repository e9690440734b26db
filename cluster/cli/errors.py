"""DOC from cluster/cli/main.py."""

from __future__ import annotations

PACKAGES = ("cluster", "tokenizer", "pipeline", "pretrain")


def is_ours(error: BaseException) -> bool:
    """Whether an error is meant for the user: a class of our packages, an OSError, or raised by a line of ours."""
    if isinstance(error, OSError) or any(kind.__module__.partition(".")[0] in PACKAGES for kind in type(error).__mro__):
        return True
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last is not None and str(last.tb_frame.f_globals.get("__name__", "")).partition(".")[0] in PACKAGES


def one_line(error: BaseException) -> str:
    """Return the message of an error; an OSError without one of ours names its file first."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def exit_code(error: BaseException) -> int:
    """Return 2 for a usage or configuration error, 1 for any other."""
    from cluster.config import ConfigError

    return 2 if isinstance(error, ConfigError) else 1
