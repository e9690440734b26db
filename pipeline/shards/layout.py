"""The output folder: the names of its files, and its lock.

Order of commitment: dataset.json; plan parts; clips.parquet and rejects.parquet; for each shard its tar, then its
parquet (the commit record); index.parquet last. A reader trusts index.parquet only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

from cluster.runtime.file_lock import FileLock

FORMAT = 1
DATASET, CLIPS, REJECTS, INDEX = "dataset.json", "clips.parquet", "rejects.parquet", "index.parquet"
PLAN, LOCK, PRINTS, ADDRESS = ".plan", ".lock", ".prints.parquet", "metrics-address"
SOURCES = "sources.json"
META = b"videoar"
"""Key of our own record in the metadata of a parquet file."""


class FolderError(ValueError):
    """An output folder that cannot be used; the message names it and the mend."""


class Locked(FolderError):
    """Another job writes to the folder; the message says which."""


class DatasetError(ValueError):
    """A folder that is no finished dataset; the message names it and the mend."""


class FolderLock(FileLock):
    """Holds the folder for this process. Raises Locked naming the holder, FolderError where nothing can be written."""

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
