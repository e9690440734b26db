"""The output folder as a ledger: one writer at a time, files that appear whole or not at all, one configuration.

In:  the SHARDS folder.
Out: a lock, atomic files, dataset.json, and what is planned and committed.
Called by: pipeline.ray_job, pipeline.shards, pipeline.verify.

Order of commitment: dataset.json; plan parts; clips.parquet and rejects.parquet; for each shard its tar, then its
parquet (the commit record); index.parquet last. A reader trusts index.parquet only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import getpass
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

FORMAT = 1
DATASET, CLIPS, REJECTS, INDEX = "dataset.json", "clips.parquet", "rejects.parquet", "index.parquet"
PLAN, LOCK, PRINTS, ADDRESS = ".plan", ".lock", ".prints.parquet", "metrics-address"
SOURCES = "sources.json"


class LedgerError(ValueError):
    """An output folder that cannot be used; the message names it and the mend."""


class Locked(LedgerError):
    """Another job writes to the folder; the message says which."""


class ConfigChanged(LedgerError):
    """The folder was begun with another configuration; the message lists what changed."""


class DiskFull(RuntimeError):
    """Not enough space to write; nothing committed is lost, and running again continues."""


class Lock:
    """Holds the folder for this process; the kernel lets go of it when the process ends, however it ends."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self._fd: int | None = None

    def __enter__(self) -> Lock:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise LedgerError(
                f"{self.path.parent}: cannot write there: {error.strerror}; choose another pipeline.output"
            ) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(fd, 4096, 0).decode(errors="replace").strip() or "another process"
            os.close(fd)
            raise Locked(f"{self.path.parent}: held by {holder}; wait for that job or stop it") from error
        who = f"{getpass.getuser()}, process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S %Z')}"
        os.ftruncate(fd, 0)
        os.pwrite(fd, who.encode(), 0)
        self._fd = fd
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._fd is not None
        os.ftruncate(self._fd, 0)
        os.close(self._fd)
        self._fd = None


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


def begin(folder: Path, dataset: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> None:
    """Write dataset.json, or check that the folder was begun with the same one. Raises ConfigChanged with the differences.

    defaults: settings with the values that they have unless told otherwise, nested as in `dataset`.
    """
    path = folder / DATASET
    plain = json.loads(json.dumps(dataset))
    if not path.exists():
        foreign = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith(".") and entry.name != ADDRESS)
        if foreign:
            raise LedgerError(f"{folder}: holds {foreign[0]} but no {DATASET}; choose an empty folder as pipeline.output")
        write_json(path, plain)
        return
    changes = list(differences(read_json(path), plain, defaults or {}))
    if changes:
        raise ConfigChanged(
            f"{folder} was begun with another configuration:\n"
            + "\n".join(f"  {line}" for line in changes)
            + "\nrestore these values, or choose another pipeline.output"
        )


def differences(old: Mapping[str, Any], new: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[str]:
    """Give one line `key: old -> new` for each value that differs between two dataset.json.

    A setting that an older version did not know held its default then. One that this version does not know any more is no
    difference where the folder says that it held its default (it is not in `not_default`).
    """
    set_before = old.get("not_default")
    before, after = ({k: v for k, v in flat(side).items() if k != "not_default"} for side in (old, new))
    usual = flat(json.loads(json.dumps(defaults)))
    for key in sorted(set(before) | set(after)):
        if key not in after and key not in usual and set_before is not None and key not in set_before:
            continue
        first, second = (side.get(key, usual.get(key)) for side in (before, after))
        if first != second:
            yield f"{key}: {json.dumps(first)} -> {json.dumps(second)}"


def flat(plain: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Return nested mappings as one, its keys joined by dots; lists and empty mappings are values."""
    found: dict[str, Any] = {}
    for key, value in plain.items():
        name = f"{where}.{key}" if where else str(key)
        if isinstance(value, Mapping) and value:
            found.update(flat(value, name))
        else:
            found[name] = value
    return found


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of writers that were killed; call with the lock held."""
    for pattern in (".*.tmp", "*/.*.tmp", f"{PLAN}/.*.tmp"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
