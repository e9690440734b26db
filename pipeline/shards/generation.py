"""The list of videos that is being planned: a table on disk, of which a part is a range of rows.

In:  videos, in the order of the corpus, streamed; clips that are tried again.
Out: .plan/videos, written once; `Generation`, which reads of it what is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from cluster.runtime.atomic_files import read_json, write_json
from cluster.tables import table_writer
from cluster.tables.table_folder import TableFolder
from cluster.tables.table_list import TableFile
from pipeline.records import Clip, SourceVideo
from pipeline.shards.layout import PLAN, RETRIED, VIDEOS, open_table
from pipeline.shards.schemas import VIDEOS as SCHEMA

GROUP_ROWS, FILE_ROWS = 1 << 14, 1 << 20
"""Videos in a row group and in a file of the list."""

Listed = tuple[SourceVideo, int]
"""A video, and what it had before: 0 nothing, 1 refusals only, 2 clips."""


class Generation:
    """Videos that are planned together, fixed before the first of them is looked at, with refused clips that are tried again."""

    def __init__(self, plan: Path, table: TableFolder) -> None:
        self._plan, self._table = plan, table
        self.number: int = table.meta["number"]
        """Number of the generation, from 1; files of the books carry it."""
        self.first_group: int = table.meta["first_group"]
        """Number of its first shard group."""
        self.count = table.rows
        """Number of its videos."""

    @classmethod
    def open(cls, folder: Path) -> Generation | None:
        """Read the list of a SHARDS folder, None where nothing is being planned. Raises DatasetError for a damaged one."""
        plan = folder / PLAN
        table = open_table(plan, VIDEOS)
        return None if table is None else cls(plan, table)

    @classmethod
    def write(cls, folder: Path, number: int, first_group: int, videos: Iterable[Listed], clips: Iterable[Clip]) -> Generation:
        """Write a list, streamed, and open it. Raises DiskFull."""
        plan = folder / PLAN
        plan.mkdir(parents=True, exist_ok=True)
        write_json(plan / RETRIED, [clip.plain() for clip in clips])
        files: list[TableFile] = []
        rows = iter(videos)
        while True:
            path = plan / VIDEOS / f"{number:04d}-{len(files):06d}.parquet"
            chunk = islice(rows, FILE_ROWS)
            made = table_writer.write_file(path, SCHEMA, _groups(chunk), generation=number)
            if not made.rows:
                path.unlink()
                break
            files.append(made)
        (plan / VIDEOS).mkdir(exist_ok=True)
        table_writer.write_list(plan / VIDEOS, files, {"number": number, "first_group": first_group})
        made_list = cls.open(folder)
        assert made_list is not None
        return made_list

    def part(self, number: int, size: int) -> list[SourceVideo]:
        """Return videos `number * size` to `(number + 1) * size` of the list. Raises DatasetError for a damaged list."""
        begin, end = number * size, min(self.count, (number + 1) * size)
        found: list[SourceVideo] = []
        for group in range(begin // GROUP_ROWS, -(-end // GROUP_ROWS)):
            first = group * GROUP_ROWS
            table = self._table.group(group)
            found += videos_of(table.slice(max(begin - first, 0), end - max(begin, first)))
        return found

    def listed(self) -> Iterator[Listed]:
        """Yield the videos in order, each with what it had before."""
        for batch in self._table.batches(rows=GROUP_ROWS):
            yield from zip(videos_of(batch), batch["before"].to_pylist(), strict=True)

    def before(self, begin: int, end: int) -> pa.ChunkedArray:
        """Return the column `before` of videos begin to end."""
        groups = range(begin // GROUP_ROWS, -(-end // GROUP_ROWS))
        tables = [self._table.group(group, ["before"]) for group in groups]
        return pa.concat_tables(tables)["before"].slice(begin - groups.start * GROUP_ROWS, end - begin)

    def again(self) -> pa.Array:
        """Return the sources that had an outcome before."""
        found = [batch.filter(pc.greater(batch["before"], 0))["source"] for batch in self._table.batches(["source", "before"])]
        return pa.concat_arrays(found) if found else pa.array([], pa.string())

    @property
    def videos(self) -> tuple[SourceVideo, ...]:
        """All videos: for lists that fit in memory."""
        return tuple(video for video, _ in self.listed())

    @cached_property
    def clips(self) -> tuple[Clip, ...]:
        """Refused clips that are tried again; they go into new groups unchanged."""
        return tuple(Clip.parse(plain) for plain in read_json(self._plan / RETRIED))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Generation):
            return NotImplemented
        return (self.first_group, self.videos, self.clips) == (other.first_group, other.videos, other.clips)

    __hash__ = None  # type: ignore[assignment]


def _groups(rows: Iterator[Listed]) -> Iterator[pa.Table]:
    while chunk := list(islice(rows, GROUP_ROWS)):
        yield rows_of(chunk)


def rows_of(videos: Sequence[Listed]) -> pa.Table:
    """Return videos as rows of the list."""
    cells = {
        "source": [video.source for video, _ in videos],
        "caption": [video.caption for video, _ in videos],
        "extra": pa.array([sorted(video.extra.items()) for video, _ in videos], SCHEMA.field("extra").type),
        "fault": [video.fault for video, _ in videos],
        "before": [before for _, before in videos],
    }
    return pa.table(cells, schema=SCHEMA)


def videos_of(table: pa.Table | pa.RecordBatch) -> list[SourceVideo]:
    """Return rows of the list as videos."""
    columns = (table[name].to_pylist() for name in ("source", "caption", "extra", "fault"))
    return [SourceVideo(source, caption, dict(extra), fault) for source, caption, extra, fault in zip(*columns, strict=True)]
