"""Planned parts: a file for the videos of one planning task, a row per video with its clips and rejects as lists.

In:  `VideoPlan`s.
Out: part-NNNNNN.arrow; `Flat` tables of the clips and rejects of many videos, each row with the number of its video.

Columns, not objects: a merge reads a million clips in a second.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.runtime.atomic_files import DamagedFile, committing, read_json
from pipeline.records import VideoPlan
from pipeline.shards.schemas import CLIPS, REJECTS, writable

Numbers = npt.NDArray[np.int64]

CLIP = pa.struct([field for field in CLIPS if field.name not in ("group", "shard", "source", "source_digest")])
"""A planned clip; source and digest are those of its video."""
PART = pa.schema(
    [
        ("source", pa.string()),
        ("digest", pa.string()),
        ("clips", pa.list_(CLIP)),
        ("rejects", pa.list_(pa.struct(list(REJECTS)))),
        ("prints", pa.list_(pa.binary())),
    ]
)
"""A row per video of a part."""


def rows_of(plans: Iterable[VideoPlan]) -> pa.Table:
    """Return planned videos as rows of a part."""
    rows = [
        {
            "source": plan.source,
            "digest": plan.digest,
            "clips": [
                writable({**clip.plain(), "scores": sorted(clip.scores.items()), "extra": sorted(clip.extra.items())})
                for clip in plan.clips
            ],
            "rejects": [writable({**asdict(reject), "scores": sorted(reject.scores.items())}) for reject in plan.rejects],
            "prints": list(plan.fingerprints),
        }
        for plan in plans
    ]
    return pa.Table.from_pylist([writable(row) for row in rows], schema=PART)


def write_table(path: Path, table: pa.Table, *, compression: str | None = None, min_free_gb: float = 0.0) -> None:
    """Write a file of rows, whole or not at all. Raises DiskFull."""
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with (
        committing(path, min_free_gb, setting="pipeline.min_free_gb") as temporary,
        pa.ipc.new_file(str(temporary), table.schema, options=options) as writer,
    ):
        writer.write_table(table)


def read_table(path: Path) -> pa.Table:
    """Return the rows of a file, mapped into memory where it is not compressed. Raises DamagedFile."""
    try:
        with pa.memory_map(str(path)) as source:
            return pa.ipc.open_file(source).read_all()
    except pa.ArrowInvalid as error:
        raise DamagedFile(f"{path}: damaged ({' '.join(str(error).split())}); remove it and run again") from error


def write_part(path: Path, plans: Iterable[VideoPlan]) -> None:
    """Commit a part. Raises DiskFull."""
    write_table(path, rows_of(plans), compression="zstd")


def part_exists(path: Path) -> bool:
    """Return whether a part is planned, by this version or by one whose parts are JSON."""
    return path.exists() or path.with_suffix(".json").exists()


def read_part(path: Path) -> pa.Table:
    """Return the rows of a part. Raises DamagedFile."""
    old = path.with_suffix(".json")
    if not path.exists() and old.exists():
        return rows_of(VideoPlan.parse(plain) for plain in read_json(old))
    return read_table(path)


def read_parts(paths: Sequence[Path]) -> pa.Table:
    """Return the rows of several parts, one after the other, each column in one piece."""
    return pa.concat_tables([read_part(path) for path in paths]).combine_chunks()


@dataclass(frozen=True)
class Flat:
    """Lists of many videos as one table. Row i belongs to video `video[i]`, counted from the first of them."""

    table: pa.Table
    video: Numbers

    def where(self, kept: npt.NDArray[np.bool_]) -> Flat:
        """Return the rows that are kept."""
        return self if kept.all() else Flat(self.table.filter(pa.array(kept)), self.video[kept])


def clips_of(rows: pa.Table) -> Flat:
    """Return the clips of parts; columns of CLIPS but group and shard."""
    flat, video = _flat(rows["clips"], CLIP)
    for at, name, column in ((1, "source", "source"), (2, "source_digest", "digest")):
        flat = flat.add_column(at, name, rows[column].take(pa.array(video)))
    return Flat(flat, video)


def rejects_of(rows: pa.Table) -> Flat:
    """Return the rejects of parts; columns of REJECTS."""
    flat, video = _flat(rows["rejects"], pa.struct(list(REJECTS)))
    return Flat(flat.select(REJECTS.names), video)


def prints_of(rows: pa.Table) -> tuple[pa.Array, Numbers]:
    """Return the fingerprints of parts, and the video of each."""
    lists = _one(rows["prints"], pa.list_(pa.binary()))
    return lists.flatten(), _parents(lists)


def counts(column: pa.ChunkedArray) -> Numbers:
    """Return the length of each list."""
    found: Numbers = _one(column, column.type).value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    return found


def _flat(column: pa.ChunkedArray, kind: pa.StructType) -> tuple[pa.Table, Numbers]:
    lists = _one(column, pa.list_(kind))
    return pa.Table.from_batches([pa.RecordBatch.from_struct_array(lists.flatten())]), _parents(lists)


def _one(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ListArray:
    chunks: list[Any] = column.chunks
    return chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks) if chunks else pa.array([], kind)


def _parents(lists: pa.ListArray) -> Numbers:
    return np.repeat(np.arange(len(lists), dtype=np.int64), lists.value_lengths().to_numpy(zero_copy_only=False))
