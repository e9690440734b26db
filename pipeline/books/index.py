"""The end of a job: the commit records of all shards become the index, and the clips that could not be encoded become rejects.

In:  a folder whose planned shards are all committed.
Out: the index (rows of all samples, and the list of shards), written last; rejects from the shards; the digest.

Rows of the index are those of the shards' own parquets, sorted by shard. A file begins with the first shard whose rows begin in the
file's range of rows, so files do not depend on who writes them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.runtime.atomic_files import read_json
from cluster.tables import table_writer
from cluster.tables.table_list import TableFile
from pipeline.books.merge import FROM_SHARDS, REJECT_ROWS
from pipeline.books.parts import Numbers, read_table, write_table
from pipeline.books.tasks import Runner, serially
from pipeline.records import Reject
from pipeline.shards.commit_record import ShardInfo, dataset_digest, read_info
from pipeline.shards.layout import CLIPS, DATASET, INDEX, REJECTS, SHARD_LIST, open_table, recount_hidden, refuse_old
from pipeline.shards.manifest import Manifest
from pipeline.shards.schemas import REJECTS as REJECT_SCHEMA
from pipeline.shards.schemas import ROWS, SHARDS, reject_rows

FILE_ROWS, GROUP_ROWS = 1 << 18, 1 << 12
"""Rows in a file of the index, and least rows in a row group of whole shards, about."""
TASK_SHARDS = 1 << 10
"""Commit records that a task reads."""
SCRATCH = ".index"


def finish(manifest: Manifest, run: Runner = serially) -> str:
    """Write the rejects of the shards and, last, the index. Returns the digest. Every planned shard must be committed.

    Raises DamagedFile, CorruptSample for a damaged commit record, DiskFull.
    """
    folder = manifest.folder
    refuse_old(folder)
    scratch = folder / SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    names = _planned(folder)
    calls = [
        (folder, names[at : at + TASK_SHARDS].to_pylist(), scratch / f"records-{at:09d}")
        for at in range(0, len(names), TASK_SHARDS)
    ]
    refused = sum(run("commit records", read_records, calls))
    spills = [call[2] for call in calls]
    shards = pa.concat_tables([SHARDS.empty_table(), *(read_table(path.with_suffix(".shards.arrow")) for path in spills)])
    shards = shards.combine_chunks()
    keys = scratch / "keys.arrow"
    if refused:
        found = [read_table(path.with_suffix(".rejects.arrow")) for path in spills]
        write_table(keys, pa.table({"key": pa.concat_tables(found)["key"].unique()}))
    begins = _begins(shards)
    files, encoded = [], scratch / "encoded"
    encoded.mkdir()
    writes = [
        (folder, at, shards["shard"][low:high].to_pylist(), keys if refused else None, encoded / f"{at:06d}.arrow")
        for at, low, high in _ranges(begins)
    ]
    for file in run("index", write_index_file, writes):
        if file.rows:
            files.append(file)
    planned, meta = _planning_files(folder)
    made: list[TableFile] = []
    if refused:
        # Under new names: a kill leaves the table as it was.
        meta["revision"] = int(meta.get("revision", 0)) + 1
        call = (folder, spills, [write[4] for write in writes], meta["revision"])
        (made,) = run("rejects", write_rejects, [call])
    table_writer.write_list(folder / REJECTS, [*planned, *made], meta)
    digest = dataset_digest(read_json(folder / DATASET), shard_lines(shards), manifest.reject_tables())
    write_index_list(folder, files, shards, digest)
    recount_hidden(folder, run)
    shutil.rmtree(scratch)
    return digest


def write_index_list(folder: Path, files: Sequence[TableFile], shards: pa.Table, digest: str) -> None:
    """Write the list of shards and, last, the list of the index."""
    listed = table_writer.write_file(folder / INDEX / SHARD_LIST, SHARDS, [shards])
    meta = {"digest": digest, "shards": shards.num_rows, "beside": [SHARD_LIST], "shard_list": asdict(listed)}
    table_writer.write_list(folder / INDEX, files, meta)


def shard_lines(shards: pa.Table) -> Iterator[tuple[str, int, str]]:
    """Yield what the digest covers of each shard."""
    for batch in shards.select(["shard", "samples", "tar_sha256"]).to_batches(max_chunksize=1 << 12):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _planned(folder: Path) -> pa.Array:
    """Return the names of all planned shards, sorted."""
    table = open_table(folder, CLIPS)
    names = [part["shard"].unique() for part in (() if table is None else table.tables(["shard"]))]
    joined = pa.concat_arrays(names) if names else pa.array([], pa.string())
    return joined.take(pc.array_sort_indices(joined))


def read_records(folder: Path, names: Sequence[str], out: Path) -> int:
    """Read commit records; write them as rows of the list of shards, and their rejects. Returns the number of these."""
    infos = [read_info(folder / f"{name}.parquet") for name in names]
    rejects = [Reject(**plain) for info in infos for plain in info.rejects]
    write_table(out.with_suffix(".shards.arrow"), list_rows(infos))
    write_table(out.with_suffix(".rejects.arrow"), reject_rows(rejects))
    return len(rejects)


def list_rows(infos: Sequence[ShardInfo]) -> pa.Table:
    """Return commit records as rows of the list of shards."""
    cells = {name: [getattr(info, name) for info in infos] for name in SHARDS.names if name != "refused"}
    return pa.table({**cells, "refused": [len(info.rejects) for info in infos]}).select(SHARDS.names).cast(SHARDS)


def _begins(shards: pa.Table) -> Numbers:
    samples = shards["samples"].to_numpy()
    begins: Numbers = np.cumsum(samples) - samples
    return begins


def _ranges(begins: Numbers) -> Iterator[tuple[int, int, int]]:
    """Yield (number, first shard, end) of each file."""
    files = begins // FILE_ROWS
    starts = np.flatnonzero(np.diff(files, prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(begins)], strict=True):
        yield int(files[start]), int(start), int(end)


def write_index_file(folder: Path, number: int, names: Sequence[str], keys: Path | None, encoded: Path) -> TableFile:
    """Write a file of the index, and those of the keys that it holds: clips that were refused once and have been encoded since."""
    wanted = None if keys is None else read_table(keys)["key"].combine_chunks()
    found: list[pa.ChunkedArray] = []

    def groups() -> Iterator[pa.Table]:
        waiting: list[pa.Table] = []
        rows = 0
        for name in names:
            table = pq.read_table(folder / f"{name}.parquet", use_threads=False).replace_schema_metadata(None)
            if wanted is not None:
                found.append(table["key"].filter(pc.is_in(table["key"], value_set=wanted)))
            waiting.append(table)
            rows += table.num_rows
            if rows >= GROUP_ROWS:
                yield pa.concat_tables(waiting)
                waiting, rows = [], 0
        if rows:
            yield pa.concat_tables(waiting)

    made = table_writer.write_file(folder / INDEX / f"rows-{number:06d}.parquet", ROWS, groups())
    if wanted is not None:
        chunks = [chunk for column in found for chunk in column.chunks]
        write_table(encoded, pa.table({"key": pa.chunked_array(chunks, pa.string())}))
    return made


def write_rejects(folder: Path, spills: Sequence[Path], encoded: Sequence[Path], revision: int) -> list[TableFile]:
    """Write the rejects of the commit records, without clips that were encoded in another try. The newest shard tells the outcome."""
    table = pa.concat_tables([read_table(path.with_suffix(".rejects.arrow")) for path in spills]).combine_chunks()
    done = pa.concat_tables([read_table(path) for path in encoded])["key"].combine_chunks()
    table = table.filter(pc.invert(pc.is_in(table["key"], value_set=done)))
    # In the place of a clip's first refusal stands its last.
    rows = table.append_column("row", pa.array(np.arange(table.num_rows))).select(["key", "row"])
    ends = rows.group_by("key", use_threads=False).aggregate([("row", "min"), ("row", "max")]).sort_by("row_min")
    table = table.take(ends["row_max"])
    paths = [folder / REJECTS / f"{FROM_SHARDS}{at:06d}.{revision}.parquet" for at in range(-(-table.num_rows // REJECT_ROWS))]
    return [
        table_writer.write_file(path, REJECT_SCHEMA, [table.slice(at * REJECT_ROWS, REJECT_ROWS)])
        for at, path in enumerate(paths)
    ]


def _planning_files(folder: Path) -> tuple[list[TableFile], dict[str, Any]]:
    """Return the files of rejects that come from planning, and what the list records."""
    table = open_table(folder, REJECTS)
    if table is None:
        return [], {}
    return [file for file in table.files if not file.name.startswith(FROM_SHARDS)], dict(table.meta)


def read_shard_list(folder: Path) -> pa.Table:
    """Return the list of shards of a finished folder: SHARDS."""
    return pq.read_table(folder / INDEX / SHARD_LIST).replace_schema_metadata(None)
