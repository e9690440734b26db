"""A lock file that lets one process at a time use a folder; the kernel releases it however the holder ends."""

from __future__ import annotations

import fcntl
import getpass
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self


class FileLock:
    """Context manager that holds an exclusive lock on a file.

    While it is held, the file names the holder: user, process, host and start time.

    busy: makes the error that is raised when another process holds the lock, from that description; None waits for the lock.
    Raises OSError when the file cannot be opened.
    """

    def __init__(self, path: Path, busy: Callable[[str], Exception] | None) -> None:
        self.path, self._busy = path, busy
        self._handle: int | None = None

    def __enter__(self) -> Self:
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
        since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{getpass.getuser()}, process {os.getpid()} on {socket.gethostname()}, since {since}".encode(), 0)
        self._handle = handle
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._handle is not None
        os.ftruncate(self._handle, 0)
        os.close(self._handle)
        self._handle = None
