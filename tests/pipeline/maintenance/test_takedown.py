from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.maintenance import inspect, takedown, verify
from pipeline.shards.dataset import ShardDataset
from pipeline.shards.layout import DatasetError
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
