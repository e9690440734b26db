"""Atomic writes: files and folders appear complete or not at all, and are on disk when the call returns."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class DamagedFile(ValueError):
    """A file whose content is not what it should be; the message names the file and the fix."""


class DiskFull(RuntimeError):
    """Not enough disk space to write; nothing that was committed is lost, and running the command again continues."""


@contextlib.contextmanager
def committing(path: Path, min_free_gb: float = 0.0, *, setting: str = "") -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success, sync it to disk and rename it to `path`.

    On an error the temporary file is removed and `path` is unchanged. Raises DiskFull when less than `min_free_gb` GiB are free
    beforehand (`setting` is the configuration key of that limit), or the disk runs full during the write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if free < min_free_gb * 2**30:
        raise DiskFull(
            f"{path.parent}: {free / 2**30:.2f} GiB free, {setting} is {min_free_gb:g}; free some space and run again"
        )
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"{path}: the disk is full; free some space and run again (nothing committed is lost)") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file so that readers see the old or the new content, never a part of it. Raises DiskFull."""
    with committing(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, as `write_text` does."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises DamagedFile when it is not valid JSON, FileNotFoundError when it is missing."""
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else error.reason
        raise DamagedFile(f"{path}: not valid JSON ({reason}); restore it or start a new output folder") from error


def replace_folder(fresh: Path, folder: Path) -> None:
    """Rename the folder `fresh` to `folder`, replacing it if it exists; both have the same parent folder.

    The old folder is renamed first and removed last, so that a crash at any point leaves at least one of the two complete.
    """
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    sync(folder.parent)
    if old.exists():
        shutil.rmtree(old)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
