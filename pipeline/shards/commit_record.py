"""DOC from pipeline/shards/writer.py."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.shards.reader import CorruptSample

RECORD_KEY = b"videoar"
"""Key of the record in the metadata of a shard's parquet."""


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


def read_info(path: Path) -> ShardInfo:
    """Read the commit record of a shard's parquet. Raises CorruptSample for a damaged one."""
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
