"""The books of a SHARDS folder without its tars: what training opens, at any number of clips, in seconds."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.tables.table_writer import OPTIONS
from pipeline.shards.commit_record import RECORD_KEY, ShardInfo
from pipeline.shards.layout import DATASET, FORMAT, INDEX, META
from pipeline.shards.schemas import MEMBERS, ROWS
from tests.helpers.made_shards import SPEC

CAPTION = "a person walks slowly along the wet beach while the sun sets behind far blue hills"
"""About as long as captions are; each row's own number follows."""


def make(folder: Path, counts: dict[str, int], *, shard_rows: int = 64, salt: int = 0) -> Path:
    """Write `counts[bucket]` samples as the real writers do: a parquet per shard, a row group per shard in index.parquet."""
    folder.mkdir(parents=True)
    plain = {"format": FORMAT, "spec": SPEC.plain(), "fps": 8.0, "buckets": list(counts), "features": False}
    (folder / DATASET).write_text(json.dumps(plain))
    meta = {META: json.dumps({"digest": hashlib.sha256(repr((counts, shard_rows, salt)).encode()).hexdigest()}).encode()}
    with pq.ParquetWriter(folder / f"{INDEX}.parquet", ROWS.with_metadata(meta), **OPTIONS) as writer:
        for bucket, count in counts.items():
            (folder / bucket).mkdir()
            for number, begin in enumerate(range(0, count, shard_rows)):
                shard = f"{bucket}/shard-{number:06d}"
                table = rows_of(shard, bucket, begin, min(count, begin + shard_rows), salt)
                info = ShardInfo(shard, table.num_rows, 0, 0, 0, table["tar_sha256"][0].as_py())
                record = {RECORD_KEY: json.dumps(asdict(info), sort_keys=True).encode()}
                pq.write_table(table.replace_schema_metadata(record), folder / f"{shard}.parquet", compression="zstd")
                writer.write_table(table.replace_schema_metadata(meta))
    return folder


def source_of(sample: int) -> str:
    """Return the source of a sample: four samples have one."""
    return f"videos/{sample // 4:09d}.mp4"


def rows_of(shard: str, bucket: str, begin: int, end: int, salt: int) -> pa.Table:
    """Return the rows of a shard that holds samples begin to end."""
    count = end - begin
    rng = np.random.default_rng([salt, begin, *bucket.encode()])
    keys = sorted(_hex(rng, 16, count))
    cells: dict[str, Any] = {
        "key": keys,
        "shard": [shard] * count,
        "bucket": [bucket] * count,
        "bits_raw": np.full(count, 15630),
        "source": [source_of(number) for number in range(begin, end)],
        "source_digest": keys,
        "begin": np.zeros(count),
        "end": np.ones(count),
        "fps": np.full(count, 8.0),
        "caption": [f"{CAPTION} {number}" for number in range(begin, end)],
        "scores": [[]] * count,
        "extra": [[]] * count,
        "tar_sha256": [hashlib.sha256(f"{salt}{shard}".encode()).hexdigest()] * count,
    }
    for at, member in enumerate(MEMBERS):
        held = member != "feat"
        cells[f"{member}_offset"] = 18432 * np.arange(count) + 4096 * at if held else [None] * count
        cells[f"{member}_size"] = rng.integers(100, 16000, count) if held else [None] * count
        cells[f"{member}_xxh3"] = _hex(rng, 8, count) if held else [None] * count
    return pa.table(cells, schema=ROWS)


def _hex(rng: np.random.Generator, size: int, count: int) -> list[str]:
    text = rng.bytes(size * count).hex()
    return [text[at : at + 2 * size] for at in range(0, len(text), 2 * size)]
