"""Checks and views of a SHARDS folder: verify, stat, digest, show.

In:  a SHARDS folder.
Out: damaged shards by name, counts that add up, one digest, a grid of decoded samples.
Called by: `videoar shards ...`, tests, pretrain's preflight.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.shards.digest import dataset_digest, summed
from pipeline.shards.dataset import META, DatasetError, ShardDataset, excluded
from pipeline.shards.layout import DATASET, INDEX, read_json
from pipeline.shards.manifest import FROM_SHARDS, Manifest
from pipeline.records import Bucket
from pipeline.shards.writer import CorruptSample, ShardInfo, read_info, read_sample, tar_digest
from pipeline.video import write_video
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
        """Nothing is wrong."""
        return not self.problems


def verify(folder: str | Path) -> Report:
    """Read every byte of a folder and check it against the plan, the commit records and the index.

    Checked: each planned shard is committed; each tar has its recorded sha256; each member its checksum and length; each
    planned clip is a sample or a refusal, not both; each video has an outcome; index.parquet holds exactly the committed
    rows; the digest. Raises DatasetError for a folder that is no dataset at all.
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
                    f"{name}: {planned[name]} clips planned, {shard.samples} encoded and {len(shard.rejects)} refused: they do not add up"
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


def open_folder(folder: Path) -> tuple[dict[str, Any], CodecSpec]:
    """Return dataset.json and the codec's spec. Raises DatasetError for a folder without one."""
    try:
        info = read_json(folder / DATASET)
    except FileNotFoundError as error:
        raise DatasetError(f"{folder}: no {DATASET}, so it holds no shards; make them with `videoar tokenize`") from error
    if not (folder / "clips.parquet").exists():
        raise DatasetError(f"{folder}: no clips.parquet: planning has not finished; run the same `videoar tokenize` again")
    return info, CodecSpec.parse(info["spec"])


def _check_shard(folder: Path, name: str, spec: CodecSpec) -> ShardInfo:
    """Check one shard to the last byte. Raises CorruptSample."""
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
        raise CorruptSample(f"{name}: {tar.name} is missing; make it again with `videoar tokenize --repair`")
    if tar.stat().st_size != info.tar_bytes:
        raise CorruptSample(
            f"{name}: {tar.name} has {tar.stat().st_size} bytes instead of {info.tar_bytes}; make it again with `videoar tokenize --repair`"
        )
    for row in rows:
        sample = read_sample(tar, row, shard=name)
        bucket = Bucket.parse(row["bucket"])
        latents, height, width = spec.grid(bucket.frames, bucket.height, bucket.width)
        if len(sample.bits) != latents * spec.frame_bytes(height, width) or sample.meta["key"] != row["key"]:
            raise CorruptSample(f"{name}: sample {row['key']}: its contents are not those of a {bucket.name} clip")
    if tar_digest(tar) != info.tar_sha256:
        raise CorruptSample(
            f"{name}: {tar.name} has another sha256 than its record; make it again with `videoar tokenize --repair`"
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
            # One row group a shard, in order of name: compared one by one, so that memory does not grow with the folder.
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
    """Return one sha256 over all committed content, computed from the bytes of the tars as they are now.

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


def stat(folder: str | Path) -> dict[str, Any]:
    """Return counts of a finished folder: per bucket, refusals by stage and reason, sizes. Plain values, for a table or JSON."""
    folder = Path(folder)
    dataset = ShardDataset.open(folder)
    manifest = Manifest(folder)
    names: dict[str, list[str]] = {}
    for _, shards, _ in manifest.shards():
        for name in shards:
            names.setdefault(name.split("/")[0], []).append(name)
    buckets = {}
    for bucket, own in sorted(names.items()):
        sums = summed(read_info(folder / f"{name}.parquet") for name in own)
        buckets[bucket] = {what: sums[what] for what in ("shards", "samples", "frames", "tokens", "bytes")}
    refused = Counter(f"{reject.stage}/{reject.reason}" for reject in manifest.rejects())
    return {
        "folder": str(folder),
        "digest": dataset.digest,
        "tokenizer": dataset.spec.digest,
        "bits": dataset.spec.bits,
        "fps": dataset.fps,
        "videos": len(manifest.known()),
        "videos_used": len(manifest.used()),
        "buckets": buckets,
        "refused": dict(sorted(refused.items())),
        "excluded": excluded(folder),
    }


def show(folder: str | Path, weights: str | Path, out: str | Path, count: int = 9, bucket: str | None = None) -> Path:
    """Decode some samples, spread over a bucket, into a grid and write it as an mp4. Returns its path.

    weights: the tokenizer's folder. Raises DatasetError for another tokenizer, an empty dataset or an unknown bucket.
    """
    import torch

    from tokenizer.codec import VideoCodec

    dataset = ShardDataset.open(folder)
    codec = VideoCodec.load(weights)
    if codec.spec.digest != dataset.spec.digest:
        raise DatasetError(
            f"{folder} was made with tokenizer {dataset.spec.digest[:12]}, {weights} is {codec.spec.digest[:12]}"
        )
    names = [found.name for found in dataset.buckets()]
    if not names or (bucket is not None and bucket not in names):
        raise DatasetError(f"{folder}: no samples in {bucket or 'any bucket'}; it has {', '.join(names) or 'none'}")
    shape = Bucket.parse(bucket or names[-1])
    total = dataset.rows(shape).num_rows
    numbers = sorted({round(at) for at in np.linspace(0, total - 1, min(count, total))})
    tiles = []
    for number in numbers:
        bits = torch.frombuffer(bytearray(dataset.read(shape, number).bits), dtype=torch.uint8)
        tiles.append(codec.decode(bits[None], shape.height, shape.width)[0].cpu().numpy())
    columns = int(np.ceil(np.sqrt(len(tiles))))
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    grid = np.concatenate([np.concatenate(tiles[at : at + columns], axis=2) for at in range(0, len(tiles), columns)], axis=1)
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, grid, dataset.fps)
    return path
