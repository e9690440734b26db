"""What is planned and what is committed: clips.parquet, rejects.parquet and index.parquet of a SHARDS folder.

In:  planned videos (parts under .plan/), commit records of shards.
Out: the three tables; shard groups. A group is a fixed list of clips: it makes one shard a bucket.
Called by: pipeline.ray_job, pipeline.encode, pipeline.verify.

The plan grows by generations (the first job, then appended videos): a generation fixes its list of videos, plans them
in parts that may be lost and made again, and is merged in the order of the list. So the plan does not depend on who
planned what and when. Shards of earlier generations are never touched.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.runtime.atomic_files import committing, read_json, write_json
from pipeline.config import PipelineConfig
from pipeline.planning.duplicates import ContentIndex, NearDuplicates, without_exact_copies
from pipeline.records import Clip, Reject, SourceVideo, VideoPlan
from pipeline.shards.commit_record import ShardInfo, read_info
from pipeline.shards.digest import dataset_digest
from pipeline.shards.exclusions import hidden
from pipeline.shards.layout import CLIPS, DATASET, INDEX, META, PLAN, PRINTS, REJECTS, SOURCES
from pipeline.shards.schemas import CLIPS as CLIP_SCHEMA
from pipeline.shards.schemas import COMPACT, ROWS, clip_rows, clips_of, reject_rows, rejects_of

FROM_SHARDS = ("encode", "exclude")
"""Stages of refusals that come from commit records; all others come from planning."""


class Manifest:
    """The tables of one SHARDS folder. Writing methods are for the job that holds the folder's lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._plan = folder / PLAN
        self._lock = threading.Lock()
        self._open: tuple[tuple[int, int, int], pq.ParquetFile] | None = None

    # ---- the plan -------------------------------------------------------------------------------------------------

    def known(self) -> set[str]:
        """Sources that have a planned outcome."""
        found: set[str] = set()
        if (self.folder / CLIPS).exists():
            found.update(pq.read_table(self.folder / CLIPS, columns=["source"])["source"].unique().to_pylist())
        found.update(reject.source for reject in self.rejects() if reject.stage not in FROM_SHARDS)
        return found

    def outcomes(self) -> tuple[int, int]:
        """Numbers of videos with planned clips, and of videos with nothing but refusals."""
        used: set[str] = set()
        if (self.folder / CLIPS).exists():
            used.update(pq.read_table(self.folder / CLIPS, columns=["source"])["source"].unique().to_pylist())
        refused = {reject.source for reject in self.rejects() if reject.stage not in FROM_SHARDS}
        return len(used), len(refused - used)

    def quarantined(self) -> tuple[set[str], list[Clip]]:
        """What `retry` tries again: videos that could not be probed, and clips that could not be encoded."""
        rejects = self.rejects()
        keys = {reject.key for reject in rejects if reject.stage == "encode"}
        clips: dict[str, Clip] = {}
        for group in range(self.groups()):
            clips.update((clip.key, clip) for clip in self.clips(group) if clip.key in keys)
        return {reject.source for reject in rejects if reject.stage == "probe"}, list(clips.values())

    def generation(self) -> list[SourceVideo] | None:
        """Videos of the generation that is being planned, None when there is none."""
        try:
            plain = read_json(self._plan / SOURCES)
        except FileNotFoundError:
            return None
        return [SourceVideo(**video) for video in plain["videos"]]

    def begin_generation(self, videos: Sequence[SourceVideo], retried: Sequence[Clip] = ()) -> None:
        """Fix the list of a new generation.

        videos: new ones, and refused ones that get another try. retried: refused clips that go into new groups as they are.
        """
        plain = {
            "first_group": self.groups(),
            "videos": [asdict(video) for video in videos],
            "clips": [replace(clip, shard="").plain() for clip in retried],
        }
        write_json(self._plan / SOURCES, plain)

    def part(self, number: int) -> Path:
        """Path of a planned part."""
        return self._plan / f"part-{number:06d}.json"

    def merge(self, config: PipelineConfig, parts: int) -> tuple[int, int]:
        """Turn the generation's parts into clips.parquet and rejects.parquet, then forget the parts.

        Returns (videos with clips, videos without) of the generation. Idempotent: killed at any moment, it is run again.
        """
        listing = read_json(self._plan / SOURCES)
        first_group = listing["first_group"]
        names = {video["source"] for video in listing.pop("videos")}
        rejects = [reject for reject in self.rejects() if reject.source not in names]
        used = 0
        with (
            committing(self.folder / CLIPS, config.min_free_gb, setting="pipeline.min_free_gb") as temporary,
            pq.ParquetWriter(temporary, CLIP_SCHEMA, **COMPACT) as writer,
        ):
            seen = self._copy_groups(writer, first_group)
            near = NearDuplicates(self.folder / PRINTS, names, config.near_dedup)
            grouper = _Grouper(writer, first_group, config.clips_per_shard)
            for number in range(parts):
                for plain in read_json(self.part(number)):
                    plan = near.without(without_exact_copies(VideoPlan.parse(plain), seen, config.dedup))
                    grouper.add(plan.clips)
                    rejects += plan.rejects
                    used += bool(plan.clips)
            grouper.add([Clip.parse(plain) for plain in listing["clips"]])
            grouper.flush()
        self._write_rejects(rejects)
        near.save()
        # The listing goes first: without it there is no generation, and what is left of the folder means nothing.
        (self._plan / SOURCES).unlink()
        shutil.rmtree(self._plan)
        return used, len(names) - used

    def _copy_groups(self, writer: pq.ParquetWriter, count: int) -> ContentIndex:
        seen = ContentIndex()
        for group in range(count):
            table = self._clip_table(group)
            for source, digest in sorted({(row["source"], row["source_digest"]) for row in table.to_pylist()}):
                seen.add(digest, source)
            writer.write_table(table, row_group_size=max(1, table.num_rows))
        return seen

    def rejects(self) -> list[Reject]:
        """All rows of rejects.parquet."""
        path = self.folder / REJECTS
        return rejects_of(pq.read_table(path)) if path.exists() else []

    def _write_rejects(self, rejects: Sequence[Reject]) -> None:
        with committing(self.folder / REJECTS) as temporary:
            pq.write_table(reject_rows(rejects), temporary, compression="zstd")

    def _clip_table(self, group: int, columns: list[str] | None = None) -> pa.Table:
        """Row group of clips.parquet. The footer is parsed once: with many groups it is long."""
        with self._lock:
            return self._clip_file().read_row_group(group, columns=columns)

    def _clip_file(self) -> pq.ParquetFile:
        stat = (self.folder / CLIPS).stat()
        stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if self._open is None or self._open[0] != stamp:
            self._open = (stamp, pq.ParquetFile(self.folder / CLIPS))
        return self._open[1]

    def groups(self) -> int:
        """Number of planned shard groups."""
        with self._lock:
            return int(self._clip_file().num_row_groups) if (self.folder / CLIPS).exists() else 0

    def clips(self, group: int) -> list[Clip]:
        """Clips of a group, in the order of the plan."""
        return clips_of(self._clip_table(group))

    def uncommitted(self, group: int) -> list[Clip]:
        """Clips of a group whose shard has no commit record."""
        clips = self.clips(group)
        ready = {shard for shard in {clip.shard for clip in clips} if self.committed([shard])}
        return [clip for clip in clips if clip.shard not in ready]

    def shards(self) -> Iterator[tuple[int, tuple[str, ...], int]]:
        """Give (group, names of its shards, number of its clips) in order."""
        for group in range(self.groups()):
            names = self._clip_table(group, ["shard"])["shard"]
            yield group, tuple(sorted(names.unique().to_pylist())), len(names)

    # ---- what is committed ----------------------------------------------------------------------------------------

    def committed(self, shards: Sequence[str]) -> bool:
        """Whether every one of these shards has its commit record."""
        return all((self.folder / f"{shard}.parquet").exists() for shard in shards)

    def used(self) -> set[str]:
        """Sources with at least one sample in index.parquet."""
        return set(pq.read_table(self.folder / INDEX, columns=["source"])["source"].unique().to_pylist())

    def blank_captions(self, gone: Sequence[str]) -> None:
        """Rewrite clips.parquet without the captions and carried columns of sources that were taken down."""
        with (
            committing(self.folder / CLIPS) as temporary,
            pq.ParquetWriter(temporary, CLIP_SCHEMA, **COMPACT) as writer,
        ):
            for group in range(self.groups()):
                clips = [replace(c, caption="", extra={}) if hidden(c.source, gone) else c for c in self.clips(group)]
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
            # A clip that was tried again has its outcome in its newest shard.
            for name in names if refused else ():
                for key in pq.read_table(self.folder / f"{name}.parquet", columns=["key"])["key"].to_pylist():
                    refused.pop(key, None)
            rejects.extend(reject for reject in self.rejects() if reject.stage not in FROM_SHARDS)
            rejects.extend(refused.values())
            yield from rejects

        digest = dataset_digest(read_json(self.folder / DATASET), records(), refusals())
        self._write_rejects(rejects)
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


class _Grouper:
    """Cuts the stream of clips into groups of so many spans, and writes each as one row group."""

    def __init__(self, writer: pq.ParquetWriter, first: int, size: int) -> None:
        self._writer, self._group, self._size = writer, first, size
        self._clips: list[Clip] = []
        self._spans = 0
        self._last: tuple[str, float] | None = None

    def add(self, clips: Sequence[Clip]) -> None:
        for clip in clips:
            span = (clip.source, clip.begin)
            if span != self._last:
                if self._spans == self._size:
                    self.flush()
                self._spans += 1
                self._last = span
            self._clips.append(clip)

    def flush(self) -> None:
        if not self._clips:
            return
        named = [replace(clip, shard=f"{clip.bucket.name}/shard-{self._group:06d}") for clip in self._clips]
        table: pa.Table = clip_rows(named, self._group)
        self._writer.write_table(table, row_group_size=table.num_rows)
        self._clips, self._spans = [], 0
        self._group += 1
