"""What a finished folder says of its shards: the list of them, which is read whole, and their rows, read when they are needed.

In:  the index (a list of shards, and files of rows; or one file, in books of format 1) and the parquet beside each tar.
Out: a `ShardList` for each bucket (names and row counts: all that the order of samples depends on), and tables of a few shards
     (columns of pipeline.shards.schemas.ROWS). The samples of sources that were taken down are in neither.

Readers trust the index. Rows of a small folder are read from its files, which is the quickest way. In a large one, or behind a URL, a
shard's own parquet is read, if that names the tar that the index names; otherwise the index. In books of format 1 the footer of
index.parquet describes every shard and takes some 13 times its size in memory: above `FOOTER` bytes it is let go.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.tables.table_folder import TableFolder
from cluster.tables.table_list import LIST, DamagedTable, TableFile, xxh3_of
from pipeline.shards.commit_record import read_info
from pipeline.shards.layout import INDEX, DatasetError, counted_for, read_hidden, without
from pipeline.shards.reader import CorruptSample, Numbers

if TYPE_CHECKING:
    from pipeline.shards.remote_cache import ShardCache

MEND = "delete it and run the same `videoar tokenize` again"
SHARDS = 256
"""Shards whose keys are in memory at a time for a digest."""
SMALL = 64
"""Row groups of an index up to which rows are read from it."""
FOOTER = 4 << 20
"""Largest footer of index.parquet, in bytes, that is kept in memory."""


@dataclass(frozen=True)
class ShardList:
    """The shards of one bucket that hold samples, in the order of the index."""

    names: pa.StringArray
    rows: Numbers
    """Samples of each shard, those of sources that were taken down left out."""
    first: Numbers
    """Row of the index with which each shard begins."""
    stored: Numbers
    """Rows of each shard in the index."""
    tar_sha256: pa.StringArray
    """Of each shard's tar."""

    @cached_property
    def ends(self) -> Numbers:
        """Number of samples up to and with each shard."""
        return np.cumsum(self.rows)

    @property
    def size(self) -> int:
        """Number of samples."""
        return int(self.ends[-1]) if len(self.ends) else 0

    def find(self, numbers: Numbers) -> tuple[Numbers, Numbers]:
        """Return the shard of each sample number, and the sample's place in that shard."""
        shards = np.searchsorted(self.ends, numbers, side="right")
        return shards, numbers - (self.ends[shards] - self.rows[shards])


def read_lists(batches: Iterable[pa.RecordBatch], gone: Sequence[str]) -> dict[str, ShardList]:
    """Make the list of shards of every bucket, sorted by name, from all rows. Columns: shard, source if some are gone, tar_sha256."""
    runs = _Runs()
    for batch in batches:
        encoded = pc.run_end_encode(batch["shard"])
        ends = encoded.run_ends.to_numpy().astype(np.int64)
        kept = without(batch, gone)
        left = ends if kept is None else np.cumsum(kept.to_numpy(zero_copy_only=False))[ends - 1]
        sha256 = batch["tar_sha256"].take(encoded.run_ends.cast(pa.int64()).to_numpy() - 1)
        runs.add(encoded.values, ends, left, sha256)
    return runs.lists()


def listed(shards: pa.Table, hidden: Mapping[str, int]) -> dict[str, ShardList]:
    """Make the lists from the index's list of shards (pipeline.shards.schemas.SHARDS). hidden: rows that are taken down, by shard."""
    held = shards.filter(pc.greater(shards["samples"], 0)).combine_chunks()
    if not held.num_rows:
        return {}
    names, samples = held["shard"].combine_chunks(), held["samples"].to_numpy()
    left = samples.copy()
    if hidden:
        left[pc.index_in(pa.array(list(hidden)), value_set=names).to_numpy()] -= np.array(list(hidden.values()))
    runs = _Runs()
    runs.add(names, np.cumsum(samples), np.cumsum(left), held["tar_sha256"].combine_chunks())
    return runs.lists()


class _Runs:
    """Neighbouring rows of one shard each, over all batches: a shard may end in a later batch than it begins in."""

    def __init__(self) -> None:
        self._names: list[pa.Array] = []
        self._sha256: list[pa.Array] = []
        self._stored: list[Numbers] = []
        self._left: list[Numbers] = []

    def add(self, names: pa.Array, ends: Numbers, left: Numbers, sha256: pa.Array) -> None:
        self._names.append(names)
        self._stored.append(np.diff(ends, prepend=0))
        self._left.append(np.diff(left, prepend=0))
        self._sha256.append(sha256)

    def lists(self) -> dict[str, ShardList]:
        if not self._names:
            return {}
        names = pa.concat_arrays(self._names)
        starts = np.concatenate([[0], np.flatnonzero(pc.not_equal(names[1:], names[:-1]).to_numpy(zero_copy_only=False)) + 1])
        stored = np.add.reduceat(np.concatenate(self._stored), starts)
        left = np.add.reduceat(np.concatenate(self._left), starts)
        first = np.cumsum(stored) - stored
        names = names.take(pa.array(starts))
        sha256 = pa.concat_arrays(self._sha256).take(pa.array(starts))
        buckets = pc.replace_substring_regex(names, "/[^/]*$", "")
        found = {}
        for bucket in sorted(pc.unique(buckets).to_pylist()):
            mine = np.flatnonzero(pc.equal(buckets, bucket).to_numpy(zero_copy_only=False) & (left > 0))
            if len(mine):
                at = pa.array(mine)
                found[bucket] = ShardList(names.take(at), left[mine], first[mine], stored[mine], sha256.take(at))
        return found


