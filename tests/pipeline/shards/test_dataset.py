from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.records import Bucket
from pipeline.shards.dataset import ShardDataset
from pipeline.shards.layout import DatasetError
from tests.helpers.plans import BUCKET, SHARDS, finished


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return finished(tmp_path)


def test_dataset_errors_name_the_mend(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such folder"):
        ShardDataset.open(tmp_path / "absent")
    (tmp_path / "void").mkdir()
    with pytest.raises(DatasetError, match=r"no dataset\.json"):
        ShardDataset.open(tmp_path / "void")
    dataset = ShardDataset.open(folder)
    with pytest.raises(IndexError, match="has 6 samples"):
        dataset.read(BUCKET, 6)
    assert dataset.rows(Bucket(frames=9, height=16, width=16)).num_rows == 0
    (folder / f"{SHARDS[0]}.tar").unlink()
    with pytest.raises(DatasetError, match=r"shard-000000\.tar: No such file"):
        ShardDataset.open(folder).read(BUCKET, 0)
    rows, listed = folder / "index" / "rows-000000.parquet", folder / "index" / "shards.parquet"
    for path, said in ((rows, "not the file|damaged"), (listed, "not the file that files.json names")):
        whole = path.read_bytes()
        path.write_bytes(b"broken")
        with pytest.raises(DatasetError, match=rf"{path}: ({said}).*delete it and run the same"):
            ShardDataset.open(folder).rows(BUCKET)
        path.write_bytes(whole)
    rows.unlink()
    with pytest.raises(DatasetError, match=r"rows-000000\.parquet: missing; delete it"):
        ShardDataset.open(folder).rows(BUCKET)
    (folder / "index" / "files.json").write_text('{"format": 3}')
    with pytest.raises(DatasetError, match="format 3; this program reads format 2: update it"):
        ShardDataset.open(folder)
    (folder / "index" / "files.json").unlink()
    with pytest.raises(DatasetError, match="the job has not finished"):
        ShardDataset.open(folder)
    (folder / "index.parquet").write_bytes(b"broken")
    with pytest.raises(DatasetError, match="damaged"):
        ShardDataset.open(folder)
    (folder / "index.parquet").unlink()
    with pytest.raises(DatasetError, match="the job has not finished"):
        ShardDataset.open(folder)


def test_rows_are_in_shard_order_and_readable_from_threads(folder: Path) -> None:
    dataset = ShardDataset.open(folder)
    rows = dataset.rows(BUCKET)
    assert rows["shard"].to_pylist() == sorted(rows["shard"].to_pylist())
    keys = rows["key"].to_pylist()
    for name in SHARDS:
        own = pq.read_table(folder / f"{name}.parquet")["key"].to_pylist()
        assert own == sorted(own) and own == [k for k, s in zip(keys, rows["shard"].to_pylist()) if s == name]
    numbers = [n % 6 for n in range(300)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda n: dataset.read(BUCKET, n).key, numbers)) == [keys[n] for n in numbers]


def test_eviction_of_open_tars_does_not_disturb_reads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.shards.dataset._OPEN_TARS", 1)
    dataset = ShardDataset.open(folder)
    keys = dataset.rows(BUCKET)["key"].to_pylist()
    assert [dataset.read(BUCKET, n).key for n in (0, 5, 0, 3, 1)] == [keys[n] for n in (0, 5, 0, 3, 1)]
    assert len(dataset._tars) == 1
