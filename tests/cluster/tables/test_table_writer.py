from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from cluster.runtime.atomic_files import DiskFull
from cluster.tables import table_writer
from cluster.tables.table_folder import TableFolder

SCHEMA = pa.schema([("number", pa.int64())])


def test_equal_rows_are_equal_bytes_and_files_that_are_not_listed_go(tmp_path: Path) -> None:
    tables = [pa.table({"number": range(3)}, SCHEMA), SCHEMA.empty_table()]
    first = table_writer.write_file(tmp_path / "t" / "a.parquet", SCHEMA, tables)
    bytes_of = (tmp_path / "t" / "a.parquet").read_bytes()
    assert table_writer.write_file(tmp_path / "t" / "a.parquet", SCHEMA, tables) == first and first.row_groups == 1
    assert (tmp_path / "t" / "a.parquet").read_bytes() == bytes_of
    table_writer.write_file(tmp_path / "t" / "left.parquet", SCHEMA, tables)
    (tmp_path / "t.parquet").write_bytes(b"of format 1")
    table_writer.write_list(tmp_path / "t", [first])
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["a.parquet", "files.json"]
    assert TableFolder.open(tmp_path / "t").rows == 3


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match=r"my.setting is 1e.09; free some space"):
        table_writer.write_file(tmp_path / "a.parquet", SCHEMA, [], min_free_gb=1e9, setting="my.setting")
    assert list(tmp_path.iterdir()) == []
