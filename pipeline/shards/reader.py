"""DOC from pipeline/shards/writer.py."""

from __future__ import annotations

import functools
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash
import zstandard

from pipeline.records import Bucket, TokenSample
from pipeline.shards.schemas import MEMBERS

SUFFIX: Mapping[str, str] = {"bits": "bits.zst", "feat": "feat.zst", "json": "json", "txt": "txt"}


_own = threading.local()


_bucket = functools.cache(Bucket.parse)


class CorruptSample(ValueError):
    """A sample whose stored bytes are not what its row says; the message names shard and key."""


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
