"""Committing a shard: a deterministic tar of packed tokens, and the parquet beside it.

In:  the encoded samples of one shard, and the clips of it that were refused.
Out: SHARDS/<bucket>/shard-NNNNNN.tar and .parquet (reader.py reads a sample back).

Members of a sample, in this order: KEY.bits.zst, optional KEY.feat.zst, KEY.json, KEY.txt; samples sorted by key; USTAR, times and
owners 0. So the plain `webdataset` package reads a shard, and equal samples give equal bytes.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import xxhash
import zstandard

from cluster.runtime.atomic_files import committing
from pipeline.records import Bucket, Clip, Reject
from pipeline.shards.commit_record import RECORD_KEY, ShardInfo, tar_digest
from pipeline.shards.reader import SUFFIX, read_sample
from pipeline.shards.schemas import MEMBERS, sample_rows
from tokenizer.quantization.codec_spec import CodecSpec


@dataclass(frozen=True)
class EncodedClip:
    """One encoded clip on its way into a shard."""

    clip: Clip
    bits: bytes
    features: bytes | None = None


def write_shard(
    folder: Path,
    shard: str,
    samples: Sequence[EncodedClip],
    rejects: Sequence[Reject],
    spec: CodecSpec,
    *,
    zstd_level: int = 3,
    min_free_gb: float = 0.0,
) -> ShardInfo:
    """Commit one shard: write the tar, check it and rename it into place; then write its parquet, which is the commit record.

    shard: `bucket/shard-000000`. A shard without samples has a parquet without rows, and no tar.
    """
    rows: list[dict[str, Any]] = []
    tar_bytes, digest = 0, ""
    tar_path = folder / f"{shard}.tar"
    if samples:
        with committing(tar_path, min_free_gb, setting="pipeline.min_free_gb") as temporary:
            with temporary.open("wb") as file:
                rows = _write_tar(file, shard, sorted(samples, key=lambda sample: sample.clip.key), spec, zstd_level)
            digest = tar_digest(temporary)
            tar_bytes = temporary.stat().st_size
            for row in rows:
                row["tar_sha256"] = digest
                read_sample(temporary, row, shard=shard)
    tokens = 0
    for sample in samples:
        grid = spec.grid(*_shape(sample.clip.bucket))
        tokens += grid[0] * spec.positions(grid[1], grid[2])
    info = ShardInfo(
        shard=shard,
        samples=len(rows),
        frames=sum(sample.clip.bucket.frames for sample in samples),
        tokens=tokens,
        tar_bytes=tar_bytes,
        tar_sha256=digest,
        rejects=tuple(asdict(reject) for reject in rejects),
    )
    table = sample_rows(rows).replace_schema_metadata({RECORD_KEY: json.dumps(info.__dict__, sort_keys=True).encode()})
    with committing(folder / f"{shard}.parquet", min_free_gb, setting="pipeline.min_free_gb") as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return info


def _write_tar(file: Any, shard: str, samples: Sequence[EncodedClip], spec: CodecSpec, level: int) -> list[dict[str, Any]]:
    rows = []
    compressor = zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True)
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            clip = sample.clip
            members = {"bits": compressor.compress(sample.bits)}
            if sample.features is not None:
                members["feat"] = compressor.compress(sample.features)
            members["json"] = json.dumps(_describe(sample, spec), sort_keys=True, ensure_ascii=False).encode()
            members["txt"] = clip.caption.encode()
            row: dict[str, Any] = {
                "key": clip.key,
                "shard": shard,
                "bucket": clip.bucket.name,
                "bits_raw": len(sample.bits),
                **{
                    name: getattr(clip, name)
                    for name in ("source", "source_digest", "begin", "end", "fps", "caption", "scores", "extra")
                },
            }
            for member in MEMBERS:
                row |= {f"{member}_offset": None, f"{member}_size": None, f"{member}_xxh3": None}
            for member, data in members.items():
                header = tarfile.TarInfo(f"{clip.key}.{SUFFIX[member]}")
                header.size, header.mode, header.mtime = len(data), 0o644, 0
                row[f"{member}_offset"] = tar.offset + tarfile.BLOCKSIZE
                row[f"{member}_size"] = len(data)
                row[f"{member}_xxh3"] = xxhash.xxh3_64_hexdigest(data)
                tar.addfile(header, io.BytesIO(data))
            rows.append(row)
    return rows


def _describe(sample: EncodedClip, spec: CodecSpec) -> dict[str, Any]:
    """Return KEY.json: all that is needed to decode the sample without our code."""
    clip = sample.clip
    latents, rows, columns = spec.grid(*_shape(clip.bucket))
    return {
        "key": clip.key,
        "source": clip.source,
        "source_digest": clip.source_digest,
        "begin": clip.begin,
        "end": clip.end,
        "fps": clip.fps,
        "frames": clip.bucket.frames,
        "height": clip.bucket.height,
        "width": clip.bucket.width,
        **({"crop": clip.crop} if clip.crop else {}),
        "latent": [latents, rows, columns],
        "scales": [list(scale) for scale in spec.scales(rows, columns)],
        "bits": spec.bits,
        "tokenizer": spec.digest,
        "features": sample.features is not None,
        "caption": clip.caption,
        "scores": clip.scores,
        "extra": clip.extra,
    }


def _shape(bucket: Bucket) -> tuple[int, int, int]:
    return bucket.frames, bucket.height, bucket.width
