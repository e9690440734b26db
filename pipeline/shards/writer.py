"""Shards: deterministic tars of packed tokens with a parquet beside each, and reading one sample back.

In:  encoded samples of one shard; or a tar and a row of its parquet.
Out: SHARDS/<bucket>/shard-NNNNNN.tar and .parquet; `TokenSample`.
Called by: pipeline.encode (write), pipeline.index and pipeline.verify (read).

Members of a sample, in this order: KEY.bits.zst, optional KEY.feat.zst, KEY.json, KEY.txt; samples sorted by key; USTAR,
times and owners 0. So the plain `webdataset` package reads a shard, and equal samples make equal bytes.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import tarfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import xxhash
import zstandard

from pipeline.shards.layout import committing
from pipeline.records import Bucket, Clip, Reject, TokenSample
from pipeline.shards.schemas import MEMBERS, sample_rows
from tokenizer.quantization.codec_spec import CodecSpec

SUFFIX: Mapping[str, str] = {"bits": "bits.zst", "feat": "feat.zst", "json": "json", "txt": "txt"}
_META = b"videoar"
_own = threading.local()
_bucket = functools.cache(Bucket.parse)


class CorruptSample(ValueError):
    """A sample whose stored bytes are not what its row says; the message names shard and key."""


@dataclass(frozen=True)
class Encoded:
    """One encoded clip on its way into a shard."""

    clip: Clip
    bits: bytes
    features: bytes | None = None


@dataclass(frozen=True)
class ShardInfo:
    """What the commit record of a shard says beside its rows."""

    shard: str
    samples: int
    frames: int
    tokens: int
    tar_bytes: int
    tar_sha256: str
    rejects: tuple[dict[str, Any], ...] = field(default=())
    """Clips of the shard that could not be encoded, as plain `Reject`s."""


def write_shard(
    folder: Path,
    shard: str,
    samples: Sequence[Encoded],
    rejects: Sequence[Reject],
    spec: CodecSpec,
    *,
    zstd_level: int = 3,
    min_free_gb: float = 0.0,
) -> ShardInfo:
    """Commit one shard: the tar under a temporary name, checked, renamed; then its parquet, which is the commit record.

    shard: `bucket/shard-000000`. A shard without samples has a parquet of no rows and no tar.
    """
    rows: list[dict[str, Any]] = []
    tar_bytes, digest = 0, ""
    tar_path = folder / f"{shard}.tar"
    if samples:
        with committing(tar_path, min_free_gb) as temporary:
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
    table = sample_rows(rows).replace_schema_metadata({_META: json.dumps(info.__dict__, sort_keys=True).encode()})
    with committing(folder / f"{shard}.parquet", min_free_gb) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return info


def read_info(path: Path) -> ShardInfo:
    """Read the commit record of a shard's parquet. Raises CorruptSample for a damaged one."""
    try:
        plain = json.loads(pq.read_schema(path).metadata[_META])
        return ShardInfo(**{**plain, "rejects": tuple(plain["rejects"])})
    except (OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise CorruptSample(f"{path}: damaged commit record: {error}") from error


def tar_digest(path: Path) -> str:
    """Return the sha256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_sample(shard_path: str | Path, row: Mapping[str, Any], *, shard: str | None = None) -> TokenSample:
    """Read one sample by its parquet row and check every byte of it. Raises CorruptSample naming shard and key."""
    fd = os.open(shard_path, os.O_RDONLY)
    try:
        return read_sample_at(fd, row, shard=shard or str(shard_path))
    finally:
        os.close(fd)


def read_sample_at(fd: int, row: Mapping[str, Any], *, shard: str) -> TokenSample:
    """As `read_sample`, from an open tar; safe to call from several threads."""
    key = row["key"]
    data: dict[str, bytes | None] = {}
    for member in MEMBERS:
        offset, size = row[f"{member}_offset"], row[f"{member}_size"]
        data[member] = None if offset is None else _checked(fd, offset, size, row[f"{member}_xxh3"], member, shard, key)
    bits = _decompress(data["bits"], row["bits_raw"], shard, key)
    features = None if data["feat"] is None else _decompress(data["feat"], None, shard, key)
    described = json.loads(data["json"]) if data["json"] is not None else {}
    caption = (data["txt"] or b"").decode()
    return TokenSample(key, bits, _bucket(row["bucket"]), caption, described, features)


def read_bits(fd: int, offset: int, size: int, xxh3: str, raw: int, shard: str, key: str) -> bytes:
    """Read one sample's packed bits alone, checked. Raises CorruptSample."""
    return _decompress(_checked(fd, offset, size, xxh3, "bits", shard, key), raw, shard, key)


def read_features(fd: int, offset: int, size: int, xxh3: str, shard: str, key: str) -> bytes:
    """Read one sample's features alone, checked. Raises CorruptSample."""
    return _decompress(_checked(fd, offset, size, xxh3, "feat", shard, key), None, shard, key)


def _checked(fd: int, offset: int, size: int, xxh3: str, member: str, shard: str, key: str) -> bytes:
    read = os.pread(fd, size, offset)
    if xxhash.xxh3_64_hexdigest(read) != xxh3:
        raise CorruptSample(
            f"{shard}: sample {key}: {SUFFIX[member]} is damaged (checksum); make it again with `videoar tokenize --repair`"
        )
    return read


def _decompress(data: bytes | None, size: int | None, shard: str, key: str) -> bytes:
    try:
        # A decompressor holds a native context that threads must not share and that is slow to make.
        if not hasattr(_own, "decompressor"):
            _own.decompressor = zstandard.ZstdDecompressor()
        found: bytes = _own.decompressor.decompress(data or b"")
    except zstandard.ZstdError as error:
        raise CorruptSample(f"{shard}: sample {key}: {error}") from error
    if size is not None and len(found) != size:
        raise CorruptSample(f"{shard}: sample {key}: {len(found)} bytes of bits, {size} expected")
    return found


def _write_tar(file: Any, shard: str, samples: Sequence[Encoded], spec: CodecSpec, level: int) -> list[dict[str, Any]]:
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


def _describe(sample: Encoded, spec: CodecSpec) -> dict[str, Any]:
    """KEY.json: enough to decode the sample without our code."""
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
