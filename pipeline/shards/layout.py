"""The SHARDS folder: the names of its files, its lock, and the list of sources that were taken down.

Committed in this order: dataset.json; the parts of the plan; the tables of clips and rejects; for each shard its tar, then its
parquet (the commit record); the index last. Readers trust the index only. The tables are the books of the folder: each is a folder of
parquet files with a list (cluster/runtime/table_folder.py), or, in books of format 1, one parquet file.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.runtime.atomic_files import DamagedFile, committing
from cluster.runtime.file_lock import FileLock
from cluster.tables import table_list
from cluster.tables.table_folder import TableFolder
from pipeline.records import Clip, Reject

FORMAT = 1
DATASET, EXCLUDED = "dataset.json", "excluded.json"
HIDDEN = "excluded.parquet"
"""How many rows of each shard excluded.json hides, so that no reader looks through the sources of all rows."""
HIDDEN_ROWS = pa.schema([("shard", pa.string()), ("rows", pa.int64())])
CLIPS, REJECTS, INDEX, FINGERPRINTS = "clips", "rejects", "index", ".prints"
"""Tables."""
SHARD_LIST = "shards.parquet"
"""File in the index: a row per shard."""
PLAN, LOCK, ADDRESS = ".plan", ".lock", "metrics-address"
LISTING = ".listing.arrow"
"""The corpus as it is listed; gone when the list is written."""
KEPT_LISTING = "listing"
"""In PLAN: what is listed of object stores, until the list is written."""
VIDEOS, RETRIED, OLD_LIST = "videos", "retried.json", "sources.json"
"""In PLAN: the table of videos, the clips that are tried again; and both as one file, as books of format 1 have them."""
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
    for pattern in (".*.tmp", "*/.*.tmp", f"{FINGERPRINTS}/.*.tmp", f"{PLAN}/.*.tmp", f"{PLAN}/*/.*.tmp", LISTING):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def open_table(folder: Path, name: str) -> TableFolder | None:
    """Return a table of the books, of either format; None where there is none. Raises DatasetError for a damaged one."""
    mend = {
        INDEX: "delete it and run the same `videoar tokenize` again",
        VIDEOS: f"remove {folder / name}: the next run of `videoar tokenize` lists the corpus anew and keeps what is planned",
    }.get(name, "restore it from a copy of the folder; the shards themselves are whole")
    try:
        return TableFolder.open(folder / name, mend=mend)
    except FileNotFoundError:
        return None
    except DamagedFile as error:
        raise DatasetError(str(error) if mend in str(error) else f"{error}: {mend}") from error


def remove_index(folder: Path) -> None:
    """Remove the index: the folder is then unfinished."""
    table_list.remove(folder / INDEX)


def refuse_old(folder: Path) -> None:
    """Raise DatasetError for books of format 1, which are read but not written."""
    if any(table_list.is_old(folder / name) for name in (CLIPS, REJECTS, INDEX)):
        raise DatasetError(
            f"{folder}: its books are of format 1, which is only read; run `videoar shards upgrade {folder}` first"
        )


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


def without(table: pa.Table | pa.RecordBatch, gone: Sequence[str]) -> pa.Array | None:
    """Return which rows remain when the sources `gone` are taken down; None for all. The table needs the column `source`."""
    if not gone:
        return None
    sources = table["source"]
    mask = pc.is_in(sources, value_set=pa.array([name for name in gone if not name.endswith("/")], pa.string()))
    for name in gone:
        if name.endswith("/"):
            mask = pc.or_(mask, pc.starts_with(sources, name))
    return pc.invert(mask)


def counted_for(index: TableFolder, gone: Sequence[str]) -> str:
    """Return what the counts for an index and these names are known by; empty for an index of format 1, which has no list of shards."""
    listed = index.meta.get("shard_list")
    return hashlib.sha256(json.dumps([listed["xxh3"], sorted(gone)]).encode()).hexdigest() if listed else ""


def count_hidden(folder: Path, number: int, gone: Sequence[str]) -> dict[str, int]:
    """Count the rows of each shard that are taken down, in one file of the index: a task of `recount_hidden`."""
    index = open_table(folder, INDEX)
    assert index is not None
    table = index.matching(number, "source", gone, ["shard", "source"])
    kept = without(table, gone)
    lost = table["shard"].filter(pc.invert(kept)) if kept is not None else pa.chunked_array([[]], pa.string())
    return {each["values"]: each["counts"] for each in pc.value_counts(lost).to_pylist()}


def recount_hidden(folder: Path, run: Callable[[str, Callable[..., Any], Sequence[tuple[Any, ...]]], Iterator[Any]]) -> int:
    """Count anew for the index and the names as they are, a task for each file, and keep the counts. Returns the rows taken down.

    Nothing is kept where nothing is taken down, nor of an index of format 1.
    """
    gone, index = excluded(folder), open_table(folder, INDEX)
    if not gone or index is None:
        return 0
    total: Counter[str] = Counter()
    for found in run("excluded", count_hidden, [(folder, number, gone) for number in range(len(index.files))]):
        total.update(found)
    known = counted_for(index, gone)
    if known:
        names = sorted(total)
        table = pa.table([names, [total[name] for name in names]], schema=HIDDEN_ROWS.with_metadata({META: known.encode()}))
        with committing(folder / HIDDEN) as path:
            pq.write_table(table, path, compression="zstd")
    return total.total()


def read_hidden(folder: Path, known: str) -> Counter[str] | None:
    """Return the counts; None where there are none of this index and these names, or they cannot be read."""
    try:
        table = pq.read_table(folder / HIDDEN, use_threads=False)
        if not known or (table.schema.metadata or {}).get(META) != known.encode():
            return None
        return Counter(dict(zip(table["shard"].to_pylist(), table["rows"].to_pylist(), strict=True)))
    except (OSError, pa.ArrowInvalid, KeyError):
        return None
