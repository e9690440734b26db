"""Reading samples from a shard's tar, with every byte checked.

In:  an open tar or its path, and the sample's row (the index, or the shard's parquet).
Out: `TokenSample`; damage is `CorruptSample`. `read_members` reads one member of many samples at once.
"""

from __future__ import annotations

import functools
import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash
import zstandard

from pipeline.records import Bucket, TokenSample
from pipeline.shards.schemas import MEMBERS

Numbers = npt.NDArray[np.int64]

SUFFIX: Mapping[str, str] = {"bits": "bits.zst", "feat": "feat.zst", "json": "json", "txt": "txt"}
"""Name of each member of a sample in the tar, after KEY and a dot."""
_per_thread = threading.local()
_bucket = functools.cache(Bucket.parse)


class CorruptSample(ValueError):
    """A sample whose stored bytes do not match its row; the message names shard and key."""


class Member(NamedTuple):
    """Where the data of one member of a sample lies in the tar, and its checksum."""

    offset: int
    size: int
    xxh3: str


def read_sample(shard_path: str | Path, row: Mapping[str, Any], *, shard: str | None = None) -> TokenSample:
    """Read one sample by its parquet row and check every byte of it. Raises CorruptSample naming shard and key."""
    fd = os.open(shard_path, os.O_RDONLY)
    try:
        return read_sample_at(fd, row, shard=shard or str(shard_path))
    finally:
        os.close(fd)


def read_sample_at(fd: int, row: Mapping[str, Any], *, shard: str) -> TokenSample:
    """Read one sample as `read_sample` does, from an open tar; thread-safe."""
    key = row["key"]
    data: dict[str, bytes | None] = {}
    for name in MEMBERS:
        member = Member(row[f"{name}_offset"], row[f"{name}_size"], row[f"{name}_xxh3"])
        data[name] = None if member.offset is None else _checked(fd, name, member, shard, key)
    bits = _decompress(data["bits"], row["bits_raw"], shard, key)
    features = None if data["feat"] is None else _decompress(data["feat"], None, shard, key)
    described = json.loads(data["json"]) if data["json"] is not None else {}
    caption = (data["txt"] or b"").decode()
    return TokenSample(key, bits, _bucket(row["bucket"]), caption, described, features)


def read_bits(fd: int, member: Member, size: int, *, shard: str, key: str) -> bytes:
    """Read only the packed bits of a sample, `size` bytes of them, and check them. Raises CorruptSample."""
    return _decompress(_checked(fd, "bits", member, shard, key), size, shard, key)


def read_features(fd: int, member: Member, *, shard: str, key: str) -> bytes:
    """Read only the features of a sample, and check them. Raises CorruptSample."""
    return _decompress(_checked(fd, "feat", member, shard, key), None, shard, key)


def read_members(
    fds: Sequence[int], offsets: Numbers, sizes: Numbers, digests: Sequence[str], raw: Numbers
) -> list[Any] | None:
    """Read one member of each of many samples from open tars, check it and decompress it: buffers in the given order.

    fds, offsets, sizes, digests: where each lies, and its xxh3. raw: its size after decompression; empty: as its frame says.
    Returns None if anything is not as stated: read one by one, the samples tell what is damaged. Raises OSError.
    """
    ends = np.cumsum(sizes)
    # Memory that is kept costs nothing to touch again.
    if len(getattr(_per_thread, "read", b"")) < ends[-1]:
        _per_thread.read = np.empty(int(ends[-1]), dtype=np.uint8)
    begins = ends - sizes
    whole = memoryview(_per_thread.read)
    parts = [whole[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]
    if list(map(os.preadv, fds, zip(parts), offsets.tolist())) != sizes.tolist():
        return None
    if list(map(xxhash.xxh3_64_hexdigest, parts)) != digests:
        return None
    frames = zstandard.BufferWithSegments(whole, np.stack([begins, sizes], axis=1).astype(np.uint64).tobytes())
    try:
        stated = {"decompressed_sizes": raw.astype(np.uint64).tobytes()} if len(raw) else {}
        found: Any = _decompressor().multi_decompress_to_buffer(frames, threads=1, **stated)
        return list(found)
    except zstandard.ZstdError:
        return None


def _checked(fd: int, name: str, member: Member, shard: str, key: str) -> bytes:
    read = os.pread(fd, member.size, member.offset)
    if xxhash.xxh3_64_hexdigest(read) != member.xxh3:
        raise CorruptSample(
            f"{shard}: sample {key}: {SUFFIX[name]} is damaged (checksum); recompute it with `videoar tokenize --repair`"
        )
    return read


def _decompress(data: bytes | None, size: int | None, shard: str, key: str) -> bytes:
    try:
        found: bytes = _decompressor().decompress(data or b"")
    except zstandard.ZstdError as error:
        raise CorruptSample(f"{shard}: sample {key}: {error}") from error
    if size is not None and len(found) != size:
        raise CorruptSample(f"{shard}: sample {key}: {len(found)} bytes of bits instead of {size}")
    return found


def _decompressor() -> zstandard.ZstdDecompressor:
    """Return this thread's decompressor: its native context must not be shared, and is slow to create."""
    if not hasattr(_per_thread, "decompressor"):
        _per_thread.decompressor = zstandard.ZstdDecompressor()
    found: zstandard.ZstdDecompressor = _per_thread.decompressor
    return found
