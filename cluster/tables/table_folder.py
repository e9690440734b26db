"""Reading a table: a folder of parquet files of bounded size, with a list of them that was written last.

In:  a folder with `files.json`; or, of format 1, one parquet file beside where the folder would be.
Out: the files in order, each opened only when its rows are asked for, and checked against the list.

Opening a table of a thousand files reads that list alone.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.runtime.atomic_files import read_json
from cluster.tables.table_list import FORMAT, LIST, META, DamagedTable, TableFile, xxh3_of

_BATCH, _GROUPS = 1 << 16, 256
"""Rows in memory at a time, and row groups that are read by one call."""
_OPEN = 4
"""Files that a table keeps open: with many row groups their footers are long."""

Numbers = npt.NDArray[np.int64]


@dataclass
class TableFolder:
    """The files of a table. Reads are not thread-safe."""

    folder: Path
    files: tuple[TableFile, ...]
    meta: dict[str, Any] = field(default_factory=dict)
    """What the owner records of the table."""
    format: int = FORMAT
    mend: str = "restore the file"
    """What the user is told to do about a damaged table."""
    locate: Callable[[str], Path] | None = None
    """Returns the local path of a file by its name; for tables that are fetched file by file."""

    def __post_init__(self) -> None:
        self._open: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._group_ends = list(accumulate(file.row_groups for file in self.files))

    @classmethod
    def open(cls, folder: Path, *, mend: str = "restore the file", locate: Callable[[str], Path] | None = None) -> TableFolder:
        """Read the list of a table. Raises FileNotFoundError where there is none, DamagedTable."""
        path = folder / LIST
        if not path.exists():
            return _single(folder.with_name(f"{folder.name}.parquet"), mend)
        plain = read_json(path)
        version = plain.get("format") if isinstance(plain, dict) else None
        if version != FORMAT:
            raise DamagedTable(f"{path}: format {version}; this program reads format {FORMAT}: update it")
        try:
            return cls(folder, tuple(TableFile(**file) for file in plain["files"]), plain["meta"], FORMAT, mend, locate)
        except (KeyError, TypeError) as error:
            raise DamagedTable(f"{path}: damaged ({error}); {mend}") from error

    @property
    def rows(self) -> int:
        """Number of rows of all files."""
        return sum(file.rows for file in self.files)

    @property
    def row_groups(self) -> int:
        """Number of row groups of all files."""
        return self._group_ends[-1] if self._group_ends else 0

    def file(self, number: int) -> pq.ParquetFile:
        """Return an open file. Raises DamagedTable for one that is missing, damaged, or of another generation than the list."""
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        entry = self.files[number]
        with self._reporting(entry.name):
            opened = pq.ParquetFile(self.path(number), page_checksum_verification=True)
            found = json.loads((opened.metadata.metadata or {}).get(META, b"{}"))
            wrong = opened.metadata.num_rows != entry.rows or opened.metadata.num_row_groups != entry.row_groups
            wrong |= self.format > 1 and self.path(number).stat().st_size != entry.bytes
            if wrong or (self.format > 1 and (found.get("file"), found.get("generation")) != (entry.name, entry.generation)):
                raise DamagedTable(
                    f"{self.folder / entry.name}: not the file that {LIST} names (another generation?); {self.mend}"
                )
        self._open[number] = opened
        if len(self._open) > _OPEN:
            self._open.popitem(last=False)[1].close()
        return opened

    def path(self, number: int) -> Path:
        """Return the local path of a file."""
        name = self.files[number].name
        return self.folder / name if self.locate is None else self.locate(name)

    def group(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Return row group `number`, counted over all files."""
        at = bisect_right(self._group_ends, number)
        first = self._group_ends[at - 1] if at else 0
        names = None if columns is None else list(columns)
        with self._reporting(self.files[at].name):
            return self.file(at).read_row_group(number - first, columns=names, use_threads=False)

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the rows of each file, one file after the other."""
        names = None if columns is None else list(columns)
        for number, entry in enumerate(self.files):
            with self._reporting(entry.name):
                table = self.file(number).read(columns=names, use_threads=False)
            yield table.replace_schema_metadata(None)

    def batches(self, columns: Sequence[str] | None = None, rows: int = 1 << 16) -> Iterator[pa.RecordBatch]:
        """Yield the rows in order, at most `rows` at a time."""
        for number, entry in enumerate(self.files):
            with self._reporting(entry.name):
                yield from self.file(number).iter_batches(rows, columns=None if columns is None else list(columns))

    def matching(self, number: int, column: str, wanted: Sequence[str], columns: Sequence[str]) -> pa.Table:
        """Return some columns of the row groups of file `number` that may hold one of the `wanted` values of a column of text.

        A value that ends in / stands for all that begin with it. A row group is left out where its least and greatest value say so; of
        files without these statistics, which earlier versions wrote, every row group may hold anything.
        """
        with self._reporting(self.files[number].name):
            file, sought = self.file(number), _Sought(wanted)
            footer = file.metadata
            leaves = [footer.schema.column(leaf).path for leaf in range(len(footer.schema.names))]
            place = leaves.index(column)  # columns of lists before it have leaves of their own
            every = range(footer.num_row_groups)
            groups = [group for group in every if sought.may_be_in(footer.row_group(group).column(place).statistics)]
            return file.read_row_groups(groups, columns=list(columns), use_threads=False).replace_schema_metadata(None)

    def take(self, places: Sequence[tuple[int, int]], columns: Sequence[str] | None) -> pa.Table:
        """Return runs of rows, each given by its first row and length, one after the other. A run lies in one file.

        Each row group is read once.
        """
        ends = np.cumsum([file.rows for file in self.files], dtype=np.int64)
        files = np.searchsorted(ends, [first for first, _ in places], side="right")
        parts: dict[int, pa.Table] = {}
        for number in np.unique(files).tolist():
            before = int(ends[number]) - self.files[number].rows
            mine = np.flatnonzero(files == number).tolist()
            own = [(places[at][0] - before, places[at][1]) for at in mine]
            with self._reporting(self.files[number].name):
                parts.update(zip(mine, self._taken(number, own, columns), strict=True))
        return pa.concat_tables([parts[at] for at in range(len(places))]).replace_schema_metadata(None)

    def _taken(self, number: int, places: Sequence[tuple[int, int]], columns: Sequence[str] | None) -> list[pa.Table]:
        firsts = self._firsts(number)
        groups = sorted({group for first, count in places for group in _groups(firsts, first, first + count)})
        names = None if columns is None else list(columns)
        table = self.file(number).read_row_groups(groups, columns=names, use_threads=False)
        sizes = np.diff(firsts)[groups]
        begins = np.cumsum(sizes) - sizes
        parts = []
        for first, count in places:
            # The row groups of a run are neighbours, so they are neighbours among those read.
            group = int(np.searchsorted(firsts, first, side="right")) - 1
            parts.append(table.slice(int(begins[np.searchsorted(groups, group)]) + first - int(firsts[group]), count))
        return parts

    def runs(self, begins: Numbers, ends: Numbers, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the rows of runs, given by their first rows and ends, in rising order, a part at a time."""
        last = np.cumsum([0, *(file.rows for file in self.files)], dtype=np.int64)
        for number, entry in enumerate(self.files):
            low, high = np.maximum(begins, last[number]), np.minimum(ends, last[number + 1])
            mine = np.flatnonzero(low < high)
            if not len(mine):
                continue
            breaks = np.flatnonzero(low[mine[1:]] != high[mine[:-1]]) + 1
            for first, end in zip([0, *breaks], [*breaks, len(mine)], strict=True):
                begin, stop = int(low[mine[first]] - last[number]), int(high[mine[end - 1]] - last[number])
                with self._reporting(entry.name):
                    yield from self._run(number, begin, stop, columns)

    def _run(self, number: int, begin: int, end: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        firsts, file = self._firsts(number), self.file(number)
        groups = list(_groups(firsts, begin, end))
        at = int(firsts[groups[0]])
        # One call for thousands of row groups would hold all that it has read: 200 MB for 10M keys.
        for some in range(0, len(groups), _GROUPS):
            for batch in file.iter_batches(
                _BATCH, row_groups=groups[some : some + _GROUPS], columns=list(columns), use_threads=False
            ):
                low, high = max(begin - at, 0), min(end - at, batch.num_rows)
                at += batch.num_rows
                if high > low:
                    yield batch.slice(low, high - low)

    def _firsts(self, number: int) -> Numbers:
        """Return the first row of each row group of a file, and their number."""
        metadata = self.file(number).metadata
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])

    def check(self, numbers: Iterable[int] | None = None) -> Iterator[str]:
        """Read every file, or those of these numbers, and yield a line for each that is not as the list says."""
        for number in range(len(self.files)) if numbers is None else numbers:
            entry = self.files[number]
            try:
                if entry.xxh3 and xxh3_of(self.path(number)) != entry.xxh3:
                    yield f"{self.folder / entry.name}: damaged (checksum); {self.mend}"
                else:
                    self.file(number)
            except FileNotFoundError:
                yield f"{self.folder / entry.name}: missing; {self.mend}"
            except DamagedTable as error:
                yield str(error)

    @contextmanager
    def _reporting(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise DamagedTable(f"{self.folder / name}: missing; {self.mend}") from error
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise DamagedTable(f"{self.folder / name}: damaged ({reason}); {self.mend}") from error


def _groups(firsts: Numbers, begin: int, end: int) -> range:
    """Return the row groups that hold rows begin to end."""
    return range(int(np.searchsorted(firsts, begin, side="right")) - 1, int(np.searchsorted(firsts, end, side="left")))


def _single(path: Path, mend: str) -> TableFolder:
    """Return a table of format 1: one file."""
    try:
        footer = pq.read_metadata(path)
        meta = json.loads((footer.metadata or {}).get(META, b"{}"))
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DamagedTable(f"{path}: damaged ({' '.join(str(error).split())}); {mend}") from error
    return TableFolder(path.parent, (TableFile(path.name, footer.num_rows, footer.num_row_groups),), meta, 1, mend)


class _Sought:
    """Names that are looked for, and those of them that stand for all that begins with them (they end in /)."""

    def __init__(self, wanted: Iterable[str]) -> None:
        self._names = sorted(set(wanted))
        self._above = {name for name in self._names if name.endswith("/")}

    def may_be_in(self, statistics: pq.Statistics | None) -> bool:
        """Whether one of them can lie between the least and the greatest value of a row group; parquet orders text as Python does."""
        if statistics is None or not statistics.has_min_max:
            return True
        low, high = statistics.min, statistics.max
        at = bisect_left(self._names, low)
        if at < len(self._names) and self._names[at] <= high:
            return True
        return any(low[: end + 1] in self._above for end, letter in enumerate(low) if letter == "/")
