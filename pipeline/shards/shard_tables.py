"""What a finished folder says of its shards: the list of them, which is read whole, and their rows, read when they are needed.

In:  index.parquet and, in a folder of very many shards, the parquet beside each tar.
Out: a `ShardList` for each bucket (names and row counts: all that the order of samples depends on), and tables of a few shards
     (columns of pipeline.shards.schemas.ROWS). The samples of sources that were taken down are in neither.

Readers trust index.parquet. Its footer describes every shard and takes some 13 times its size in memory: up to `FOOTER` bytes it
stays open, which is the quickest way to rows. Above, it is let go and a shard's own parquet is read, if that names the tar that the
index names; otherwise the index is opened again and kept.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.shards.commit_record import read_info
from pipeline.shards.layout import INDEX, META, DatasetError
from pipeline.shards.reader import CorruptSample, Numbers

if TYPE_CHECKING:
    from pipeline.shards.remote_cache import ShardCache

BATCH = 1 << 16
"""Rows of index.parquet that are in memory at a time."""
GROUPS = 256
"""Row groups of index.parquet that are read by one call."""
FOOTER = 4 << 20
"""Largest footer of index.parquet, in bytes, that is kept in memory."""


@dataclass(frozen=True)
class ShardList:
    """The shards of one bucket that hold samples, in the order of index.parquet."""

    names: pa.StringArray
    rows: Numbers
    """Samples of each shard, those of sources that were taken down left out."""
    first: Numbers
    """Row of index.parquet with which each shard begins."""
    stored: Numbers
    """Rows of each shard in index.parquet."""
    tar_sha256: pa.StringArray | None = None
    """Of each shard's tar; None if it was not read."""

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


def read_lists(index: pq.ParquetFile, gone: Sequence[str], *, digests: bool) -> dict[str, ShardList]:
    """Read the list of shards of every bucket, sorted by name. digests: also the sha256 of every tar."""
    columns = ["shard", *(["source"] if gone else []), *(["tar_sha256"] if digests else [])]
    runs = _Runs()
    for batch in _batches(index, range(index.metadata.num_row_groups), columns):
        encoded = pc.run_end_encode(batch["shard"])
        ends = encoded.run_ends.to_numpy().astype(np.int64)
        kept = without(batch, gone)
        left = ends if kept is None else np.cumsum(kept.to_numpy(zero_copy_only=False))[ends - 1]
        sha256 = batch["tar_sha256"].take(encoded.run_ends.cast(pa.int64()).to_numpy() - 1) if digests else None
        runs.add(encoded.values, ends, left, sha256)
    return runs.lists()


class _Runs:
    """Neighbouring rows of one shard each, over all batches: a shard may end in a later batch than it begins in."""

    def __init__(self) -> None:
        self._names: list[pa.Array] = []
        self._sha256: list[pa.Array] = []
        self._stored: list[Numbers] = []
        self._left: list[Numbers] = []

    def add(self, names: pa.Array, ends: Numbers, left: Numbers, sha256: pa.Array | None) -> None:
        self._names.append(names)
        self._stored.append(np.diff(ends, prepend=0))
        self._left.append(np.diff(left, prepend=0))
        if sha256 is not None:
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
        sha256 = pa.concat_arrays(self._sha256).take(pa.array(starts)) if self._sha256 else None
        buckets = pc.replace_substring_regex(names, "/[^/]*$", "")
        found = {}
        for bucket in sorted(pc.unique(buckets).to_pylist()):
            mine = np.flatnonzero(pc.equal(buckets, bucket).to_numpy(zero_copy_only=False) & (left > 0))
            if len(mine):
                at = pa.array(mine)
                found[bucket] = ShardList(
                    names.take(at), left[mine], first[mine], stored[mine], None if sha256 is None else sha256.take(at)
                )
        return found


