"""Files of the tables of clips, rejects and fingerprints, each made by one task from slices of settled blocks.

In:  files of blocks, each with what comes before it in the generation. Out: a file of the table; one that is there counts as written.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.tables import table_list, table_writer
from cluster.tables.table_list import TableFile
from pipeline.books.parts import read_table
from pipeline.books.settle import WEIGHT
from pipeline.books.shard_groups import Cut
from pipeline.shards.layout import REJECTS, open_table
from pipeline.shards.schemas import CLIPS as CLIP_SCHEMA
from pipeline.shards.schemas import FINGERPRINTS as FINGERPRINT_SCHEMA
from pipeline.shards.schemas import REJECTS as REJECT_SCHEMA

Slices = tuple[tuple[Path, int], ...]
"""Files of blocks, each with the number (of rows, or weight) before its first row."""


def write_clips(path: Path, number: int, first_group: int, cut: Cut, slices: Slices, min_free_gb: float) -> TableFile:
    """Write a file of the table of clips: the groups that its number stands for, a row group for each."""
    at = int(path.stem.rpartition("-")[2])
    size = cut.file_groups * cut.whole
    pieces = []
    for file, before in slices:
        table = read_table(file)
        weights = table[WEIGHT].to_numpy() + before
        low, high = np.searchsorted(weights, [at * size, (at + 1) * size])
        if high > low:
            groups = pa.array(first_group + weights[low:high] // cut.whole)
            pieces.append(_named(table.slice(low, high - low).drop_columns([WEIGHT]), groups))
    table = pa.concat_tables(pieces)
    starts = np.flatnonzero(np.diff(table["group"].to_numpy(), prepend=-1))
    tables = (table.slice(begin, end - begin) for begin, end in zip(starts, [*starts[1:], table.num_rows], strict=True))
    return _written(path, CLIP_SCHEMA, number, tables, min_free_gb)


def _named(table: pa.Table, groups: pa.Array) -> pa.Table:
    """Return clips with their group, and the shard that it makes of their bucket."""
    digits = pc.utf8_lpad(groups.cast(pa.string()), width=6, padding="0")
    shards = pc.binary_join_element_wise(table["bucket"], digits, "/shard-")
    return table.add_column(0, "group", groups).add_column(1, "shard", shards).select(CLIP_SCHEMA.names).cast(CLIP_SCHEMA)


def write_rows(path: Path, name: str, number: int, begin: int, size: int, slices: Slices) -> TableFile:
    """Write a file of rejects or fingerprints: rows `begin` to `begin + size` of the generation."""
    schema = REJECT_SCHEMA if name == REJECTS else FINGERPRINT_SCHEMA
    pieces = []
    for file, before in slices:
        table = read_table(file)
        low, high = max(0, begin - before), min(table.num_rows, begin + size - before)
        if high > low:
            pieces.append(table.slice(low, high - low))
    return _written(path, schema, number, iter([pa.concat_tables(pieces)]), 0.0)


def _written(path: Path, schema: pa.Schema, number: int, tables: Iterator[pa.Table], min_free_gb: float) -> TableFile:
    """Write a file, unless a killed merge has."""
    if path.exists():
        footer = pq.read_metadata(path)
        digest, size = table_list.xxh3_of(path), path.stat().st_size
        return TableFile(path.name, footer.num_rows, footer.num_row_groups, size, digest, number)
    return table_writer.write_file(
        path, schema, tables, generation=number, min_free_gb=min_free_gb, setting="pipeline.min_free_gb"
    )


def without_sources(folder: Path, name: str, at: int, again: Path, number: int) -> TableFile:
    """Write an earlier file without the rows of some sources, under a new name; a file that has none of them stays."""
    books = open_table(folder, name)
    assert books is not None
    entry = books.files[at]
    table = books.file(at).read()
    gone = pc.is_in(table["source"], value_set=read_table(again)["source"].combine_chunks())
    if not pc.any(gone).as_py():
        return entry
    path = folder / name / f"{entry.name.split('.')[0]}.{number}.parquet"
    kept = table.filter(pc.invert(gone))
    return table_writer.write_file(path, table.schema.remove_metadata(), [kept], generation=entry.generation)
