"""Books of format 1, one parquet file for each table, made into tables of format 2.

In:  a SHARDS folder. Out: the same folder: equal clips, rejects and rows, equal digest; no shard is touched.

Each table is written beside the old one, which goes when the new list is written: a kill at any moment leaves both or the new one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.runtime.atomic_files import read_json
from cluster.tables import table_list, table_writer
from cluster.tables.table_folder import TableFolder
from cluster.tables.table_list import TableFile
from pipeline.books.index import FILE_ROWS as INDEX_ROWS
from pipeline.books.index import list_rows, write_index_list
from pipeline.books.merge import FROM_SHARDS, PRINT_ROWS, REJECT_ROWS
from pipeline.books.shard_groups import FILE_ROWS
from pipeline.records import Clip, SourceVideo
from pipeline.shards.commit_record import read_info
from pipeline.shards.dataset import open_folder
from pipeline.shards.generation import Generation
from pipeline.shards.layout import (
    CLIPS,
    FINGERPRINTS,
    INDEX,
    OLD_LIST,
    PLAN,
    REJECTS,
    FolderLock,
    open_table,
    remove_leftovers,
)
from pipeline.shards.manifest import FROM_SHARDS as STAGES
from pipeline.shards.manifest import Manifest
from pipeline.shards.schemas import CLIPS as CLIP_SCHEMA
from pipeline.shards.schemas import FINGERPRINTS as FINGERPRINT_SCHEMA
from pipeline.shards.schemas import REJECTS as REJECT_SCHEMA
from pipeline.shards.schemas import ROWS


def upgrade_folder(folder: Path) -> list[str]:
    """Upgrade a folder under its lock. Returns the names of the tables. Raises DatasetError, Locked, DiskFull."""
    open_folder(folder)
    with FolderLock(folder):
        remove_leftovers(folder)
        return upgrade(folder)


def upgrade(folder: Path) -> list[str]:
    """Upgrade what is of format 1; call with the folder's lock held. Returns the names of the tables. Raises DatasetError, DiskFull."""
    old_list = folder / PLAN / OLD_LIST
    plain = read_json(old_list) if old_list.exists() else None
    # A merge that was killed may have written the pending generation's groups: they are merged anew.
    groups = None if plain is None else int(plain["first_group"])
    done = []
    for name, write in ((CLIPS, _clips), (REJECTS, _rejects), (FINGERPRINTS, _prints), (INDEX, _index)):
        if table_list.is_old(folder / name):
            table = open_table(folder, name)
            assert table is not None
            write(folder, table, groups)
            done.append(name)
    if plain is not None:
        _list(folder, [SourceVideo(**video) for video in plain["videos"]], groups or 0, [Clip.parse(c) for c in plain["clips"]])
        old_list.unlink()
        done.append(OLD_LIST)
    return done


def _clips(folder: Path, table: TableFolder, groups: int | None) -> None:
    numbers = range(table.row_groups if groups is None else min(groups, table.row_groups))
    files: list[TableFile] = []
    rows = 0
    waiting: list[int] = []
    for number in numbers:
        waiting.append(number)
        rows += table.file(0).metadata.row_group(number).num_rows
        if rows >= FILE_ROWS or number == numbers[-1]:
            path = folder / CLIPS / f"0000-{len(files):06d}.parquet"
            # Older books lack columns that came later.
            files.append(table_writer.write_file(path, CLIP_SCHEMA, (_filled(table.group(n), CLIP_SCHEMA) for n in waiting)))
            rows, waiting = 0, []
    (folder / CLIPS).mkdir(exist_ok=True)
    table_writer.write_list(folder / CLIPS, files)


def _rejects(folder: Path, table: TableFolder, groups: int | None) -> None:
    rows = pa.concat_tables([_filled(each, REJECT_SCHEMA) for each in table.tables()])
    late = pc.is_in(rows["stage"], value_set=pa.array(STAGES))
    files = []
    for name, part in (
        ("0000-{:06d}.parquet", rows.filter(pc.invert(late))),
        (FROM_SHARDS + "{:06d}.0.parquet", rows.filter(late)),
    ):
        files += _files(folder / REJECTS, name, REJECT_SCHEMA, part, REJECT_ROWS)
    (folder / REJECTS).mkdir(exist_ok=True)
    table_writer.write_list(folder / REJECTS, files)


def _prints(folder: Path, table: TableFolder, groups: int | None) -> None:
    rows = pa.concat_tables([_filled(each, FINGERPRINT_SCHEMA) for each in table.tables()])
    files = _files(folder / FINGERPRINTS, "0000-{:06d}.parquet", FINGERPRINT_SCHEMA, rows, PRINT_ROWS)
    (folder / FINGERPRINTS).mkdir(exist_ok=True)
    table_writer.write_list(folder / FINGERPRINTS, files)


def _files(folder: Path, name: str, schema: pa.Schema, rows: pa.Table, size: int) -> list[TableFile]:
    starts = range(0, rows.num_rows, size)
    return [
        table_writer.write_file(folder / name.format(at), schema, [rows.slice(start, size)]) for at, start in enumerate(starts)
    ]


def _index(folder: Path, table: TableFolder, groups: int | None) -> None:
    """Write the rows in their order, whole shards to a file; the list of shards is made of their commit records."""
    files: list[TableFile] = []
    names: list[str] = []
    for rows in _whole_shards(table):
        names += pc.run_end_encode(rows["shard"].combine_chunks()).values.to_pylist()
        path = folder / INDEX / f"rows-{len(files):06d}.parquet"
        files.append(table_writer.write_file(path, ROWS, (rows.slice(at, 1 << 14) for at in range(0, rows.num_rows, 1 << 14))))
    planned = {name for _, shards, _ in Manifest(folder).shards() for name in shards}
    order = sorted(planned | set(names)) if names == sorted(names) else [*names, *sorted(planned - set(names))]
    shards = list_rows([read_info(folder / f"{name}.parquet") for name in order])
    (folder / INDEX).mkdir(exist_ok=True)
    write_index_list(folder, files, shards, str(table.meta["digest"]))


def _whole_shards(table: TableFolder) -> Iterator[pa.Table]:
    """Yield the rows in pieces of about INDEX_ROWS that end where a shard ends."""
    waiting = ROWS.empty_table()
    for batch in table.batches(rows=min(1 << 16, INDEX_ROWS)):
        waiting = pa.concat_tables([waiting, _filled(pa.Table.from_batches([batch]), ROWS)])
        if waiting.num_rows >= INDEX_ROWS:
            shards = waiting["shard"].combine_chunks()
            ends = np.flatnonzero(pc.not_equal(shards[1:], shards[:-1]).to_numpy(zero_copy_only=False)) + 1
            if len(ends):
                yield waiting.slice(0, int(ends[-1]))
                waiting = waiting.slice(int(ends[-1]))
    if waiting.num_rows:
        yield waiting


def _filled(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table with all columns of a schema; what older books lack is empty."""
    table = table.replace_schema_metadata(None)
    for field in schema:
        if field.name not in table.column_names:
            empty = pa.array([""] * table.num_rows) if field.type == pa.string() else pa.nulls(table.num_rows, field.type)
            table = table.append_column(field.name, empty)
    return table.select(schema.names).cast(schema)


def _list(folder: Path, videos: list[SourceVideo], first_group: int, clips: list[Clip]) -> None:
    manifest = Manifest(folder)
    known = manifest.known()
    planned = manifest.planned()
    Generation.write(
        folder,
        1,
        first_group,
        ((video, 2 if video.source in planned else int(video.source in known)) for video in videos),
        clips,
    )
