"""What a committed shard records of itself, and the figures computed over all records of a folder.

A shard's parquet is its commit record: `ShardInfo` is in the metadata, the rows are the samples. The digest of a
folder and its sums need nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.records import Reject
from pipeline.shards.reader import CorruptSample

RECORD_KEY = b"videoar"
"""Key of the record in the metadata of a shard's parquet."""


@dataclass(frozen=True)
class ShardInfo:
    """The commit record of a shard, without its rows."""

    shard: str
    samples: int
    frames: int
    tokens: int
    tar_bytes: int
    tar_sha256: str
    rejects: tuple[dict[str, Any], ...] = field(default=())
    """Clips of the shard that could not be encoded, as plain `Reject`s."""


def read_info(path: Path) -> ShardInfo:
    """Read the commit record from a shard's parquet. Raises CorruptSample if it is damaged."""
    try:
        plain = json.loads(pq.read_schema(path).metadata[RECORD_KEY])
        return ShardInfo(**{**plain, "rejects": tuple(plain["rejects"])})
    except (OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise CorruptSample(f"{path}: damaged commit record: {error}") from error


def tar_digest(path: Path) -> str:
    """Return the sha256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def dataset_digest(dataset: Mapping[str, Any], infos: Iterable[ShardInfo], rejects: Iterable[Reject]) -> str:
    """Return one sha256 (hex) over all committed content of a folder.

    It covers format, tokenizer, frame rate and buckets (of `dataset`, the plain dataset.json); the name, sample count and tar
    sha256 of every shard; and the source, stage, reason and span of every reject (not its wording).

    `infos` must be sorted by shard name and is consumed one record at a time; `rejects` is consumed only after the last of them.
    """
    hasher = hashlib.sha256(_canonical({key: dataset[key] for key in ("format", "spec", "fps", "buckets", "features")}))
    last = ""
    for info in infos:
        assert info.shard > last, f"shard {info.shard} after {last}: the digest takes shards sorted by name"
        last = info.shard
        hasher.update(_canonical([info.shard, info.samples, info.tar_sha256]))
    # -1 stands for an empty begin or end, so that it sorts first.
    keys = [
        (r.source, r.stage, r.reason, -1.0 if r.begin is None else r.begin, -1.0 if r.end is None else r.end) for r in rejects
    ]
    for item in sorted(keys):
        hasher.update(_canonical(item))
    return hasher.hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def summed(infos: Iterable[ShardInfo]) -> dict[str, int]:
    """Return the total shards, samples, frames, tokens, bytes and refused clips of some shards."""
    sums = dict.fromkeys(("shards", "samples", "frames", "tokens", "bytes", "refused"), 0)
    for info in infos:
        sums["shards"] += 1
        sums["samples"] += info.samples
        sums["frames"] += info.frames
        sums["tokens"] += info.tokens
        sums["bytes"] += info.tar_bytes
        sums["refused"] += len(info.rejects)
    return sums
