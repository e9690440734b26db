"""What is planned and what is committed: clips.parquet, rejects.parquet and index.parquet of a SHARDS folder.

In:  planned videos (part files under .plan/), commit records of shards.
Out: the three tables, read and written. A shard group is a fixed list of clips; it makes one shard per bucket.

The plan grows by generations (the first job, then each run that finds new videos). A generation fixes its list of videos, plans
them in parts that may be lost and recomputed, and is merged in the order of the list (pipeline.planning.merge), so the plan
does not depend on who planned what and when. Shards of earlier generations are never touched.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.runtime.atomic_files import committing, read_json, write_json
from pipeline.records import Clip, Reject, SourceVideo
from pipeline.shards.commit_record import ShardInfo, dataset_digest, read_info
from pipeline.shards.layout import CLIPS, DATASET, INDEX, META, PLAN, REJECTS, SOURCES
from pipeline.shards.schemas import CLIPS as CLIP_SCHEMA
from pipeline.shards.schemas import COMPACT, ROWS, clip_rows, clips_of, reject_rows, rejects_of

FROM_SHARDS = ("encode", "exclude")
"""Stages whose rejects come from commit records; those of all other stages come from planning."""


@dataclass(frozen=True)
class Generation:
    """A list of videos that is being planned, fixed before the first of them is looked at."""

    first_group: int
    """Number of its first shard group."""
    videos: tuple[SourceVideo, ...]
    """New videos, and refused ones that are tried again."""
    clips: tuple[Clip, ...] = ()
    """Refused clips that are tried again; they go into new groups unchanged."""


class Manifest:
    """The tables of one SHARDS folder. Methods that write may be called only by the job that holds the folder's lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parts = folder / PLAN
        """Folder of the generation that is being planned: its list of videos, and a file for each planned part."""
        self._lock = threading.Lock()
        self._open: tuple[tuple[int, int, int], pq.ParquetFile] | None = None

    # ---- the plan -------------------------------------------------------------------------------------------------

    def known(self) -> set[str]:
        """Return the sources that have a planned outcome."""
        found: set[str] = set()
        if (self.folder / CLIPS).exists():
            found.update(pq.read_table(self.folder / CLIPS, columns=["source"])["source"].unique().to_pylist())
        found.update(reject.source for reject in self.rejects() if reject.stage not in FROM_SHARDS)
        return found

    def outcomes(self) -> tuple[int, int]:
        """Return the number of videos with planned clips, and of videos with rejects only."""
        used: set[str] = set()
        if (self.folder / CLIPS).exists():
            used.update(pq.read_table(self.folder / CLIPS, columns=["source"])["source"].unique().to_pylist())
        refused = {reject.source for reject in self.rejects() if reject.stage not in FROM_SHARDS}
        return len(used), len(refused - used)

    def quarantined(self) -> tuple[set[str], list[Clip]]:
        """Return what `retry` tries again: videos that could not be probed, and clips that could not be encoded."""
        rejects = self.rejects()
        keys = {reject.key for reject in rejects if reject.stage == "encode"}
        clips: dict[str, Clip] = {}
        for group in range(self.groups()):
            clips.update((clip.key, clip) for clip in self.clips(group) if clip.key in keys)
        return {reject.source for reject in rejects if reject.stage == "probe"}, list(clips.values())

    def generation(self) -> Generation | None:
        """Read the generation that is being planned, None when there is none. The list is long: call it once a start."""
        try:
            plain = read_json(self.parts / SOURCES)
        except FileNotFoundError:
            return None
        videos = tuple(SourceVideo(**video) for video in plain["videos"])
        return Generation(plain["first_group"], videos, tuple(Clip.parse(clip) for clip in plain["clips"]))

    def begin_generation(self, videos: Sequence[SourceVideo], clips: Sequence[Clip] = ()) -> Generation:
        """Fix the list of videos of a new generation, with refused clips that are tried again."""
        made = Generation(self.groups(), tuple(videos), tuple(replace(clip, shard="") for clip in clips))
        self.write_generation(made)
        return made

    def write_generation(self, generation: Generation) -> None:
        """Write the list of a generation."""
        plain = {
            "first_group": generation.first_group,
            "videos": [asdict(video) for video in generation.videos],
            "clips": [clip.plain() for clip in generation.clips],
        }
        write_json(self.parts / SOURCES, plain)

    def part(self, number: int) -> Path:
        """Return the path of a planned part."""
        return self.parts / f"part-{number:06d}.json"

    def rejects(self) -> list[Reject]:
        """Return all rows of rejects.parquet."""
        path = self.folder / REJECTS
        return rejects_of(pq.read_table(path)) if path.exists() else []

    def write_rejects(self, rejects: Sequence[Reject]) -> None:
        """Write rejects.parquet."""
        with committing(self.folder / REJECTS) as temporary:
            pq.write_table(reject_rows(rejects), temporary, compression="zstd")

    def group_table(self, group: int, columns: list[str] | None = None) -> pa.Table:
        """Return a shard group's rows of clips.parquet. The footer is parsed only once: with many groups it is long."""
        with self._lock:
            return self._clip_file().read_row_group(group, columns=columns)

    def _clip_file(self) -> pq.ParquetFile:
        stat = (self.folder / CLIPS).stat()
        stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if self._open is None or self._open[0] != stamp:
            self._open = (stamp, pq.ParquetFile(self.folder / CLIPS))
        return self._open[1]

    def groups(self) -> int:
        """Return the number of planned shard groups."""
        with self._lock:
            return int(self._clip_file().num_row_groups) if (self.folder / CLIPS).exists() else 0

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
        for group in range(self.groups()):
            names = self.group_table(group, ["shard"])["shard"]
            yield group, tuple(sorted(names.unique().to_pylist())), len(names)

    # ---- what is committed ----------------------------------------------------------------------------------------

    def committed(self, shards: Sequence[str]) -> bool:
        """Return whether each of these shards has its commit record."""
        return all((self.folder / f"{shard}.parquet").exists() for shard in shards)

    def used(self) -> set[str]:
        """Return the sources with at least one sample in index.parquet."""
        return set(pq.read_table(self.folder / INDEX, columns=["source"])["source"].unique().to_pylist())

    def rewrite_clips(self, change: Callable[[Clip], Clip]) -> None:
        """Rewrite clips.parquet with each clip changed, groups and their order as they are."""
        with (
            committing(self.folder / CLIPS) as temporary,
            pq.ParquetWriter(temporary, CLIP_SCHEMA, **COMPACT) as writer,
        ):
            for group in range(self.groups()):
                clips = [change(clip) for clip in self.clips(group)]
                writer.write_table(clip_rows(clips, group), row_group_size=max(1, len(clips)))

    def finish(self) -> str:
        """Write rejects.parquet (with the clips that could not be encoded) and, last, index.parquet. Returns the digest.

        Every planned shard must be committed.
        """
        names = sorted(name for _, shards, _ in self.shards() for name in shards)
        refused: dict[str, Reject] = {}
        rejects: list[Reject] = []

        def records() -> Iterator[ShardInfo]:
            for name in names:
                info = read_info(self.folder / f"{name}.parquet")
                refused.update((plain["key"], Reject(**plain)) for plain in info.rejects)
                yield info

        def refusals() -> Iterator[Reject]:
            # The outcome of a clip that was tried again is in its newest shard.
            for name in names if refused else ():
                for key in pq.read_table(self.folder / f"{name}.parquet", columns=["key"])["key"].to_pylist():
                    refused.pop(key, None)
            rejects.extend(reject for reject in self.rejects() if reject.stage not in FROM_SHARDS)
            rejects.extend(refused.values())
            yield from rejects

        digest = dataset_digest(read_json(self.folder / DATASET), records(), refusals())
        self.write_rejects(rejects)
        meta = {META: json.dumps({"digest": digest, "shards": len(names)}, sort_keys=True).encode()}
        with (
            committing(self.folder / INDEX) as temporary,
            pq.ParquetWriter(temporary, ROWS.with_metadata(meta), **COMPACT) as writer,
        ):
            for name in names:
                table = pq.read_table(self.folder / f"{name}.parquet").replace_schema_metadata(meta)
                if table.num_rows:
                    writer.write_table(table)
        return digest
