"""What is taken down is counted once, by tasks; readers take the counts, if they are of their index and names, and else look themselves."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.runtime.atomic_files import write_json
from pipeline.books import upgrade
from pipeline.books.tasks import serially
from pipeline.records import Bucket
from pipeline.shards import shard_tables
from pipeline.shards.dataset import ShardDataset
from pipeline.shards.layout import EXCLUDED, HIDDEN, excluded, recount_hidden
from pipeline.shards.shard_tables import ShardList
from tests.helpers import made_books

SMALL, LARGE = "f009x32x32", "f005x64x64"


@pytest.fixture
def books(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Books whose index has several files."""
    made = made_books.make(tmp_path / "books", {LARGE: 300, SMALL: 1001}, shard_rows=8)
    monkeypatch.setattr(upgrade, "INDEX_ROWS", 200)
    upgrade.upgrade(made)
    return made


def lists(folder: Path) -> dict[str, tuple[list[str], list[int], list[int], list[int]]]:
    """The lists of shards as plain values."""
    found = shard_tables.ShardTables(folder, excluded(folder)).lists
    return {
        name: (each.names.to_pylist(), each.rows.tolist(), each.first.tolist(), each.stored.tolist())
        for name, each in found.items()
    }


def take_down(folder: Path, names: list[str]) -> int:
    """What `videoar shards exclude` does where there are no books but the index."""
    write_json(folder / EXCLUDED, sorted({*excluded(folder), *names}))
    return recount_hidden(folder, serially)


def known_sources(folder: Path) -> list[str]:
    """Names of sources: single ones of both buckets, and a whole folder where there is one."""
    names = [name for bucket in (SMALL, LARGE) for name in names_of(folder, bucket)]
    return [names[3], names[40], names[-1]]


def names_of(folder: Path, bucket: str) -> list[str]:
    found: list[str] = ShardDataset.open(folder).rows(Bucket.parse(bucket))["source"].unique().to_pylist()
    return found


def no_scan(batches: Iterable[pa.RecordBatch], gone: list[str]) -> dict[str, ShardList]:
    raise AssertionError("a reader looked through the sources of all rows")


def test_readers_take_the_counts_and_find_what_a_look_through_all_rows_finds(
    books: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = len(ShardDataset.open(books))
    hidden = take_down(books, known_sources(books))
    assert 0 < hidden == samples - len(ShardDataset.open(books))
    (books / HIDDEN).rename(books / "aside")
    scanned = lists(books)
    (books / "aside").rename(books / HIDDEN)
    monkeypatch.setattr(shard_tables, "read_lists", no_scan)
    assert lists(books) == scanned


def test_counts_of_another_index_of_other_names_or_damaged_are_not_taken(books: Path) -> None:
    first, second, third = known_sources(books)
    take_down(books, [first])
    one, counts = lists(books), (books / HIDDEN).read_bytes()
    take_down(books, [second, third])
    three = lists(books)
    assert three != one
    for stale in (counts, counts[: len(counts) // 2], b""):
        (books / HIDDEN).write_bytes(stale)
        assert lists(books) == three
    pq.write_table(pa.table({"shard": [f"{SMALL}/shard-000000"], "rows": [7]}), books / HIDDEN)
    assert lists(books) == three
    (books / EXCLUDED).unlink()
    assert sum(sum(rows) for _, rows, _, _ in lists(books).values()) == 1301
