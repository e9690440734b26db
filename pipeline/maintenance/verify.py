"""Checks of a SHARDS folder, down to every byte: `verify` and `digest`.

In:  a SHARDS folder.
Out: what is wrong with it, damaged shards by name, counts that add up; one digest over its content.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.runtime.atomic_files import DamagedFile
from pipeline.records import Bucket
from pipeline.shards.commit_record import ShardInfo, dataset_digest, read_info, tar_digest
from pipeline.shards.dataset import open_folder
from pipeline.shards.layout import CLIPS, FINGERPRINTS, INDEX, REJECTS, DatasetError, open_table
from pipeline.shards.manifest import FROM_SHARDS, Manifest
from pipeline.shards.reader import CorruptSample, read_sample
from pipeline.shards.schemas import ROWS
from tokenizer.quantization.codec_spec import CodecSpec


@dataclass(frozen=True)
class Report:
    """What `verify` found."""

    problems: tuple[str, ...]
    """One line each; empty for a sound folder."""
    damaged: tuple[str, ...]
    """Names of damaged or missing shards, such as f017x128x128/shard-000003."""
    videos: int
    videos_used: int
    clips: int
    encoded: int
    refused_clips: int
    refused_videos: int
    shards: int

    @property
    def sound(self) -> bool:
        """Whether no problem was found."""
        return not self.problems


def verify(folder: str | Path) -> Report:
    """Read every byte of a folder and check it against the plan, the commit records and the index.

    Checked: each planned shard is committed; each tar has its recorded sha256, and each member its checksum and length; each
    planned clip is either a sample or a reject; each video has an outcome; the index holds exactly the committed rows; the
    files of the books are those of their lists; the digest. Raises DatasetError for a folder that is not a dataset at all.
    """
    folder = Path(folder)
    info, spec = open_folder(folder)
    manifest = Manifest(folder)
    problems: list[str] = []
    damaged: list[str] = []
    infos: list[ShardInfo] = []
    keys: set[str] = set()
    used: set[str] = set()
    refused: set[str] = set()
    clips = 0
    for group, names, count in manifest.shards():
        clips += count
        wanted = manifest.clips(group)
        planned = Counter(clip.shard for clip in wanted)
        keys_of = {name: {clip.key for clip in wanted if clip.shard == name} for name in names}
        for name in names:
            try:
                shard = _check_shard(folder, name, spec)
            except CorruptSample as error:
                damaged.append(name)
                problems.append(str(error))
                continue
            rows = pq.read_table(folder / f"{name}.parquet", columns=["key", "source"])
            found = rows["key"].to_pylist()
            if shard.samples + len(shard.rejects) != planned[name] or not set(found) <= keys_of[name]:
                problems.append(
                    f"{name}: {planned[name]} clips planned, {shard.samples} encoded and {len(shard.rejects)} refused: the numbers do not add up"
                )
                damaged.append(name)
            twice = keys.intersection(found)
            if twice:
                problems.append(f"{name}: sample {min(twice)} is in another shard too")
            keys.update(found)
            used.update(rows["source"].to_pylist())
            refused.update(plain["key"] for plain in shard.rejects)
            infos.append(replace(shard, rejects=()))
    rejects = manifest.rejects()
    known = manifest.known()
    lost = sorted({reject.source for reject in rejects if reject.stage in FROM_SHARDS} - known)
    if lost:
        problems.append(f"rejects: {lost[0]} is refused but was never planned")
    if not damaged:
        problems += _check_index(folder, info, infos, manifest)
    problems += _check_tables(folder)
    whole = {reject.source for reject in rejects if reject.stage not in FROM_SHARDS} - manifest.planned()
    return Report(
        problems=tuple(problems),
        damaged=tuple(dict.fromkeys(damaged)),
        videos=len(known),
        videos_used=len(used),
        clips=clips,
        encoded=len(keys),
        refused_clips=len(refused - keys),
        refused_videos=len(whole),
        shards=len(infos) + len(set(damaged)),
    )


def _check_tables(folder: Path) -> list[str]:
    """Check every file of the books against the lists."""
    problems = []
    for name in (CLIPS, REJECTS, FINGERPRINTS, INDEX):
        try:
            table = open_table(folder, name)
        except DatasetError as error:
            problems.append(str(error))
            continue
        problems += [] if table is None else list(table.check())
    return problems


def _check_shard(folder: Path, name: str, spec: CodecSpec) -> ShardInfo:
    """Check every byte of one shard. Raises CorruptSample."""
    path, tar = folder / f"{name}.parquet", folder / f"{name}.tar"
    try:
        info = read_info(path)
        rows = pq.read_table(path).to_pylist()
    except FileNotFoundError as error:
        raise CorruptSample(f"{name}: not committed (no {path.name}); run the same `videoar tokenize` again") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise CorruptSample(f"{name}: {path.name} is damaged: {error}") from error
    if len(rows) != info.samples:
        raise CorruptSample(f"{name}: {path.name} has {len(rows)} rows, its record says {info.samples}")
    if not rows:
        return info
    if not tar.exists():
        raise CorruptSample(f"{name}: {tar.name} is missing; recompute it with `videoar tokenize --repair`")
    if tar.stat().st_size != info.tar_bytes:
        raise CorruptSample(
            f"{name}: {tar.name} has {tar.stat().st_size} bytes instead of {info.tar_bytes}; recompute it with `videoar tokenize --repair`"
        )
    for row in rows:
        sample = read_sample(tar, row, shard=name)
        bucket = Bucket.parse(row["bucket"])
        latents, height, width = spec.grid(bucket.frames, bucket.height, bucket.width)
        if len(sample.bits) != latents * spec.frame_bytes(height, width) or sample.meta["key"] != row["key"]:
            raise CorruptSample(f"{name}: sample {row['key']}: its content is not that of a {bucket.name} clip")
    if tar_digest(tar) != info.tar_sha256:
        raise CorruptSample(
            f"{name}: {tar.name} has another sha256 than its record; recompute it with `videoar tokenize --repair`"
        )
    return info


def _check_index(folder: Path, info: dict[str, Any], infos: Sequence[ShardInfo], manifest: Manifest) -> list[str]:
    infos = sorted(infos, key=lambda shard: shard.shard)
    wrong = f"the {INDEX} does not hold exactly the committed rows; delete it and run the same `videoar tokenize` again"
    try:
        index = open_table(folder, INDEX)
        if index is None:
            return [f"the {INDEX} is missing: the job has not finished; run the same `videoar tokenize` again"]
        # Compared one shard after the other, so that memory does not grow with the folder.
        rows = _Rows(index.batches())
        for shard in infos:
            if not shard.samples:
                continue
            committed = pq.read_table(folder / f"{shard.shard}.parquet").replace_schema_metadata(None)
            if not rows.next(committed.num_rows).equals(committed.combine_chunks()):
                return [wrong]
        if rows.next(1).num_rows:
            return [wrong]
        recorded = index.meta["digest"]
    except DamagedFile as error:
        return [str(error)]
    except (pa.ArrowInvalid, KeyError) as error:
        return [f"the {INDEX} is damaged ({error}); delete it and run the same `videoar tokenize` again"]
    found = dataset_digest(info, ((one.shard, one.samples, one.tar_sha256) for one in infos), manifest.reject_tables())
    if found != recorded:
        return [f"the {INDEX} records digest {recorded[:12]}, the content has {found[:12]}"]
    return []


class _Rows:
    """Rows that come in batches, taken in other numbers."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self._held = ROWS.empty_table()

    def next(self, count: int) -> pa.Table:
        """Return the next rows: fewer than `count` at the end."""
        while self._held.num_rows < count and (batch := next(self._batches, None)) is not None:
            self._held = pa.concat_tables([self._held, pa.Table.from_batches([batch]).replace_schema_metadata(None)])
        found = self._held.slice(0, count).combine_chunks()
        self._held = self._held.slice(count)
        return found


def digest(folder: str | Path) -> str:
    """Return one sha256 over all committed content, computed from the current bytes of the tars.

    Raises DatasetError for an unfinished folder, CorruptSample for an unreadable commit record.
    """
    folder = Path(folder)
    info, _ = open_folder(folder)
    manifest = Manifest(folder)

    def records() -> Iterator[tuple[str, int, str]]:
        for name in sorted(name for _, names, _ in manifest.shards() for name in names):
            if not manifest.committed([name]):
                raise DatasetError(f"{folder}: {name} is not committed; run the same `videoar tokenize` again")
            record = read_info(folder / f"{name}.parquet")
            yield name, record.samples, tar_digest(folder / f"{name}.tar") if record.samples else ""

    return dataset_digest(info, records(), manifest.reject_tables())
