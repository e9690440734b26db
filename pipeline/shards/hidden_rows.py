"""How many rows of each shard are taken down: kept beside excluded.json, so that no reader looks through the sources of all rows.

In:  an index with its list of shards, and the names that are taken down (layout.excluded).
Out: excluded.parquet, a row for each shard that holds some. It counts only for the index and the names that it was made of.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.runtime.atomic_files import committing
from cluster.tables.table_folder import TableFolder
from pipeline.shards.layout import INDEX, META, excluded, open_table

HIDDEN = "excluded.parquet"
SCHEMA = pa.schema([("shard", pa.string()), ("rows", pa.int64())])


def without(table: pa.Table | pa.RecordBatch, gone: Sequence[str]) -> pa.Array | None:
    """Return which rows remain when the sources `gone` are taken down; None for all. The table needs the column `source`."""
    if not gone:
        return None
    sources = table["source"]
    mask = pc.is_in(sources, value_set=pa.array([name for name in gone if not name.endswith("/")], pa.string()))
    for name in gone:
        if name.endswith("/"):
            mask = pc.or_(mask, pc.starts_with(sources, name))
    return pc.invert(mask)


def made_of(index: TableFolder, gone: Sequence[str]) -> str:
    """Return what the counts for an index and these names are known by; empty for an index of format 1, which has no list of shards."""
    listed = index.meta.get("shard_list")
    return hashlib.sha256(json.dumps([listed["xxh3"], sorted(gone)]).encode()).hexdigest() if listed else ""


def count(folder: Path, number: int, gone: Sequence[str]) -> dict[str, int]:
    """Count the rows of each shard that are taken down, in one file of the index."""
    index = open_table(folder, INDEX)
    assert index is not None
    table = index.file(number).read(columns=["shard", "source"], use_threads=False)
    kept = without(table, gone)
    lost = table["shard"].filter(pc.invert(kept)) if kept is not None else pa.chunked_array([[]], pa.string())
    return {each["values"]: each["counts"] for each in pc.value_counts(lost).to_pylist()}


def recount(folder: Path, run: Callable[[str, Callable[..., Any], Sequence[tuple[Any, ...]]], Iterator[Any]]) -> int:
    """Count anew for the index and the names as they are, a task for each file, and keep the counts. Returns the rows taken down.

    Nothing is kept where nothing is taken down, nor of an index of format 1.
    """
    gone, index = excluded(folder), open_table(folder, INDEX)
    if not gone or index is None:
        return 0
    total: Counter[str] = Counter()
    for found in run("excluded", count, [(folder, number, gone) for number in range(len(index.files))]):
        total.update(found)
    known = made_of(index, gone)
    if known:
        names = sorted(total)
        table = pa.table([names, [total[name] for name in names]], schema=SCHEMA.with_metadata({META: known.encode()}))
        with committing(folder / HIDDEN) as path:
            pq.write_table(table, path, compression="zstd")
    return total.total()


def read(folder: Path, known: str) -> Counter[str] | None:
    """Return the counts; None where there are none of this index and these names, or they cannot be read."""
    try:
        table = pq.read_table(folder / HIDDEN, use_threads=False)
        if not known or (table.schema.metadata or {}).get(META) != known.encode():
            return None
        return Counter(dict(zip(table["shard"].to_pylist(), table["rows"].to_pylist(), strict=True)))
    except (OSError, pa.ArrowInvalid, KeyError):
        return None
