"""What is planned and what is committed: the tables of clips and rejects of a SHARDS folder, and its commit records.

In:  the tables (pipeline.books writes them), commit records of shards.
Out: clips by group, rejects, sources; the generation that is being planned. A shard group is a fixed list of clips; it makes one
     shard per bucket.

The plan grows by generations (the first job, then each run that finds new videos). A generation fixes its list of videos, plans
them in parts that may be lost and recomputed, and is merged in the order of the list (pipeline.books.merge), so the plan
does not depend on who planned what and when. Shards of earlier generations are never touched.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.tables import table_writer
from cluster.tables.table_folder import TableFolder
from cluster.tables.table_list import LIST
from pipeline.records import Clip, Reject, SourceVideo
from pipeline.shards.generation import Generation, Listed
from pipeline.shards.layout import CLIPS, INDEX, PLAN, REJECTS, open_table, refuse_old
from pipeline.shards.schemas import CLIPS as CLIP_SCHEMA
from pipeline.shards.schemas import clip_rows, clips_of, rejects_of

FROM_SHARDS = ("encode", "exclude")
"""Stages whose rejects come from commit records; those of all other stages come from planning."""


class Manifest:
    """The tables of one SHARDS folder. Methods that write may be called only by the job that holds the folder's lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parts = folder / PLAN
        """Folder of the generation that is being planned: its list of videos, and a file for each planned part."""
        self._lock = threading.Lock()
        self._outcomes: tuple[set[str], set[str]] | None = None
        self._open: tuple[tuple[int, int], TableFolder] | None = None

    # ---- the plan -------------------------------------------------------------------------------------------------

    def known(self) -> set[str]:
        """Return the sources that have a planned outcome; for folders whose names fit in memory, as `planned` and `used`."""
        return self.planned() | {name for names in self.refused_names() for name in names}

    def planned(self) -> set[str]:
        """Return the sources with planned clips."""
        return {name for names in self.planned_names() for name in names}

    def planned_names(self) -> Iterator[list[str]]:
        """Yield the sources with planned clips, a file of the table at a time, some of them again and again."""
        if (clips := open_table(self.folder, CLIPS)) is not None:
            for table in clips.tables(["source"]):
                yield table["source"].unique().to_pylist()

    def refused_names(self) -> Iterator[list[str]]:
        """Yield the sources with a reject of planning, as `planned_names` does."""
        for table in self.reject_tables(["source", "stage"]):
            planning = pc.invert(pc.is_in(table["stage"], value_set=pa.array(FROM_SHARDS)))
            yield table.filter(planning)["source"].unique().to_pylist()

    def quarantined(self) -> tuple[set[str], list[Clip]]:
        """Return what `retry` tries again: videos that could not be probed, and clips that could not be encoded."""
        probed: set[str] = set()
        keys: list[str] = []
        for table in self.reject_tables(["source", "stage", "key"]):
            for source, stage, key in zip(*(table[name].to_pylist() for name in ("source", "stage", "key")), strict=True):
                if stage == "probe":
                    probed.add(source)
                elif stage == "encode":
                    keys.append(key)
        clips: dict[str, Clip] = {}
        wanted = pa.array(sorted(set(keys)), pa.string())
        if len(wanted) and (planned := open_table(self.folder, CLIPS)) is not None:
            for table in planned.tables():
                found = table.filter(pc.is_in(table["key"], value_set=wanted))
                clips.update((clip.key, clip) for clip in clips_of(found))
        return probed, list(clips.values())

    def generation(self) -> Generation | None:
        """Return the generation that is being planned, None when there is none. Raises DatasetError for a damaged list."""
        return Generation.open(self.folder)

    def begin_generation(self, videos: Iterable[Listed | SourceVideo], clips: Sequence[Clip] = ()) -> Generation:
        """Fix the list of videos of a new generation, with refused clips that are tried again.

        What a video alone had before is taken from the tables; their names are then in memory.
        """
        again = [replace(clip, shard="") for clip in clips]
        self._outcomes = None
        rows = (self._with_outcome(video) if isinstance(video, SourceVideo) else video for video in videos)
        return Generation.write(self.folder, self._next_number(), self.groups(), rows, again)

    def _with_outcome(self, video: SourceVideo) -> Listed:
        if self._outcomes is None:
            self._outcomes = self.known(), self.planned()
        known, planned = self._outcomes
        return video, 2 if video.source in planned else int(video.source in known)

    def _next_number(self) -> int:
        tables = [open_table(self.folder, name) for name in (CLIPS, REJECTS)]
        return 1 + max((file.generation for table in tables if table is not None for file in table.files), default=0)

    def part(self, number: int) -> Path:
        """Return the path of a planned part."""
        return self.parts / f"part-{number:06d}.arrow"

    def reject_tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the rows of the table of rejects, a file at a time."""
        table = open_table(self.folder, REJECTS)
        return iter(()) if table is None else table.tables(columns)

    def rejects(self) -> list[Reject]:
        """Return all rows of the table of rejects."""
        return [reject for table in self.reject_tables() for reject in rejects_of(table)]

    def group_table(self, group: int, columns: list[str] | None = None) -> pa.Table:
        """Return a shard group's rows of the table of clips. Thread-safe."""
        with self._lock:
            table = self._clip_table()
            assert table is not None
            return table.group(group, columns)

    def _clip_table(self) -> TableFolder | None:
        path = self.folder / CLIPS / LIST
        try:
            stat = (path if path.exists() else self.folder / f"{CLIPS}.parquet").stat()
        except FileNotFoundError:
            return None
        stamp = (stat.st_ino, stat.st_mtime_ns)
        if self._open is None or self._open[0] != stamp:
            table = open_table(self.folder, CLIPS)
            assert table is not None
            self._open = (stamp, table)
        return self._open[1]

    def groups(self) -> int:
        """Return the number of planned shard groups."""
        with self._lock:
            table = self._clip_table()
            return 0 if table is None else table.row_groups

    def clips(self, group: int) -> list[Clip]:
        """Return the clips of a group, in the order of the plan."""
        return clips_of(self.group_table(group))

    def uncommitted(self, group: int) -> list[Clip]:
        """Return the clips of a group whose shard has no commit record."""
        clips = self.clips(group)
        ready = {shard for shard in {clip.shard for clip in clips} if self.committed([shard])}
        return [clip for clip in clips if clip.shard not in ready]

    def shards(self) -> Iterator[tuple[int, tuple[str, ...], int]]:
        """Yield (group, names of its shards, number of its clips) in order."""
        table = open_table(self.folder, CLIPS)
        for part in () if table is None else table.tables(["group", "shard"]):
            groups = part["group"].to_numpy()
            starts = np.flatnonzero(np.diff(groups, prepend=-1))
            for start, end in zip(starts, [*starts[1:], len(groups)], strict=True):
                names = part["shard"].slice(start, end - start)
                yield int(groups[start]), tuple(sorted(names.unique().to_pylist())), int(end - start)

    # ---- what is committed ----------------------------------------------------------------------------------------

    def committed(self, shards: Sequence[str]) -> bool:
        """Return whether each of these shards has its commit record."""
        return all((self.folder / f"{shard}.parquet").exists() for shard in shards)

    def used(self) -> set[str]:
        """Return the sources with at least one sample in the index."""
        found: set[str] = set()
        if (index := open_table(self.folder, INDEX)) is not None:
            for table in index.tables(["source"]):
                found.update(table["source"].unique().to_pylist())
        return found

    def rewrite_clips(self, change: Callable[[Clip], Clip]) -> None:
        """Rewrite the table of clips with each clip changed, groups and their order as they are. Raises DatasetError for an old one."""
        refuse_old(self.folder)
        table = open_table(self.folder, CLIPS)
        assert table is not None
        # Under new names: a kill leaves the table as it was.
        revision = int(table.meta.get("revision", 0)) + 1
        made, group = [], 0
        for entry in table.files:
            numbers = range(group, group + entry.row_groups)
            group = numbers.stop
            path = self.folder / CLIPS / f"{entry.name.split('.')[0]}.{revision}.parquet"
            tables = (clip_rows([change(clip) for clip in clips_of(table.group(n))], n) for n in numbers)
            made.append(table_writer.write_file(path, CLIP_SCHEMA, tables, generation=entry.generation))
        table_writer.write_list(self.folder / CLIPS, made, {**table.meta, "revision": revision})
