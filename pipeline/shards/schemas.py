"""Columns of the tables of a SHARDS folder, and the conversion of records to rows and back.

In:  `Clip`, `Reject` and shard rows.
Out: Arrow tables with fixed schemas.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from pipeline.records import Bucket, Clip, Reject

_SCORES = pa.map_(pa.string(), pa.float64())
_EXTRA = pa.map_(pa.string(), pa.string())

CLIPS = pa.schema(
    [
        ("group", pa.int64()),
        ("shard", pa.string()),
        ("key", pa.string()),
        ("source", pa.string()),
        ("source_digest", pa.string()),
        ("begin", pa.float64()),
        ("end", pa.float64()),
        ("fps", pa.float64()),
        ("bucket", pa.string()),
        ("crop", pa.string()),
        ("caption", pa.string()),
        ("scores", _SCORES),
        ("extra", _EXTRA),
    ]
)
"""Clips: one row per planned clip, one row group per shard group."""

REJECTS = pa.schema(
    [
        ("source", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("begin", pa.float64()),
        ("end", pa.float64()),
        ("scores", _SCORES),
        ("key", pa.string()),
    ]
)
"""Rejects: one row per refused video (begin and end empty) or span of one."""

VIDEOS = pa.schema(
    [("source", pa.string()), ("caption", pa.string()), ("extra", _EXTRA), ("fault", pa.string()), ("before", pa.int8())]
)
"""The videos of a generation, in order. before: 0 for a new one, 1 for one that was refused, 2 for one that has clips."""

FINGERPRINTS = pa.schema([("source", pa.string()), ("grey", pa.binary())])
"""Fingerprints of videos with clips, in the order of the corpus."""

SHARDS = pa.schema(
    [
        ("shard", pa.string()),
        *((name, pa.int64()) for name in ("samples", "frames", "tokens", "tar_bytes", "refused")),
        ("tar_sha256", pa.string()),
    ]
)
"""The list of shards in the index, sorted by name. The rows of the index are in the same order."""

MEMBERS = ("bits", "feat", "json", "txt")
"""Members of a sample; the columns MEMBER_offset, MEMBER_size and MEMBER_xxh3 locate and check the data of each in the tar."""

ROWS = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.string()),
        ("bucket", pa.string()),
        *((f"{member}_{name}", pa.int64()) for member in MEMBERS for name in ("offset", "size")),
        *((f"{member}_xxh3", pa.string()) for member in MEMBERS),
        ("bits_raw", pa.int64()),
        ("source", pa.string()),
        ("source_digest", pa.string()),
        ("begin", pa.float64()),
        ("end", pa.float64()),
        ("fps", pa.float64()),
        ("caption", pa.string()),
        ("scores", _SCORES),
        ("extra", _EXTRA),
        ("tar_sha256", pa.string()),
    ]
)
"""Shard parquet and index: one row per sample, in the order of the tar."""


def clip_rows(clips: Iterable[Clip], group: int) -> pa.Table:
    """Return clips as rows of the table of clips."""
    rows = [
        writable({**clip.plain(), "group": group, "scores": _pairs(clip.scores), "extra": _pairs(clip.extra)}) for clip in clips
    ]
    return pa.Table.from_pylist(rows, schema=CLIPS)


def clips_of(table: pa.Table) -> list[Clip]:
    """Return rows of the table of clips as clips."""
    found = []
    for row in table.to_pylist():
        row.pop("group")
        found.append(
            Clip(**{**row, "bucket": Bucket.parse(row["bucket"]), "scores": dict(row["scores"]), "extra": dict(row["extra"])})
        )
    return found


def reject_rows(rejects: Iterable[Reject]) -> pa.Table:
    """Return rejects as rows."""
    return pa.Table.from_pylist(
        [writable({**asdict(reject), "scores": _pairs(reject.scores)}) for reject in rejects], schema=REJECTS
    )


def rejects_of(table: pa.Table) -> list[Reject]:
    """Return rows as rejects."""
    return [Reject(**{**row, "scores": dict(row["scores"])}) for row in table.to_pylist()]


def sample_rows(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Return the rows of a shard's parquet; `scores` and `extra` are dicts."""
    plain = [{**row, "scores": _pairs(row["scores"]), "extra": _pairs(row["extra"])} for row in rows]
    return pa.Table.from_pylist(plain, schema=ROWS)


def writable(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row whose texts can be written: a message may quote bytes of a file's name that are not UTF-8, which are escaped."""
    return {
        key: value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) and not value.isascii() else value
        for key, value in row.items()
    }


def _pairs(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return sorted(values.items())
