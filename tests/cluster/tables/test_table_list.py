from __future__ import annotations

from pathlib import Path

from cluster.tables import table_list, table_writer


def test_removing_takes_the_list_first_and_either_format(tmp_path: Path) -> None:
    folder = tmp_path / "table"
    assert not table_list.exists(folder) and not table_list.is_old(folder)
    table_list.remove(folder)
    folder.mkdir()
    table_writer.write_list(folder, [])
    (tmp_path / "table.parquet").write_bytes(b"old")
    assert table_list.exists(folder) and not table_list.is_old(folder), "the list counts, an upgrade was killed"
    (folder / table_list.LIST).unlink()
    assert table_list.is_old(folder)
    table_list.remove(folder)
    assert not table_list.exists(folder) and not folder.exists()
