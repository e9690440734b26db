"""From the planned parts of a generation to the tables of clips and rejects.

In:  the `Manifest` of a folder whose parts are all planned, and the configuration.
Out: the tables, with the generation's files appended; clips are cut into shard groups in the order of the corpus.

 parts ─▶ [scatter digests] ─▶ [find copies, by partition] ─▶ [settle blocks] ─▶ prefix sums ─▶ [write files] ─▶ lists
Each bracket is a step of independent tasks (tasks.py), of which the driver sees sums alone: its memory follows the blocks of parts.
The result is the same, byte for byte, whoever runs the tasks. A merge that was killed goes on with the blocks that are settled.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.runtime.atomic_files import read_json
from cluster.tables import table_writer
from cluster.tables.table_list import LIST, TableFile
from pipeline.books import exact_copies, near_copies, settle
from pipeline.books.merged_files import Slices, without_sources, write_clips, write_rows
from pipeline.books.near_copies import Prints
from pipeline.books.parts import Numbers, write_table
from pipeline.books.settle import Block, Found, Settled
from pipeline.books.shard_groups import Cut
from pipeline.books.tasks import Runner, serially
from pipeline.config import PipelineConfig
from pipeline.shards.generation import Generation
from pipeline.shards.layout import CLIPS, DATASET, FINGERPRINTS, REJECTS, VIDEOS, open_table, refuse_old
from pipeline.shards.manifest import Manifest
from tokenizer.quantization.codec_spec import CodecSpec

BLOCK_VIDEOS = 1 << 16
"""Videos in a block of parts, about."""
REJECT_ROWS, PRINT_ROWS = 1 << 17, 1 << 13
"""Rows in a file of the tables of rejects and of fingerprints."""
FROM_SHARDS = "shards-"
"""Beginning of the names of the files whose rejects come from commit records (index.py writes them)."""
SCRATCH = "merge-"
"""Beginning of the name of the folder of a merge, below that of the parts."""
_AGAIN = "again.arrow"


def merge(
    manifest: Manifest, generation: Generation, config: PipelineConfig, parts: int, run: Runner = serially
) -> tuple[int, int]:
    """Append the generation's parts to the tables of clips and rejects, then remove the parts.

    Returns (videos with clips, videos without) of the generation. Idempotent: after a kill at any moment, call it again.
    Raises DamagedFile, DatasetError, DiskFull.
    """
    refuse_old(manifest.folder)
    used = _Merge(manifest, generation, config, parts, run).run()
    # The list goes first: without it there is no generation, and whatever else is left in the folder is ignored.
    (manifest.parts / VIDEOS / LIST).unlink()
    shutil.rmtree(manifest.parts)
    return used, generation.count - used


@dataclass(frozen=True)
class _Merge:
    manifest: Manifest
    generation: Generation
    config: PipelineConfig
    parts: int
    step: Runner

    @property
    def folder(self) -> Path:
        return self.manifest.folder

    @property
    def _scratch(self) -> Path:
        # Parts of another generation or size have another folder: what is there counts as done.
        return self.manifest.parts / f"{SCRATCH}{self.generation.number}-{self.parts}x{self.config.videos_per_task}"

    def run(self) -> int:
        scratch = self._scratch
        if not scratch.exists():
            self._forget_files()
            scratch.mkdir(parents=True)
        blocks = self._blocks(scratch)
        write_table(scratch / _AGAIN, pa.table({"source": self.generation.again()}))
        spec_path = self.folder / DATASET
        spec = CodecSpec.parse(read_json(spec_path)["spec"]) if spec_path.exists() else None
        cut = Cut.of(self.config, spec)
        found = self._copies(scratch, blocks)
        free = self.config.min_free_gb
        calls = [(self.folder, block, found, cut, free) for block in blocks]
        settled: list[Settled] = list(self.step("settle", settle.settle, calls))
        if self.generation.clips:
            last = next((each.last for each in reversed(settled) if each.last is not None), None)
            extra = Block((), self.generation.count, scratch / "retried")
            blocks.append(extra)
            settled.append(settle.settle_retried(self.generation.clips, extra, cut, last, free))
        self._write(blocks, settled, cut)
        return sum(each.used for each in settled)

    def _blocks(self, scratch: Path) -> list[Block]:
        size = self.config.videos_per_task
        per_block = max(1, BLOCK_VIDEOS // size)
        blocks = []
        for at in range(0, self.parts, per_block):
            paths = tuple(self.manifest.part(number) for number in range(at, min(self.parts, at + per_block)))
            blocks.append(Block(paths, at * size, scratch / f"block-{at // per_block:06d}"))
        return blocks

    def _copies(self, scratch: Path, blocks: Sequence[Block]) -> Found:
        """Find the copies among all videos."""
        earlier = self._earlier(CLIPS)
        rows = self.generation.count + sum(file.rows for file in earlier) // 4
        count = exact_copies.partitions(rows)
        exact = tuple(scratch / f"copies-{partition:04d}.arrow" for partition in range(count))
        old = [(self.folder, number, scratch / f"old-{number:06d}.arrow", count) for number in range(len(earlier))]
        new = [(block.paths, block.first, block.file("digests"), count) for block in blocks]
        spills = (*(call[2] for call in old), *(call[2] for call in new))
        if not all(path.exists() for path in exact):
            self._all("scatter earlier", exact_copies.scatter_clips, old)
            self._all("scatter", exact_copies.scatter_videos, new)
            self._all("copies", exact_copies.find, [(partition, spills, out) for partition, out in enumerate(exact)])
        for path in spills:
            path.unlink(missing_ok=True)
        near = self._near_copies(scratch, blocks, exact) if self.config.near_dedup else ()
        return Found(exact, self.config.dedup, near)

    def _near_copies(self, scratch: Path, blocks: Sequence[Block], exact: tuple[Path, ...]) -> tuple[Path, ...]:
        """Find spans that show what an earlier video shows: rounds over an index, until its videos are those that remain."""
        earlier = self._earlier(FINGERPRINTS)
        firsts = [int(first) for first in _sums([file.rows for file in earlier])]
        old = [Prints(scratch / f"prints-{at:06d}", firsts[at]) for at in range(len(earlier))]
        own = [Prints(block.out, near_copies.first_number(block.first)) for block in blocks]
        again = scratch / _AGAIN
        calls: list[tuple[Any, ...]] = [(self.folder, at, again, block) for at, block in enumerate(old)]
        self._all("earlier prints", near_copies.unpack_earlier, calls)
        calls = [(b.paths, b.first, exact, self.config.dedup, prints) for b, prints in zip(blocks, own, strict=True)]
        self._all("prints", near_copies.unpack, calls)
        every, ranges = [*old, *own], min(64, len(own) + len(old))
        dropped: list[int] = []
        while True:
            gone = scratch / "dropped.arrow"
            write_table(gone, pa.table({"video": pa.array(dropped, pa.int64())}))
            index = [scratch / f"index-{at:02d}.arrow" for at in range(ranges)]
            self._all("near index", near_copies.make_index, [(at, ranges, every, gone, out) for at, out in enumerate(index)])
            found = tuple(prints.file("near") for prints in own)
            threshold = self.config.near_dedup
            calls = [(prints, every, index, threshold, out) for prints, out in zip(own, found, strict=True)]
            now = [video for videos in self.step("near copies", near_copies.refuse, calls) for video in videos]
            if now == dropped:
                return found
            dropped = now

    def _all(self, step: str, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> None:
        for _ in self.step(step, function, calls):
            pass

    def _write(self, blocks: Sequence[Block], settled: Sequence[Settled], cut: Cut) -> None:
        """Write the generation's files and, last, the lists."""
        number, free = self.generation.number, self.config.min_free_gb
        again = self._scratch / _AGAIN
        weights = _sums([each.weight for each in settled])
        tops = [int(before) + each.top for before, each in zip(weights, settled) if each.clips]
        groups = max(tops, default=-1) // cut.whole + 1
        size = cut.file_groups * cut.whole
        calls = [
            (self._path(CLIPS, at), number, self.generation.first_group, cut, _slices(blocks, "clips", weights, at, size), free)
            for at in range(-(-groups // cut.file_groups))
        ]
        clips = [*self._earlier(CLIPS), *self.step("clips", write_clips, calls)]
        rejects = self._rows(REJECTS, blocks, [each.rejects for each in settled], REJECT_ROWS)
        earlier = self._kept(REJECTS, again)
        planned = [file for file in earlier if not file.name.startswith(FROM_SHARDS)]
        rejects = [*planned, *rejects, *(file for file in earlier if file.name.startswith(FROM_SHARDS))]
        prints = None
        if self.config.near_dedup:
            prints = [
                *self._kept(FINGERPRINTS, again),
                *self._rows(FINGERPRINTS, blocks, [e.prints for e in settled], PRINT_ROWS),
            ]
        table_writer.write_list(self.folder / CLIPS, clips, self._meta(CLIPS))
        table_writer.write_list(self.folder / REJECTS, rejects, self._meta(REJECTS))
        if prints is not None:
            table_writer.write_list(self.folder / FINGERPRINTS, prints, self._meta(FINGERPRINTS))

    def _rows(self, name: str, blocks: Sequence[Block], counts: Sequence[int], size: int) -> list[TableFile]:
        """Write a table's rows in files of `size` rows."""
        ends = _sums(counts)
        kind = "rejects" if name == REJECTS else "prints"
        calls = [
            (self._path(name, at), name, self.generation.number, at * size, size, _slices(blocks, kind, ends, at, size))
            for at in range(-(-int(ends[-1]) // size))
        ]
        return list(self.step(kind, write_rows, calls))

    def _kept(self, name: str, again: Path) -> list[TableFile]:
        """Drop the rows of videos that are planned anew from the files of earlier generations."""
        earlier = self._earlier(name)
        calls = [(self.folder, name, number, again, self.generation.number) for number in range(len(earlier))]
        kept = list(self.step(f"earlier {name}", without_sources, calls)) if len(self.generation.again()) else earlier
        return [file for file in kept if file.rows]

    def _path(self, name: str, at: int) -> Path:
        return self.folder / name / f"{self.generation.number:04d}-{at:06d}.parquet"

    def _earlier(self, name: str) -> list[TableFile]:
        """Return the files of earlier generations: a list that was written before a kill has this one's, too."""
        table = open_table(self.folder, name)
        return [] if table is None else [file for file in table.files if file.generation < self.generation.number]

    def _meta(self, name: str) -> dict[str, object]:
        table = open_table(self.folder, name)
        return {} if table is None else table.meta

    def _forget_files(self) -> None:
        """Remove files that a merge of other parts has left: a file that is there counts as written."""
        for name in (CLIPS, REJECTS, FINGERPRINTS):
            table = open_table(self.folder, name)
            listed = set() if table is None else {file.name for file in table.files}
            for path in (self.folder / name).glob("*.parquet") if (self.folder / name).is_dir() else ():
                if path.name not in listed:
                    path.unlink()


def _sums(counts: Sequence[int]) -> Numbers:
    """Return the sums before each block, and of all."""
    return np.concatenate([[0], np.cumsum(np.array(counts, np.int64), dtype=np.int64)])


def _slices(blocks: Sequence[Block], kind: str, sums: Numbers, at: int, size: int) -> Slices:
    """Return the files of the blocks that have something of [at * size, (at + 1) * size)."""
    begin, end = at * size, (at + 1) * size
    first = max(0, int(np.searchsorted(sums, begin, side="right")) - 1)
    last = int(np.searchsorted(sums, end, side="right"))
    return tuple((blocks[n].file(kind), int(sums[n])) for n in range(first, min(len(blocks), last)))
