"""Tables of several files, read in every way; and what is said about files that are not those of the list."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.tables import table_list, table_writer
from cluster.tables.table_folder import TableFolder
from cluster.tables.table_list import DamagedTable

SCHEMA = pa.schema([("number", pa.int64()), ("text", pa.string())])
GROUPS = ((3, 5, 1), (4,), (2, 2, 7))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A table of three files whose rows are numbered."""
    path, at, files = tmp_path / "table", 0, []
    for number, sizes in enumerate(GROUPS):
        tables = []
        for size in sizes:
            tables.append(pa.table({"number": range(at, at + size), "text": [f"t{n}" for n in range(at, at + size)]}, SCHEMA))
            at += size
        files.append(table_writer.write_file(path / f"{number}.parquet", SCHEMA, tables, generation=number))
    table_writer.write_list(path, files, {"owner": "test"})
    return path


def test_rows_are_the_same_however_they_are_read(folder: Path) -> None:
    table = TableFolder.open(folder)
    assert (table.rows, table.row_groups, table.meta) == (24, 7, {"owner": "test"})
    assert [n for each in table.tables() for n in each["number"].to_pylist()] == list(range(24))
    assert [n for batch in table.batches(["number"], 4) for n in batch["number"].to_pylist()] == list(range(24))
    sizes = [size for group in GROUPS for size in group]
    assert [table.group(number).num_rows for number in range(7)] == sizes
    places = [(13, 2), (0, 2), (7, 2), (20, 4), (9, 4)]
    wanted = [n for first, count in places for n in range(first, first + count)]
    assert table.take(places, ["number"])["number"].to_pylist() == wanted
    runs = np.array([[1, 4], [4, 6], [8, 15], [23, 24]])
    found = [n for batch in table.runs(runs[:, 0], runs[:, 1], ["number"]) for n in batch["number"].to_pylist()]
    assert found == [*range(1, 6), *range(8, 15), 23]
    assert list(table.check()) == []


def test_files_that_are_not_those_of_the_list_are_named(folder: Path) -> None:
    other = pa.table({"number": [1, 2, 3, 4], "text": ["a"] * 4}, SCHEMA)
    whole = (folder / "1.parquet").read_bytes()
    for path, damage in (("missing", None), ("damaged", b"PAR1" * 9), ("another generation", b"")):
        if damage is None:
            (folder / "1.parquet").unlink()
        elif damage:
            (folder / "1.parquet").write_bytes(damage)
        else:
            table_writer.write_file(folder / "1.parquet", SCHEMA, [other], generation=7)
        table = TableFolder.open(folder, mend="bring it back")
        with pytest.raises(DamagedTable, match=rf"1\.parquet: .*{path}.*bring it back"):
            table.group(3)
        (line,) = table.check()
        assert "1.parquet" in line and "bring it back" in line
        (folder / "1.parquet").write_bytes(whole)
    flipped = bytearray(whole)
    flipped[len(whole) // 4] ^= 1
    (folder / "1.parquet").write_bytes(flipped)
    (line,) = TableFolder.open(folder).check()
    assert "damaged (checksum)" in line
    place = pq.read_metadata(folder / "0.parquet").row_group(1).column(1)
    data = bytearray((folder / "0.parquet").read_bytes())
    data[(place.dictionary_page_offset or place.data_page_offset) + place.total_compressed_size - 2] ^= 1
    (folder / "0.parquet").write_bytes(data)
    with pytest.raises(DamagedTable, match=r"0\.parquet: damaged"):
        TableFolder.open(folder).group(1)


def test_a_table_of_format_1_is_one_file(tmp_path: Path) -> None:
    pq.write_table(pa.table({"number": range(5), "text": ["a"] * 5}, SCHEMA), tmp_path / "table.parquet", row_group_size=2)
    table = TableFolder.open(tmp_path / "table")
    assert (table.format, table.rows, table.row_groups) == (1, 5, 3) and table_list.is_old(tmp_path / "table")
    assert table.take([(1, 3)], ["number"])["number"].to_pylist() == [1, 2, 3]
    (tmp_path / "table.parquet").write_bytes(b"")
    with pytest.raises(DamagedTable, match=r"table\.parquet: damaged"):
        TableFolder.open(tmp_path / "table")


@pytest.mark.parametrize("statistics", [True, False])
def test_row_groups_that_cannot_hold_what_is_sought_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statistics: bool
) -> None:
    """Files of earlier versions have no statistics: all of their rows are looked through, and the same is found."""
    if not statistics:
        monkeypatch.setattr(table_writer, "OPTIONS", {**table_writer.OPTIONS, "write_statistics": False})
    schema = pa.schema([("texts", pa.list_(pa.struct([("at", pa.int64()), ("of", pa.string())]))), ("source", pa.string())])
    names = [f"{folder}/{number}.mp4" for folder in ("a", "a/b", "a/\u00e9", "b", "c") for number in range(4)]
    groups = [pa.table({"texts": [[]] * 4, "source": names[at : at + 4]}, schema) for at in range(0, len(names), 4)]
    table_writer.write_list(tmp_path, [table_writer.write_file(tmp_path / "0.parquet", schema, groups)])
    table = TableFolder.open(tmp_path)
    for wanted, rows in (
        (["b/2.mp4"], 4),
        (["b/9.mp4", "0", "zz"], 0),
        (["a/"], 12),
        (["a/b/"], 4),
        (["a/\u00e9/"], 4),
        (["b/", "c/0.mp4"], 8),
        (["c/3.mp4/"], 0),
        ([], 0),
    ):
        found = table.matching(0, "source", wanted, ["source"])
        assert found.column_names == ["source"]
        held = {name for name in names for each in wanted if name == each or (each.endswith("/") and name.startswith(each))}
        assert held <= set(found["source"].to_pylist())
        assert found.num_rows == (rows if statistics else len(names)), wanted
