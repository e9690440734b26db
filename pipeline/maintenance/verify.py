"""Checks of a SHARDS folder, down to every byte: `verify` and `digest`.

In:  a SHARDS folder.
Out: what is wrong with it, damaged shards by name, counts that add up; one digest over its content.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.records import Bucket
from pipeline.shards.commit_record import ShardInfo, dataset_digest, read_info, tar_digest
from pipeline.shards.dataset import open_folder
from pipeline.shards.layout import INDEX, META, DatasetError
from pipeline.shards.manifest import FROM_SHARDS, Manifest
from pipeline.shards.reader import CorruptSample, read_sample
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
    planned clip is either a sample or a reject; each video has an outcome; index.parquet holds exactly the committed rows; the
    digest. Raises DatasetError for a folder that is not a dataset at all.
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
        problems.append(f"rejects.parquet: {lost[0]} is refused but was never planned")
    if not damaged:
        problems += _check_index(folder, info, infos, manifest)
    whole = {reject.source for reject in rejects if reject.stage not in FROM_SHARDS} - _planned_sources(folder)
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


def _planned_sources(folder: Path) -> set[str]:
    return set(pq.read_table(folder / "clips.parquet", columns=["source"])["source"].unique().to_pylist())


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
    if not (folder / INDEX).exists():
        return [f"{INDEX} is missing: the job has not finished; run the same `videoar tokenize` again"]
    infos = sorted(infos, key=lambda shard: shard.shard)
    names = [shard.shard for shard in infos if shard.samples]
    wrong = f"{INDEX} does not hold exactly the committed rows; delete it and run the same `videoar tokenize` again"
    try:
        with pq.ParquetFile(folder / INDEX) as index:
            # One row group per shard, sorted by name: compared one by one, so that memory does not grow with the folder.
            if index.num_row_groups != len(names):
                return [wrong]
            for number, name in enumerate(names):
                committed = pq.read_table(folder / f"{name}.parquet").replace_schema_metadata(None)
                if not index.read_row_group(number).replace_schema_metadata(None).equals(committed):
                    return [wrong]
            recorded = json.loads((index.schema_arrow.metadata or {})[META])["digest"]
    except (pa.ArrowInvalid, OSError, KeyError, ValueError) as error:
        return [f"{INDEX} is damaged ({error}); delete it and run the same `videoar tokenize` again"]
    found = dataset_digest(info, infos, manifest.rejects())
    if found != recorded:
        return [f"{INDEX} records digest {recorded[:12]}, the content has {found[:12]}"]
    return []


def digest(folder: str | Path) -> str:
    """Return one sha256 over all committed content, computed from the current bytes of the tars.

    Raises DatasetError for an unfinished folder, CorruptSample for an unreadable commit record.
    """
    folder = Path(folder)
    info, _ = open_folder(folder)
    manifest = Manifest(folder)

    def records() -> Iterator[ShardInfo]:
        for name in sorted(name for _, names, _ in manifest.shards() for name in names):
            if not manifest.committed([name]):
                raise DatasetError(f"{folder}: {name} is not committed; run the same `videoar tokenize` again")
            record = read_info(folder / f"{name}.parquet")
            yield replace(record, tar_sha256=tar_digest(folder / f"{name}.tar") if record.samples else "")

    return dataset_digest(info, records(), manifest.rejects())
