"""What a committed shard records of itself, and the figures computed over all records of a folder.

A shard's parquet is its commit record: `ShardInfo` is in the metadata, the rows are the samples. The digest of a
folder and its sums need nothing else.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

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


def dataset_digest(dataset: Mapping[str, Any], shards: Iterable[tuple[str, int, str]], rejects: Iterable[pa.Table]) -> str:
    """Return one sha256 (hex) over all committed content of a folder.

    It covers format, tokenizer, frame rate and buckets (of `dataset`, the plain dataset.json); the name, sample count and tar
    sha256 of every shard; and the source, stage, reason and span of every reject (not its wording).

    `shards` must be sorted by name and is consumed one at a time; `rejects`, tables of rejects, only after the last of them.
    """
    hasher = hashlib.sha256(_canonical({key: dataset[key] for key in ("format", "spec", "fps", "buckets", "features")}))
    last = ""
    for shard, samples, tar_sha256 in shards:
        assert shard > last, f"shard {shard} after {last}: the digest takes shards sorted by name"
        last = shard
        hasher.update(_canonical([shard, samples, tar_sha256]))
    with tempfile.TemporaryDirectory(prefix="digest-") as scratch:
        for item in _sorted(rejects, Path(scratch)):
            hasher.update(_canonical(item))
    return hasher.hexdigest()


def _sorted(rejects: Iterable[pa.Table], scratch: Path) -> Iterator[tuple[Any, ...]]:
    """Yield what the digest covers of each reject, sorted. Each table is sorted by itself and waits on disk."""
    runs = []
    for number, table in enumerate(rejects):
        kept = table.select(["source", "stage", "reason", "begin", "end"])
        # -1 stands for an empty begin or end, so that it sorts first.
        for at, name in ((3, "begin"), (4, "end")):
            kept = kept.set_column(at, name, pc.fill_null(kept[name], -1.0))
        path = scratch / f"{number}.arrow"
        with pa.ipc.new_file(str(path), kept.schema) as writer:
            writer.write_table(kept.sort_by([(name, "ascending") for name in kept.column_names]), max_chunksize=1 << 10)
        runs.append(path)
    yield from heapq.merge(*map(_rows, runs))


def _rows(path: Path) -> Iterator[tuple[Any, ...]]:
    with pa.memory_map(str(path)) as source:
        file = pa.ipc.open_file(source)
        for number in range(file.num_record_batches):
            yield from zip(*(column.to_pylist() for column in file.get_batch(number).columns), strict=True)


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
