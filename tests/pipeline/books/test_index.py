"""The index at the end of a job: the same whoever writes it, in files of whole shards."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.runtime.atomic_files import read_json
from cluster.tables import table_writer
from cluster.tables.table_folder import TableFolder
from pipeline.books import index
from pipeline.maintenance.verify import digest, verify
from pipeline.shards.dataset import ShardDataset
from pipeline.shards.layout import INDEX
from pipeline.shards.manifest import Manifest
from tests.helpers.plans import BUCKET, SHARDS, finished
from tests.pipeline.books.test_merge import shuffled


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / INDEX).glob("*")}


def test_files_hold_whole_shards_and_do_not_depend_on_who_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = finished(tmp_path / "one")
    whole = ShardDataset.open(folder).rows(BUCKET)
    monkeypatch.setattr(index, "FILE_ROWS", 4)
    monkeypatch.setattr(index, "TASK_SHARDS", 1)
    found = index.finish(Manifest(folder))
    first = files(folder)
    assert sorted(first) == ["files.json", "rows-000000.parquet", "rows-000001.parquet", "shards.parquet"]
    assert index.finish(Manifest(folder), shuffled(5)) == found == digest(folder)
    assert files(folder) == first and verify(folder).sound
    assert ShardDataset.open(folder).rows(BUCKET).equals(whole)
    shards = pq.read_table(folder / INDEX / "shards.parquet")
    assert shards["shard"].to_pylist() == SHARDS and shards["samples"].to_pylist() == [3, 2, 1]
    assert shards["refused"].to_pylist() == [0, 1, 0]
    joined = pa.concat_tables(TableFolder.open(folder / INDEX).tables())
    committed = [pq.read_table(folder / f"{name}.parquet").replace_schema_metadata(None) for name in SHARDS]
    assert joined.equals(pa.concat_tables(committed))


def test_a_kill_before_the_list_leaves_the_folder_unfinished_and_its_rejects_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = finished(tmp_path)
    before, rejects = read_json(folder / INDEX / "files.json"), Manifest(folder).rejects()
    (folder / INDEX / "files.json").unlink()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(table_writer, "write_list", killed)
        with pytest.raises(KeyboardInterrupt):
            index.finish(Manifest(folder))
    assert Manifest(folder).rejects() == rejects and not (folder / INDEX / "files.json").exists()
    index.finish(Manifest(folder))
    assert read_json(folder / INDEX / "files.json") == before and verify(folder).sound
