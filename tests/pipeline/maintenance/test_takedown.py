from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.maintenance import inspect, takedown, verify
from pipeline.shards import shard_tables
from pipeline.shards.dataset import ShardDataset
from pipeline.shards.layout import DatasetError, excluded
from pipeline.shards.manifest import Manifest
from tests.helpers.plans import BUCKET, SHARDS


def test_excluded_sources_vanish_from_readers_at_once(folder: Path) -> None:
    before = ShardDataset.open(folder)
    tar = (folder / f"{SHARDS[1]}.tar").read_bytes()
    assert takedown.exclude(folder, ["v/b"]) == 2
    after = ShardDataset.open(folder)
    assert len(before) == 6 and set(after.rows(BUCKET)["source"].to_pylist()) == {"v/a"} and after.digest != before.digest
    assert (folder / f"{SHARDS[1]}.tar").read_bytes() == tar and verify.verify(folder).sound
    assert takedown.exclude(folder, ["v/"]) == 6 and ShardDataset.open(folder).buckets() == []
    with pytest.raises(DatasetError, match="holds nothing of `v/x`"):
        takedown.exclude(folder, ["v/x"])


def test_compaction_removes_the_bytes_and_everything_still_adds_up(folder: Path) -> None:
    assert takedown.compact(folder) == 0, "nothing is excluded yet"
    kept = (folder / f"{SHARDS[0]}.tar").read_bytes()
    takedown.exclude(folder, ["v/b"])
    assert takedown.compact(folder) == 2
    report = verify.verify(folder)
    assert report.sound and (report.clips, report.encoded, report.refused_clips) == (7, 4, 3)
    assert inspect.stat(folder)["refused"] == {"encode/damaged": 1, "exclude/taken_down": 2, "probe/unreadable": 1}
    assert (folder / f"{SHARDS[0]}.tar").read_bytes() == kept and not (folder / f"{SHARDS[2]}.tar").exists()
    assert {c.caption for g in range(3) for c in Manifest(folder).clips(g) if c.source == "v/b"} == {""}
    assert takedown.compact(folder) == 0 and len(ShardDataset.open(folder)) == 4


def test_after_a_compaction_no_reader_looks_for_what_is_gone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """excluded.json stays, so each reader looked through the sources of all rows for ever."""

    def no_scan(*given: object) -> None:
        raise AssertionError("a reader looked through the sources of all rows")

    monkeypatch.setattr(shard_tables, "read_lists", no_scan)
    assert takedown.exclude(folder, ["v/b"]) == 2 and len(ShardDataset.open(folder)) == 4
    assert takedown.compact(folder) == 2
    assert len(ShardDataset.open(folder)) == 4 and verify.verify(folder).sound


@pytest.mark.parametrize("order", [1, -1])
def test_tasks_find_names_in_any_file_of_the_books(folder: Path, order: int) -> None:
    """Also of a video of which nothing was taken; who runs the tasks makes no difference."""

    def run(step: str, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        done = {at: function(*calls[at]) for at in list(range(len(calls)))[::order]}
        yield from (done[at] for at in range(len(calls)))

    assert takedown.exclude(folder, ["bad", "v/b"], run) == 2
    assert excluded(folder) == ["bad", "v/b"]
