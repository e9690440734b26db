"""The list of a table's files: what it says of each, and whether a table is there.

`files.json` holds the format's version, the name, rows, row groups, bytes and xxh3 of every file, and what else the table's owner
records. A table of format 1 is one parquet file beside where the folder would be.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import xxhash

from cluster.runtime.atomic_files import DamagedFile

FORMAT = 2
"""Version of the list."""
LIST = "files.json"
META = b"videoar"
"""Key of our own record in the metadata of a parquet file."""


class DamagedTable(DamagedFile):
    """A table whose files are not those of its list; the message names the file and the mend."""


@dataclass(frozen=True)
class TableFile:
    """One file as the list names it."""

    name: str
    rows: int
    row_groups: int
    bytes: int = 0
    xxh3: str = ""
    """xxh3-128 (hex) of the file; empty in a table of format 1."""
    generation: int = 0
    """Number of the run of the owner that wrote the file."""


def exists(folder: Path) -> bool:
    """Return whether a table is there, of either format."""
    return (folder / LIST).exists() or folder.with_name(f"{folder.name}.parquet").exists()


def is_old(folder: Path) -> bool:
    """Return whether a table is there in format 1 only."""
    return not (folder / LIST).exists() and folder.with_name(f"{folder.name}.parquet").exists()


def remove(folder: Path) -> None:
    """Remove a table of either format. Its list goes first, so that a kill leaves no table with files missing."""
    (folder / LIST).unlink(missing_ok=True)
    folder.with_name(f"{folder.name}.parquet").unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)


def xxh3_of(path: Path) -> str:
    """Return xxh3-128 (hex) over a file's bytes."""
    hasher = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            hasher.update(chunk)
    return hasher.hexdigest()
