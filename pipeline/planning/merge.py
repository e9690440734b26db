"""From the planned parts of a generation to clips.parquet and rejects.parquet.

In:  the `Manifest` of a folder whose parts are all planned, and the configuration.
Out: the two tables; clips are cut into shard groups in the order of the corpus, and duplicates are refused on the way.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.runtime.atomic_files import committing, read_json
from pipeline.config import PipelineConfig
from pipeline.planning.duplicates import ContentIndex, NearDuplicates, without_exact_copies
from pipeline.records import Clip, VideoPlan
from pipeline.shards.layout import CLIPS, FINGERPRINTS, SOURCES
from pipeline.shards.manifest import Generation, Manifest
from pipeline.shards.schemas import CLIPS as CLIP_SCHEMA
from pipeline.shards.schemas import COMPACT, clip_rows


def merge(manifest: Manifest, generation: Generation, config: PipelineConfig, parts: int) -> tuple[int, int]:
    """Turn the generation's parts into clips.parquet and rejects.parquet, then remove the parts.

    Returns (videos with clips, videos without) of the generation. Idempotent: after a kill at any moment, call it again.
    """
    first_group = generation.first_group
    names = {video.source for video in generation.videos}
    rejects = [reject for reject in manifest.rejects() if reject.source not in names]
    used = 0
    with (
        committing(manifest.folder / CLIPS, config.min_free_gb, setting="pipeline.min_free_gb") as temporary,
        pq.ParquetWriter(temporary, CLIP_SCHEMA, **COMPACT) as writer,
    ):
        contents = _copy_groups(manifest, writer, first_group)
        near = NearDuplicates(manifest.folder / FINGERPRINTS, names, config.near_dedup)
        grouper = _Grouper(writer, first_group, config.clips_per_shard)
        for number in range(parts):
            for plain in read_json(manifest.part(number)):
                plan = near.without(without_exact_copies(VideoPlan.parse(plain), contents, config.dedup))
                grouper.add(plan.clips)
                rejects += plan.rejects
                used += bool(plan.clips)
        grouper.add(generation.clips)
        grouper.flush()
    manifest.write_rejects(rejects)
    near.save()
    # The listing goes first: without it there is no generation, and whatever else is left in the folder is ignored.
    (manifest.parts / SOURCES).unlink()
    shutil.rmtree(manifest.parts)
    return used, len(names) - used


def _copy_groups(manifest: Manifest, writer: pq.ParquetWriter, count: int) -> ContentIndex:
    """Copy the first `count` groups, those of earlier generations, unchanged; returns the contents of their videos."""
    contents = ContentIndex()
    for group in range(count):
        table = manifest.group_table(group)
        for source, digest in sorted({(row["source"], row["source_digest"]) for row in table.to_pylist()}):
            contents.add(digest, source)
        writer.write_table(table, row_group_size=max(1, table.num_rows))
    return contents


class _Grouper:
    """Cuts a stream of clips into groups of `size` spans, and writes each group as one row group.

    first: number of the first group.
    """

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
