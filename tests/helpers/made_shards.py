"""Token shards of random bits, written with the real shard writer: what training needs of a corpus, in a second."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.tables.table_writer import OPTIONS
from pipeline.records import Bucket, Clip
from pipeline.shards.layout import DATASET, FORMAT, INDEX, META
from pipeline.shards.schemas import ROWS
from pipeline.shards.writer import EncodedClip, write_shard
from tokenizer.quantization.codec_spec import CodecSpec

SPEC = CodecSpec(bits=16, spatial_stride=8, temporal_stride=4, digest="0" * 64)
WORDS = ("a red ball rolls", "waves", "two dogs run on wet sand", "", "rain")


def make(
    folder: Path,
    counts: dict[str, int],
    *,
    shard_rows: int = 6,
    spec: CodecSpec = SPEC,
    salt: str = "",
    features: bool = False,
    mask: int = 0x5A,
) -> Path:
    """Write SHARDS `folder` with `counts[bucket]` samples; the content depends on the arguments alone.

    mask: the random bits of each byte. All of them (255) make samples that do not compress, as those of a trained tokenizer.
    """
    folder.mkdir(parents=True)
    (folder / DATASET).write_text(json.dumps({"format": FORMAT, "spec": spec.plain(), "fps": 8.0}))
    tables = []
    for name, count in counts.items():
        bucket = Bucket.parse(name)
        grid = spec.grid(bucket.frames, bucket.height, bucket.width)
        size = grid[0] * spec.frame_bytes(*grid[1:])
        for number, begin in enumerate(range(0, count, shard_rows)):
            shard = f"{name}/shard-{number:06d}"
            samples = [_sample(f"{salt}{name}-{i}", bucket, size, mask) for i in range(begin, min(count, begin + shard_rows))]
            if features:
                values = 2 * grid[0] * spec.bits * grid[1] * grid[2]
                samples = [replace(sample, features=(sample.bits * values)[:values]) for sample in samples]
            write_shard(folder, shard, samples, [], spec)
            tables.append(pq.read_table(folder / f"{shard}.parquet").replace_schema_metadata(None))
    _index(folder, tables)
    return folder


def of_clips(folder: Path, clips: list[EncodedClip], spec: CodecSpec) -> Path:
    """Write SHARDS `folder` of given clips of one bucket."""
    folder.mkdir(parents=True)
    (folder / DATASET).write_text(json.dumps({"format": FORMAT, "spec": spec.plain(), "fps": clips[0].clip.fps}))
    shard = f"{clips[0].clip.bucket.name}/shard-000000"
    write_shard(folder, shard, clips, [], spec)
    _index(folder, [pq.read_table(folder / f"{shard}.parquet").replace_schema_metadata(None)])
    return folder


def _index(folder: Path, tables: list[pa.Table]) -> None:
    digest = hashlib.sha256("".join(key for table in tables for key in table["key"].to_pylist()).encode()).hexdigest()
    meta = {META: json.dumps({"digest": digest}).encode()}
    with pq.ParquetWriter(folder / f"{INDEX}.parquet", ROWS.with_metadata(meta), **OPTIONS) as writer:
        for table in tables:
            writer.write_table(table.replace_schema_metadata(meta))


def _sample(name: str, bucket: Bucket, size: int, mask: int) -> EncodedClip:
    key = hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()
    rng = np.random.default_rng(list(key.encode()))
    # Half of the bits are the same in all samples, so that there is something to learn.
    bits = rng.integers(0, 256, size, dtype=np.uint8) & mask
    clip = Clip(
        key=key,
        source=f"{name}.mp4",
        source_digest=key,
        begin=0.0,
        end=1.0,
        fps=8.0,
        bucket=bucket,
        caption=WORDS[int(key[:4], 16) % len(WORDS)],
    )
    return EncodedClip(clip=clip, bits=bits.tobytes())