class ShardTables:
    """Tables of the shards of one folder. Thread-safe."""

    def __init__(self, folder: Path, gone: Sequence[str], cache: ShardCache | None = None) -> None:
        """Open the index and read the lists. Raises DatasetError if it is missing or damaged."""
        self.folder, self._gone, self._cache = folder, tuple(gone), cache
        self._lock = threading.Lock()
        with self._reporting():
            table = self._open_index()
            self.digest = str(table.meta["digest"])
            """The digest that the index records."""
            old = table.format == 1
            # Footers of format 1 describe every shard; what is beyond is in the list of shards.
            large = table.file(0).metadata.serialized_size > FOOTER if old else table.row_groups > SMALL
            columns = ["shard", *(["source"] if gone else []), "tar_sha256"]
            hidden = read_hidden(folder, counted_for(table, gone)) if gone else Counter[str]()
            if old or hidden is None:
                self.lists = read_lists(table.runs(np.array([0]), np.array([table.rows]), columns), self._gone)
            else:
                self.lists = listed(self._shard_list(table), hidden)
            """The list of shards of every bucket, by name."""
        self._index: TableFolder | None = table
        self._own_first = large or (cache is not None and not old)
        """Whether rows are taken from the shards' own parquets; the index is then let go at the first of them."""
        pa.default_memory_pool().release_unused()

    def _open_index(self) -> TableFolder:
        return TableFolder.open(self.folder / INDEX, mend=MEND, locate=None if self._cache is None else self._fetched)

    def _shard_list(self, table: TableFolder) -> pa.Table:
        entry = TableFile(**table.meta["shard_list"])
        path = self.folder / INDEX / entry.name
        if path.stat().st_size != entry.bytes or xxh3_of(path) != entry.xxh3:
            raise DamagedTable(f"{path}: not the file that {LIST} names (another generation?); {MEND}")
        return pq.read_table(path, use_threads=False).replace_schema_metadata(None)

    def _fetched(self, name: str) -> Path:
        """Return the local copy of a file of the index, fetched again if it is of another generation."""
        assert self._cache is not None
        path = self._cache.get(f"{INDEX}/{name}")
        wanted = next((file.xxh3 for file in TableFolder.open(self.folder / INDEX).files if file.name == name), "")
        if wanted and xxh3_of(path) != wanted:
            self._cache.refresh(f"{INDEX}/{name}")
        return path

    def read(self, shards: ShardList, numbers: Sequence[int], columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of some shards of a list, one shard after the other; columns: None for all."""
        with self._lock, self._reporting():
            names = None if columns is None else [*columns, *(["source"] if self._gone else [])]
            if self._own_first and names is not None:
                own = [self._own(shards, number, names) for number in numbers]
                tables = [table for table in own if table is not None]
                if len(tables) == len(numbers):
                    self._index = None
                    return self._without(pa.concat_tables(tables), columns)
                self._own_first = False
            places = [(int(shards.first[number]), int(shards.stored[number])) for number in numbers]
            return self._without(self._opened().take(places, names), columns)

    def contents(self, shards: ShardList) -> str:
        """Return the sha256 over names, tars and rows of a list, and the keys that are left where samples were taken down."""
        digest = hashlib.sha256()
        for texts in (shards.names, shards.tar_sha256):
            digest.update("\n".join(texts.to_pylist()).encode() + b"\n")
        digest.update(shards.rows.astype("<i8").tobytes())
        cut = np.flatnonzero(shards.rows != shards.stored)
        for at in range(0, len(cut), SHARDS):
            keys = self.read(shards, cut[at : at + SHARDS].tolist(), ["key"])["key"].to_pylist()
            digest.update("\n".join(keys).encode() + b"\n")
        return digest.hexdigest()

    def column(self, shards: ShardList, name: str) -> Iterator[pa.Array]:
        """Yield a column's cells of all samples of a list in order, a part at a time."""
        with self._lock, self._reporting():
            columns = [name, *(["source"] if self._gone else [])]
            index = self._index or self._open_index()
            for batch in index.runs(shards.first, shards.first + shards.stored, columns):
                kept = without(batch, self._gone)
                yield batch[name] if kept is None else batch[name].filter(kept)

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise DatasetError(
                f"{self.folder}: no {INDEX}: the job has not finished; run the same `videoar tokenize` again"
            ) from error
        except DamagedTable as error:
            raise DatasetError(str(error)) from error
        except (pa.ArrowInvalid, KeyError, TypeError, ValueError, OSError) as error:
            name = INDEX if (self.folder / INDEX).is_dir() else f"{INDEX}.parquet"
            raise DatasetError(f"{self.folder / name}: damaged ({' '.join(str(error).split())}); {MEND}") from error

    def _without(self, table: pa.Table, columns: Sequence[str] | None) -> pa.Table:
        kept = without(table, self._gone)
        table = table if kept is None else table.filter(kept)
        return (table if columns is None else table.select(list(columns))).combine_chunks()

    def _opened(self) -> TableFolder:
        if self._index is None:
            self._index = self._open_index()
        return self._index

    def _own(self, shards: ShardList, number: int, columns: Sequence[str]) -> pa.Table | None:
        """Return a shard's own parquet; None if it is not there, is damaged, or does not describe the tar of the index."""
        name = f"{shards.names[number]}.parquet"
        try:
            path = self.folder / name if self._cache is None else self._cache.get(name)
            info = read_info(path)
            if (info.samples, info.tar_sha256) != (int(shards.stored[number]), shards.tar_sha256[number].as_py()):
                return None
            return pq.read_table(path, columns=list(columns), use_threads=False).replace_schema_metadata(None)
        except (OSError, pa.ArrowInvalid, CorruptSample):
            return None
