"""A lock file that lets one process at a time use a folder; the kernel releases it however the holder ends."""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from cluster.config.errors import ConfigError

RUN_LOCK = "run.lock"
"""File of a run folder, locked by rank 0 of the job that writes to it."""


class RunFolderError(ConfigError):
    """Another job uses the run folder; the message names its process."""


class FileLock:
    """Context manager that holds an exclusive lock on a file.

    While it is held, the file names the holder: user, process, host and start time.

    busy: makes the error that is raised when another process holds the lock, from that description; None waits for the lock.
    Raises OSError when the file cannot be opened.
    """

    def __init__(self, path: Path, busy: Callable[[str], Exception] | None) -> None:
        self.path, self._busy = path, busy
        self._handle: int | None = None

    def _take(self) -> int:
        """Open and lock the file; returns its descriptor."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if self._busy is None else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(handle, 4096, 0).decode(errors="replace").strip() or "another process"
            os.close(handle)
            assert self._busy is not None
            raise self._busy(holder) from error
        except BaseException:
            os.close(handle)
            raise
        return handle

    def __enter__(self) -> Self:
        while os.fstat(handle := self._take()).st_nlink == 0:
            os.close(handle)  # the holder before removed the file as it ended
        since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
        os.ftruncate(handle, 0)
        with contextlib.suppress(OSError):  # on a full disk the lock is held without a name
            os.pwrite(
                handle, f"{getpass.getuser()}, process {os.getpid()} on {socket.gethostname()}, since {since}".encode(), 0
            )
        self._handle = handle
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._handle is not None
        os.ftruncate(self._handle, 0)
        os.close(self._handle)
        self._handle = None


def hold_run(folder: Path) -> FileLock:
    """Return the lock RUN/run.lock, which rank 0 of a job holds for its whole life; entering it raises RunFolderError if it is held.

    The folder, not the configuration that a job was started with, is what two jobs may not share.
    """
    return FileLock(
        folder / RUN_LOCK,
        lambda holder: RunFolderError(
            f"{folder}: another job is using this run folder ({holder}); wait for it or stop it, or set run.dir to another folder"
        ),
    )


def run_holder(folder: Path) -> str:
    """Return who holds RUN/run.lock, or an empty text."""
    path = folder / RUN_LOCK
    if not path.exists():
        return ""
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(handle, 4096, 0).decode(errors="replace").strip() or "another process"
    finally:
        os.close(handle)
    return ""
