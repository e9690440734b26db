"""Samples are found by number, and the rows of shards that are no longer read are let go."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.shards.sample_window import SampleWindow
from pipeline.shards.shard_tables import ShardTables
from tests.helpers import made_books

BUCKET, SHARD = "f009x32x32", 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_books.make(tmp_path_factory.mktemp("data") / "books", {BUCKET: 803}, shard_rows=SHARD)


def window(folder: Path, capacity: int) -> SampleWindow:
    tables = ShardTables(folder, [])
    made = SampleWindow(tables, tables.lists[BUCKET], features=False)
    made.capacity = capacity
    return made


def test_samples_are_found_in_any_order_and_rows_are_let_go(folder: Path) -> None:
    rows, made = pq.read_table(folder / "index.parquet").to_pylist(), window(folder, 4)
    rng = np.random.default_rng(0)
    most = 0
    earlier = made.find(np.array([801, 3, 801]))
    for first in range(0, 700, 5):
        numbers = first + rng.integers(0, 4 * SHARD, 16)
        places = made.find(numbers)
        wanted = [rows[number] for number in numbers.tolist()]
        for name in ("key", "caption", "bits_xxh3"):
            assert places.text(name) == [row[name] for row in wanted]
        for name in ("bits_offset", "bits_size", "bits_raw"):
            assert places.number(name).tolist() == [row[name] for row in wanted]
        assert places.shards == [row["shard"] for row in wanted] and not places.have_features
        assert places.take([3, 0]).text("key") == [wanted[3]["key"], wanted[0]["key"]]
        most = max(most, len(made._texts["key"]))
    assert 4 * SHARD <= most <= (2 * 4 + 5) * SHARD, "twice the capacity, and the shards of one batch"
    assert earlier.text("key") == [rows[number]["key"] for number in (801, 3, 801)], "what was found stays valid"


def test_a_shard_is_read_once_while_it_is_in_use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, read = window(folder, 4), []
    tables = made._tables.read
    monkeypatch.setattr(
        made._tables, "read", lambda shards, numbers, columns: read.extend(numbers) or tables(shards, numbers, columns)
    )
    for first in range(0, 803, 4 * SHARD):
        for number in np.random.default_rng(1).permutation(min(4 * SHARD, 803 - first)):
            made.find(np.array([first + number]))
    assert sorted(read) == list(range(len(made.shards.rows)))


def test_a_batch_may_hold_more_shards_than_the_capacity(folder: Path) -> None:
    made = window(folder, 1)
    numbers = np.arange(0, 803, 10)
    keys = pq.read_table(folder / "index.parquet")["key"].to_pylist()
    for _ in range(3):
        assert made.find(numbers).text("key") == [keys[number] for number in numbers]


def test_threads_find_what_one_thread_finds(folder: Path) -> None:
    made, keys = window(folder, 2), pq.read_table(folder / "index.parquet")["key"].to_pylist()
    batches = [np.random.default_rng(n).integers(0, 803, 5) for n in range(200)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda numbers: made.find(numbers).text("key"), batches))
    assert found == [[keys[number] for number in numbers] for numbers in batches]
