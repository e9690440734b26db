"""DOC from pipeline/shards/layout.py."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


class LedgerError(ValueError):
    """An output folder that cannot be used; the message names it and the mend."""


class DiskFull(RuntimeError):
    """Not enough space to write; nothing committed is lost, and running again continues."""


@contextlib.contextmanager
def committing(path: Path, min_free_gb: float = 0.0) -> Iterator[Path]:
    """Give a temporary path beside `path`; on leaving, sync it to disk and rename it into place.

    On an error the temporary file is removed and `path` stays as it was. Raises DiskFull when the disk has less than
    `min_free_gb` GiB free beforehand, or runs full meanwhile.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if free < min_free_gb * 2**30:
        raise DiskFull(
            f"{path.parent}: {free / 2**30:.2f} GiB free, pipeline.min_free_gb is {min_free_gb:g}; free some space and run again"
        )
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    try:
        yield temporary
        _sync(temporary)
        temporary.rename(path)
        _sync(path.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"{path}: the disk is full; free some space and run again (nothing committed is lost)") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Commit `value` as JSON."""
    with committing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON. Raises LedgerError for a damaged file, FileNotFoundError for a missing one."""
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise LedgerError(f"{path}: not valid JSON ({error.msg}); restore it or begin a new output folder") from error


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_synced(path: Path, text: str) -> None:
    """Write a text and wait until the disk has it."""
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until the disk has the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, text: str) -> None:
    """Write a small file so that readers see the old or the new content, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)
