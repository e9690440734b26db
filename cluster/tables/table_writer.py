"""Writing a table: its files, each whole or not at all, and last the list that makes them a table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.runtime.atomic_files import committing, write_json
from cluster.tables.table_list import FORMAT, LIST, META, TableFile, xxh3_of

OPTIONS: Mapping[str, Any] = {"compression": "zstd", "write_statistics": ["source"], "write_page_checksum": True}
"""Writer options: statistics of all columns would take most of a footer with many row groups; rows are sought by their source alone."""


def write_file(
    path: Path,
    schema: pa.Schema,
    tables: Iterable[pa.Table],
    *,
    generation: int = 0,
    min_free_gb: float = 0.0,
    setting: str = "",
) -> TableFile:
    """Write one file of a table, a row group for each of `tables` that has rows; return its entry. Raises DiskFull."""
    record = {META: json.dumps({"file": path.name, "generation": generation}, sort_keys=True).encode()}
    rows = groups = 0
    with committing(path, min_free_gb, setting=setting) as temporary:
        with pq.ParquetWriter(temporary, schema.with_metadata(record), **OPTIONS) as writer:
            for table in tables:
                if table.num_rows:
                    writer.write_table(table.replace_schema_metadata(record), row_group_size=table.num_rows)
                    rows, groups = rows + table.num_rows, groups + 1
        size, digest = temporary.stat().st_size, xxh3_of(temporary)
    return TableFile(path.name, rows, groups, size, digest, generation)


def write_list(folder: Path, files: Sequence[TableFile], meta: Mapping[str, Any] | None = None) -> None:
    """Write the list, which makes the files a table; files that it does not name are removed, and a table of format 1."""
    write_json(folder / LIST, {"format": FORMAT, "files": [asdict(file) for file in files], "meta": dict(meta or {})})
    known = {LIST, *(file.name for file in files), *(str(name) for name in (meta or {}).get("beside", ()))}
    for path in folder.iterdir():
        if path.name not in known and path.is_file():
            path.unlink()
    folder.with_name(f"{folder.name}.parquet").unlink(missing_ok=True)
