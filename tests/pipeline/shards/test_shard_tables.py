"""The list of shards and the rows of single shards are those of the index read whole, however they are read."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.tables import table_folder
from cluster.tables.table_folder import TableFolder
from pipeline.books import upgrade
from pipeline.shards import shard_tables
from pipeline.shards.layout import DatasetError
from pipeline.shards.shard_tables import ShardTables
from tests.helpers import made_books

SMALL, LARGE = "f009x32x32", "f005x64x64"
GONE = ["videos/000000003.mp4", "videos/000000011.mp4", "videos/00000002"]
COLUMNS = ["key", "caption", "bits_offset"]


@pytest.fixture(scope="module", params=[1, 2])
def folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Books of either format, those of format 2 in several files."""
    made = made_books.make(tmp_path_factory.mktemp("data") / "books", {LARGE: 300, SMALL: 1001}, shard_rows=8)
    if request.param == 2:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(upgrade, "INDEX_ROWS", 200)
            upgrade.upgrade(made)
        assert len(TableFolder.open(made / "index").files) > 5
    return made


def whole(folder: Path, gone: list[str]) -> dict[str, list[list[dict[str, Any]]]]:
    """All rows of the index, by bucket and shard."""
    rows = pa.concat_tables(TableFolder.open(folder / "index").tables()).to_pylist()
    rows = [row for row in rows if not any(row["source"] == name or row["source"].startswith(f"{name}/") for name in gone)]
    return {
        bucket: [list(shard) for _, shard in groupby(own, key=lambda row: row["shard"])]
        for bucket, own in groupby(rows, key=lambda row: row["bucket"])
    }


@pytest.mark.parametrize("batch", [7, 1 << 16])
@pytest.mark.parametrize("footer", [0, 1 << 30])
@pytest.mark.parametrize("gone", [[], GONE])
def test_lists_rows_and_keys_are_those_of_the_index(
    folder: Path, gone: list[str], footer: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_tables, "FOOTER", footer)
    monkeypatch.setattr(shard_tables, "SMALL", footer)
    monkeypatch.setattr(table_folder, "_BATCH", batch)
    tables, wanted = ShardTables(folder, gone), whole(folder, gone)
    assert list(tables.lists) == sorted(wanted) == [LARGE, SMALL]
    for bucket, shards in tables.lists.items():
        rows = wanted[bucket]
        assert shards.rows.tolist() == [len(shard) for shard in rows] and shards.size == sum(map(len, rows))
        assert shards.names.to_pylist() == [shard[0]["shard"] for shard in rows]
        found = tables.read(shards, [5, 0, len(rows) - 1], COLUMNS).to_pylist()
        picked = [*rows[5], *rows[0], *rows[-1]]
        assert found == [{name: row[name] for name in COLUMNS} for row in picked]
        assert tables.read(shards, range(len(rows))).to_pylist() == [row for shard in rows for row in shard]
        keys = [key for part in tables.column(shards, "key") for key in part.to_pylist()]
        assert keys == [row["key"] for shard in rows for row in shard]


def test_an_index_of_few_row_groups_is_read_alike(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "index.parquet").write_bytes(b"")
    table = TableFolder.open(folder / "index")
    meta = {b"videoar": json.dumps({"digest": table.meta["digest"]}).encode()}
    rows = pa.concat_tables(table.tables()).replace_schema_metadata(meta)
    pq.write_table(rows, tmp_path / "index.parquet", row_group_size=1100)
    wanted, tables = whole(folder, GONE), ShardTables(tmp_path, GONE)
    for bucket, shards in tables.lists.items():
        numbers = [len(shards.rows) - 1, 3, 101 % len(shards.rows)]
        picked = [row for number in numbers for row in wanted[bucket][number]]
        assert tables.read(shards, numbers, ["key"])["key"].to_pylist() == [row["key"] for row in picked]
        keys = [key for part in tables.column(shards, "key") for key in part.to_pylist()]
        assert keys == [row["key"] for shard in wanted[bucket] for row in shard]


def test_a_shards_own_parquet_counts_only_if_it_names_the_tar_of_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made_books.make(tmp_path / "books", {SMALL: 40}, shard_rows=8)
    monkeypatch.setattr(shard_tables, "FOOTER", 0)
    wanted = whole(folder, [])[SMALL]
    own = [folder / f"{SMALL}/shard-{number:06d}.parquet" for number in range(5)]

    def caption(number: int) -> str:
        tables = ShardTables(folder, [])
        found = tables.read(tables.lists[SMALL], [number], ["caption"])["caption"].to_pylist()
        assert len(found) == len(wanted[number])
        return str(found[0])

    def rewrite(number: int, record: dict[str, Any]) -> None:
        table = pq.read_table(own[number])
        meta = {b"videoar": json.dumps({**json.loads(table.schema.metadata[b"videoar"]), **record}).encode()}
        changed = table.set_column(table.schema.get_field_index("caption"), "caption", pa.array(["other"] * table.num_rows))
        pq.write_table(changed.replace_schema_metadata(meta), own[number])

    rewrite(0, {})
    assert caption(0) == "other", "a parquet that names the tar is read"
    rewrite(1, {"tar_sha256": "f" * 64})
    rewrite(2, {"samples": 7})
    own[3].write_bytes(b"no parquet")
    own[4].unlink()
    assert [caption(number) for number in range(1, 5)] == [shard[0]["caption"] for shard in wanted[1:]]


def test_damage_is_one_line_with_the_mend(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="the job has not finished"):
        ShardTables(tmp_path, [])
    folder = made_books.make(tmp_path / "books", {SMALL: 40}, shard_rows=8)
    tables, index = ShardTables(folder, []), folder / "index.parquet"
    data = bytearray(index.read_bytes())
    place = pq.read_metadata(index).row_group(2).column(0)
    with index.open("r+b") as file:
        file.seek(place.data_page_offset)
        file.write(b"\xff" * 64)
    with pytest.raises(DatasetError, match=r"index\.parquet: damaged .*; delete it and run the same `videoar tokenize`"):
        tables.read(tables.lists[SMALL], [2], ["key"])
    index.write_bytes(data[: len(data) // 2])
    with pytest.raises(DatasetError, match="damaged"):
        ShardTables(folder, [])
    del data
    pq.write_table(pa.table({"key": ["a"]}, metadata={b"videoar": b'{"digest": "d"}'}), index)
    with pytest.raises(DatasetError, match="damaged"):
        ShardTables(folder, [])


def test_an_index_without_rows_has_no_lists(tmp_path: Path) -> None:
    folder = made_books.make(tmp_path / "books", {SMALL: 0})
    assert ShardTables(folder, []).lists == {} == ShardTables(folder, GONE).lists
