"""The SHARDS folder: the names of its files, its lock, and the list of sources that were taken down.

Files are committed in this order: dataset.json; the parts of the plan; clips.parquet and rejects.parquet; for each shard its
tar, then its parquet (the commit record); index.parquet last. Readers trust index.parquet only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from cluster.runtime.file_lock import FileLock
from pipeline.records import Clip, Reject

FORMAT = 1
DATASET, CLIPS, REJECTS, INDEX, EXCLUDED = (
    "dataset.json",
    "clips.parquet",
    "rejects.parquet",
    "index.parquet",
    "excluded.json",
)
PLAN, LOCK, FINGERPRINTS, ADDRESS = ".plan", ".lock", ".prints.parquet", "metrics-address"
SOURCES = "sources.json"
META = b"videoar"
"""Key of our own record in the metadata of a parquet file."""


class FolderError(ValueError):
    """An output folder that cannot be used; the message names it and the fix."""


class Locked(FolderError):
    """Another job is writing to the folder; the message says which."""


class DatasetError(ValueError):
    """A folder that is not a finished dataset; the message names it and the fix."""


class FolderLock(FileLock):
    """Holds the folder for this process. Raises Locked naming the holder, FolderError if the folder is not writable."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / LOCK, lambda holder: Locked(f"{folder}: held by {holder}; wait for that job or stop it"))

    def __enter__(self) -> Self:
        try:
            return super().__enter__()
        except OSError as error:
            raise FolderError(
                f"{self.path.parent}: cannot write there: {error.strerror}; choose another pipeline.output"
            ) from error


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of writers that were killed; call with the lock held."""
    for pattern in (".*.tmp", "*/.*.tmp", f"{PLAN}/.*.tmp"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def excluded(folder: Path) -> list[str]:
    """Return the sources taken down from a folder (excluded.json), sorted; a name ending in / stands for all sources below it."""
    try:
        return sorted(json.loads((folder / EXCLUDED).read_text()))
    except FileNotFoundError:
        return []
    except (json.JSONDecodeError, TypeError) as error:
        raise DatasetError(f"{folder / EXCLUDED}: not a JSON list of sources: {error}") from error


def hidden(source: str, gone: Sequence[str]) -> bool:
    """Return whether a source is among those taken down."""
    return any(source.startswith(name) if name.endswith("/") else source == name for name in gone)


def taken_down(clip: Clip) -> Reject:
    """Return the reject that records a clip whose source was taken down."""
    return Reject(clip.source, "exclude", "taken_down", "", clip.begin, clip.end, {}, clip.key)
