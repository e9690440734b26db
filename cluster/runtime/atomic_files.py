"""Files and folders that appear whole or not at all, and are on the disk when the call returns."""

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
    """A file that does not hold what its name says; the message names it and the mend."""


class DiskFull(RuntimeError):
    """Not enough space to write; nothing committed is lost, and running again continues."""


@contextlib.contextmanager
def committing(path: Path, min_free_gb: float = 0.0, *, setting: str = "") -> Iterator[Path]:
    """Give a temporary path beside `path`; on leaving, sync it to disk and rename it into place.

    On an error the temporary file is removed and `path` stays as it was. Raises DiskFull when the disk has less than
    `min_free_gb` GiB free beforehand (`setting` is the configuration key that says so), or runs full meanwhile.
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
    """Write a text so that readers see the old or the new content, never a part. Raises DiskFull."""
    with committing(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, as `write_text` does."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON. Raises DamagedFile for what is not JSON, FileNotFoundError for a missing file."""
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else error.reason
        raise DamagedFile(f"{path}: not valid JSON ({reason}); restore it or begin a new output folder") from error


def replace_folder(fresh: Path, folder: Path) -> None:
    """Put the whole folder `fresh` in the place of `folder`, which may exist; both lie in one parent folder.

    The old content is moved aside first and removed last, so a crash leaves the old folder, the new one, or both aside.
    """
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    sync(folder.parent)
    if old.exists():
        shutil.rmtree(old)


def sync(path: Path) -> None:
    """Wait until the disk has a file's bytes, or a folder's list of names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