class ShardTables:
    """Tables of the shards of one folder. Thread-safe."""

    def __init__(self, folder: Path, gone: Sequence[str], cache: ShardCache | None = None) -> None:
        """Open index.parquet and read the lists. Raises DatasetError if it is missing or damaged."""
        self.folder, self._gone, self._cache = folder, tuple(gone), cache
        self._lock = threading.Lock()
        with self._reporting():
            index = pq.ParquetFile(folder / INDEX)
            large = index.metadata.serialized_size > FOOTER
            self.digest = str(json.loads(index.metadata.metadata[META])["digest"])
            """The digest that the index records."""
            self.lists = read_lists(index, self._gone, digests=large)
            """The list of shards of every bucket, by name."""
        self._index: _Index | None = _Index(index)
        self._own_first = large
        """Whether rows are taken from the shards' own parquets; the index is then let go at the first of them."""
        pa.default_memory_pool().release_unused()

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
            return self._without(self._opened().read(places, names), columns)

    def column(self, shards: ShardList, name: str) -> Iterator[pa.Array]:
        """Yield a column's cells of all samples of a list in order, a part at a time."""
        with self._lock, self._reporting():
            columns = [name, *(["source"] if self._gone else [])]
            index = self._index or _Index(pq.ParquetFile(self.folder / INDEX))
            for batch in index.batches(shards, columns):
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
        except (pa.ArrowInvalid, KeyError, TypeError, ValueError, OSError) as error:
            reason = " ".join(str(error).split())
            raise DatasetError(
                f"{self.folder / INDEX}: damaged ({reason}); delete it and run the same `videoar tokenize` again"
            ) from error

    def _without(self, table: pa.Table, columns: Sequence[str] | None) -> pa.Table:
        kept = without(table, self._gone)
        table = table if kept is None else table.filter(kept)
        return (table if columns is None else table.select(list(columns))).combine_chunks()

    def _opened(self) -> _Index:
        if self._index is None:
            self._index = _Index(pq.ParquetFile(self.folder / INDEX))
        return self._index

    def _own(self, shards: ShardList, number: int, columns: Sequence[str]) -> pa.Table | None:
        """Return a shard's own parquet; None if it is not there, is damaged, or does not describe the tar of the index."""
        name = f"{shards.names[number]}.parquet"
        try:
            path = self.folder / name if self._cache is None else self._cache.get(name)
            info = read_info(path)
            assert shards.tar_sha256 is not None
            if (info.samples, info.tar_sha256) != (int(shards.stored[number]), shards.tar_sha256[number].as_py()):
                return None
            return pq.read_table(path, columns=list(columns), use_threads=False).replace_schema_metadata(None)
        except (OSError, pa.ArrowInvalid, CorruptSample):
            return None


class _Index:
    """index.parquet, held open: its rows by number. Not thread-safe."""

    def __init__(self, file: pq.ParquetFile) -> None:
        self._file = file
        metadata = file.metadata
        sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        self._firsts: Numbers = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])

    def read(self, places: Sequence[tuple[int, int]], columns: Sequence[str] | None) -> pa.Table:
        """Return runs of rows, each given by its first row and length, one after the other. Each row group is read once."""
        groups = self._groups(places)
        table = self._file.read_row_groups(groups, columns=columns, use_threads=False)
        sizes = np.diff(self._firsts)[groups]
        begins = np.cumsum(sizes) - sizes
        parts = []
        for first, count in places:
            # A shard's row groups are neighbours, so they are neighbours among those read.
            group = int(np.searchsorted(self._firsts, first, side="right")) - 1
            begin = int(begins[np.searchsorted(groups, group)])
            parts.append(table.slice(begin + first - int(self._firsts[group]), count))
        return pa.concat_tables(parts).replace_schema_metadata(None)

    def batches(self, shards: ShardList, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a list's shards in order."""
        begins, ends = shards.first, shards.first + shards.stored
        breaks = np.flatnonzero(begins[1:] != ends[:-1]) + 1
        for first, last in zip(np.concatenate([[0], breaks]), np.concatenate([breaks, [len(begins)]]) - 1, strict=True):
            begin, end = int(begins[first]), int(ends[last])
            groups = self._groups([(begin, end - begin)])
            at = int(self._firsts[groups[0]])
            for batch in _batches(self._file, groups, columns):
                low, high = max(begin - at, 0), min(end - at, batch.num_rows)
                at += batch.num_rows
                if high > low:
                    yield batch.slice(low, high - low)

    def _groups(self, places: Sequence[tuple[int, int]]) -> list[int]:
        found: set[int] = set()
        for first, count in places:
            begin = int(np.searchsorted(self._firsts, first, side="right")) - 1
            found.update(range(begin, int(np.searchsorted(self._firsts, first + count, side="left"))))
        return sorted(found)


def _batches(file: pq.ParquetFile, groups: Sequence[int], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of some row groups. One call for thousands of them would hold all that it has read: 200 MB for 10M keys."""
    for at in range(0, len(groups), GROUPS):
        part = list(groups[at : at + GROUPS])
        yield from file.iter_batches(BATCH, row_groups=part, columns=list(columns), use_threads=False)
